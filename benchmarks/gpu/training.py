"""The main recipe from start to end: fit a VAE, fit a DiT on its latents, test on held-out prompts.

``recipes/world_vae.yaml`` and ``recipes/world_dit.yaml`` by the commands that a user types, as they are but for the
accelerator, in a folder of their own. Figures are what the runs recorded.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "fit VAE": ("fit", "world_vae.yaml"),
    "fit DiT": ("fit", "world_dit.yaml"),
    "test": ("test", "world_dit.yaml", "--ckpt_path=last"),
}
TINY_VAE = "causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8, front_end_patch=(4, 8, 8), decoder_blocks=1)"
TINY = (
    "--data.source=world(level='tiny', clips=4, heldout_clips=16)",
    *("--data.frames=9", "--data.height=16", "--data.width=16", "--data.batch_size=4"),
    *("--trainer.max_steps=1", "--trainer.val_check_interval=1"),
)
TINY_MODEL = {
    "world_vae.yaml": (f"--model.vae={TINY_VAE}", "--evaluation.extractor=null"),
    "world_dit.yaml": (
        *("--model.dit.dim=32", "--model.dit.depth=1", "--model.dit.num_heads=2"),
        *("--model.sampling.steps=1", "--model.prompts=[]"),
        "--model.text=words(dim=8, depth=1, num_heads=1)",
    ),
}
#: What a command surely takes, start included.
LEAST_SECONDS = 30.0


def cases(session: Session) -> list[Case]:
    seconds = 0.0 if session.reduced else LEAST_SECONDS
    return [Case({"command": name}, partial(_run, session, name), seconds) for name in COMMANDS]


def _run(session: Session, name: str) -> Iterator[Row]:
    from lightning_sora.cli import main
    from lightning_sora.testbench import extractor, metrics, source  # noqa: F401  # of a checkout that is not installed

    folder = session.folder / "training"
    folder.mkdir(parents=True, exist_ok=True)
    command, recipe, *rest = COMMANDS[name]
    arguments = [command, f"--config={ROOT / 'recipes' / recipe}", *rest, *_where(session)]
    if session.reduced:
        arguments += [*TINY, *TINY_MODEL[recipe]]
    if session.cuda:
        torch.cuda.reset_peak_memory_stats(session.device)
    begun = time.perf_counter()
    with _inside(folder):
        status = main(arguments)
        seconds = time.perf_counter() - begun
        if status:
            raise RuntimeError(f"lightning-sora {command} ended with status {status}; see logs/training.txt")
        metrics = _recorded(folder, vae=name == "fit VAE")
    yield {"what": "seconds", "value": seconds}
    if session.cuda:
        yield {"what": "peak GiB on the device", "value": torch.cuda.max_memory_allocated(session.device) / 2**30}
    chosen = "test/" if name == "test" else ("val/", "speed/", "train/loss", "cost/")
    for key, value in sorted(metrics.items()):
        if key.startswith(chosen) and math.isfinite(value):
            yield {"what": key, "value": value}


def _where(session: Session) -> tuple[str, ...]:
    accelerator, devices = ("gpu", f"[{session.device.index}]") if session.cuda else ("cpu", "1")
    return (
        f"--trainer.accelerator={accelerator}",
        f"--trainer.devices={devices}",
        "--trainer.enable_progress_bar=false",
    )


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In the folder, with a store of runs of its own."""
    key, before = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")
    os.environ[key] = _store(folder)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before


def _store(folder: Path) -> str:
    return f"sqlite:///{folder.resolve()}/mlflow.db"


def _recorded(folder: Path, *, vae: bool) -> dict[str, float]:
    """The latest value of every metric of the newest run of the VAE, or of the DiT."""
    from mlflow import MlflowClient

    client = MlflowClient(_store(folder))
    experiment = client.get_experiment_by_name("world")
    if experiment is None:
        raise RuntimeError(f"no run was recorded in {_store(folder)}")
    kind = "" if vae else "tags.`vae.run_id` != 'none'"
    newest, *_ = client.search_runs([experiment.experiment_id], kind, max_results=1)
    return dict(newest.data.metrics)
