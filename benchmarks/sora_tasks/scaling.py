"""Quality against training compute: a power law over sizes and lengths of training.

    python -m benchmarks.sora_tasks.scaling --out outputs/sora_tasks/scaling.md

Every arm is a training of the recipe at one width and depth, for so many steps, from one seed, with its own schedule.
The compute-optimal arms are those that no cheaper one beats; the law is fitted to them by least squares in logarithms.
An arm that was trained is kept beside the page, and not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import stats

from benchmarks import measure
from benchmarks.sora_tasks.options import RECIPES, read_options
from lightning_sora.errors import SoraError
from lightning_sora.lab.training import fit
from lightning_sora.recipe.recipe import Recipe
from lightning_sora.sealing import read_json, seal_json, write_whole
from lightning_sora.shipped import recipe_path
from lightning_sora.writing import check_folder, whole

RECIPE = RECIPES / "scaling.yaml"
KEYS = ("recipe", "overrides", "sizes", "steps", "seeds", "quality")
LEVEL = 0.95


@dataclass(frozen=True)
class Law:
    """``error = factor * flops ** -exponent``.

    Attributes:
        low, high: of the exponent.
    """

    factor: float
    exponent: float
    low: float
    high: float
    points: int

    def __call__(self, flops: float) -> float:
        return self.factor * flops**-self.exponent


def fitted(points: Sequence[tuple[float, float]]) -> Law:
    """The law of (FLOPs, error) by least squares in logarithms, with Student's interval of its exponent.

    Raises:
        SoraError: fewer than three points.
    """
    if len(points) < 3:
        raise SoraError(f"a power law of {len(points)} points says nothing; train more sizes or lengths")
    x, y = np.log([p[0] for p in points]), np.log([p[1] for p in points])
    line = stats.linregress(x, y)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(points) - 2)) * float(line.stderr)
    slope = -float(line.slope)
    return Law(math.exp(float(line.intercept)), slope, slope - half, slope + half, len(points))


def optimal(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no cheaper one beats, the cheapest first."""
    found: list[tuple[float, float]] = []
    for flops, error in sorted(points):
        if not found or error < found[-1][1]:
            found.append((flops, error))
    return found


