"""Models as folders that go to a hub and come from there: weights, config.json and a card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict, Unpack

import huggingface_hub
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.models.saved import FILE, LIBRARY, check_place, check_stored, read_header
from lightning_sora.names import local_path
from lightning_sora.sealing import write_whole
from lightning_sora.writing import unwritable

CARD = "README.md"
#: What is fetched of a repository, which may hold more.
FILES = (FILE, "model.json", "*.safetensors", CARD)
#: What is done with a model, by what a hub lists it under.
USES = {
    "text-to-video": 'clip = model.sample("a red cube moves left")',
    "image_to_video": """image, _ = ls.read_video("first.png")  # the first frame, of a size that the model takes
size = ls.VideoSize(17, *image.shape[1:3])
(clip,) = ls.sample_task(model, "image_to_video", ["a red cube moves left"], size, {"image": image})""",
    "first_and_last": """first, last = (ls.read_video(name)[0] for name in ("first.png", "last.png"))  # of one size
size = ls.VideoSize(17, *first.shape[1:3])
(clip,) = ls.sample_task(model, "first_and_last", ["a red cube moves left"], size, {"first": first, "last": last})""",
}
#: What a part's spec says where its weights lie elsewhere: a frozen encoder's, and those that are read on demand.
ELSEWHERE = {"text": ("hf(", "cached("), "vae": ("on_demand=True",), "image": ("",)}
#: Of a card that was written here, and may be written anew.
_MARK = "<!-- written by save_pretrained: edit above this line and drop it, and it is kept -->"
_CARD = """---
{{ card_data }}
---

# A {{ kind or "model" }} of {{ library }}

```python
import lightning_sora as ls

model = ls.{{ name }}.from_pretrained("OWNER/NAME")  # or a folder
{{ use }}
```

Neither Lightning nor mlflow is needed.
{% if rows %}
| | |
|---|---|
{% for row, value in rows.items() %}| {{ row }} | {{ value }} |
{% endfor %}{% endif %}{% if elsewhere %}
Not in this folder, but read from where the spec says: {{ elsewhere }}.
{% endif %}
{{ mark }}

