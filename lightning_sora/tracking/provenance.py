"""What a run came from: code, packages, hardware."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

NO_REPOSITORY = "not a repository"
PATCH_LIMIT = 5_000_000
NEW_FILE_LIMIT = 500_000


@dataclass(frozen=True)
class CodeState:
    """The state of a git checkout.

    Attributes:
        commit, branch: ``NO_REPOSITORY`` where git cannot tell.
        dirty: whether files differ from the commit or are new to git.
        patch: what to apply to the commit to get the code that ran.
    """

    commit: str = NO_REPOSITORY
    branch: str = NO_REPOSITORY
    dirty: bool = False
    patch: str = ""

    def tags(self) -> dict[str, str]:
        tags = {"git.commit": self.commit, "git.branch": self.branch, "git.dirty": str(self.dirty).lower()}
        if self.commit != NO_REPOSITORY:
            tags["mlflow.source.git.commit"] = self.commit
        return tags


def code_state(folder: Path | None = None) -> CodeState:
    """Reads the checkout that holds the package, or else the working directory.

    Args:
        folder: look here instead.
    """
    if folder is None:
        package = Path(__file__).resolve().parent
        folder = package if _git(package, "ls-files", "--error-unmatch", __file__) else Path.cwd()
    commit = _git(folder, "rev-parse", "HEAD")
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not commit or not top:
        return CodeState()
    root = Path(top)
    new = [root / name for name in (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")]
    patches = [_git(root, "diff", "HEAD") or ""]
    for path in new:
        if path.is_file() and path.stat().st_size <= NEW_FILE_LIMIT:
            patches.append(_git(root, "diff", "--no-index", "--", os.devnull, str(path.relative_to(root))) or "")
    patch = "\n".join(part for part in patches if part)
    if patch:
        patch += "\n"
    if len(patch) > PATCH_LIMIT:
        patch = f"{patch[:PATCH_LIMIT]}\n(cut: the whole has {len(patch)} characters)\n"
    return CodeState(
        commit=commit,
        branch=_git(root, "branch", "--show-current") or "detached",
        dirty=bool(_git(root, "status", "--porcelain")),
        patch=patch,
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=30,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # `diff --no-index` reports a difference by status 1.
    if done.returncode not in ((0, 1) if "--no-index" in arguments else (0,)):
        return None
    return done.stdout.decode(errors="replace").rstrip("\n")


def code_hashes() -> dict[str, str]:
    """The first half of the SHA-256 of every Python file of the package, by its path in it."""
    package = Path(__file__).resolve().parents[1]
    return {
        str(path.relative_to(package.parent)): hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        for path in sorted(package.rglob("*.py"))
    }


def code_hash() -> str:
    """One hash of the whole package: what ran, whether git knows it or not."""
    return hashlib.sha256(repr(code_hashes()).encode()).hexdigest()[:16]


def user() -> str:
    """The name of who runs this; "unknown" where the system has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def packages() -> dict[str, str]:
    """Installed distributions and their versions, by name."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def machine() -> dict[str, Any]:
    """Python, torch, processor and accelerators of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
