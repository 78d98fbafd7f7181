"""Only what was changed changes: order, timesteps, noise and drops are functions of seed, clip and visit."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_sora.lit import LitDiT
from lightning_sora.models.denoiser import DenoisingTerms
from lightning_sora.spacetime import SpacetimeBatch, TokenLayout
from tests.integration.conftest import make_data, make_dit


class Recorder(LitDiT):
    """Writes down, per clip and visit, everything random that training saw."""

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor:
        terms = self.model.terms

        def recorded(
            layout: TokenLayout, x_0: Tensor, t: Tensor, noise: Tensor, captions: Any, *more: Any
        ) -> DenoisingTerms:
            for i, key in enumerate(batch.keys):
                drawn = (t[i].item(), noise[i].double().sum().item(), captions[i], batch.patches[i].sum().item())
                self.stream.append((key, drawn))
            return terms(layout, x_0, t, noise, captions, *more)

        self.model.terms = recorded
        try:
            return super().training_step(batch, batch_idx)
        finally:
            del self.model.terms


def stream_of(trainer: pl.Trainer, data: dict[str, Any], **model: Any) -> tuple[list[Any], Recorder]:
    module = make_dit(**model)
    module.__class__ = Recorder
    module.stream = []
    trainer.fit(module, make_data(**data))
    return module.stream, module


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path_factory.mktemp("reference"),
    )
    return stream_of(trainer, {})[0]


def test_two_epochs_visit_every_clip_once_each(reference: list[Any]) -> None:
    keys = [key for key, _ in reference]
    assert len(keys) == len(set(keys)) == 16
    assert {visit for _, visit in keys} == {0, 1}
    assert [clip for clip, visit in keys if visit == 0] != [clip for clip, visit in keys if visit == 1]


def test_streams_do_not_depend_on_workers(reference: list[Any], make_trainer: Callable[..., pl.Trainer]) -> None:
    assert stream_of(make_trainer(), {"num_workers": 2})[0] == reference


def test_streams_do_not_depend_on_how_a_batch_is_split(
    reference: list[Any], make_trainer: Callable[..., pl.Trainer]
) -> None:
    halves, _ = stream_of(make_trainer(accumulate_grad_batches=2), {"batch_size": 2})
    assert halves == reference


def test_streams_do_not_depend_on_the_model(reference: list[Any], make_trainer: Callable[..., pl.Trainer]) -> None:
    other, _ = stream_of(make_trainer(), {}, depth=3, attention="spatial, temporal, full")
    assert other == reference
    shared = make_dit().model.dit.blocks[0].mlp.gate.weight
    fresh = make_dit(depth=3, attention="spatial, temporal, full").model.dit.blocks[0].mlp.gate.weight
    assert torch.equal(shared, fresh)


ARMS: list[dict[str, Any]] = [
    {"attention": "linear(conv=3)"},
    {"attention": "gated, differential"},
    {"conditioning": "joint"},
    {"objective": "v", "weighting": "min_snr"},
    {"depth": 4, "modulation": "per_block"},
]


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_arms_share_streams_and_the_initial_value_of_every_common_parameter(
    arm: dict[str, Any], reference: list[Any], make_trainer: Callable[..., pl.Trainer]
) -> None:
    assert stream_of(make_trainer(), {}, **arm)[0] == reference
    base, other = dict(make_dit().named_parameters()), dict(make_dit(**arm).named_parameters())
    common = [name for name in base.keys() & other.keys() if base[name].shape == other[name].shape]
    assert len(common) > len(base) / 2
    for name in common:
        assert torch.equal(base[name], other[name]), name


def test_streams_depend_on_the_seed(reference: list[Any], make_trainer: Callable[..., pl.Trainer]) -> None:
    other, _ = stream_of(make_trainer(), {}, seed=1)
    same_pixels = [(key, drawn[3]) for key, drawn in other] == [(key, drawn[3]) for key, drawn in reference]
    assert same_pixels
    assert all(a[1][:2] != b[1][:2] for a, b in zip(other, reference, strict=True))


def test_resuming_in_mid_epoch_continues_with_exactly_the_next_clips(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Any
) -> None:
    """Eleven clips in batches of two: stop after 4 of 6 batches, then on into the next epoch."""
    data = {"clips": 11, "batch_size": 2}
    whole, through = stream_of(make_trainer(max_steps=9), data)
    first_trainer = make_trainer(max_steps=4)
    first, _ = stream_of(first_trainer, data)
    first_trainer.save_checkpoint(tmp_path / "mid.ckpt")
    module = make_dit(seed=0)
    module.__class__ = Recorder
    module.stream = []
    make_trainer(max_steps=9).fit(module, make_data(**data), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    assert first + module.stream == whole
    for (name, a), (_, b) in zip(through.state_dict().items(), module.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert module.ema is not None
    assert through.ema is not None
    for name, average in through.ema.shadow.items():
        assert torch.equal(average, module.ema.shadow[name]), name
