"""Work over many clips in shards: side by side, and resumed where it was interrupted.

Each shard is one file, written whole or not at all, by a function of the shard's description alone. So what comes out
depends neither on the engine nor on how often the work was interrupted.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError
from lightning_sora.redaction import redacted
from lightning_sora.sealing import write_whole

if TYPE_CHECKING:
    from lightning_sora.ablation.engines import Job

log = logging.getLogger(__name__)

IDENTITY = "identity.json"
ENTRY = "lightning_sora.commands.shards:run_job"


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
    function: str,
    *,
    engine: str,
    intact: Callable[[Path], bool],
    label: str,
    logs: Path,
    threads: int = 1,
    plugins: Sequence[str] = (),
) -> int:
    """Makes the files that are not there yet.

    Args:
        function: "module:name", called with each shard's work and path; it writes the file.
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

    from lightning_sora.ablation.engines import ENGINES, Job

    runner = ENGINES.create(engine)
    missing = [shard for shard in shards if not (shard.path.is_file() and intact(shard.path))]
    if len(missing) < len(shards):
        log.warning("%d of %d shards are done already", len(shards) - len(missing), len(shards))
    jobs = []
    for shard in missing:
        told = json.dumps({"function": function, "path": str(shard.path.absolute()), "work": dict(shard.work)})
        name = shard.path.name
        jobs.append(Job(name, ((told, *plugins),), (logs / f"{shard.path.stem}.log").absolute(), threads))
    failures = []
    with tqdm(total=len(shards), initial=len(shards) - len(missing), desc=label, unit="shard", file=sys.stderr) as bar:
        for outcome in runner.run(jobs, ENTRY):
            if outcome.status:
                failures.append(f"{outcome.job.name}: {outcome.message}")
            else:
                bar.update()
    if failures:
        raise SoraError(
            f"{len(failures)} of {len(shards)} shards failed, the first: {failures[0]}; run it again to go on"
        )
    return len(missing)


def run_job(job: Job) -> tuple[int, str]:
    """Makes one shard in this process; what engines call."""
    import traceback

    import torch

    from lightning_sora.commands.trial import printed_to
    from lightning_sora.plugins import load_packages, load_plugins

    told, *plugins = job.commands[0]
    order = json.loads(told)
    module, _, name = order["function"].partition(":")
    with printed_to(job.log):
        torch.set_num_threads(job.threads)
        try:
            load_packages()
            load_plugins(plugins)
            getattr(importlib.import_module(module), name)(order["work"], Path(order["path"]))
        except SoraError as problem:
            return 2, " ".join(str(problem).split())
        except Exception as problem:  # a bug, told with its traceback in the log
            traceback.print_exc()
            return 1, f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}; see {job.log}"
    return 0, ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
