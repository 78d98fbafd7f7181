"""The house's walls: who may import whom, how long a file may be, and what the project never says."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lightning_sora"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"errors", "registry", "randomness", "media", "plugins", "memory"}

# room -> the rooms it may import; every room may import errors, registry and memory.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "registry": set(),
    "randomness": set(),
    "media": set(),
    "plugins": set(),
    "memory": set(),
    "spacetime": set(),
    "world": {"spacetime", "randomness"},
    "nn": {"spacetime", "randomness"},
    "diffusion": {"spacetime", "randomness"},
    "models": {"nn", "spacetime"},
    "metrics": {"spacetime", "world"},
    "data": {"spacetime", "randomness", "world", "media"},
    "lit": {"models", "nn", "diffusion", "metrics", "spacetime", "randomness", "media"},
    "tracking": {"media"},
    "ablation": {"tracking"},
    "cli": {"*"},
    "commands": {"*"},
}
LIGHTNING_ROOMS = {"lit", "tracking", "cli", "commands"}
LIGHTNING_FILES = {"data/datamodule.py", "data/prompts.py"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole path"
            modules.add(str(node.module))
            if node.module == "lightning_sora":
                modules |= {f"lightning_sora.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_direction(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    ours = {m.split(".")[1] for m in imported_modules(path) if m.startswith("lightning_sora.")}
    allowed = ALLOWED[room]
    if allowed != {"*"}:
        assert ours - {room, "errors", "registry", "memory", "__version__"} <= allowed, (
            f"{room} may not import {ours - allowed}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_training_rooms_know_lightning(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    if room_of(path) in LIGHTNING_ROOMS or relative in LIGHTNING_FILES:
        return
    assert not {m for m in imported_modules(path) if m.split(".")[0] in ("lightning", "pytorch_lightning", "mlflow")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "find the missing noun"


def test_every_room_is_known() -> None:
    assert {room_of(p) for p in FILES} - {"__init__"} <= set(ALLOWED)


def test_the_package_never_names_recipes_or_benchmarks() -> None:
    for path in FILES:
        assert not {m for m in imported_modules(path) if m.split(".")[0] in ("recipes", "benchmarks", "tests")}, path
