"""Mixed sizes, whole: the same losses however clips share batches, and exact resumption under all of it."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from lightning_sora.cli import main
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.data.places import DecodeError
from lightning_sora.data.reading import reader_died
from lightning_sora.errors import SoraError
from lightning_sora.lit import LitDiT
from lightning_sora.randomness import uniform_per_clip
from lightning_sora.spacetime import SpacetimeBatch
from tests.integration.conftest import make_dit, make_vae
from tests.integration.test_lab import RECIPES, VAE_FIT

NATIVE = "native=((9,16,16),(5,16,32),(5,32,16),(1,24,24),(9,24,16))"
WORLD = f"world(clips=24, heldout_clips=6, {NATIVE})"
MIX = (
    f"mixture(sources={{'films': \"{WORLD}\", 'stills': \"world(clips=5, heldout_clips=3, native=((1,16,16),))\"}}, "
    "weights={'films': 2, 'stills': 1}, clips=18)"
)
POLICIES = ["fixed", "bucketed(resolutions=(16, 22))", "packed"]
SIZE = {"frames": 9, "height": 24, "width": 24, "fps": 8.0, "batch_size": 4}


def data_of(sizes: str, source: str = WORLD, **changes: Any) -> SpacetimeDataModule:
    return SpacetimeDataModule(source, **{**SIZE, "sizes": sizes, **changes})


def losses(module: LitDiT, data: SpacetimeDataModule) -> dict[str, Tensor]:
    """Each clip's loss, with its own noise and timestep."""
    found: dict[str, Tensor] = {}
    for batch in data.loader("val"):
        with torch.no_grad():
            x_0 = module.latent_rows(batch)
            t = uniform_per_clip(0, "timestep", batch.keys)
            noise = module.noise_for(x_0, batch.layout, "noise", batch.keys)
            found |= zip(
                batch.ids, module.weighted(module.model.terms(batch.layout, x_0, t, noise, batch.captions)), strict=True
            )
    return found


@pytest.mark.parametrize("attention", ["full", "spatial, temporal", "window(size=(2,2,2))"])
def test_packed_bucketed_and_one_by_one_give_each_clip_the_same_loss(attention: str) -> None:
    module = make_dit(attention=attention).eval()
    torch.manual_seed(0)
    for parameter in module.model.dit.parameters():  # zero gates would make every loss the same
        parameter.data += 0.05 * torch.randn_like(parameter)
    # All buckets at once are every clip's own size.
    own = "bucketed(frames=(1, 5, 9), resolutions=(16, 20, 22, 24), aspects=('1:1', '1:2', '2:1', '3:2'), tokens=90)"
    packed = losses(module, data_of("packed"))
    alone = losses(module, data_of("packed(tokens=27, lookahead=1)"))
    assert len(data_of("packed(tokens=27, lookahead=1)").loader("val")) > len(data_of("packed").loader("val"))
    bucketed = losses(module, data_of(own))
    assert set(packed) == set(alone) == set(bucketed)
    for name, loss in packed.items():
        torch.testing.assert_close(loss, alone[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss, bucketed[name], rtol=1e-5, atol=1e-5)
    assert len({round(float(loss), 4) for loss in packed.values()}) > 3


STILLS = f"mixture(sources={{'films': \"{WORLD}\", 'stills': \"world(clips=5, native=((1,16,16),))\"}}, clips=29)"


def shares(data: SpacetimeDataModule, equal: str) -> dict[str, float]:
    """How much each clip counts in the mean gradient of an epoch's batches."""
    found: dict[str, float] = {}
    batches = list(data.loader("train"))
    for batch in batches:
        each = torch.ones(len(batch), requires_grad=True)
        batch.weighed(each, equal).backward()
        assert each.grad is not None
        found |= zip(batch.ids, (each.grad / len(batches)).tolist(), strict=True)
    return found


@pytest.mark.parametrize("sizes", POLICIES)
def test_clips_or_tokens_weigh_the_same_under_every_policy(sizes: str) -> None:
    data = data_of(sizes, STILLS)
    clips = shares(data, "clip")
    assert len(clips) == 29
    assert list(clips.values()) == pytest.approx([1 / 29] * 29, rel=1e-6)
    lengths = {name: tokens for b in data.loader("train") for name, tokens in zip(b.ids, b.layout.lengths, strict=True)}
    total = sum(lengths.values())
    for name, share in shares(data, "token").items():
        assert share == pytest.approx(lengths[name] / total, rel=1e-6)
    batches = shares(data, "batch")
    assert max(batches.values()) > 1.5 * min(batches.values())  # what the others mend


def test_the_gradient_of_an_epoch_is_that_of_all_clips_however_they_are_batched() -> None:
    def gradient(data: SpacetimeDataModule) -> Tensor:
        module = make_dit(seed=0)
        torch.manual_seed(0)
        for parameter in module.model.dit.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        batches = list(data.loader("train"))
        for batch in batches:
            x_0, t = module.latent_rows(batch), uniform_per_clip(0, "timestep", batch.keys)
            noise = module.noise_for(x_0, batch.layout, "noise", batch.keys)
            each = module.weighted(module.model.terms(batch.layout, x_0, t, noise, batch.captions))
            (batch.weighed(each, module.diffusion.weigh) / len(batches)).backward()
        return torch.cat([p.grad.flatten() for p in module.model.dit.parameters() if p.grad is not None])

    packed, alone = gradient(data_of("packed")), gradient(data_of("packed(tokens=27, lookahead=1)"))
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max()))


