"""The command; see the package."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import measure
from benchmarks.sora_tasks import capabilities  # noqa: F401  (they register themselves)
from benchmarks.sora_tasks.options import RECIPES, read_options
from benchmarks.sora_tasks.page import sections
from benchmarks.sora_tasks.running import Runner, capability
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import load_video_model
from lightning_sora.sealing import seal_json, write_whole
from lightning_sora.spacetime import VideoSize
from lightning_sora.writing import check_folder

RECIPE = RECIPES / "world.yaml"
REPEATED = ("lightning_sora.tasks.base", "lightning_sora.models.latent_diffusion")  # loggers that warn of each clip
KEYS = ("seed", "captions", "worlds", "tasks")


def chosen(recipe: dict[str, Any], only: Sequence[str]) -> dict[str, str]:
    """The tasks to run, by name.

    Raises:
        SoraError: one that the recipe does not have.
    """
    tasks = {name: str(spec) for name, spec in recipe["tasks"].items()}
    if unknown := [name for name in only if name not in tasks]:
        raise SoraError(f"--only {' '.join(unknown)}: the recipe has {', '.join(tasks)}")
    return {name: spec for name, spec in tasks.items() if not only or name in only}


class Once(logging.Filter):
    """Lets each message pass once."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.getMessage() not in self.told
        self.told.add(record.getMessage())
        return new


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Runs the tasks, and writes the page after each."""
    recipe = read_options(args.recipe, KEYS, RECIPE)
    tasks = chosen(recipe, args.only)
    for spec in tasks.values():
        capability(spec, args.clips)
    check_folder("--out", args.out.parent)
    once = Once()
    for name in REPEATED:
        logging.getLogger(name).addFilter(once)
    model = load_video_model(args.ckpt, "cpu").model
    if model.seen_sizes.native is None:
        raise SoraError(f"{args.ckpt} does not say which size it was trained on; train it by a recipe")
    seed = int(recipe["seed"])
    scene = Scene(
        recipe["worlds"],
        VideoSize(*model.seen_sizes.native),
        model.patch,
        model.seen_sizes.fps,
        recipe["captions"],
        seed,
    )
    runner = Runner(model, scene, args.out.with_suffix(""), seed)
    drawn, results = model.sampling, []
    facts = {
        "model": f"{Path(args.ckpt).name}, fingerprint {runner.fingerprint}",
        "size": f"{scene.size} at {scene.fps:g} frames per second",
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M with VAE and text encoder",
        "trained on": ", ".join(model.tasks),
        "sampling": f"{drawn.sampler}, {drawn.steps} steps, guidance {drawn.guidance}, shift {drawn.shift}"
        + (" by size" if drawn.shift_by_size else "")
        + (f", rope {drawn.rope}" if drawn.rope != "none" else ""),
        "evaluator": runner.judge.evaluator.digest[:16],
    }
    for name, spec in tasks.items():
        begun = time.perf_counter()
        results.append(runner.run(name, spec, args.clips))
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        origin = measure.provenance()
        facts["seconds"] = f"{sum(result['seconds'] for result in results):.0f}"
        text = measure.page("What the model can do, as scored tasks", command, sections(results, facts), origin)
        write_whole(args.out, text.encode())
        lasting = [{key: value for key, value in result.items() if key != "values"} for result in results]
        full = {"command": command, "origin": origin, "facts": facts, "results": lasting}
        write_whole(args.out.with_suffix(".json"), seal_json(json.loads(json.dumps(full))))
    return {"results": results, "page": args.out}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sora_tasks", description="Writes the table of a model's capabilities.",
        epilog="A task that was judged is kept beside the page and not made again.",
    )  # fmt: skip
    parser.add_argument("--ckpt", required=True, help="a .ckpt file, the folder of a run, or one that save wrote")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/sora_tasks/page.md"), help="the page; beside it a JSON"
    )
    parser.add_argument("--clips", type=int, help="of each group at most; by default those of the recipe")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tasks of the recipe")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    args = parser.parse_args(arguments)
    try:
        written = run(args, measure.command_line("sora_tasks", arguments))
    except SoraError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"written: {written['page']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