def arms(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is trained: every size at every length from every seed, the cheapest first."""
    every = itertools.product(study["steps"], study["sizes"], study["seeds"])
    return [{**size, "steps": steps, "seed": seed} for steps, size, seed in every]


def trained(study: Mapping[str, Any], arm: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An arm's figures: trained now, or kept."""
    told = [study["recipe"], study["overrides"], study["quality"], dict(arm)]
    identity = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()
    name = "_".join(f"{key}{value}" for key, value in arm.items())
    file, root = folder / f"{name}.json", folder / "runs" / f"{name}-{identity}"
    if file.is_file():
        known = read_json(file.read_bytes(), file, "remove it, and it is trained again")
        if known.get("identity") == identity:
            return known
    steps = int(arm["steps"])
    shape = {f"model.dit.{key}": value for key, value in arm.items() if key not in ("steps", "seed")}
    overrides = {
        **study["overrides"], **shape,
        "trainer.max_steps": steps, "trainer.val_check_interval": steps, "seed_everything": int(arm["seed"]),
        "trainer.default_root_dir": str(root), "trainer.callbacks": [], "tracking.enabled": False,
        # Nothing but the error of a validation is asked for.
        "model.prompts": None, "evaluation.extractor": None, "evaluation.clip_model": None,
    }  # fmt: skip
    recipe = Recipe.load(recipe_path(study["recipe"]), overrides)
    begun = (root / "checkpoints" / "last.ckpt").is_file()
    run = fit(recipe, checkpoint="last" if begun else None)
    metrics = run.metrics
    result = {
        "identity": identity,
        **arm,
        "flops": metrics["cost/flops"],
        "seconds": metrics["cost/seconds"],
        "parameters": sum(p.numel() for p in run.model.model.dit.parameters()),
        "error": metrics[study["quality"]],
    }
    write_whole(file, seal_json(result))
    return result


def sections(study: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The page's paragraphs."""
    shapes: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in results:
        shapes.setdefault((one["parameters"], one["steps"]), []).append(one)
    points, rows = [], []
    for (parameters, steps), some in shapes.items():
        errors = [one["error"] for one in some]
        point = (float(np.mean([one["flops"] for one in some])), float(np.mean(errors)))
        points.append(point)
        spread = f"{np.std(errors, ddof=1):.4f}" if len(errors) > 1 else "–"
        seconds = np.mean([one["seconds"] for one in some])
        rows.append(
            [f"{parameters / 1e3:.0f} K", steps, f"{point[0]:.2e}", f"{point[1]:.4f}", spread, f"{seconds:.0f}", point]
        )
    best = optimal(points)
    table = [[*row[:-1], "yes" if row[-1] in best else ""] for row in rows]
    head = ["parameters", "steps", "training FLOPs", study["quality"], "deviation over seeds", "seconds", "optimal"]
    told = [
        f"`{study['recipe']}` at {len(study['sizes'])} sizes, {len(study['steps'])} lengths of training and "
        f"{len(study['seeds'])} seeds; {study['quality']} on combinations that training never shows. Optimal: no "
        "cheaper training is better.",
        measure.markdown_table(head, table),
    ]
    if len(best) < 3:
        return [*told, f"Only {len(best)} trainings are optimal; no law is fitted to those."]
    law = fitted(best)
    told.append(
        f"**{study['quality']} = {law.factor:.3g} · FLOPs^(−{law.exponent:.3f})**, {100 * LEVEL:.0f} % interval of the "
        f"exponent [{law.low:.3f}, {law.high:.3f}], {law.points} points, of which each is a mean over seeds. No "
        "irreducible error is fitted: so few points do not tell it."
    )
    if len(best) > 3:
        before, (flops, error) = fitted(best[:-1]), best[-1]
        told.append(
            f"Fitted without the largest, the law foretells {before(flops):.4f} at {flops:.2e} FLOPs; measured: "
            f"{error:.4f} ({100 * (error / before(flops) - 1):+.0f} %)."
        )
    return told


def draw(path: Path, study: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Writes the figure: FLOPs across, error up, both in logarithms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    arms: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in results:
        arms.setdefault((one["parameters"], one["steps"]), []).append(one)
    means = {
        arm: tuple(float(np.mean([one[k] for one in some])) for k in ("flops", "error")) for arm, some in arms.items()
    }
    for parameters in sorted({one["parameters"] for one in results}):
        seeds = [(one["flops"], one["error"]) for one in results if one["parameters"] == parameters]
        own = sorted(mean for arm, mean in means.items() if arm[0] == parameters)
        (line,) = axes.plot(*zip(*own, strict=True), linewidth=1, label=f"{parameters / 1e3:.0f} K")
        axes.plot(*zip(*seeds, strict=True), "o", markersize=4, color=line.get_color())
    best = optimal(list(means.values()))
    if len(best) >= 3:
        law, ends = fitted(best), np.array([best[0][0], best[-1][0]])
        axes.plot(ends, [law(x) for x in ends], "k--", label=f"FLOPs^(−{law.exponent:.2f})")
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=study["quality"])
    axes.legend(title="parameters")
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sora_tasks.scaling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/sora_tasks/scaling.md"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    args = parser.parse_args(arguments)
    try:
        study = read_options(args.recipe, KEYS, RECIPE)
        check_folder("--out", args.out.parent)
        folder, results = args.out.with_suffix(""), []
        for arm in arms(study):
            results.append(trained(study, arm, folder))
            print(f"{arm}: {results[-1]['error']:.4f} at {results[-1]['flops']:.2e} FLOPs", file=sys.stderr, flush=True)
        told = sections(study, results)
        draw(args.out.with_suffix(".png"), study, results)
    except SoraError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    command = measure.command_line("sora_tasks.scaling", arguments)
    text = measure.page("Quality against training compute", command, [*told, f"![]({args.out.stem}.png)"])
    write_whole(args.out, text.encode())
    write_whole(args.out.with_suffix(".json"), seal_json({"results": [dict(one) for one in results]}))
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
