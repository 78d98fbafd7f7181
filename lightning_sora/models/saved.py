"""Models as folders: weights as safetensors, and a JSON that says how they are built. Nothing of Lightning is needed.

FOLDER/config.json          kind, specs of the parts, what is known of the training, digests of the weights
FOLDER/PART.safetensors     the weights of a part, such as vae, text, dit

Every file carries its digest (see :mod:`lightning_sora.sealing`), and ``config.json`` that of each other file, so that
files of two models do not mix. Folders of before have the same in ``model.json``, and are read as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lightning_sora import __version__
from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.names import local_path
from lightning_sora.sealing import BLANK, MARK, read_json, seal, seal_json, verify, write_whole

#: What says how a model is built, and what said so before.
FILE, OLDER = "config.json", "model.json"
LIBRARY = "lightning_sora"
SCHEMA = 1
STORED = (None, "float16", "bfloat16", "float32")
REMEDY = "copy the folder again, or save the model anew"


@dataclass(frozen=True)
class Saved:
    """A model as it lies in a folder.

    Attributes:
        kind: such as "latent_diffusion" or "vae".
        config: what builds it.
        metadata: what else is known of it.
        weights: of each part.
    """

    path: Path
    kind: str
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]

    def fill(self, part: str, module: nn.Module) -> None:
        """Loads the weights of a part into it, in the precision that the model was saved in.

        Raises:
            SoraError: they are not those of this module.
        """
        module.to(getattr(torch, self.metadata["dtype"]))
        try:
            module.load_state_dict(dict(self.weights[part]))
        except (KeyError, RuntimeError) as problem:
            raise SoraError(
                f"{self.path} does not hold the {part} that it describes ({' '.join(str(problem).split())[:200]}); it "
                "was written by another version"
            ) from problem


def is_saved(path: str | Path) -> bool:
    """Whether a path is a folder that :func:`save_model` wrote."""
    return _header_file(local_path(path)) is not None


def save_model(
    folder: str | Path,
    kind: str,
    config: Mapping[str, Any],
    parts: Mapping[str, nn.Module],
    *,
    stored: str | None = None,
    **metadata: Any,
) -> Path:
    """Writes a model; what is there of another one is replaced.

    Args:
        config: what builds it, as JSON.
        parts: whose weights are written, by name.
        stored: precision of the weights in the files, such as "float16"; what computes stays as it is. None for theirs.
        metadata: what else is to be known of it, as JSON.

    Returns:
        the folder.

    Raises:
        SoraError: an unknown precision, the disk is full, nothing can be written there, or there is a model of another
            library.
    """
    place, digests = check_place(folder, stored), {}
    for name, part in parts.items():
        tensors = stored_weights(part, stored)
        content = seal(save(tensors, metadata={"lightning_sora": BLANK}))
        write_whole(place / f"{name}.safetensors", content)
        digests[name] = hashlib.sha256(content).hexdigest()
    header = {"schema": SCHEMA, "kind": kind, "config": dict(config), "weights": digests, **metadata}
    written_by = {"library_name": LIBRARY, "library_version": __version__}
    write_whole(place / FILE, seal_json(header | written_by))  # last: a folder without it is not finished
    (place / OLDER).unlink(missing_ok=True)
    return place


def check_place(folder: str | Path, stored: str | None) -> Path:
    """The folder that a model may be written to, in that precision.

    Raises:
        SoraError: an unknown precision, or there is a model of another library.
    """
    check_stored(stored)
    place = local_path(folder)
    if (place / FILE).is_file() and not _is_own(place / FILE):
        raise SoraError(f"{place} holds a {FILE} of another library, which stays as it is; give another folder")
    return place


def check_stored(precision: str | None) -> None:
    """Raises SoraError for a precision that weights cannot be stored in."""
    if precision not in STORED:
        raise SoraError(f"weights cannot be stored as {precision!r}; choose float16, bfloat16 or float32")


def stored_weights(part: nn.Module, precision: str | None) -> dict[str, Tensor]:
    """The weights of a part as its file holds them.

    Raises:
        SoraError: an unknown precision.
    """
    check_stored(precision)
    weights = {name: value.detach().cpu().contiguous() for name, value in part.state_dict().items()}
    if precision is None:
        return weights
    kind = getattr(torch, precision)
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}


M = TypeVar("M", bound=nn.Module)


def rounded(part: M, precision: str) -> M:
    """The part that reading its stored weights gives."""
    copied = deepcopy(part)
    copied.load_state_dict(stored_weights(part, precision))
    return copied


def read_kind(folder: str | Path) -> str:
    """The kind of the model in a folder.

    Raises:
        SoraError: there is none, or it is damaged.
    """
    return str(read_header(local_path(folder))["kind"])


def read_model(folder: str | Path, kind: str) -> Saved:
    """The model in a folder, every byte of it verified.

    Raises:
        SoraError: there is none, it is of another kind, or damaged.
    """
    path = local_path(folder)
    header = read_header(path)
    if header["kind"] != kind:
        raise SoraError(f"{path} holds a model of kind {header['kind']!r}, not {kind!r}; give another folder")
    weights = {}
    for name, digest in header["weights"].items():
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise WeightsMissing(f"{path} lacks {file.name}; {REMEDY}")
        content = verify(file.read_bytes(), file, REMEDY)
        if hashlib.sha256(content).hexdigest() != digest:
            raise SoraError(f"{file} is of another model than {_header_file(path)}; {REMEDY}")
        try:
            weights[name] = load(content)
        except SafetensorError as problem:
            raise SoraError(f"{file} is damaged ({' '.join(str(problem).split())}); {REMEDY}") from problem
    known = {"schema", "kind", "config", "weights", "library_name", "library_version"}
    metadata = {key: value for key, value in header.items() if key not in known}
    return Saved(path, kind, header["config"], metadata, weights)


def _header_file(path: Path) -> Path | None:
    """The file that says what the model in a folder is; None where there is none."""
    if (path / FILE).is_file() and _is_own(path / FILE):
        return path / FILE
    return path / OLDER if (path / OLDER).is_file() else None


def _is_own(file: Path) -> bool:
    """Whether a config.json is one of ours, whole or damaged, and not of another library, many of which write such."""
    content = file.read_bytes()
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return True  # damaged, which its reader says
    return MARK.encode() in content or (isinstance(told, dict) and told.get("library_name") == LIBRARY)


def read_header(path: Path) -> dict[str, Any]:
    """What the file of a folder says of its model.

    Raises:
        SoraError: there is none, or it is damaged, or of another version.
    """
    file = _header_file(path)
    if file is None:
        other = f", and its {FILE} is of another library" if (path / FILE).is_file() else ""
        raise WeightsMissing(
            f"no model at {path}{other}; give a folder that `save_pretrained` of a model wrote, with its {FILE}"
        )
    header = read_json(file.read_bytes(), file, REMEDY)
    if header.get("schema") != SCHEMA or not {"kind", "config", "weights"} <= set(header):
        raise SoraError(
            f"{file} is of schema {header.get('schema')}, and this version reads {SCHEMA}; save the model anew"
        )
    return header