"""
_ON_A_HUB = re.compile(r"[\w.\-]+/[\w.\-]+")
#: What huggingface_hub raises: its own errors, and those of the HTTP library that its version is built on.
_OF_A_HUB: tuple[type[Exception], ...] = (
    OSError, ValueError, *(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)),
)  # fmt: skip


class PushOptions(TypedDict, total=False):
    """Options of a push to a hub, as huggingface_hub takes them."""

    private: bool | None
    token: str | bool | None
    branch: str | None
    create_pr: bool | None
    commit_message: str
    allow_patterns: list[str] | str | None
    ignore_patterns: list[str] | str | None
    delete_patterns: list[str] | str | None


class PretrainedModel(ModelHubMixin, nn.Module, library_name=LIBRARY, tags=[LIBRARY], model_card_template=_CARD):
    """A model that is saved to a folder, and loaded from one or from a hub: a ``huggingface_hub.ModelHubMixin``.

    Neither Lightning nor mlflow is imported.

    Attributes:
        run_id: of the mlflow run that trained it; None where that is not known.
    """

    run_id: str | None = None
    # The mixin writes none of its own, and takes none from the arguments of __init__: what builds a model is in `save`.
    _hub_mixin_config: ClassVar[dict[str, Any]] = {"library_name": LIBRARY}  # type: ignore[misc]
    _stored: str | None = None  # of the copy that `_save_pretrained` is called on

    if TYPE_CHECKING:  # of each kind of model

        def save(self, folder: str | Path, *, stored: str | None = None) -> Path: ...

        @classmethod
        def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self: ...

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        *,
        stored: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: None = None,
        model_card_kwargs: None = None,
        **hub: Unpack[PushOptions],
    ) -> Path:
        """Writes the model as :meth:`save` does, and a card README.md beside it: what it is and how it is loaded.

        A card that was edited is kept.

        Args:
            stored: precision of the weights in the files: "float16" makes them half as large. None for their own.
            push_to_hub: upload it as well, by :meth:`push_to_hub`, which tells the address of the commit.
            repo_id: OWNER/NAME to upload it to; None for the name of the folder.
            config, model_card_kwargs: of the mixin's own calls: None, as the model says what it is.
            hub: see :meth:`push_to_hub`.

        Returns:
            the folder.

        Raises:
            SoraError: as :meth:`save` and :meth:`push_to_hub`, or options of a push without one.

        Example:
            >>> import lightning_sora as ls
            >>> spec = "causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8)"
            >>> folder = ls.ClipVAE(ls.VAES.create(spec), spec).save_pretrained("my_vae", stored="float16")
            >>> sorted(path.name for path in folder.iterdir())
            ['README.md', 'config.json', 'vae.safetensors']
        """
        if config is not None or model_card_kwargs is not None:
            raise SoraError(
                f"config and model_card_kwargs are not taken: {FILE} and the card say what the model is; edit "
                f"{CARD}, which is then kept"
            )
        if not push_to_hub and (given := [*hub, *(["repo_id"] if repo_id is not None else [])]):
            raise SoraError(f"{', '.join(given)} are of a push to a hub; add push_to_hub=True, or leave them out")
        stored = stored or self._stored
        place = check_place(folder, stored)
        try:
            with _put_back(place / FILE):
                ModelHubMixin.save_pretrained(self._storing(stored), place)
        except OSError as problem:
            raise unwritable(place, problem) from problem
        if push_to_hub:
            self.push_to_hub(repo_id or place.resolve().name, stored=stored, **hub)
        return place

    def _storing(self, stored: str | None) -> Self:
        """The model, of the same weights, that the mixin writes in a precision of which it knows nothing."""
        made = copy(self)
        made._stored = stored
        return made

    def _save_pretrained(self, save_directory: Path) -> None:
        place = self.save(save_directory, stored=self._stored)
        card = place / CARD
        if not card.is_file() or _MARK in card.read_text(errors="replace"):
            write_whole(card, str(self.generate_model_card(**_told(place))).encode())

    def generate_model_card(self, *args: Any, **told: Any) -> ModelCard:
        """The card of the model, as the mixin makes it of its template.

        Args:
            told: kind, rows of the table, and elsewhere: of the files of a folder, which :meth:`save_pretrained` knows.
        """
        made, tasks = self, getattr(self, "tasks", ())
        of_images = [task for task in tasks if task in USES]
        if of_images and "text_to_video" not in tasks:
            made = copy(self)  # the mixin asks the class, and models of one class may be of other tasks
            made._hub_mixin_info = deepcopy(self._hub_mixin_info)
            made._hub_mixin_info.model_card_data.pipeline_tag = "image-to-video"
        asked = of_images[0] if made is not self else str(made._hub_mixin_info.model_card_data.pipeline_tag)
        use = USES.get(asked, "latent = model.encode(clip)")
        of_its_class = {"name": type(self).__name__, "use": use, "library": LIBRARY, "mark": _MARK}
        return super(PretrainedModel, made).generate_model_card(*args, **of_its_class, **told)

    @classmethod
    def from_pretrained(  # type: ignore[override]
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
            SoraError: nothing there, a damaged folder, one of another model or library, or a hub that cannot be
                reached.

        Example:
            >>> import lightning_sora as ls
            >>> vae = ls.ClipVAE.from_pretrained("OWNER/my_vae", revision="main")  # doctest: +SKIP
        """
        if (place := local_path(name)).is_dir():
            return cls.load(place, device)  # the mixin would read its config.json first, and not say what is wrong
        if not _ON_A_HUB.fullmatch(str(name)):
            raise WeightsMissing(
                f"no folder at {str(name)!r}; give one that `save_pretrained` wrote, or OWNER/NAME of a hub"
            )
        try:
            return super().from_pretrained(
                str(name), revision=revision, cache_dir=cache_dir, token=token, force_download=force_download,
                local_files_only=local_files_only, device=device,
            )  # fmt: skip
        except SoraError:  # of the folder that came
            raise
        except (json.JSONDecodeError, UnicodeDecodeError) as problem:
            raise SoraError(
                f"{FILE} of {str(name)!r} is damaged: it is no JSON ({_first_line(problem)}); fetch it again by "
                "force_download=True, or push the model anew"
            ) from problem
        except _OF_A_HUB as problem:
            raise WeightsMissing(
                f"no folder at {str(name)!r}, and no model of that name on a hub that this machine reaches "
                f"({_first_line(problem)}); download it where there is a network, and give its folder"
            ) from problem

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: torch.device | str = "cpu",
        **_: Any,  # what config.json has of the names of __init__'s arguments: `load` reads it itself
    ) -> Self:
        folder = huggingface_hub.snapshot_download(
            model_id, revision=revision, cache_dir=cache_dir, force_download=force_download, token=token,
            local_files_only=local_files_only, allow_patterns=list(FILES), library_name=LIBRARY,
        )  # fmt: skip
        return cls.load(folder, device)

    def push_to_hub(  # type: ignore[override]
        self, name: str, *, stored: str | None = None, **hub: Unpack[PushOptions]
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes, in one commit, to a repository that is made where it is missing.

        Args:
            name: OWNER/NAME, or NAME for one's own.
            stored: see :meth:`save_pretrained`.
            hub: private, token, branch, create_pr, commit_message, allow_patterns, ignore_patterns, delete_patterns,
                as huggingface_hub takes them.

        Returns:
            the address of the commit.

        Raises:
            SoraError: no such hub, no leave to write there, or as :meth:`save`.

        Example:
            >>> import lightning_sora as ls
            >>> ls.load("outputs/world_vae").clips.push_to_hub("OWNER/my_vae", private=True)  # doctest: +SKIP
        """
        check_stored(stored)
        hub.setdefault("commit_message", f"A model of {LIBRARY}")
        try:
            return str(ModelHubMixin.push_to_hub(self._storing(stored), name, **hub))  # type: ignore[arg-type]
        except SoraError:  # of what cannot be saved
            raise
        except _OF_A_HUB as problem:
            raise SoraError(
                f"{name!r} cannot be written on the hub ({_first_line(problem)}); log in by `hf auth login`, or "
                "write a folder by save_pretrained"
            ) from problem


@contextmanager
def _put_back(file: Path) -> Iterator[None]:
    """Restores a file that the mixin took away for another, where that was not written."""
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    except BaseException:
        if before is not None and not file.exists():
            write_whole(file, before)
        raise


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]


def _told(folder: Path) -> dict[str, Any]:
    """What the files of a folder say to the template of its card."""
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
    for part, digest in sorted(told["weights"].items()):  # and not what else lies there
        file = folder / f"{part}.safetensors"
        rows[file.name] = f"{file.stat().st_size / 1e6:.1f} MB, SHA-256 `{digest}`"
    specs = told["config"]
    elsewhere = [part for part, ways in ELSEWHERE.items() if part in specs and any(w in str(specs[part]) for w in ways)]
    return {"kind": kind, "rows": rows, "elsewhere": ", ".join(elsewhere)}
