"""The benchmark of a model of a real size, at a small one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import real_size

pytestmark = pytest.mark.slow
SIZE = ["--small", "--frames", "5", "--height", "32", "--width", "32"]


@pytest.mark.parametrize("denoiser", ["wan", "diffusers"])
def test_it_trains_and_samples(denoiser: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    found = {}
    for part in real_size.PARTS:
        real_size.main([*SIZE, "--denoiser", denoiser, "--part", part])
        found[part] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {told["tokens"] for told in found.values()} == {8}
    assert found["lora"]["trained"] > 0
    assert found["lora"]["flops"] == found["checkpointed"]["flops"] > 0
    assert found["sample"]["decoded"] > 0


def test_the_shape_is_wans(tmp_path: Path) -> None:
    """Wan 2.1 T2V 1.3B has 1.42 billion parameters (its safetensors file: 5.68 GB in float32)."""
    from lightning_sora.models.diffusers_folder import skeleton

    count = sum(p.numel() for p in skeleton(real_size.WAN).parameters())
    assert count * 4 == pytest.approx(5.68e9, rel=0.01)
