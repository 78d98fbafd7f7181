"""One task of the benchmark: cases are made, answered, judged and kept as JSON."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.sora_tasks.intervals import Estimate, estimate
from benchmarks.sora_tasks.judge import Judge, digest
from benchmarks.sora_tasks.protocol import CAPABILITIES, Capability, Case, Clip, Judged
from benchmarks.sora_tasks.scene import Scene
from lightning_sora import media
from lightning_sora.errors import SoraError
from lightning_sora.sealing import read_json, seal_json, write_whole
from lightning_sora.spacetime import TokenGrid

SHOWN = 4  # clips of a contact sheet
#: What a model is trained on for tasks that only sample otherwise.
TRAINED_AS = {"loop": "connect", "windows": "extend_forward"}
VERSION = 2  # of what is judged; another makes results anew


def capability(spec: str, clips: int | None) -> Capability:
    """A capability by its spec, with another number of clips."""
    made = CAPABILITIES.create(spec)
    if clips is not None:
        made.clips = min(made.clips, clips)
        if made.clips < 2:
            raise SoraError(f"--clips {clips}: a control takes the clip of another prompt; ask for 2 at least")
    return made


def reconstructed(model: Any, clips: Sequence[Clip], known: dict[bytes, Clip], at_once: int = 8) -> list[Clip]:
    """What the model's VAE makes of clips: no model in its latents can do better.

    Args:
        known: of clips that were reconstructed already, and of these.
    """
    keys = [digest(clip) for clip in clips]
    new = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in known}
    for shape in {clip.shape for clip in new.values()}:
        own = [key for key, clip in new.items() if clip.shape == shape]
        grid = TokenGrid.of(*shape[:3], model.patch)
        for start in range(0, len(own), at_once):
            some = own[start : start + at_once]
            with torch.no_grad():
                rows = model.encode_videos([new[key].to(model.device) for key in some])
                known |= zip(some, (clip.cpu() for clip in model.decode(rows, grid)), strict=True)
    return [known[key] for key in keys]


def judged(
    what: Capability, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip], *, control: bool = False
) -> list[Judged]:
    """Each clip, or the mean of its controls."""
    if not control:
        return what.judge(judge, cases, clips)
    turns = [what.judge(judge, cases, what.control(cases, clips, turn)) for turn in range(what.turns)]
    found = []
    for of_case in zip(*turns, strict=True):
        names = dict.fromkeys(name for one in of_case for name in one)
        values = {name: [one[name] for one in of_case if name in one] for name in names}
        found.append({name: sum(some) / len(some) for name, some in values.items()})
    return found


def lines(
    what: Capability, cases: Sequence[Case], of: Mapping[str, Sequence[Judged]], *key: str, seed: int = 0
) -> list[dict[str, Any]]:
    """The lines of a table: of each group and measure an estimate by every column.

    Args:
        of: the judgements by column, such as "score", "ceiling", "floor".
    """
    found = []
    groups = list(dict.fromkeys(case.group for case in cases))
    for group in groups:
        own = [i for i, case in enumerate(cases) if case.group == group]
        for name, measure in what.measures.items():
            columns: dict[str, Any] = {}
            for column, rows in of.items():
                values = [rows[i][name] for i in own if name in rows[i]]
                # One stream for all columns: what differs between them is not the draw.
                columns[column] = estimate(values, *key, group, name, share=measure.unit == "%", seed=seed)
            if any(columns.values()):
                found.append(_line(group, name, measure.unit, measure.better, columns))
    for first, second in what.contrasts:
        pairs = [[i for i, case in enumerate(cases) if case.group == group] for group in (first, second)]
        for name, measure in what.measures.items():
            columns = {}
            for column, rows in of.items():
                values = [
                    rows[a][name] - rows[b][name]
                    for a, b in zip(*pairs, strict=True)
                    if name in rows[a] and name in rows[b]
                ]
                columns[column] = estimate(values, *key, first, second, name, difference=measure.unit == "%", seed=seed)
            if any(columns.values()):
                unit = "points" if measure.unit == "%" else measure.unit
                found.append(_line(f"{first} less {second}", name, unit, "", columns))
    return found


def _line(group: str, measure: str, unit: str, better: str, columns: Mapping[str, Estimate | None]) -> dict[str, Any]:
    told = {column: None if one is None else asdict(one) for column, one in columns.items()}
    return {"group": group, "measure": measure, "unit": unit, "better": better, **told}


class Runner:
    """Runs tasks one by one, and keeps each.

    Args:
        model: a LatentDiffusion.
        folder: of results and contact sheets; a result of the same model, task and scene is not made again.
        seed: of the noise of all clips, and of intervals.
    """

    def __init__(self, model: Any, scene: Scene, folder: Path, seed: int) -> None:
        self.model, self.scene, self.folder, self.seed = model, scene, folder, seed
        self.judge = Judge()
        self.by_vae: dict[bytes, Clip] = {}
        self.fingerprint = model.fingerprint()

    def result_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def identity(self, name: str, spec: str, clips: int) -> str:
        """What a result is of."""
        told = [
            VERSION, name, spec, clips, self.fingerprint, repr(self.scene), self.seed, self.judge.evaluator.digest,
            self.model.sampling.plain(),
        ]  # fmt: skip
        return hashlib.blake2b(json.dumps(told, default=str).encode(), digest_size=8).hexdigest()

    def kept(self, name: str, spec: str, clips: int) -> dict[str, Any] | None:
        """The result, where it is there already."""
        file = self.result_file(name)
        if not file.is_file():
            return None
        found = read_json(file.read_bytes(), file, "remove it, and it is made again")
        return found if found.get("identity") == self.identity(name, spec, clips) else None

    def run(self, name: str, spec: str, clips: int | None = None) -> dict[str, Any]:
        """The result of a task, made or kept."""
        what = capability(spec, clips)
        if (known := self.kept(name, spec, what.clips)) is not None:
            return known
        begun = time.perf_counter()
        cases = what.cases(self.scene)
        sampling = time.perf_counter()
        made = what.make(self.model, cases, self.seed)
        sampling = time.perf_counter() - sampling
        again = reconstructed(self.model, [case.truth for case in cases], self.by_vae)
        best = [what.completed(case, clip) for case, clip in zip(cases, again, strict=True)]
        of = {
            "score": judged(what, self.judge, cases, made),
            "ceiling": judged(what, self.judge, cases, best),
            "floor": judged(what, self.judge, cases, made, control=True),
        }
        self._sheet(name, what, cases, made, best)
        trained = {TRAINED_AS.get(case.task, case.task) for case in cases} <= {*self.model.tasks, "edit"}
        result = {
            "identity": self.identity(name, spec, what.clips),
            "name": name,
            "spec": spec,
            "asks": (what.__doc__ or "").split("\n\n")[0].replace("\n    ", " ").strip(),
            "control": what.control_told,
            "headline": list(what.headline),
            "tasks": sorted({case.task for case in cases}),
            "trained": trained,
            "clips": len(cases),
            "seconds": round(time.perf_counter() - begun, 1),
            "sampling_seconds": round(sampling, 1),
            "lines": lines(what, cases, of, name, seed=self.seed),
            "values": [
                {"key": c.key, "group": c.group, **{k: v[i] for k, v in of.items()}} for i, c in enumerate(cases)
            ],
        }
        write_whole(self.result_file(name), seal_json(result))
        return result

    def _sheet(
        self, name: str, what: Capability, cases: Sequence[Case], made: Sequence[Clip], best: Sequence[Clip]
    ) -> None:
        groups = list(dict.fromkeys(case.group for case in cases))
        of_group = max(1, -(-SHOWN // len(groups)))
        some = [i for g in groups for i in [k for k, case in enumerate(cases) if case.group == g][:of_group]]
        given = [what.shown(cases[i]) for i in some]
        versions = {"made": [made[i] for i in some], "truth, by the VAE": [best[i] for i in some]}
        if any(one is not None for one in given):
            blank = [torch.full_like(best[i][:1], 255) for i in some]
            versions = {"given": [b if g is None else g for b, g in zip(blank, given, strict=True)], **versions}
        captions = [f"{cases[i].prompt}{f' ({cases[i].group})' if cases[i].group else ''}" for i in some]
        media.comparison_sheet(self.folder / f"{name}.png", versions, captions)
