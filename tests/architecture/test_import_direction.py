"""The house's walls: who may import whom, how long a file may be, and what the project never says."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "lightning_sora"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {
    "directions",
    "errors",
    "lifeline",
    "redaction",
    "registry",
    "specs",
    "contracts",
    "randomness",
    "media",
    "plugins",
    "memory",
    "time_left",
    "sealing",
    "names",
    "texts",
    "writing",
    "lettering",
    "documents",
    "exits",
    "shown",
    "shipped",
}

EVERYWHERE = {
    "contracts",
    "directions",
    "documents",
    "errors",
    "memory",
    "names",
    "registry",
    "sealing",
    "specs",
    "texts",
    "writing",
    "exits",
    "shipped",
    "shown",
}
# room -> the rooms it may import, besides those.
ALLOWED: dict[str, set[str]] = {
    "directions": set(),
    "lifeline": set(),
    "redaction": set(),
    "errors": {"redaction"},
    "registry": {"plugins"},
    "specs": set(),
    "contracts": set(),
    "randomness": set(),
    "media": {"lettering"},
    "plugins": set(),
    "memory": set(),
    "time_left": set(),
    "sealing": set(),
    "names": set(),
    "texts": set(),
    "writing": set(),
    "documents": set(),
    "lettering": set(),
    "spacetime": set(),
    "world": {"spacetime", "randomness"},
    "nn": {"spacetime", "randomness"},
    "diffusion": {"spacetime", "randomness"},
    "models": {"nn", "diffusion", "spacetime", "randomness"},
    "tasks": {"models", "spacetime", "randomness"},
    "metrics": {"spacetime", "world"},
    "data": {"spacetime", "randomness", "media", "lifeline", "redaction"},
    "lit": {"models", "nn", "diffusion", "metrics", "spacetime", "randomness", "media", "redaction", "tasks"},
    "tracking": {"media", "redaction", "lifeline"},
    "exits": set(),
    "shipped": set(),
    "shown": set(),
    "jobs": {"plugins", "redaction"},
    "ablation": {"jobs", "tracking", "redaction"},
    "recipe": {"data", "lifeline", "lit", "plugins", "redaction", "tracking"},
    "lab": {
        "ablation",
        "data",
        "diffusion",
        "jobs",
        "lifeline",
        "lit",
        "media",
        "metrics",
        "models",
        "nn",
        "plugins",
        "recipe",
        "redaction",
        "randomness",
        "spacetime",
        "tasks",
        "tracking",
    },
    "page": {"data", "diffusion", "lab", "models", "plugins", "spacetime", "tasks"},
    "testbench": {"data", "lit", "metrics", "models", "randomness", "spacetime", "world"},
    "cli": {"*"},
    "commands": {"*"},
}
LIGHTNING_ROOMS = {"lit", "tracking", "recipe", "lab", "cli", "commands", "testbench"}
LIGHTNING_FILES = {"data/datamodule.py", "data/progress.py"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole path"
            modules.add(str(node.module))
            if node.module == "lightning_sora":
                modules |= {f"lightning_sora.{alias.name}" for alias in node.names}
    return modules


def test_imports_follow_the_direction() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        allowed = ALLOWED.get(room, {"*"})  # __init__
        if allowed != {"*"}:
            ours = {m.split(".")[1] for m in imported_modules(path) if m.startswith("lightning_sora.")}
            foreign = ours - {room, *EVERYWHERE, "__version__"} - allowed
            wrong += [f"{path.relative_to(PACKAGE)}: {room} may not import {name}" for name in sorted(foreign)]
    assert not wrong, "\n".join(wrong)


def test_only_the_training_rooms_know_lightning() -> None:
    wrong = []
    for path in FILES:
        relative = path.relative_to(PACKAGE).as_posix()
        if room_of(path) not in LIGHTNING_ROOMS and relative not in LIGHTNING_FILES:
            roots = {m.split(".")[0] for m in imported_modules(path)}
            wrong += [f"{relative} imports {name}" for name in roots & {"lightning", "pytorch_lightning", "mlflow"}]
    assert not wrong, "\n".join(wrong)


def test_only_the_page_knows_gradio() -> None:
    knowing = {room_of(path) for path in FILES if any(m.split(".")[0] == "gradio" for m in imported_modules(path))}
    assert knowing == {"page"}


def test_no_file_is_long() -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > 400}, "find the missing noun"


def test_every_room_is_known() -> None:
    assert {room_of(p) for p in FILES} - {"__init__"} <= set(ALLOWED)


def test_the_package_never_names_recipes_or_benchmarks() -> None:
    for path in FILES:
        assert not {m for m in imported_modules(path) if m.split(".")[0] in ("recipes", "benchmarks", "tests")}, path


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports within functions count as well; the face names everything, and is nobody's part."""
    modules = {name_of(path): path for path in FILES if path.parent != PACKAGE or path.stem != "__init__"}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & modules.keys() or {str(node.module)}
        graph[name] = (found & modules.keys()) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        raise AssertionError(" imports ".join(reversed(circle.args[1]))) from None


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_text_names_a_module_of_a_higher_room() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        allowed = ALLOWED.get(room, {"*"})
        if allowed == {"*"}:
            continue
        for text in strings(path):
            named = re.fullmatch(r"lightning_sora\.(\w+)(\.\w+)*\.?(:\w+)?", text)
            if named and named[1] in ALLOWED and named[1] not in {room, *EVERYWHERE} | allowed:
                wrong.append(f"{path.relative_to(PACKAGE)}: {text}")
    assert not wrong, "\n".join(wrong)