class Scalars(pl.Callback):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen |= {name: float(value) for name, value in trainer.callback_metrics.items()}

    on_validation_end = on_train_batch_end


@pytest.mark.parametrize("make", [make_dit, make_vae], ids=["dit", "vae"])
@pytest.mark.parametrize("sizes", POLICIES)
def test_the_same_recipe_trains_under_every_policy(
    sizes: str, make: Callable[..., Any], make_trainer: Callable[..., pl.Trainer]
) -> None:
    scalars = Scalars()
    module = make()
    before = {name: p.clone() for name, p in module.named_parameters() if p.requires_grad}
    validated: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 3, "check_val_every_n_epoch": None}
    trainer = make_trainer(max_steps=3, callbacks=[scalars], **validated)
    trainer.fit(module, data_of(sizes, MIX))
    assert any(not torch.equal(p, before[name]) for name, p in module.named_parameters() if name in before)
    assert 0 < scalars.seen["data/token_use"] <= 1
    assert 0 <= scalars.seen["data/padding_spared"] < 1
    sources = {"films", "stills"}
    if make is make_vae:
        assert {f"val/psnr_{name}" for name in sources} <= set(scalars.seen)
        films, stills = (scalars.seen[f"val/psnr_{name}"] for name in ("films", "stills"))
        assert scalars.seen["val/psnr"] == pytest.approx((6 * films + 3 * stills) / 9, rel=1e-4)
    if make is make_dit:
        assert {f"train/loss_{name}" for name in sources} & set(scalars.seen)
        # One loss for each source of the mixture, and for each size.
        assert {"val/loss_films", "val/loss_stills"} <= set(scalars.seen)
        whole = 6 * scalars.seen["val/loss_films"] + 3 * scalars.seen["val/loss_stills"]
        assert scalars.seen["val/loss"] == pytest.approx(whole / 9, rel=1e-4)


class Visits(LitDiT):
    """Writes down which clips training saw, in order."""

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor:
        self.seen.append((batch.ids, batch.visits, batch.captions, int(batch.patches.long().sum())))
        return super().training_step(batch, batch_idx)


