"""Pretrained parts that a checkpoint leaves out, found again: from another working directory, or where they are now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path
from lightning_sora.specs import SPEC, Spec, is_path

#: Options of specs that name a folder, and one that is a spec itself.
FOLDERS, NESTED = ("path", "name", "cache"), "encoder"


def found_again(asked: Mapping[str, str], directory: str | None, base: str | Path | None = None) -> dict[str, str]:
    """Specs and paths of the parts of a model whose folders are found: as they are asked for, in the directory of the
    training, or in ``base``.

    Args:
        asked: by part: a spec with a folder among its options, or a path. What has none comes back as it is.
        directory: that the training ran in; None where that is not known.
        base: where the folder of the pretrained denoiser (or pipeline) is now. What lies in that folder is looked for
            there, if it is found nowhere else; other folders are not.

    Example:
        >>> from lightning_sora.lit.moved import found_again
        >>> found_again({"denoiser": "wan(path='wan')", "text": "cached(path='texts')"}, None, "moved/wan")
        {'denoiser': "wan(path='moved/wan')", 'text': "cached(path='texts')"}
    """
    moved = None if base is None or (root := _root(asked)) is None else (root, str(base))
    return {
        part: _place(text, directory, moved) if part == "image" else _spec(text, directory, moved)
        for part, text in asked.items()
    }


def _root(asked: Mapping[str, str]) -> str | None:
    """The folder of the denoiser, or of the pipeline that it is of; of none, what the training began with."""
    for part in ("denoiser", "init_from"):
        if (text := asked.get(part)) is None:
            continue
        try:
            path = Spec.parse(text.removeprefix(SPEC)).options.get("path")
        except SoraError:
            path = text
        if isinstance(path, str):
            path = os.path.normpath(path)
            return os.path.dirname(path) if os.path.basename(path).startswith("transformer") else path
    return None


def _spec(asked: str, directory: str | None, moved: tuple[str, str] | None) -> str:
    mark = SPEC if asked.startswith(SPEC) else ""
    try:
        spec = Spec.parse(asked.removeprefix(SPEC))
    except SoraError:
        return _place(asked, directory, moved) if is_path(asked) else asked
    options = dict(spec.options)
    if "config" not in options:
        options |= {name: _place(v, directory, moved) for name in FOLDERS if isinstance(v := options.get(name), str)}
        if isinstance(inner := options.get(NESTED), str):
            options[NESTED] = _spec(inner, directory, moved)
    return asked if options == dict(spec.options) else mark + str(Spec(spec.name, options))


def _place(path: str, directory: str | None, moved: tuple[str, str] | None) -> str:
    if local_path(path).exists():
        return path
    if directory is not None and (there := os.path.join(directory, path)) and os.path.exists(there):
        return there
    if moved is None:
        return path
    (root, base), plain = moved, os.path.normpath(path)
    if plain == root:
        return base
    if not plain.startswith(root + os.sep):
        return path
    within = os.path.join(base, os.path.relpath(plain, root))
    return base if os.path.basename(plain).startswith("transformer") and not os.path.exists(within) else within
