"""Training on two ranks under torchrun goes on from one rank's checkpoint with exactly the next clips."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLIPS = 24  # of the videos, in an epoch
TRAINING = """
import json, os, sys
import lightning.pytorch as pl
import torch
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.lit import LitDiT
from tests.integration.conftest import make_dit


class Visits(LitDiT):
    def training_step(self, batch, batch_idx):
        self.seen.append([list(batch.ids), list(batch.visits), int(batch.patches.long().sum())])
        return super().training_step(batch, batch_idx)


def train(out, sizes, steps, start):
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(1)
    module = make_dit()
    module.__class__ = Visits
    module.seen = []
    films = "world(clips=24, heldout_clips=6, native=((9,16,16),(5,16,32),(5,32,16),(1,24,24),(9,24,16)))"
    data = SpacetimeDataModule(
        films, frames=9, height=24, width=24, fps=8.0, batch_size=4, sizes=sizes
    )
    trainer = pl.Trainer(
        max_steps=int(steps), accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, default_root_dir=out, limit_val_batches=0,
    )
    trainer.fit(module, data, ckpt_path=start or None, weights_only=bool(start) or None)
    trainer.save_checkpoint(f"{out}/{ranks}.ckpt")
    weights = sum(float(p.detach().double().abs().sum()) for p in module.model.dit.parameters())
    trainer.limit_val_batches = 1.0
    trainer.validate(module, data, verbose=False)
    told = {"seen": module.seen, "weights": weights, "loss": float(trainer.callback_metrics["val/loss"])}
    with open(f"{out}/{ranks}-{trainer.global_rank}.json", "w") as file:
        json.dump(told, file)


if __name__ == "__main__":
    train(*sys.argv[1:5])
"""


def trained(out: Path, sizes: str, ranks: int, steps: int, start: str = "") -> list[dict[str, Any]]:
    """What each rank saw in training up to ``steps`` steps of the optimizer."""
    out.mkdir(exist_ok=True)
    script = out / "training.py"
    script.write_text(TRAINING)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, script, out, sizes, str(steps), start],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.release
@pytest.mark.parametrize("sizes", ["packed(lookahead=4)"])
def test_one_rank_then_two_cover_each_clip_once_per_epoch(tmp_path: Path, sizes: str) -> None:
    (alone,) = trained(tmp_path / "alone", sizes, 1, 20)
    (first,) = trained(tmp_path / "first", sizes, 1, 4)
    both = trained(tmp_path / "both", sizes, 2, 12, str(tmp_path / "first" / "1.ckpt"))
    assert first["seen"] == alone["seen"][:4]
    dealt = [batch for step in zip(*(rank["seen"] for rank in both), strict=True) for batch in step]
    assert dealt == alone["seen"][4:20]
    visits = Counter(
        (name, visit) for ids, turns, _ in first["seen"] + dealt for name, visit in zip(ids, turns, strict=True)
    )
    assert set(visits.values()) == {1}
    whole = [visit for visit in {visit for _, visit in visits} if sum(turn == visit for _, turn in visits) == CLIPS]
    assert whole, "no epoch was finished"
    # The ranks hold the same model, and judge it on all validation clips together: here on one batch.
    assert both[0]["weights"] == pytest.approx(both[1]["weights"], rel=1e-9)
    assert both[0]["loss"] == both[1]["loss"]


EVALUATION = """
import json, os, sys
import lightning.pytorch as pl
import torch
from lightning_sora.lit.callbacks import ClipScores, Evaluate
from tests.integration.conftest import make_data, make_dit, make_vae

ranks = int(os.environ.get("WORLD_SIZE", 1))
torch.set_num_threads(1)
found = {}
for module in (make_vae(), make_dit()):
    data = make_data(batch_size=2)
    data.spec = "world(level='tiny', clips=2, heldout_clips=7)"
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=sys.argv[1],
    )
    trainer.validate(module, data, verbose=False)
    found |= {f"{type(module).__name__} {k}": float(v) for k, v in trainer.callback_metrics.items()}
evaluate = Evaluate(["fvd", "kvd(paired=True)", "temporal_flickering"], extractor="random(width=4, side=16)")
trainer.callbacks += [evaluate, ClipScores()]
data.spec = "world(level='tiny', clips=2, heldout_clips=17)"
trainer.test(module, data, verbose=False)
found |= {f"test {k}": v for k, v in evaluate.results["fvd"].as_dict().items()}
found |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
found["card"] = int(evaluate.results.card.id, 16)
rank = os.environ.get("RANK", "0")
with open(f"{sys.argv[1]}/{ranks}-{rank}.json", "w") as file:
    json.dump(found, file)
"""


def test_what_is_judged_is_the_same_on_ranks_with_uneven_clips(tmp_path: Path) -> None:
    """Seven clips in batches of two: one rank has four of them, or all."""
    script = tmp_path / "evaluation.py"
    script.write_text(EVALUATION)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = {}
    for ranks in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, script, tmp_path],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        for rank in range(ranks):
            found[ranks, rank] = json.loads((tmp_path / f"{ranks}-{rank}.json").read_text())
    alone = found[1, 0]
    assert {"test/kvd", "test/temporal_flickering", "test value", "card"} <= set(alone)
    assert alone["test clips"] == 17
    names = {"LitDiT val/loss", "LitDiT val/denoising_error", "LitDiT val/loss_t0", "LitVAE val/l1"}
    assert names | {"LitVAE val/psnr", "LitVAE val/active_channels", "LitVAE val/latent_std"} <= set(alone)
    for rank in range(2):
        assert found[2, rank] == pytest.approx(alone, rel=1e-5)
