"""Files of prompts, sampled by a recipe's `predict` on any number of devices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.lab.models import VideoModel
from lightning_sora.lab.sampling import Request, read_prompts, sample_row
from lightning_sora.lit.generate import Asked
from lightning_sora.models.configs import SamplingConfig, plain
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import Clip
from lightning_sora.registry import check_types
from lightning_sora.tasks.base import INPUTS, NUMBERS
from lightning_sora.texts import read_text

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


class AskedClip(Asked):
    """A row of a file, as a batch of a prediction; no dataclass, which lightning would take apart.

    Args:
        index: of the row.
        folder: of the files that are written.
    """

    def __init__(self, index: int, request: Request, folder: Path) -> None:
        self.index, self.request, self.folder = index, request, folder

    def answer(self, model: LatentDiffusion, run_id: str | None) -> list[Clip]:
        """Makes the video, alone: which device makes it, and beside which others, changes nothing."""
        own = VideoModel(self.request.model, model, run_id, model.device)
        return list(sample_row(self.request, own, self.folder, self.index).videos)


class AskedClips(pl.LightningDataModule):
    """The rows of a file, divided over ranks.

    Args:
        folder: of the files that are written.
    """

    def __init__(self, requests: Sequence[Request], folder: Path) -> None:
        super().__init__()
        self.requests, self.folder = list(requests), folder

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
        rows: Any = [AskedClip(index, one, self.folder) for index, one in enumerate(self.requests)]
        return DataLoader(rows, batch_size=None, sampler=range(rank, len(rows), ranks))
