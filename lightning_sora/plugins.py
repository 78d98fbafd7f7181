"""Plugins: files and packages that register parts of their own.

A file is given by ``--plugins FILE`` or ``plugins: [FILE]`` in a recipe. A package is found by its entry points in the
group ``lightning_sora.plugins``, each of which names a module that registers parts when it is imported. Where its parts
take long to import, the module says in ``PARTS`` which others are to be imported for which kind of part, by the name of
its registry; those under any other name are imported where parts of every kind may be meant::

    PARTS = {"source": ["my_package.films"], "model": ["my_package.my_lit_module"]}
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path

GROUP = "lightning_sora.plugins"


@dataclass(frozen=True)
class Plugin:
    """A file that was loaded.

    Attributes:
        name: of its module: that of the file, and a hash of its path.
        path: absolute.
        source: its text when it was loaded.
    """

    name: str
    path: Path
    source: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()


_LOADED: dict[Path, Plugin] = {}
_PACKAGES: set[str] = set()
_PARTS: dict[str, Mapping[str, Sequence[str]]] = {}


def loaded() -> dict[str, Plugin]:
    """The files that were loaded in this process, by the name of the file."""
    return {plugin.path.name: plugin for plugin in _LOADED.values()}


def load_plugins(files: Sequence[str | Path]) -> list[Plugin]:
    """Runs each file once in this process, so that what it registers can be named.

    Raises:
        SoraError: not there, changed since it was loaded, or broken; the place in the file is named.
    """
    return [_load(Path(file)) for file in files]


@functools.cache
def _offered() -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=GROUP))


def load_packages(kind: str | None = None) -> None:
    """Imports what installed packages offer as plugins, once; registries do so before they list or miss a part.

    Args:
        kind: the name of the registry whose parts are meant; None for parts of every kind, and classes besides.

    Raises:
        SoraError: one cannot be imported; its distribution is named.
    """
    for entry in _offered():
        if entry.value not in _PACKAGES:
            with _loading(entry, entry.value):
                _PARTS[entry.value] = getattr(entry.load(), "PARTS", {})
        for name, modules in _PARTS.get(entry.value, {}).items():
            for module in modules if kind in (None, name) else ():
                if module not in _PACKAGES:
                    with _loading(entry, module):
                        importlib.import_module(module)


@contextmanager
def _loading(entry: metadata.EntryPoint, module: str) -> Iterator[None]:
    _PACKAGES.add(module)  # at once: what it imports may ask again
    try:
        yield
    except (Exception, SystemExit) as problem:
        _PACKAGES.discard(module)
        distribution = entry.dist.name if entry.dist is not None else "an installed package"
        own = entry.value.partition(".")[0] == __name__.partition(".")[0]
        remedy = "install it anew" if own else f"mend or uninstall {distribution}"
        raise SoraError(
            f"the plugin {entry.name!r} of {distribution} cannot be loaded ({_where(problem, None)}); {remedy}"
        ) from problem


def none_is_offered() -> bool:
    """Whether no installed package offers plugins, which this one does, so that it was not installed itself."""
    return not _offered()


def _load(file: Path) -> Plugin:
    path = local_path(file).resolve()
    if path.suffix != ".py" or not os.path.isfile(path):
        raise SoraError(f"no plugin at {file}; give a Python file, such as --plugins my_block.py")
    try:
        source = importlib.util.decode_source(path.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as problem:
        raise SoraError(f"the plugin {file} cannot be read: {_where(problem, path)}; save it as UTF-8") from problem
    if path in _LOADED:
        if _LOADED[path].source != source:
            raise SoraError(f"the plugin {file} has changed since this process loaded it; start anew")
        return _LOADED[path]
    # A stable name that no other module has: what it defines can be pickled for worker processes.
    plugin = Plugin(f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}", path, source)
    specification = importlib.util.spec_from_file_location(plugin.name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[plugin.name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as problem:  # a script that ends the process is no plugin
        del sys.modules[plugin.name]
        raise SoraError(f"the plugin {file} cannot be loaded: {_where(problem, path)}") from problem
    _LOADED[path] = plugin
    return plugin


def _where(problem: BaseException, path: Path | None) -> str:
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if path is None or Path(f.filename) == path]
    line = getattr(problem, "lineno", None) or (frames[-1].lineno if frames else None)
    place = f" in line {line}" if line and path is not None else ""
    said = " ".join(str(problem).split())
    return f"{said if isinstance(problem, SoraError) else f'{type(problem).__name__}: {said}'}{place}"
