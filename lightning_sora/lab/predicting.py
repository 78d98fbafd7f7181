"""Files of prompts, sampled by a recipe's `predict` on any number of devices."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.lab.models import VideoModel
from lightning_sora.lab.request import Request
from lightning_sora.lab.sampling import read_prompts, row_changed, row_file, sample_row
from lightning_sora.lab.vbench import place_video, vbench_rows
from lightning_sora.lit.generate import Asked
from lightning_sora.models.configs import SamplingConfig, plain
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import Clip
from lightning_sora.registry import check_types
from lightning_sora.tasks.base import INPUTS, NUMBERS
from lightning_sora.texts import read_text

log = logging.getLogger(__name__)

#: What a row may say beside its prompt and its inputs; the rest is that of the run.
OPTIONS = tuple(
    one.name for one in fields(Request) if one.name not in ("model", "prompts", "seeds", "inputs", "expand", "plugins")
)
NAMES = ("prompt", "seed", *OPTIONS, *INPUTS)


def read_requests(
    path: str | Path, *, model: str, expand: str | None = None, plugins: Sequence[str] = ()
) -> list[Request]:
    """The requests of a file, checked.

    Args:
        path: a text file with one prompt per line; or one whose name ends in .jsonl, each line of which is an object
            with "prompt" and maybe "seed", what else :func:`~lightning_sora.lab.sampling.sample` takes, such as
            "negative" or "frames", and inputs by name, such as "image". Paths of files are relative to its folder.
        model, expand, plugins: of all of them.

    Raises:
        SoraError: a row that is no request, with its line, or no row at all.
    """
    file = Path(path).expanduser()
    common: dict[str, Any] = {"model": model, "expand": expand, "plugins": tuple(plugins)}
    if file.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
        rows = [(f"{file}:{number}", _row(f"{file}:{number}", line)) for number, line in lines]
    else:
        rows = [(f"{file}: {prompt[:40]!r}", {"prompt": prompt}) for prompt in read_prompts(file)]
    if not rows:
        raise SoraError(f"{file} has no prompts; give one per line")
    found = []
    for place, row in rows:
        inputs = {name: value for name, value in row.items() if name in INPUTS}
        given = {name: value if name in NUMBERS else str(file.parent / str(value)) for name, value in inputs.items()}
        options = {name: value for name, value in row.items() if name in OPTIONS}
        try:
            check_types("a request", Request, options)
            request = Request(prompts=(row["prompt"],), seeds=(row.get("seed", 0),), inputs=given, **options, **common)
            request.check()
        except SoraError as problem:
            raise SoraError(f"{place}: {problem}") from problem
        found.append(request)
    return found


def vbench_requests(
    path: str | Path, samples: int, named_by: str | Path | None, *, model: str, plugins: Sequence[str] = ()
) -> tuple[list[Request], list[str]]:
    """The requests of a prompt file of VBench, with the names of their videos.

    Args:
        path: one prompt per line, such as VBench's ``all_dimension.txt``.
        samples: of each; sample j of prompt i has the seed 100000 i + j.
        named_by: the suite's own prompts, where those of ``path`` are rewritten; None for them.

    Raises:
        SoraError: no prompts, or as :func:`~lightning_sora.lab.vbench.vbench_rows`.
    """
    if Path(path).suffix == ".jsonl":
        raise SoraError(f"{path} has requests of its own seeds; VBench's prompts are a text file with one per line")
    prompts = read_prompts(path)
    if not prompts:
        raise SoraError(f"{path} has no prompts; give one per line")
    rows = vbench_rows(prompts, samples, None if named_by is None else read_prompts(named_by))
    found = [Request(model=model, prompts=(one.prompt,), seeds=(one.seed,), plugins=tuple(plugins)) for one in rows]
    for request in found[::samples]:
        request.check()
    return found, [one.name for one in rows]


def _row(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as problem:
        raise SoraError(f'{place} is no JSON ({problem}); a line is an object such as {{"prompt": "a cube"}}') from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise SoraError(f'{place} has no prompt; a line is an object such as {{"prompt": "a cube", "seed": 1}}')
    for name in row:
        if name not in NAMES:
            hint = did_you_mean(name, NAMES, repr)
            raise SoraError(f"{place}: a request has no {name!r}; {hint}it may have {', '.join(NAMES)}")
    if type(row.get("seed", 0)) is not int:
        raise SoraError(f"{place}: seed={row['seed']!r} must be a whole number")
    return row


@dataclass
class Tally:
    """How many rows were made, and how many were there already."""

    made: int = 0
    kept: int = 0

    def __str__(self) -> str:
        return f"{self.made} made" + (f", {self.kept} kept as they were there" if self.kept else "")


class AskedClip(Asked):
    """A row of a file, as a batch of a prediction; no dataclass, which lightning would take apart.

    Args:
        index: of the row.
        asked: all of them.
    """

    def __init__(self, index: int, request: Request, asked: AskedClips) -> None:
        self.index, self.request, self.asked = index, request, asked

    def answer(self, model: LatentDiffusion, run_id: str | None) -> list[Clip]:
        """Makes the video, alone: which device makes it, and beside which others, changes nothing.

        Returns:
            the video; nothing where an earlier prediction has made it.
        """
        asked, own = self.asked, VideoModel(self.request.model, model, run_id, model.device)
        fingerprint = asked.model_fingerprint(model)
        changed = row_changed(self.request, own, asked.folder, self.index, fingerprint)
        if changed == []:
            asked.tally.kept += 1
            self._place()
            return []
        if changed:
            name = row_file(self.request, asked.folder, self.index).stem
            log.warning("%s is made again: what is there has %s", name, " and ".join(changed))
        made = sample_row(self.request, own, asked.folder, self.index, fingerprint)
        asked.tally.made += 1
        self._place()
        return list(made.videos)

    def _place(self) -> None:
        """Puts the video where VBench looks for it, if it is one of its."""
        if self.asked.names:
            made = row_file(self.request, self.asked.folder, self.index).with_suffix(".mp4")
            place_video(made, self.asked.folder / "vbench", self.asked.names[self.index])


class AskedClips(pl.LightningDataModule):
    """The rows of a file, divided over ranks.

    Args:
        folder: of the files that are written.
        names: of the videos by VBench, one for each row, which lie in ``vbench`` in the folder too; empty for none.

    Attributes:
        tally: of this rank; at the end, of all.
    """

    def __init__(self, requests: Sequence[Request], folder: Path, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = list(names)
        self.requests, self.folder, self.tally = list(requests), folder, Tally()
        self._fingerprint: str | None = None

    def model_fingerprint(self, model: LatentDiffusion) -> str:
        """That of the one model of a prediction, computed once: it reads all weights."""
        if self._fingerprint is None:
            self._fingerprint = model.fingerprint()
        return self._fingerprint

    def setup(self, stage: str) -> None:
        """Tells of videos in the folder that no row asks for, which stay."""
        if self.trainer is None or not self.trainer.is_global_zero or not os.path.isdir(self.folder):
            return
        own = {row_file(one, self.folder, index).stem for index, one in enumerate(self.requests)}
        others = sorted({file.stem for file in self.folder.glob("*.mp4")} - own)
        if others:
            log.warning(
                "%s has videos of no row of this file: %s; they are left there",
                self.folder,
                ", ".join(others[:3]) + (" ..." if len(others) > 3 else ""),
            )

    def teardown(self, stage: str) -> None:
        """Counts over ranks."""
        if self.trainer is not None:
            strategy = self.trainer.strategy
            counts = torch.tensor(astuple(self.tally), device=strategy.root_device)
            self.tally = Tally(*(int(count) for count in strategy.reduce(counts, reduce_op="sum")))

    def settle(self, sampling: SamplingConfig, kept: Mapping[str, Any] | None) -> None:
        """Writes into the requests what the recipe samples by and the checkpoint alone would not.

        Args:
            sampling: of the recipe.
            kept: by the checkpoint; None where that is not known.

        Raises:
            SoraError: another shift, which no request can ask for.
        """
        if kept is None:
            return
        alone = SamplingConfig.of(kept)
        changed = {name: getattr(sampling, name) for name in sampling.names()}
        changed = {name: plain(value) for name, value in changed.items() if value != getattr(alone, name)}
        if "shift" in changed:
            raise SoraError(
                f"model.sampling.shift={sampling.shift:g} is not the {alone.shift:g} that the checkpoint keeps, by "
                "which `sample --again` makes a video again; leave it as it is"
            )
        self.requests = [
            replace(one, **{name: value for name, value in changed.items() if getattr(one, name) is None})
            for one in self.requests
        ]

    def predict_dataloader(self) -> DataLoader[AskedClip]:
        """Every so many rows, from the rank's own on.

        Raises:
            SoraError: fewer rows than ranks.
        """
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        if len(self.requests) < ranks:
            raise SoraError(
                f"{len(self.requests)} prompts cannot be dealt to {ranks} ranks; set trainer.devices to at most "
                f"{len(self.requests)}"
            )
        rows: Any = [AskedClip(index, one, self) for index, one in enumerate(self.requests)]
        return DataLoader(rows, batch_size=None, sampler=range(rank, len(rows), ranks))
