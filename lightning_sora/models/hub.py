"""Models as folders that go to a hub and come from there: weights, config.json and a card."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.models.saved import LIBRARY, read_header
from lightning_sora.names import local_path
from lightning_sora.sealing import write_whole

CARD = "README.md"
INSTALL = "pip install huggingface_hub"
#: What is fetched of a repository, which may hold more.
FILES = ("config.json", "model.json", "*.safetensors", CARD)
#: Kind of model: what a hub lists it under, and what is done with it.
OF_A_HUB = {"latent_diffusion": ("text-to-video", 'clip = model.sample("a red cube moves left")')}
#: What a part's spec says where its weights lie elsewhere: a frozen encoder's, and those that are read on demand.
ELSEWHERE = {"text": ("hf(", "cached("), "vae": ("on_demand=True",), "image": ("",)}
#: Of a card that was written here, and may be written anew.
_MARK = "<!-- written by save_pretrained: edit above this line and drop it, and it is kept -->"
_ON_A_HUB = re.compile(r"[\w.\-]+/[\w.\-]+")


class PretrainedModel(nn.Module):
    """A model that is saved to a folder, and loaded from one or from a hub, by the methods of huggingface_hub's mixin.

    The package is imported where a hub is asked for, and not before; neither Lightning nor mlflow ever is.

    Attributes:
        run_id: of the mlflow run that trained it; None where that is not known.
    """

    run_id: str | None = None

    if TYPE_CHECKING:  # of each kind of model

        def save(self, folder: str | Path, *, stored: str | None = None) -> Path: ...

        @classmethod
        def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self: ...

    def save_pretrained(self, folder: str | Path, *, stored: str | None = None) -> Path:
        """Writes the model as :meth:`save` does, and a card README.md beside it: what it is and how it is loaded.

        Args:
            stored: precision of the weights in the files: "float16" makes them half as large. None for their own.

        Returns:
            the folder.

        Raises:
            SoraError: as :meth:`save`.
        """
        place = self.save(folder, stored=stored)
        card = place / CARD
        if not card.is_file() or _MARK in card.read_text(errors="replace"):
            write_whole(card, _card(type(self).__name__, place).encode())
        return place

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Reads what :meth:`save_pretrained` wrote, frozen and in evaluation mode.

        Args:
            name: a folder; or OWNER/NAME of a hub, where there is no such folder.
            revision, cache_dir, token, force_download, local_files_only: of a hub's, as huggingface_hub takes them.

        Raises:
            SoraError: nothing there, a damaged folder, one of another model or library, no huggingface_hub, or a hub
                that cannot be reached.

        Example:
            >>> import lightning_sora as ls
            >>> vae = ls.ClipVAE.from_pretrained("OWNER/my_vae", revision="main")  # doctest: +SKIP
        """
        if (place := local_path(name)).is_dir():
            return cls.load(place, device)
        if not _ON_A_HUB.fullmatch(str(name)):
            raise WeightsMissing(
                f"no folder at {str(name)!r}; give one that `save_pretrained` wrote, or OWNER/NAME of a hub"
            )
        return cls.load(_fetched(str(name), revision=revision, cache_dir=cache_dir, token=token,
                                 force_download=force_download, local_files_only=local_files_only), device)  # fmt: skip

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        commit_message: str = "A model of lightning_sora",
        stored: str | None = None,
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes, in one commit, to a repository that is made where it is missing.

        Args:
            name: OWNER/NAME, or NAME for one's own.
            private, token, branch, create_pr, commit_message: as huggingface_hub takes them.
            stored: see :meth:`save_pretrained`.

        Returns:
            the address of the commit.

        Raises:
            SoraError: no huggingface_hub, no leave to write there, or as :meth:`save`.

        Example:
            >>> import lightning_sora as ls
            >>> ls.load("outputs/world_vae").clips.push_to_hub("OWNER/my_vae", private=True)  # doctest: +SKIP
        """
        api = _hub().HfApi(token=token)
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / "model", stored=stored)
            try:
                repository = api.create_repo(repo_id=name, private=private, exist_ok=True).repo_id
                made = api.upload_folder(
                    repo_id=repository, repo_type="model", folder_path=folder, commit_message=commit_message,
                    revision=branch, create_pr=create_pr,
                )  # fmt: skip
            except (OSError, ValueError) as problem:  # of which all of huggingface_hub's are
                raise SoraError(
                    f"{name!r} cannot be written on the hub ({_first_line(problem)}); log in by `hf auth login`, or "
                    "write a folder by save_pretrained"
                ) from problem
        return str(getattr(made, "commit_url", made))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as problem:
        raise SoraError(
            f"a model of a hub needs huggingface_hub, which is not installed: {INSTALL}; a folder needs none"
        ) from problem
    return huggingface_hub


def _fetched(name: str, **options: Any) -> str:
    """The folder of a hub's model on this disk."""
    hub = _hub()
    try:
        return str(hub.snapshot_download(name, allow_patterns=list(FILES), library_name=LIBRARY, **options))
    except (OSError, ValueError) as problem:
        raise WeightsMissing(
            f"no folder at {name!r}, and no model of that name on a hub that this machine reaches "
            f"({_first_line(problem)}); download it where there is a network, and give its folder"
        ) from problem


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]


def _card(name: str, folder: Path) -> str:
    """What the files of a folder say, for people; ``name`` is of the class that reads them."""
    told = read_header(folder)
    kind = told["kind"].replace("_", " ")
    rows = {name: f"`{value}`" for name, value in told["config"].items()}
    rows["VAE"] = f"fingerprint `{told['vae_hash']}`"
    if told.get("tasks"):
        rows["tasks trained"] = ", ".join(told["tasks"]).replace("_", " ")
    clips = told.get("clips", {})
    if clips.get("size"):
        least, most, size = (" x ".join(map(str, clips[name])) for name in ("least", "most", "size"))
        spread = "" if least == most else f", from {least} to {most}"
        rows["sizes trained"] = f"{size} at {clips['fps']:g} a second{spread}"
    if told.get("run_id"):
        rows["trained by"] = f"mlflow run `{told['run_id']}`"
    rows["precision"] = f"computes in {told['dtype']}"
    for file in sorted(folder.glob("*.safetensors")):
        rows[file.name] = f"{file.stat().st_size / 1e6:.1f} MB, SHA-256 `{told['weights'][file.stem]}`"
    task, use = OF_A_HUB.get(told["kind"], (None, "latent = model.encode(clip)"))
    lines = ["---", f"library_name: {LIBRARY}", *([f"pipeline_tag: {task}"] if task else [])]
    lines += [f"tags: [{LIBRARY}, {told['kind']}]", "---", "", f"# A {kind} of {LIBRARY}", "", "```python"]
    lines += ["import lightning_sora as ls", "", f'model = ls.{name}.from_pretrained("OWNER/NAME")  # or a folder']
    lines += [use, "```", "", "Neither Lightning nor mlflow is needed.", "", "| | |", "|---|---|"]
    lines += [*(f"| {name} | {value} |" for name, value in rows.items()), ""]
    specs = told["config"]
    elsewhere = [part for part, ways in ELSEWHERE.items() if part in specs and any(w in str(specs[part]) for w in ways)]
    if elsewhere:
        lines += [f"Not in this folder, but read from where the spec says: {', '.join(elsewhere)}.", ""]
    return "\n".join([*lines, _MARK, ""])