def test_nothing_knows_the_testbench() -> None:
    """It is a plugin: an entry point names it, and the face its public names; neither imports it."""
    wrong = []
    for path in FILES:
        if room_of(path) == "testbench":
            continue
        face = path == PACKAGE / "__init__.py"
        told = [f"the text {text!r}" for text in strings(path) if "testbench" in text] if not face else []
        imported = [f"the module {m}" for m in imported_modules(path) if "testbench" in m] if not face else []
        wrong += [f"{path.relative_to(PACKAGE)}: {what}" for what in told + imported]
    assert not wrong, "\n".join(wrong)


#: What commands share, which are none.
SHARED = {"arguments", "one_line"}


def test_a_command_is_a_parser_a_call_and_a_print() -> None:
    lines = {path.stem: len(path.read_text().splitlines()) for path in (PACKAGE / "commands").glob("*.py")}
    assert {name for name, count in lines.items() if count >= 60} <= SHARED, (
        "its work belongs in lab, ablation or tracking"
    )


def test_only_the_command_line_knows_commands() -> None:
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(module.startswith("lightning_sora.commands") for module in imported_modules(path))
    }
    assert {file for file in knowing if not file.startswith("commands/")} == {"cli.py"}
    assert "lightning_sora.cli" not in set().union(*map(imported_modules, FILES))


def test_no_parsed_arguments_leave_the_command_line() -> None:
    wrong = [
        path for path in FILES if room_of(path) not in ("commands", "cli") and "argparse" in imported_modules(path)
    ]
    assert not wrong


#: Names that meant several things, and what is said now; the rooms in brackets keep the one meaning that is left.
GONE: dict[str, tuple[str, set[str]]] = {
    "judge": ("evaluation, agreement, method or discriminator; a verdict judges", {"ablation"}),
    "judged": ("counted or scored", {"ablation", "lab"}),
    "real_floor": ("real_vs_real", set()),
    "untrained": ("spec", set()),
}


def identifiers(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(found := getattr(node, field, None), str):
                yield found


def test_words_that_are_gone_do_not_come_back() -> None:
    wrong = {
        f"{path.relative_to(PACKAGE)}: {name}; say {GONE[name][0]}"
        for path in FILES
        for name in identifiers(path)
        if name in GONE and room_of(path) not in GONE[name][1]
    }
    assert not wrong
