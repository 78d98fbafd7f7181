"""What training costs and what single clips score, and that both survive a resumption."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks import ClipScores, Costs
from tests.integration.conftest import make_data, make_dit, make_vae


def test_costs_are_counted_over_interruptions(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    whole = Costs()
    make_trainer(max_steps=6, callbacks=[whole]).fit(make_dit(), make_data())
    first = make_trainer(max_steps=3, callbacks=[Costs()])
    first.fit(make_dit(), make_data())
    first.save_checkpoint(tmp_path / "mid.ckpt")
    second = Costs()
    trainer = make_trainer(max_steps=6, callbacks=[second])
    trainer.fit(make_dit(), make_data(), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    assert (second.tokens, second.flops) == (whole.tokens, whole.flops)
    assert whole.tokens == 6 * 4 * 2 * 2 * 2  # steps, clips, tokens
    assert second.seconds > 0


@pytest.mark.parametrize("conditioning", ["cross", "joint"])
def test_flops_of_a_step_are_what_torch_counts(conditioning: str) -> None:
    """Forward of the transformer and the text encoder three times, of the frozen VAE once."""
    module, data = make_dit(kernel="matmul", conditioning=conditioning), make_data()
    batch = next(iter(data.loader("train")))
    declared = module.training_flops(batch)
    x_0 = module.latent_rows(batch)
    t = torch.full((len(batch),), 0.5)
    with torch.no_grad(), FlopCounterMode(display=False) as learned:
        module.model.terms(batch.layout, x_0, t, torch.randn_like(x_0), module.captions_of(batch))
    with torch.no_grad(), FlopCounterMode(display=False) as frozen:
        module.model.vae.encode(module.videos(batch))
    assert declared == 3 * learned.get_total_flops() + frozen.get_total_flops()


def test_flops_of_a_batch_do_not_depend_on_what_was_counted_or_trained_before(
    make_trainer: Callable[..., pl.Trainer],
) -> None:
    module = make_dit(text_drop=0.0)
    batch = next(iter(make_data(batch_size=2).loader("train")))
    batches = [replace(batch, captions=(words,) * 2) for words in ("a", "a big red cube moves left " * 3, "")]
    alone = [make_dit(text_drop=0.0).training_flops(one) for one in batches]
    assert len(set(alone)) == 2  # the shortest are padded to one length
    assert [module.training_flops(one) for one in batches] == alone
    make_trainer(max_steps=1).fit(module, make_data(batch_size=2))
    assert [module.training_flops(one) for one in reversed(batches)] == alone[::-1]


def test_a_vae_counts_both_directions() -> None:
    module, data = make_vae(), make_data()
    batch = next(iter(data.loader("train")))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.vae.decode(module.vae.encode(module.videos(batch)).mean)
    assert module.training_flops(batch) == 3 * counter.get_total_flops()


def test_scores_of_clips_average_to_what_is_logged(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    for made, metrics in ((make_dit(), ("loss", "denoising_error")), (make_vae(), ("psnr", "ssim"))):
        trainer = make_trainer(max_steps=2, limit_val_batches=1.0, val_check_interval=2, callbacks=[ClipScores()])
        trainer.fit(made, make_data())
        content = json.loads((tmp_path / "clips" / "val.json").read_text())
        card = json.loads((tmp_path / "protocol" / "val.json").read_text())
        assert content["step"] == 2
        for metric in metrics:
            values = content["scores"][f"val/{metric}"]
            assert len(values) == card["clips"][f"val/{metric}"] == 4
            assert sum(values.values()) / 4 == pytest.approx(float(trainer.callback_metrics[f"val/{metric}"]), rel=1e-5)


def test_the_denoising_error_is_the_same_measure_for_every_objective(make_trainer: Callable[..., pl.Trainer]) -> None:
    """A model that says nothing (its last layer is zero) is judged by what its objective makes of zero."""
    errors = {}
    for objective in ("x", "v", "velocity"):
        trainer = make_trainer(limit_val_batches=1.0)
        trainer.validate(make_dit(objective=objective), make_data(), verbose=False)  # nothing is trained
        errors[objective] = trainer.callback_metrics
    x_0 = torch.cat([make_dit().latent_rows(b) for b in make_data().loader("val")])
    assert float(errors["x"]["val/denoising_error"]) == pytest.approx(float(x_0.square().mean()), rel=1e-4)
    assert float(errors["x"]["val/denoising_error"]) == pytest.approx(float(errors["x"]["val/loss"]), rel=1e-6)


def test_autoguidance_needs_a_weak_model_of_the_same_latents(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_dit(), make_data())
    trainer.save_checkpoint(tmp_path / "weak.ckpt")
    strong = make_dit(depth=3)
    torch.nn.init.normal_(strong.model.dit.unembed.weight, std=0.5)
    spec = "autoguidance(scale={}, checkpoint='{}')"
    size: dict[str, Any] = {"frames": 5, "height": 16, "width": 16}
    plain = strong.sample(["a cube"], guidance=1.0, **size)[0]
    assert torch.equal(strong.sample(["a cube"], guidance=spec.format(1.0, tmp_path / "weak.ckpt"), **size)[0], plain)
    assert not torch.equal(
        strong.sample(["a cube"], guidance=spec.format(3.0, tmp_path / "weak.ckpt"), **size)[0], plain
    )
    other = make_dit(seed=5)
    with pytest.raises(SoraError, match="two models of one VAE"):
        other.sample(["a cube"], guidance=spec.format(3.0, tmp_path / "weak.ckpt"), **size)
