"""Files that are there whole or not at all, and places that are looked at before the work that is to go there.

A file is written beside its target, as ``.NAME.PROCESS.part``, and moved there at its end. What a killed process left
of such files is removed by the next one that writes into the folder.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_sora.errors import SoraError

#: A full disk, a full quota, and a file that is larger than its system or its process allows.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PART = re.compile(r"\..+\.\d+\.part(ial)?")
_SWEPT: set[Path] = set()


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a name beside a file to write to, which is moved to the file at the end, or removed on a failure.

    The folder is made where missing. What is no file, such as ``/dev/stdout``, is written to as it is.

    Raises:
        SoraError: the disk is full, or nothing can be written there.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        partial = part_of(path)
        with _held(partial):
            try:
                yield partial
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as problem:
        # Where a file runs full, torch raises an error of its own, after that of the system.
        reason = problem if isinstance(problem, OSError) else full_disk(problem)
        if reason is None:
            raise
        raise unwritable(path, reason) from problem


def part_of(path: Path) -> Path:
    """The name beside a file under which it is written."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def sweep(folder: Path) -> None:
    """Removes, once per process and folder, what killed processes began to write there."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    for name in os.listdir(folder):
        if PART.fullmatch(name):
            _sweep_one(folder / name)


def sweep_inside(folder: Path) -> None:
    """The same for every folder that is in this one, as of the steps of a training."""
    for inner in folder.iterdir() if folder.is_dir() else ():
        if inner.is_dir():
            sweep(inner)


def _sweep_one(part: Path) -> None:
    import fcntl

    try:
        handle = os.open(part, os.O_RDONLY)
    except OSError:
        return  # just moved to where it belongs, or not ours
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who writes holds it, on whatever machine
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
    except OSError:
        return
    finally:
        os.close(handle)


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Makes a file that others can tell is being written: this process holds its lock, which ends with it."""
    import fcntl

    while True:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # a file system without locks; nothing is swept there either
                fcntl.flock(handle, fcntl.LOCK_EX)
            if partial.exists() and os.path.samestat(os.fstat(handle), partial.stat()):
                yield
                return
            # Swept away between the two lines above.
        finally:
            os.close(handle)


def full_disk(problem: BaseException | None) -> OSError | None:
    """The error of the system behind another one, if that is of a full disk."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        if isinstance(problem, OSError) and problem.errno in FULL:
            return problem
        seen.add(id(problem))
        problem = problem.__cause__ or problem.__context__
    return None


def unwritable(path: str | Path, problem: OSError, what: str = "") -> SoraError:
    """The error of a file that could not be written: a full disk with what is free on it, or why else.

    Args:
        what: the option that names the file.
    """
    name = f"{what} {path}".strip()
    said = problem.strerror or str(problem)
    if problem.errno == errno.EFBIG:
        return SoraError(f"{name} cannot be written: {said}, by a limit of its file system or of this process "
                         "(`ulimit -f`); raise that, or name a place elsewhere")  # fmt: skip
    if problem.errno in FULL:
        free = f"which had {_free(Path(path)) / 2**20:.1f} MiB for it"
        return SoraError(f"{name} cannot be written: {said}, {free}; make room there, or name a place elsewhere")
    return SoraError(f"{name} cannot be written: {said}; name a place elsewhere")


def _free(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def check_folder(what: str, folder: Path, name: str = "x") -> None:
    """Refuses a folder that no file can be made in, or that cannot be made: now, not after the work.

    Nothing is left of the trial, as what follows may refuse the work for another reason.

    Args:
        what: the option that names it.
        name: of the longest file that is to be there.

    Raises:
        SoraError: with the reason.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = part_of(folder / name)
        try:
            probe.write_bytes(b"\0")
        finally:
            probe.unlink(missing_ok=True)
            for place in missing:
                with suppress(OSError):  # another process has put something there
                    place.rmdir()
    except FileExistsError:
        raise SoraError(f"{what} {folder} is a file; give a folder") from None
    except OSError as problem:
        raise unwritable(folder, problem, what) from problem


def check_file(what: str, file: Path) -> None:
    """Refuses a file that cannot be written: now, not after the work.

    Raises:
        SoraError: with the reason; it is a folder.
    """
    try:
        folder, special = file.is_dir(), file.exists() and not file.is_file()
    except OSError as problem:  # a name that is too long
        raise unwritable(file, problem, what) from problem
    if folder:
        raise SoraError(f"{what} {file} is a folder; give the name of a file, such as {file / 'NAME'}")
    if special:
        if not os.access(file, os.W_OK):
            raise SoraError(f"{what} {file} cannot be written to; name a place elsewhere")
        return
    check_folder(what, file.parent, file.name)
