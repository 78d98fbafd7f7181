"""A fit that goes on with other batches or other clips: every clip once in each epoch, and what changed is told."""

import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.errors import SoraError
from lightning_sora.lit.expander import LitExpander
from lightning_sora.testbench.prompts import PromptDataModule
from tests.integration.conftest import make_data, make_dit

pytestmark = pytest.mark.slow
Make = Callable[..., pl.Trainer]


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.keys: list[Any] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.keys += batch.keys if hasattr(batch, "keys") else batch.ids


def fitted(make_trainer: Make, data: Any, steps: int, start: Path | None = None, **options: Any) -> list[Any]:
    """The visits of clips that a fit makes; it leaves `end.ckpt` in its folder."""
    seen = Seen()
    module = LitExpander(dim=16, depth=1, num_heads=2) if isinstance(data, PromptDataModule) else make_dit()
    trainer = make_trainer(callbacks=[seen], max_steps=steps, **options)
    trainer.fit(module, data, ckpt_path=start, weights_only=True if start else None)
    trainer.save_checkpoint(Path(trainer.default_root_dir) / "end.ckpt")
    return seen.keys


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "batches": ({"batch_size": 3}, "data.batch_size was 2, is 3"),
    "clips added": ({"clips": 15}, "there were 11 clips, now 15"),
    "clips removed": ({"clips": 8}, "there were 11 clips, now 8"),
    "seed": ({"seed": 1, "source_seed": 0}, "data.seed was 0, is 1"),
    "packs": ({"sizes": "packed(lookahead=4)"}, "data.sizes was fixed, is packed(lookahead=4)"),
    "size and batches": ({"height": 32, "batch_size": 1}, "data.batch_size was 2, is 1; data.height was 16, is 32"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_epoch_goes_on_with_what_it_has_not_had(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    changes, words = CHANGES[change]
    before: dict[str, Any] = {"clips": 11, "batch_size": 2}
    after = {**before, **changes}
    had = fitted(make_trainer, make_data(**before), 8)  # six batches are an epoch
    (tmp_path / "end.ckpt").rename(tmp_path / "mid.ckpt")
    with caplog.at_level(logging.WARNING, logger="lightning_sora"):
        rest = fitted(make_trainer, make_data(**after), 16, tmp_path / "mid.ckpt")
    clips = {f"train-{i}" for i in range(after["clips"])}
    of_epoch = len([clip for clip, visit in had if visit == 1 and clip in clips])
    told = f"changed since the checkpoint: {words}; epoch 1, which has had {of_epoch} clips, goes on with the others"
    assert told in caplog.text
    assert set(Counter(had + rest).values()) == {1}
    last = max(visit for _, visit in rest)
    assert last > 1
    for epoch in range(1, last):
        of = {clip for clip, visit in had + rest if visit == epoch}
        assert of - {clip for clip, visit in had if visit == epoch} == clips - {c for c, v in had if v == epoch}
    if change not in ("batches", "packs"):
        return
    # Interrupted after the change, within that epoch and in a later one, it is the same.
    caplog.clear()
    parts = fitted(make_trainer, make_data(**after), 9, tmp_path / "mid.ckpt")
    parts += fitted(make_trainer, make_data(**after), 12, tmp_path / "end.ckpt")
    parts += fitted(make_trainer, make_data(**after), 16, tmp_path / "end.ckpt")
    assert parts == rest
    assert caplog.text.count("changed since") == 1


def test_batches_may_change_again_and_again_within_an_epoch(make_trainer: Make, tmp_path: Path) -> None:
    had = fitted(make_trainer, make_data(12, batch_size=2), 1)
    for steps, size, together in ((2, 5, 1), (3, 1, 3), (5, 1, 1), (7, 2, 2)):
        more = {"accumulate_grad_batches": together}
        had += fitted(make_trainer, make_data(12, batch_size=size), steps, tmp_path / "end.ckpt", **more)
    assert len(had) == 2 + 5 + 3 + 2 + 8
    assert set(Counter(had).values()) == {1}
    assert {clip for clip, visit in had if visit == 0} == {f"train-{i}" for i in range(12)}


def test_a_step_has_all_its_batches_where_their_number_changes(make_trainer: Make, tmp_path: Path) -> None:
    """Four batches to an epoch; the fit ends after one step of three."""
    had = fitted(make_trainer, make_data(batch_size=2), 1, accumulate_grad_batches=3)
    rest = fitted(make_trainer, make_data(batch_size=2), 4, tmp_path / "end.ckpt", accumulate_grad_batches=2)
    assert (len(had), len(rest)) == (3 * 2, 3 * 2 * 2)
    whole = fitted(make_trainer, make_data(batch_size=2), 9)
    assert had + rest == whole


def test_a_mixture_goes_on_in_other_batches_but_not_with_other_clips(make_trainer: Make, tmp_path: Path) -> None:
    def data(size: int, more: int) -> SpacetimeDataModule:
        one = make_data(batch_size=size)
        sources = f"{{'a': \"world(clips=6, heldout_clips=2)\", 'b': \"world(level='simple', clips={more})\"}}"
        one.spec = f"mixture(sources={sources}, weights={{'a': 1, 'b': 3}}, clips=12)"
        return one

    had = fitted(make_trainer, data(2, 5), 3)
    (tmp_path / "end.ckpt").rename(tmp_path / "mid.ckpt")
    rest = fitted(make_trainer, data(3, 5), 5, tmp_path / "mid.ckpt")
    assert Counter(had + rest) == Counter(fitted(make_trainer, data(12, 5), 1))
    with pytest.raises(SoraError, match=r"the mixture has changed .*there were 11 clips, now 13"):
        fitted(make_trainer, data(2, 7), 5, tmp_path / "mid.ckpt")


def test_pairs_of_texts_go_on_with_the_next_pair_in_other_batches(make_trainer: Make, tmp_path: Path) -> None:
    def data(size: int, clips: int = 12) -> PromptDataModule:
        return PromptDataModule(clips=clips, heldout_clips=2, batch_size=size)

    had = fitted(make_trainer, data(4), 2)
    for steps, size in ((4, 3), (5, 3), (7, 2)):
        had += fitted(make_trainer, data(size), steps, tmp_path / "end.ckpt")
    assert had == fitted(make_trainer, data(1), len(had))
    fitted(make_trainer, data(4), 2)
    with pytest.raises(SoraError, match=r"data\.clips=12, not 16.*set data\.clips=12"):
        fitted(make_trainer, data(4, 16), 3, tmp_path / "end.ckpt")


def test_other_pairs_of_texts_are_refused_by_what_changed(make_trainer: Make, tmp_path: Path) -> None:
    same: dict[str, Any] = {"clips": 12, "heldout_clips": 2, "batch_size": 4}
    fitted(make_trainer, PromptDataModule(**same), 2)
    for name, was, now in (("seed", 0, 1), ("levels", ["tiny"], ["simple"]), ("styles", None, ["alt"])):
        told = rf"data\.{name}={re.escape(str(was)) if was is not None else '.*'}, not {re.escape(str(now))}"
        with pytest.raises(SoraError, match=f"{told}.*set data.{name}="):
            fitted(make_trainer, PromptDataModule(**(same | {name: now})), 3, tmp_path / "end.ckpt")
    assert len(fitted(make_trainer, PromptDataModule(**same, levels=["tiny"]), 3, tmp_path / "end.ckpt")) == 4


def test_other_clips_of_the_same_names_are_told(
    make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    had = fitted(make_trainer, make_data(batch_size=2), 1)
    (tmp_path / "end.ckpt").rename(tmp_path / "mid.ckpt")
    simple = make_data(batch_size=2)
    simple.spec = simple.spec.replace("tiny", "simple")
    for data in (simple, make_data(batch_size=2, source_seed=1)):
        caplog.clear()
        rest = fitted(make_trainer, data, 4, tmp_path / "mid.ckpt")
        assert (
            "changed since the checkpoint: data.source has other clips or captions under the same names" in caplog.text
        )
        assert Counter(clip for clip, _ in had + rest) == Counter(f"train-{i}" for i in range(8))
    caplog.clear()
    fitted(make_trainer, make_data(batch_size=2), 4, tmp_path / "mid.ckpt")
    assert "changed since" not in caplog.text


def test_a_checkpoint_of_an_earlier_version_goes_on(make_trainer: Make, tmp_path: Path) -> None:
    whole = fitted(make_trainer, make_data(batch_size=2), 6)
    fitted(make_trainer, make_data(batch_size=2), 3)
    content = torch.load(tmp_path / "end.ckpt", weights_only=True)
    del content["SpacetimeDataModule"]["plan"]
    torch.save(content, tmp_path / "old.ckpt")
    assert fitted(make_trainer, make_data(batch_size=2), 6, tmp_path / "old.ckpt") == whole[6:]
