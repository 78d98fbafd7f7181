"""What a model holds on to where two attributes of an object never came together in training.

    python -m benchmarks.sora_tasks.phyworld --out outputs/sora_tasks/phyworld.md

Kang et al. 2024 (arXiv:2411.02385, section 5.2) trained on moving objects of which two attributes always go together,
such as red and round, blue and square, and gave the first frames of one that mixes them. What was made kept one of the
two and changed the other into what training had shown it with: colour before size, size before velocity, velocity
before shape. Here a model of pixels is trained so for each two of the four, on the world's solids.

Each attribute is judged of the last frames by what they are nearer to: the true clip, or the same clip with that one
attribute changed. The score of a pair is how much more often the first is kept than the second, with an interval by a
bootstrap over the clips of all seeds; how models differ from seed to seed is not in it. Combinations of training, of
other places, are the ceiling: both should be kept.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.sora_tasks.intervals import estimate
from benchmarks.sora_tasks.judge import Judge, psnr
from benchmarks.sora_tasks.options import RECIPES, read_options
from lightning_sora import media
from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.randomness import generator
from lightning_sora.sealing import read_json, seal_json, write_whole
from lightning_sora.spacetime import TokenGrid, TokenLayout
from lightning_sora.testbench.evaluator.vocabulary import FPS, code
from lightning_sora.world import SIZES, Facts, World
from lightning_sora.writing import check_folder

RECIPE = RECIPES / "phyworld.yaml"
KEYS = ("seeds", "steps", "batch", "learning_rate", "clips", "test_clips", "side", "dit", "sampling")
#: The two values of each attribute, in the order in which models are said to hold on to them.
ATTRIBUTES: dict[str, tuple[Any, Any]] = {
    "color": ("red", "blue"),
    "size": ("small", "big"),
    "velocity": (1.0, 2.8),  # world units in two seconds
    "shape": ("sphere", "cube"),
}
#: Of an attribute that a pair does not look at.
OTHERWISE = {"color": "green", "size": "medium", "velocity": 1.9, "shape": "cylinder"}
FRAMES, GIVEN, LAST = 17, 5, 5  # of a clip; that are given; that are judged
PROMPT = "an object moves"
WARMUP = 0.05  # of the steps
ABLE = 0.8  # of trained combinations, that a model must keep for its choice among mixed ones to mean something


def facts(index: int, seed: int, values: Mapping[str, Any]) -> Facts:
    """A clip of the plainest world: one object that moves left or right, with these attributes."""
    world = World("tiny", seed=seed)
    drawn = world.facts(index)
    heading = (1.0, 0.0) if index % 2 else (-1.0, 0.0)
    spot = torch.rand(2, generator=generator(seed, "phyworld", index)) * 1.6 - 0.8
    thing = replace(
        drawn.objects[0], color=values["color"], shape=values["shape"], size=values["size"],
        radius=SIZES[values["size"]], travel=values["velocity"], motion="right" if index % 2 else "left",
        heading=heading, center=(0.5 * float(spot[0]), float(spot[1])),
    )  # fmt: skip
    return replace(drawn, objects=(thing,))


def combination(first: str, second: str, a: int, b: int) -> dict[str, Any]:
    """Attributes of which two have these of their values."""
    return {**OTHERWISE, first: ATTRIBUTES[first][a], second: ATTRIBUTES[second][b]}


def rendered(index: int, seed: int, values: Mapping[str, Any], side: int) -> Tensor:
    """The pixels of such a clip."""
    return World("tiny", seed=seed).render(facts(index, seed, values), FRAMES, side, side, FPS)


def train(study: Mapping[str, Any], first: str, second: str, seed: int) -> LatentDiffusion:
    """A model that continues clips of the two combinations (0, 0) and (1, 1)."""
    side, batch, steps = int(study["side"]), int(study["batch"]), int(study["steps"])
    model = LatentDiffusion.create(
        "identity",
        text="bytes(dim=16, depth=1)",
        dit=study["dit"],
        objective="x",
        sampling=study["sampling"],
        seed=seed,
    )
    clips = [
        rendered(index, seed, combination(first, second, index // 2 % 2, index // 2 % 2), side)
        for index in range(int(study["clips"]))
    ]
    rows = model.encode_videos(clips)
    grid = TokenGrid.of(FRAMES, side, side, model.patch)
    layout = TokenLayout.uniform(grid, batch)
    strength = _given(clips[0]).tokens(model.patch).expand(batch, -1)
    learned = [p for part in (model.dit, model.text) for p in part.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=float(study["learning_rate"]), weight_decay=0.01)
    rise = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / rise, (steps - step) / (0.4 * steps))
    )
    for step in range(steps):
        draw = generator(seed, "phyworld step", first, second, step)
        some = torch.randint(len(clips), (batch,), generator=draw)
        noise = torch.randn(rows[some].shape, generator=draw)
        t = torch.randn(batch, generator=draw).sigmoid()
        loss = model.terms(layout, rows[some], t, noise, [PROMPT] * batch, strength).error.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
    model.seen_sizes.add([(FRAMES, side, side)], FPS)
    return model.eval()


def _given(clip: Tensor) -> Given:
    strength = torch.ones(clip.shape[:3])
    strength[:GIVEN] = 0.0
    return Given(clip, strength)


def kept(
    judge: Judge, attribute: str, clip: Tensor, truth: Tensor, changed: Tensor, values: Mapping[str, Any]
) -> float:
    """Whether the last frames are nearer to the true clip, 1, than to the one with that attribute changed, 0.

    Args:
        values: of the true clip.
    """
    if attribute == "shape":
        objects = judge.read([clip])[0].objects
        if not objects:
            return 0.0
        last = objects[0].frame_shapes[-LAST:].tolist()
        right, wrong = (last.count(code("shape", name)) for name in (values["shape"], changed_shape(values["shape"])))
        return 0.5 if right == wrong else float(right > wrong)
    features = [_feature(judge, attribute, video) for video in (clip, truth, changed)]
    return float(abs(features[0] - features[1]) < abs(features[0] - features[2]))


def changed_shape(shape: str) -> str:
    """The other of the two."""
    return next(name for name in ATTRIBUTES["shape"] if name != shape)


def _feature(judge: Judge, attribute: str, clip: Tensor) -> float:
    """A number that tells the two values of an attribute apart; of what is coloured in the last frames."""
    share, place = judge.places(clip)
    if attribute == "color":
        red, blue = (float(share[-LAST:, code("color", name)].mean()) for name in ATTRIBUTES["color"])
        return red / max(red + blue, 1e-9)
    if attribute == "size":
        return float(share[-LAST:].sum(1).mean()) ** 0.5
    middle = (share[..., None] * place).sum(1) / share.sum(1).clamp(min=1e-9)[:, None]
    return float((middle[-1, 0] - middle[GIVEN - 1, 0]).abs())


def run_pair(study: Mapping[str, Any], first: str, second: str, seed: int, folder: Path) -> dict[str, Any]:
    """What is kept of mixed combinations, and of trained ones; made now, or kept."""
    told = [dict(study), first, second, seed, str(ATTRIBUTES), str(OTHERWISE)]
    identity = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()
    file = folder / f"{first}-{second}-seed{seed}.json"
    if file.is_file():
        known = read_json(file.read_bytes(), file, "remove it, and it is made again")
        if known.get("identity") == identity:
            return known
    begun, side, judge = time.perf_counter(), int(study["side"]), Judge()
    model = train(study, first, second, seed)
    found: dict[str, Any] = {"identity": identity, "pair": [first, second], "seed": seed}
    shown: dict[str, list[Tensor]] = {}
    for name, combinations in {"mixed": ((0, 1), (1, 0)), "trained": ((0, 0), (1, 1))}.items():
        cases = [(index, combinations[index // 2 % 2]) for index in range(int(study["test_clips"]))]
        truths = [rendered(i, seed + 1000, combination(first, second, *c), side) for i, c in cases]
        made = model.sample(
            [PROMPT] * len(cases), FRAMES, side, side, given=[_given(clip) for clip in truths],
            keys=[(name, i) for i, _ in cases], seed=seed,
        )  # fmt: skip
        rows = []
        for clip, truth, (i, (a, b)) in zip(made, truths, cases, strict=True):
            values = combination(first, second, a, b)
            others = {first: combination(first, second, 1 - a, b), second: combination(first, second, a, 1 - b)}
            rows.append(
                [kept(judge, one, clip, truth, rendered(i, seed + 1000, others[one], side), values) for one in others]
            )
        # What the judge itself takes for kept, of true clips.
        true = [
            [
                kept(judge, one, truth, truth, rendered(i, seed + 1000, other, side), combination(first, second, a, b))
                for one, other in (
                    (first, combination(first, second, 1 - a, b)), (second, combination(first, second, a, 1 - b))
                )
            ]
            for truth, (i, (a, b)) in zip(truths, cases, strict=True)
        ]  # fmt: skip
        found[name], found[f"{name}_true"] = rows, true
        found[f"{name}_psnr"] = [psnr(a, b, range(GIVEN, FRAMES)) for a, b in zip(made, truths, strict=True)]
        shown[name] = [*made[:4], *truths[:4]]
    found["seconds"] = round(time.perf_counter() - begun, 1)
    for name, clips in shown.items():
        half = len(clips) // 2
        media.comparison_sheet(
            file.with_name(f"{file.stem}-{name}.png"), {"made": clips[:half], "truth": clips[half:]},
            [f"{first} and {second}, {name}, the first {GIVEN} frames given"] * half,
        )  # fmt: skip
    write_whole(file, seal_json(found))
    return found


def sections(study: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The page's paragraphs."""
    rows, as_told, told_apart = [], 0, 0
    pairs = list(dict.fromkeys(tuple(one["pair"]) for one in results))
    for first, second in pairs:
        own = [one for one in results if tuple(one["pair"]) == (first, second)]
        mixed = [row for one in own for row in one["mixed"]]
        trained = [row for one in own for row in one["trained"]]
        true = [row for one in own for row in one["mixed_true"]]
        near = [value for one in own for value in one["trained_psnr"]]
        score = estimate([a - b for a, b in mixed], "phyworld", first, second, difference=True)
        assert score is not None, "a study has clips"
        verdict = first if score.low > 0 else second if score.high < 0 else "not told apart"
        shares = [[100 * sum(row[k] for row in some) / len(some) for k in (0, 1)] for some in (mixed, trained, true)]
        if min(shares[1]) < 100 * ABLE:
            verdict = f"{verdict}, by a model that does not keep what it was trained on"
        elif verdict != "not told apart":
            as_told, told_apart = as_told + (score.low > 0), told_apart + 1
        rows.append(
            [f"{first} before {second}", f"{100 * score.mean:+.0f} [{100 * score.low:+.0f}, {100 * score.high:+.0f}]",
             verdict, *(f"{a:.0f}, {b:.0f}" for a, b in shares), f"{sum(near) / len(near):.1f}", len(mixed)]
        )  # fmt: skip
    head = ["said to be", "first less second, points", "held on to", "mixed: kept, %", "trained: kept, %",
            "true clips: kept, %", "trained: PSNR, dB", "clips"]  # fmt: skip
    return [
        f"A DiT of pixels, {study['side']}x{study['side']}, {FRAMES} frames of which {GIVEN} are given, "
        f"{study['steps']} steps of {study['batch']} clips, {len(study['seeds'])} seeds. Of each two attributes "
        "training shows two combinations of the four; the other two are asked for.",
        measure.markdown_table(head, rows),
        f"Of {len(rows)} pairs {told_apart} are told apart by models that keep both attributes of trained combinations "
        f"in {100 * ABLE:.0f} % of the clips, {as_told} of them in the order colour, size, velocity, shape (Kang et "
        "al. 2024). Kept: the share of clips of which the last frames are nearer to the truth than to the same clip "
        "with that attribute changed.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sora_tasks.phyworld", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/sora_tasks/phyworld.md"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    args = parser.parse_args(arguments)
    try:
        study = read_options(args.recipe, KEYS, RECIPE)
        check_folder("--out", args.out.parent)
        folder, results = args.out.with_suffix(""), []
        command = measure.command_line("sora_tasks.phyworld", arguments)
        for seed, (first, second) in itertools.product(study["seeds"], itertools.combinations(ATTRIBUTES, 2)):
            results.append(run_pair(study, first, second, int(seed), folder))
            print(f"{first}, {second}, seed {seed}: {results[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
            text = measure.page("What is held on to: phyworld's order", command, sections(study, results))
            write_whole(args.out, text.encode())
    except SoraError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    write_whole(args.out.with_suffix(".json"), seal_json({"results": results}))
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
