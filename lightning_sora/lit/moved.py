"""Pretrained parts that a checkpoint leaves out, found again: from another working directory, or where they are now."""

from __future__ import annotations

import os

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path
from lightning_sora.specs import SPEC, Spec, is_path

#: Options of specs that name a folder.
FOLDERS = ("path", "name", "cache")


def found_again(asked: str, directory: str | None, base: str | None = None) -> str:
    """A spec or a path whose folder is found: as it is asked for, in the directory of the training, or at ``base``.

    Args:
        asked: a spec with a folder among its options, or a path. What has none comes back as it is.
        directory: that the training ran in; None where that is not known.
        base: where the pretrained folder is now; taken for what is found nowhere else.

    Example:
        >>> from lightning_sora.lit.moved import found_again
        >>> found_again("diffusers(path='wan')", None, "moved/wan")
        "diffusers(path='moved/wan')"
        >>> found_again("spec:diffusers(path='wan', on_demand=True)", None, "moved/wan")
        "spec:diffusers(on_demand=True, path='moved/wan')"
    """
    mark = SPEC if asked.startswith(SPEC) else ""
    try:
        spec = Spec.parse(asked.removeprefix(SPEC))
    except SoraError:
        return _place(asked, directory, None) if is_path(asked) else asked
    options = dict(spec.options)
    for name in FOLDERS:
        if isinstance(value := options.get(name), str) and "config" not in options:
            options[name] = _place(value, directory, None if name == "cache" else base)
    return asked if options == dict(spec.options) else mark + str(Spec(spec.name, options))


def _place(path: str, directory: str | None, base: str | None) -> str:
    if local_path(path).exists():
        return path
    if directory is not None and (there := os.path.join(directory, path)) and os.path.exists(there):
        return there
    if base is None:
        return path
    part = local_path(base) / os.path.basename(os.path.normpath(path))  # of a folder that holds several
    return str(part) if part.exists() else base
