"""The main job, end to end: fit a VAE, fit a DiT on its latents, test on held-out prompts, sample.

    make demo                     # or: python benchmarks/demo.py

Runs the commands that a user types, one after the other, and ends with a table of what mlflow
recorded and the line that opens it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

# Before torch is loaded. A thread that waits for the other looks a thousand times, then sleeps: 3.7 steps of the DiT a
# second on two quiet cores, 1.3 beside a busy process; one thread 2.5 and 2.5, two that sleep at once 1.8 and 2.1. Two
# that never sleep reach 4.0, and are 20 times slower where they meet another process on their core.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from lightning_sora.cli import main
from lightning_sora.time_left import TimeLeft

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "outputs/world_dit/checkpoints/last.ckpt"
# Combinations of colour and shape that training never shows.
PROMPTS = (
    "a big red cube moves away",
    "a small green cone moves away to the left",
    "a big blue sphere comes toward us",
    "a big yellow cylinder moves left",
)
STEPS = {
    "fit VAE": ("fit", "--config=recipes/world_vae.yaml"),
    "fit DiT": ("fit", "--config=recipes/world_dit.yaml"),
    "test": ("test", "--config=recipes/world_dit.yaml", "--ckpt_path=last"),
    "sample": (
        "sample", f"--ckpt={CHECKPOINT}", *(f"--prompt={p}" for p in PROMPTS), "--out=outputs/world_dit/demo",
    ),
}  # fmt: skip
#: What the time left begins with: about the seconds in `benchmarks/results/demo_*`.
#: "start" is what comes before the first step: imports, the recipe, rendering.
MEASURED = {"start": 25.0, "fit VAE": 85.0, "fit DiT": 220.0, "test": 19.0, "sample": 3.0}
SHOWN = {
    "val/psnr": "VAE reconstruction, PSNR (dB)",
    "val/ssim": "VAE reconstruction, SSIM",
    "test/fvd": "FVD (world)",
    "test/fvd_unbiased": "  less its small-sample bias",
    "test/fvd_small_sample_bias": "  floor: two sets of this size of real clips, expected",
    "test/fvd_real_vs_real": "  floor: halves of the real clips, less bias",
    "test/rfvd": "  floor: the VAE's reconstructions",
    "test/clip_score": "CLIP-score (world)",
    "test/clip_score_shuffled": "  captions shuffled",
    "test/identity": "identity over frames",
    "test/permanence": "permanence",
    "test/trajectory_error": "trajectory error (% of the stage)",
    "test/temporal_flickering": "temporal flickering (1 is none)",
}
INTERVALS = {"test/fvd_unbiased": "test/fvd", "test/fvd_real_vs_real": "test/fvd_real_vs_real"}
FACTS = ("color", "shape", "size", "motion", "count", "camera")


def run(name: str, job: TimeLeft) -> float:
    """Runs one command of lightning-sora in this process; the seconds it took."""
    command = STEPS[name]
    if name != "fit VAE":  # which begins with its first step
        job.begin(name)
    words = " ".join(f'"{c}"' if " " in c else c for c in command)
    print(f"\n$ lightning-sora {words}", flush=True)
    begun = time.perf_counter()
    status = main(list(command))
    if status:
        sys.exit(status)
    return time.perf_counter() - begun


def recorded() -> dict[str, float]:
    """The latest value of every metric of the newest DiT run and of the VAE run that it stands on."""
    from mlflow import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    experiment = client.get_experiment_by_name("world")
    assert experiment is not None, "the two fits above have recorded to it"
    dit, *_ = client.search_runs([experiment.experiment_id], "tags.`vae.run_id` != 'none'", max_results=1)
    vae = client.get_run(dit.data.tags["vae.run_id"])
    return vae.data.metrics | dit.data.metrics


def demo() -> None:
    os.chdir(ROOT)
    begun = time.perf_counter()
    job = TimeLeft(MEASURED)
    with job.told(lambda line: tqdm.write(f"[demo] {line}", file=sys.stderr)):
        from lightning_sora.lit.callbacks import Progress  # takes seconds

        def advance(share: float) -> None:
            if job.name == "start":
                job.begin("fit VAE")
            job.advance(share)

        Progress.listeners.append(advance)
        seconds = {name: run(name, job) for name in STEPS}
    from lightning_sora.memory import peak_memory_gib

    metrics = recorded()
    table = Table("what", "value", title="lightning-sora demo: 128 held-out prompts, fresh noise")
    for key, words in SHOWN.items():
        if key not in metrics:  # a distance tells only what so many clips can tell
            table.add_row(words, "too few clips to tell")
            continue
        ends = INTERVALS.get(key)
        interval = f"  [{metrics[f'{ends}_low']:.2f}, {metrics[f'{ends}_high']:.2f}]" if ends else ""
        table.add_row(words, f"{metrics[key]:.2f}{interval}")
    for fact in FACTS:
        right, chance = metrics[f"test/adherence_{fact}"], metrics[f"test/adherence_{fact}_shuffled"]
        table.add_row(f"{fact} as asked, and for shuffled captions", f"{right:.1%}, {chance:.1%}")
    table.add_row("every fact as asked", f"{metrics['test/adherence_all']:.1%}")
    for name, value in seconds.items():
        table.add_row(f"{name} (s)", f"{value:.0f}")
    table.add_row("all (min)", f"{(time.perf_counter() - begun) / 60:.1f}")
    table.add_row("  of it CPU time, all threads (min)", f"{time.process_time() / 60:.1f}")
    table.add_row("peak memory (GiB)", f"{peak_memory_gib():.1f}")
    console = Console(width=max(80, shutil.get_terminal_size().columns))
    console.print(table)
    console.print("samples: outputs/world_dit/demo and outputs/world_dit/samples/test/contact_sheet.png")
    console.print("everything else, in the browser:  .venv/bin/lightning-sora ui")


if __name__ == "__main__":
    demo()
