"""Work over many clips in shards: side by side, and resumed where it was interrupted.

Each shard is one file, written whole or not at all, by a function of the shard's description alone. So what comes out
depends neither on the engine nor on how often the work was interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.jobs.engines import ENGINES
from lightning_sora.jobs.job import Job, function_at, path_of
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.redaction import redacted
from lightning_sora.sealing import write_whole

log = logging.getLogger(__name__)

IDENTITY = "identity.json"


@dataclass(frozen=True)
class Shard:
    """One file to make.

    Attributes:
        path: of the file.
        work: what the function is told, as JSON values.
    """

    path: Path
    work: Mapping[str, Any]


def check_unchanged(what: str, found: str, wanted: str) -> None:
    """Refuses to go on with something else than the command has begun with.

    Raises:
        SoraError: the fingerprint of ``what`` is another one by now.
    """
    if found != wanted:
        raise SoraError(f"{what} has changed since the command began ({found}, then {wanted}); call it again")


def claim(folder: Path, identity: Mapping[str, Any], remedy: str, *, name: str = IDENTITY) -> None:
    """Makes a folder the home of one piece of work, or finds that it is already.

    Args:
        name: of the file that tells it; a folder with one may be home to further pieces, each with its own.

    Raises:
        SoraError: it is the home of another; the first field that differs is named, and ``remedy``.
    """
    path = folder / name
    wanted = json.loads(json.dumps(redacted(identity)))
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise SoraError(f"{path} is damaged; {remedy}")
        for key in sorted({*wanted, *found}):
            if wanted.get(key) != found.get(key):
                raise SoraError(
                    f"{folder} holds work of another {key}: {_short(found.get(key))}, now {_short(wanted.get(key))}; "
                    f"{remedy}"
                )
        return
    if name == IDENTITY and folder.is_dir() and any(folder.iterdir()):
        raise SoraError(f"{folder} holds other files; {remedy}")
    write_whole(path, json.dumps(wanted, indent=1, sort_keys=True).encode())


def run_shards(
    shards: Sequence[Shard],
    function: Callable[[Mapping[str, Any], Path], None],
    *,
    engine: str,
    intact: Callable[[Path], bool],
    label: str,
    logs: Path,
    threads: int = 1,
    plugins: Sequence[str | Path] = (),
) -> int:
    """Makes the files that are not there yet.

    Args:
        function: of a module, called with each shard's work and path; it writes the file.
        engine: spec of what runs it.
        intact: whether a file that is there can be kept.
        logs: folder for what the shards print.
        threads: of torch, in each process.

    Returns:
        how many were made now.

    Raises:
        SoraError: a shard failed; those that are done are kept.
    """
    from tqdm import tqdm

    runner = ENGINES.create(engine)
    missing = [shard for shard in shards if not (shard.path.is_file() and intact(shard.path))]
    if len(missing) < len(shards):
        log.warning("%d of %d shards are done already", len(shards) - len(missing), len(shards))
    jobs = []
    for shard in missing:
        told = {"function": path_of(function), "work": dict(shard.work), "path": str(shard.path.absolute())}
        told["plugins"] = [str(file) for file in plugins]
        jobs.append(Job.of(shard.path.name, make_shard, told, (logs / f"{shard.path.stem}.log").absolute(), threads))
    failures = []
    with tqdm(total=len(shards), initial=len(shards) - len(missing), desc=label, unit="shard", file=sys.stderr) as bar:
        for outcome in runner.run(jobs):
            if outcome.status:
                log_of = str(outcome.job.log)
                where = f"; see {log_of}" if outcome.status == 1 and log_of not in outcome.message else ""
                failures.append(f"{outcome.job.name}: {outcome.message}{where}")
            else:
                bar.update()
    if failures:
        raise SoraError(
            f"{len(failures)} of {len(shards)} shards failed, the first: {failures[0]}; run it again to go on"
        )
    return len(missing)


def make_shard(function: str, work: Mapping[str, Any], path: str, plugins: Sequence[str]) -> None:
    """Makes one shard in this process; the job of an engine."""
    load_packages()
    load_plugins(plugins)
    function_at(function)(work, Path(path))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
