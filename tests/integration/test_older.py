"""Checkpoints of earlier versions, whose options were not in groups and whose parts had other names, are read."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_sora.lit import LitDiT
from tests.integration.conftest import make_data, make_dit


@pytest.mark.slow
def test_a_checkpoint_without_groups_is_read_and_resumed(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_dit(objective="x", guidance=2.0, attention="spatial, full"), make_data())
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    stored = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["dit"]["attention"] == "spatial, full"
    for group in ("dit", "diffusion", "sampling"):
        stored["hyper_parameters"] |= stored["hyper_parameters"].pop(group)
    for tensors in (stored["state_dict"], stored["ema"]["shadow"]):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
    torch.save(stored, tmp_path / "old.ckpt")
    new, old = (LitDiT.load(tmp_path / f"{name}.ckpt") for name in ("new", "old"))
    assert (old.model.sampling, old.diffusion) == (new.model.sampling, new.diffusion)
    assert torch.equal(old.sample("a red cube"), new.sample("a red cube"))
    losses = []
    for name in ("new", "old"):
        again = make_trainer(max_steps=4)
        again.fit(
            make_dit(objective="x", attention="spatial, full"),
            make_data(),
            ckpt_path=tmp_path / f"{name}.ckpt",
            weights_only=True,
        )
        losses.append(float(again.callback_metrics["train/loss"]))
    assert losses[0] == losses[1]
