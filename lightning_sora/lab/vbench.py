"""VBench (Huang et al. 2024, arXiv:2311.17982): its samples by its names and seeds, and its results into mlflow.

The suite itself runs in an environment of its own (it pins old packages); what lies between are files: videos that are
named as it looks for them, and the JSON that it writes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.texts import brief, parsed_json, read_text
from lightning_sora.writing import part_of

#: Of each prompt, but for temporal flickering (its README).
SAMPLES = 5
#: The seed of sample j of prompt i is 100000 i + j: what its authors answered for a leaderboard entry (issue 163).
SEED_STEP = 100_000
LONGEST = 255  # bytes of a file's name

#: The dimensions, with what stands for 0 and 1 when they are normalised, and their weights (its scripts/constant.py).
QUALITY: dict[str, tuple[float, float, float]] = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
SEMANTIC: dict[str, tuple[float, float, float]] = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0


@dataclass(frozen=True)
class VBenchRow:
    """A sample of the suite.

    Attributes:
        prompt: that is sampled.
        seed: by the published rule.
        name: of the video, as the suite looks for it.
    """

    prompt: str
    seed: int
    name: str


def vbench_rows(
    prompts: Sequence[str], samples: int = SAMPLES, named_by: Sequence[str] | None = None
) -> list[VBenchRow]:
    """Lists the samples of prompts, all of a prompt in turn.

    Of a prompt that occurs twice, as some do in the suite's own list, the last is taken: its videos would overwrite
    the others. Seeds count all lines.

    Args:
        prompts: in the order of the suite's file, which the seeds count.
        samples: of each.
        named_by: the suite's own prompts, line by line, where ``prompts`` are rewritten ones; None for ``prompts``.

    Raises:
        SoraError: other numbers of lines, no samples, or a prompt that no file can be named by.

    Example:
        >>> from lightning_sora.lab.vbench import vbench_rows
        >>> [(row.name, row.seed) for row in vbench_rows(["a cat", "a dog"], samples=2)][2:]
        [('a dog-0.mp4', 100000), ('a dog-1.mp4', 100001)]
    """
    names = list(prompts) if named_by is None else list(named_by)
    if len(names) != len(prompts):
        raise SoraError(
            f"{len(prompts)} prompts are named by {len(names)} lines; line n of one belongs to line n of the other"
        )
    if not 1 <= samples < SEED_STEP:
        raise SoraError(f"{samples} samples of each prompt must be from 1 to {SEED_STEP - 1:,}, or seeds would repeat")
    for name in names:
        if "/" in name or len(f"{name}-{samples - 1}.mp4".encode()) > LONGEST:
            raise SoraError(
                f"no file can be named by the prompt {brief(name)}: it has a slash, or is longer than {LONGEST} bytes; "
                "give short names, line by line (--vbench_names)"
            )
    last = {name: i for i, name in enumerate(names)}
    return [
        VBenchRow(prompt, SEED_STEP * i + j, f"{name}-{j}.mp4")
        for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        if last[name] == i
        for j in range(samples)
    ]


def place_video(made: Path, folder: Path, name: str) -> None:
    """Puts a video where the suite looks for it: in a folder that holds nothing else, from which it takes the ending.

    Raises:
        SoraError: it cannot be written.
    """
    target, partly = folder / name, part_of(made)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists() and os.path.samefile(made, target):
            return
        partly.unlink(missing_ok=True)
        try:
            os.link(made, partly)
        except OSError:  # a file system without links
            partly.unlink(missing_ok=True)
            shutil.copyfile(made, partly)
        os.replace(partly, target)
    except OSError as problem:
        raise SoraError(
            f"{shown(str(target))} cannot be written ({problem.strerror}); make room or rename it"
        ) from problem


@dataclass(frozen=True)
class VBenchResults:
    """What the suite found.

    Attributes:
        dimensions: as it reports them.
        clips: dimension -> file name -> score, where it tells them.
        totals: "quality_score", "semantic_score" and "total_score", of those whose dimensions are all there.
    """

    dimensions: Mapping[str, float]
    clips: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @property
    def totals(self) -> dict[str, float]:
        found = {
            name: _weighted(self.dimensions, parts)
            for name, parts in (("quality_score", QUALITY), ("semantic_score", SEMANTIC))
            if set(parts) <= set(self.dimensions)
        }
        if len(found) == 2:
            both = QUALITY_WEIGHT * found["quality_score"] + SEMANTIC_WEIGHT * found["semantic_score"]
            found["total_score"] = both / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
        return found

    def to_json(self) -> str:
        """All of them, totals last."""
        return json.dumps({**self.dimensions, **self.totals}, indent=2)

    def metrics(self) -> dict[str, float]:
        """All of them, as mlflow names them: ``vbench/NAME``."""
        return {f"vbench/{name}": value for name, value in {**self.dimensions, **self.totals}.items()}


def _weighted(values: Mapping[str, float], parts: Mapping[str, tuple[float, float, float]]) -> float:
    scaled = sum(weight * (values[name] - low) / (high - low) for name, (low, high, weight) in parts.items())
    return scaled / sum(weight for _, _, weight in parts.values())


def read_vbench(files: Sequence[str | Path]) -> VBenchResults:
    """Reads what the suite wrote: ``*_eval_results.json``, one of all dimensions or several of some.

    Raises:
        SoraError: no such file, another kind of it, a score that is none, or a dimension that two files tell.

    Example:
        >>> import json, pathlib, tempfile
        >>> from lightning_sora.lab.vbench import read_vbench
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "x_eval_results.json"
        >>> _ = file.write_text(json.dumps({"scene": [0.5, [{"video_path": "a/b-0.mp4", "video_results": 0.5}]]}))
        >>> read_vbench([file]).dimensions
        {'scene': 0.5}
    """
    dimensions: dict[str, float] = {}
    clips: dict[str, dict[str, float]] = {}
    for file in map(Path, files):
        told = parsed_json(read_text(file), file)
        if not isinstance(told, dict) or not told:
            raise SoraError(f"{file} is no result of VBench; give an *_eval_results.json that its evaluate.py wrote")
        for name, entry in told.items():
            value = entry[0] if isinstance(entry, list) and entry else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise SoraError(f"{file}: {name!r} is {brief(entry)}; VBench writes [score, [score of each video]]")
            if name in dimensions:
                raise SoraError(f"{file}: {name!r} is told by another file as well; give each dimension once")
            dimensions[name] = float(value)
            clips[name] = _of_clips(entry[1] if len(entry) > 1 else [])
    return VBenchResults(dimensions, {name: told for name, told in clips.items() if told})


def _of_clips(rows: Any) -> dict[str, float]:
    """Scores by file name, of rows that tell one; some dimensions tell other things of videos."""
    many = [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict) and "video_path" in row]
    told = [(Path(str(row["video_path"])).name, row.get("video_results")) for row in many]
    return {name: float(value) for name, value in told if isinstance(value, int | float)}


def log_vbench(
    files: Sequence[str | Path] | None, run: str | None, uri: str | None = None, folders: Sequence[Path | None] = ()
) -> VBenchResults:
    """Logs results of the suite to the run of a training: metrics ``vbench/NAME`` and the files as artifacts.

    Args:
        files: see :func:`read_vbench`.
        run: the id of the run in mlflow.
        uri: of the store; None for ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` here.
        folders: to be scored as well, which this does not do.

    Raises:
        SoraError: no files or no run are named, a folder is, results that cannot be read, or no such run.
    """
    if not files or run is None:
        raise SoraError("results of VBench are logged to a run: give both --vbench FILE and --run ID")
    if any(folder is not None for folder in folders):
        raise SoraError("--vbench logs what VBench found, and scores no folder; leave out --generated and --real")
    from mlflow.exceptions import MlflowException

    from lightning_sora.tracking.store import connect, identity, resolve_uri

    found, address = read_vbench(files), resolve_uri(uri)
    client = connect(address)
    try:
        client.get_run(run)
        for name, value in found.metrics().items():
            client.log_metric(run, name, value)
        for file in files:
            client.log_artifact(run, str(file), "vbench")
        client.log_dict(run, {"dimensions": found.dimensions, "totals": found.totals}, "vbench/summary.json")
    except MlflowException as problem:
        reason = " ".join(str(problem).split())[:160]
        raise SoraError(
            f"VBench's results cannot be logged to the run {run} in {identity(address)} ({reason}); give the id of one "
            "of its runs (--run), or --uri of its store"
        ) from problem
    return found
