"""Estimates of memory against what is measured, and refusals before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_sora import memory
from lightning_sora.errors import SoraError
from lightning_sora.models import diffusers_folder
from lightning_sora.models.denoisers import DENOISERS, DiT
from lightning_sora.models.memory_estimate import (
    GIB,
    check_fits,
    check_training_fits,
    check_weights_fit,
    parameters_in_words,
    training_memory,
)
from lightning_sora.models.text_base import TextContext
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.host_toys import TEXT, channels_of, host_folder
from tests.pretrained_toys import folder


def saved_bytes(network: nn.Module, run: Any) -> int:
    """What autograd keeps for the backward pass, beside the weights."""
    own = {value.untyped_storage().data_ptr() for value in network.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), value  # held, so that no other takes its place
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        run()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("frames", [2, 8])
def test_activations_are_what_autograd_saves(frames: int) -> None:
    network = DiT(16, 32, patch_size=(1, 2, 2), dim=128, depth=3, num_heads=2)
    layout = TokenLayout.uniform(TokenGrid(frames, 8, 8), 1)
    text = TextContext(torch.randn(1, 16, 32), torch.ones(1, 16, dtype=torch.bool))
    rows = torch.randn(1, layout.total, network.in_dim)
    found = saved_bytes(network, lambda: network(rows, torch.tensor([0.5]), text, layout))
    assert training_memory(network, layout.total).activations == pytest.approx(found, rel=0.3)


def test_weights_gradients_states_and_the_average_are_counted_one_by_one() -> None:
    network = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 10, bias=False))
    found = training_memory(network, 0, average=True, loaded=False)
    assert (found.weights, found.gradients, found.optimizer, found.average) == (1600, 1600, 3200, 1600)
    network[0].requires_grad_(False)
    found = training_memory(network.bfloat16(), 0, states=1, average=True)
    assert (found.weights, found.gradients, found.optimizer, found.average) == (0, 400, 400, 800)
    assert found.total == 1600


def test_recomputed_layers_save_less_and_autocast_too() -> None:
    network = DiT(16, 32, patch_size=(1, 2, 2), dim=64, depth=12, num_heads=2)
    plain, less = (training_memory(network, 100, checkpoint=one).activations for one in (False, True))
    assert less < plain / 3
    assert training_memory(network, 100, autocast=True).activations < plain
    assert training_memory(network, 200).activations == pytest.approx(2 * plain, abs=1)


def test_a_network_on_the_meta_device_is_estimated_and_refused_with_what_helps() -> None:
    with torch.device("meta"):
        network = nn.ModuleList(nn.Linear(5120, 5120, bias=False) for _ in range(500))
    with pytest.raises(SoraError) as refused:
        check_training_fits(network, 32760, average=True, loaded=False, available=23 * GIB)
    told = str(refused.value)
    assert "training 13.1 billion of 13.1 billion parameters on 32,760 tokens at a time needs" in told
    assert "this machine has 23.0 GiB free" in told
    for way in ("low-rank adapters", "checkpoint=True", "ema_decay", "bf16-mixed", "fewer tokens"):
        assert way in told
    assert "\n" not in told
    network.requires_grad_(False)
    with pytest.raises(SoraError) as refused:
        check_training_fits(network, 32760, checkpoint=True, autocast=True, device="cuda:0", available=GIB)
    told = str(refused.value)
    assert "cuda:0 has 1.0 GiB free" in told
    for way in ("low-rank", "checkpoint=True", "ema_decay", "bf16"):
        assert way not in told
    assert check_training_fits(nn.Linear(4, 4), 10).total > 0


def test_a_step_that_may_fit_is_warned_of_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Some families save as much as 1.7 times less than is estimated."""
    network = nn.Linear(1000, 1000, bias=False)
    needed = training_memory(network, 10_000)
    for free, refused, warned in (
        (needed.total, False, False),
        (needed.total - 1, False, True),
        (needed.total - needed.activations // 2, False, True),
        (needed.total - needed.activations // 2 - 1, True, False),
    ):
        caplog.clear()
        try:
            check_training_fits(network, 10_000, available=free)
        except SoraError:
            assert refused
        else:
            assert not refused
        assert ("it may not fit; what helps" in caplog.text) == warned


def test_weights_in_half_precision_save_less() -> None:
    single, half = (training_memory(nn.Linear(100, 100).to(kind), 1000) for kind in (torch.float32, torch.bfloat16))
    assert half.activations < 0.75 * single.activations
    assert half.optimizer == single.optimizer // 2
    with pytest.raises(SoraError) as refused:
        check_training_fits(nn.Linear(100, 100).bfloat16(), 1000, available=1)
    assert "bf16-mixed" not in str(refused.value)


def test_weights_alone_are_refused_in_words() -> None:
    with pytest.raises(SoraError) as refused:
        check_weights_fit("WanTransformer3DModel", 14_300_000_000, available=23 * GIB)
    assert str(refused.value).startswith(
        "WanTransformer3DModel, of 14.3 billion parameters, needs in float32, for its weights alone, about 53.3 GiB, "
        "and this machine has 23.0 GiB free; "
    )
    check_weights_fit("WanTransformer3DModel", 14_300_000_000, dtype=torch.bfloat16, available=27 * GIB)
    check_fits(10**18, "what nobody knows of needs", "", device="mps")
    assert [parameters_in_words(n) for n in (7, 1_300, 2_500_000)] == ["7", "1.3 thousand", "2.5 million"]


def test_a_folder_is_refused_before_its_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = diffusers_folder.find(str(folder("wan", tmp_path)), "vae")
    monkeypatch.setattr("lightning_sora.models.memory_estimate.available_memory", lambda device: 1000)
    monkeypatch.setattr(diffusers_folder, "diffusers_class", lambda name: pytest.fail("the weights were read"))
    with pytest.raises(SoraError, match=r"AutoencoderKLWan, of 2\d\.\d thousand parameters, needs in float32"):
        diffusers_folder.load(stored)


@pytest.mark.parametrize("name", ["diffusers", "wan"])
def test_a_denoiser_is_refused_before_its_weights_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parts = host_folder("wan", tmp_path), (channels_of("wan"), TEXT)
    DENOISERS.create(f"{name}(path={str(path)!r})", *parts)
    monkeypatch.setattr("lightning_sora.models.memory_estimate.available_memory", lambda device: 1000)
    with pytest.raises(SoraError, match=r"WanTransformer3DModel, of \d+\.\d thousand parameters, needs in float32"):
        DENOISERS.create(f"{name}(path={str(path)!r})", *parts)


def test_control_groups_bound_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: str, content: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)

    write("meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    write("own", "5:cpu,memory:/a/b\n0::/c/d\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    assert memory.available_memory() == 8000 * 1024
    write("groups/memory/a/memory.limit_in_bytes", "5000\n")
    write("groups/memory/a/memory.usage_in_bytes", "3000\n")
    write("groups/memory/a/memory.stat", "total_cache 999\ntotal_inactive_file 300\ntotal_active_file 200\n")
    assert memory.available_memory() == 2500
    write("groups/c/d/memory.max", "max\n")
    write("groups/c/d/memory.current", "100\n")
    assert memory.available_memory() == 2500
    write("groups/c/memory.max", "1000\n")
    write("groups/c/memory.current", "1200\n")
    write("groups/c/memory.stat", "anon 5\n")
    assert memory.available_memory() == 0
    assert memory.available_memory("mps") is None