def watched(trainer: pl.Trainer, data: SpacetimeDataModule, **fit: Any) -> list[Any]:
    module = make_dit()
    module.__class__ = Visits
    module.seen = []
    trainer.fit(module, data, **fit)
    return module.seen


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param("bucketed(resolutions=(16, 19), keep={(19, 9): 0.5})", marks=pytest.mark.release),
        "packed(lookahead=4)",
    ],
)
def test_resuming_in_mid_epoch_with_workers_and_a_mixture_goes_on_with_exactly_the_next_clips(
    sizes: str, make_trainer: Callable[..., pl.Trainer], tmp_path: Any
) -> None:
    whole = watched(make_trainer(max_steps=12), data_of(sizes, MIX))
    stopped = make_trainer(max_steps=5)
    first = watched(stopped, data_of(sizes, MIX, num_workers=2))
    stopped.save_checkpoint(tmp_path / "mid.ckpt")
    again = make_trainer(max_steps=12)
    rest = watched(again, data_of(sizes, MIX, num_workers=2), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    assert first + rest == whole
    visits = Counter((name, visit) for ids, turns, *_ in whole for name, visit in zip(ids, turns, strict=True))
    assert set(visits.values()) == {1}  # no clip twice at one visit, over the epochs that this took
    assert len({visit for _, visit in visits}) > 1


class Damaged(SpacetimeDataModule):
    """Some clips of its training cannot be read, though the plan counts on them."""

    bad: tuple[str, ...] = ()

    def source(self, split: str) -> Any:
        source = super().source(split)
        if split == "train" and not hasattr(source, "real"):
            source.real = source.load
            source.load = lambda index, *a, **k: self._load(source, index, *a, **k)
        return source

    def _load(self, source: Any, index: int, *arguments: Any, **options: Any) -> Any:
        if source.infos[index].id in self.bad:
            raise DecodeError(f"{source.infos[index].id}: damaged")
        return source.real(index, *arguments, **options)


@pytest.mark.parametrize(
    "sizes", ["packed", "packed(tokens=27)", "bucketed(resolutions=(16, 19), keep={(19, 9): 0.5})", "fixed"]
)
def test_clips_that_go_bad_are_replaced_or_left_out_and_never_end_a_training(sizes: str) -> None:
    source = "world(clips=12, heldout_clips=4, native=((9,16,16),(5,16,32),(5,32,16),(1,24,24),(9,24,24)))"
    data = Damaged(source, **{**SIZE, "sizes": sizes})
    largest = max(data.source("train").infos, key=lambda info: info.frames * info.height * info.width)
    data.bad = (largest.id, data.source("train").infos[3].id)
    plan = data.plan("train")
    planned = sum(len(batch.clips) for batch in plan.epoch(0))
    wanted = {data.source("train").infos[i].id for batch in plan.epoch(0) for i in batch.clips}
    used: list[str] = []
    named: set[str] = set()
    for batch in data.loader("train"):
        assert sum(batch.layout.lengths) <= plan.policy.budget
        used += batch.ids
        named |= set(batch.skipped)
    assert not set(used) & set(data.bad)
    assert named == {f"{name}: damaged" for name in data.bad if name in wanted}
    assert planned - len(data.bad) <= len(used) <= planned
    data.bad = tuple(info.id for info in data.source("train").infos)
    with pytest.raises(SoraError, match="no clip of this size can be read"):
        next(iter(data.loader("train")))


def test_predictions_have_the_sizes_of_their_clips() -> None:
    module, data = make_dit(), data_of("packed")
    batch = next(iter(data.loader("val")))
    sizes = [grid.size(module.patch) for grid in batch.layout.grids]
    assert len(set(sizes)) > 1
    made = module.predict_step(batch, 0)
    assert [tuple(video.shape) for video in made] == [(*size, 3) for size in sizes]
    size, first = sizes[-1], len(sizes) - 1
    (alone,) = module.sample([batch.captions[first]], *size, keys=[("predict", batch.ids[first])])
    assert (made[first].int() - alone.int()).abs().max() <= 1


class Dying(SpacetimeDataModule):
    """Its source takes its process down at the third clip, as a decoder may."""

    def source(self, split: str) -> Any:
        source = super().source(split)
        if not hasattr(source, "loaded"):
            source.loaded, load = 0, source.load
            source.load = _Fatal(load)
        return source


class _Fatal:
    def __init__(self, load: Any) -> None:
        self.load, self.count = load, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.count += get_worker_info() is not None
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.load(*arguments, **options)


def test_the_death_of_a_worker_is_reported_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((RECIPES / "world_vae.yaml").read_text().replace("SpacetimeDataModule", f"{__name__}.Dying"))
    assert main(["fit", f"--config={recipe}", *VAE_FIT[2:], "--data.num_workers=1"]) == 2
    told = capfd.readouterr().err
    assert "error: a process that reads clips died (" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_connection_that_breaks_before_its_worker_counts_as_dead_is_a_death(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ident: Any) -> Any:
        raise error

    batches = iter(SpacetimeDataModule(WORLD, **{**SIZE, "num_workers": 1}).loader("val"))
    monkeypatch.setattr(resource_sharer._resource_sharer, "get_connection", broken)  # how tensors are handed over
    with pytest.raises(error) as found:
        next(batches)
    assert reader_died(found.value)
    with pytest.raises(error) as elsewhere:
        broken(None)
    assert not reader_died(elsewhere.value)


def test_a_clip_is_used_at_its_own_size_or_refused_by_name() -> None:
    data = data_of("packed", "world(clips=4, heldout_clips=4, native=((9,4,16),(9,16,16)))")
    plan = data.plan("train")
    small = [info.id for info in data.source("train").infos if info.height == 4]
    assert plan.usage.dropped == {"smaller than a patch": small}
    with pytest.raises(SoraError, match="none of 4 clips can be used"):
        data_of("packed", "world(clips=4, heldout_clips=4, native=((9,4,4),))").loader("train")


def test_a_square_crop_shows_a_part_of_what_the_native_aspect_shows() -> None:
    source = "world(clips=6, heldout_clips=2, native=((5,16,48),))"
    wide = next(iter(data_of("packed(area=768)", source).loader("val"))).videos()
    square = next(iter(data_of("fixed", source, height=16, width=16).loader("val"))).videos()
    for whole, part in zip(wide, square, strict=True):
        assert tuple(whole.shape) == (5, 16, 48, 3)
        assert torch.equal(whole[:, :, 16:32], part)  # evaluation cuts the middle
