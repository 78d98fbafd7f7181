"""Where the pretrained parts of a checkpoint are looked for, once their folder or the working directory is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_sora.lit.moved import found_again


def test_what_lies_in_the_folder_that_was_moved_is_found_there_and_nothing_else(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "transformer").mkdir(parents=True)
    parts = {
        "vae": "spec:diffusers(on_demand=True, path='models/wan/vae')",
        "text": "cached(encoder=\"hf(name='models/wan')\", path='outputs/latents')",
        "denoiser": "diffusers(path='models/wan/transformer')",
        "image": "models/wan/image_encoder",
        "init_from": "weights(path='world')",
    }
    assert found_again(parts, None) == parts
    assert found_again(parts, None, base) == {
        "vae": f"spec:diffusers(on_demand=True, path='{base}/vae')",
        "text": f"cached(encoder=\"hf(name='{base}')\", path='outputs/latents')",
        "denoiser": f"diffusers(path='{base}/transformer')",
        "image": f"{base}/image_encoder",
        "init_from": "weights(path='world')",
    }
    alone = tmp_path / "alone"  # the folder of the transformer itself
    alone.mkdir()
    assert found_again({"denoiser": parts["denoiser"]}, None, alone) == {"denoiser": f"diffusers(path='{alone}')"}


@pytest.mark.parametrize("text", ["hf(name='google/umt5-xxl')", "bytes(dim=16)"])
def test_names_on_a_hub_and_parts_without_a_folder_stay(text: str) -> None:
    assert found_again({"denoiser": "wan(path='wan')", "text": text}, None, "moved")["text"] == text


def test_a_training_of_ones_own_is_what_was_moved_where_no_denoiser_is(tmp_path: Path) -> None:
    for asked in ("runs/first", "weights(path='runs/first', strict=False)"):
        found = found_again({"init_from": asked}, None, tmp_path / "there")["init_from"]
        assert found == asked.replace("runs/first", str(tmp_path / "there"))


def test_the_directory_of_the_training_goes_before_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "then" / "wan").mkdir(parents=True)
    (tmp_path / "then" / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    parts = {"denoiser": "wan(path='wan')", "image": "clip"}
    there = str(tmp_path / "then")
    assert found_again(parts, there, "moved") == {"denoiser": f"wan(path='{there}/wan')", "image": f"{there}/clip"}
    (tmp_path / "wan").mkdir()
    assert found_again(parts, there)["denoiser"] == "wan(path='wan')"
