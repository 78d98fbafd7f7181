"""Recipes as files and flags, looked at before lightning parses them.

The parser's own words for a mistake are long, do not say which file it is in, and know nothing of
near matches; what can be told beforehand is told here.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import tempfile
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from lightning_sora.documents import parse_yaml, read_yaml, refuse_unbounded
from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.registry import described
from lightning_sora.shipped import recipe_path, shipped_recipes

SHOWN = 80  # letters of what is on a command line
#: Sections that name a class; an overlay may not change which.
CLASS_SECTIONS = ("model", "data")

#: A part with options; see ``registry.Spec``.
SPEC = re.compile(r"\w+\(.*\)", re.DOTALL)

#: The names that a section accepts, given the class that it names; None where anything goes.
Accepted = Callable[[str, str | None], Sequence[str] | None]

#: Where options lie that earlier versions had elsewhere.
MOVED = {
    "model.extractor": "evaluation.extractor",
    "model.clip": "evaluation.clip_model",
    "model.start": "model.init_from",
}


def recipe_files(arguments: Sequence[str]) -> list[Path]:
    """The files given by ``--config`` or ``-c``, in order.

    Raises:
        SoraError: a file is missing; its nearest neighbours are named.
    """
    files = [recipe_path(value) for flag, value in _flags(arguments) if flag in ("--config", "-c")]
    file = next((file for file in files if not os.path.isfile(file)), None)
    if file is None:
        return files
    folder = file.parent if file.parent.is_dir() else Path()
    if file.name == str(file) and not file.suffix:
        hint = did_you_mean(file.name, shipped_recipes(), repr)
        raise SoraError(f"no recipe at {file}, and none is called so; {hint}known are {', '.join(shipped_recipes())}")
    present = sorted(path.name for path in folder.glob("*.y*ml"))
    hint = did_you_mean(file.name, present, lambda name: str(Path(folder, name)))
    hint = hint or f"{folder.absolute()} holds {', '.join(present[:10]) or 'no recipe'}"
    raise SoraError(f"no recipe at {file}; {hint.strip()}")


def require_recipe(command: str, flags: Sequence[str]) -> None:
    """Refuses a command without a recipe, or with one that is not there.

    Args:
        command: fit, validate, test or predict.
        flags: what follows it.

    Raises:
        SoraError: with the recipes that there are.
    """
    if any(flag in ("-h", "--help") or "help" in flag for flag in flags):
        return
    if not recipe_files(flags) and not any(flag.startswith("--model") for flag in flags):
        here = ", ".join(map(str, sorted(Path("recipes").glob("*.yaml"))))
        there = f"those here are {here}; " if here else ""
        known = f"{there}known are {', '.join(shipped_recipes())}"
        raise SoraError(f"{command} needs a recipe; give one by --config FILE, or by its name: {known}")


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe file as nested mappings, interpolations unresolved; dotted names are taken apart.

    Raises:
        SoraError: not YAML, or no mapping.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise SoraError(f"{path} must hold sections such as `model:` and `data:`, not {type(content).__name__}")
    nested: dict[str, Any] = {}
    for key, value in content.items():
        first, *rest = str(key).split(".")
        for part in reversed(rest):
            value = {part: value}
        nested = _merge(nested, {first: value})
    return nested


def with_plugins(arguments: Sequence[str]) -> list[str]:
    """The command line with every ``--plugins FILE`` as an addition to those of the recipe."""
    found: list[str] = []
    following = iter(arguments)
    for argument in following:
        if argument == "--plugins":
            file = next(following, "")
            if not file or file.startswith("-"):
                raise SoraError("--plugins needs a file, such as --plugins my_block.py")
            found.append(f"--plugins+={file}")
        else:
            found.append(argument.replace("--plugins=", "--plugins+=", 1) if argument[10:11] != "[" else argument)
    return found


def with_local_recipes(arguments: Sequence[str]) -> list[str]:
    """The command line with the paths of recipes as the parser, which opens them by itself, will find them."""
    found: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if found and found[-1] in ("--config", "-c"):
            argument = str(recipe_path(argument))
        elif equals and flag in ("--config", "-c"):
            argument = f"{flag}={recipe_path(value)}"
        found.append(argument)
    return found


def with_quoted_specs(arguments: Sequence[str]) -> list[str]:
    """The command line with specs such as ``world(overrides={'stage': 4.0})`` as text: YAML sees mappings there.

    Raises:
        SoraError: a value is nested without end, or refers to itself.
    """
    for argument in arguments:
        flag, _, value = argument.partition("=")
        refuse_unbounded(value or flag, flag[:SHOWN])
    return [_quoted(argument) for argument in arguments]


def quoted_spec(value: str) -> str:
    """A spec so that YAML reads it as the text that it is: with no space after the colons of its mappings."""
    if not SPEC.fullmatch(value):
        return value
    try:
        if parse_yaml(value, value) == value:
            return value
    except SoraError:
        pass
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(value).readline))
    except (tokenize.TokenError, SyntaxError):
        return value  # who reads it will say what is wrong
    colons = [token.end[1] for token in tokens if token.type == tokenize.OP and token.string == ":"]
    for place in reversed(colons):
        value = value[:place] + value[place:].lstrip(" ")
    return value


def _quoted(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}={quoted_spec(value)}" if equals and flag.startswith("--") else quoted_spec(argument)


def plugin_files(files: Sequence[Path], arguments: Sequence[str]) -> list[str]:
    """What recipes and ``--plugins`` name, in order: needed before anything that they register is parsed.

    Raises:
        SoraError: ``plugins`` of a recipe is no list of paths.
    """
    found: list[str] = []
    for file in files:
        named = read_recipe(file).get("plugins") or []
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise SoraError(f"{file}: plugins={named!r} must be a list of paths of Python files")
        found += named
    for flag, value in _flags(arguments):
        if flag in ("--plugins", "--plugins+"):
            found += parse_yaml(value, flag) if value.startswith("[") else [value]
    return found


def check_recipe(files: Sequence[Path], arguments: Sequence[str], accepted: Accepted) -> None:
    """Refuses misspelt names and changes of class, in files and flags.

    Where the class of a section changes, the parser would drop what the base recipe said of it.

    Args:
        accepted: ``accepted("", None)`` are the sections; ``accepted(section, class_path)`` what
            may stand in one, and ``accepted("section.group", class_path)`` in a group of its options.

    Raises:
        SoraError: with the file or flag, near matches and the names that are accepted.
    """
    accepted = functools.cache(accepted)  # each name of a recipe asks for those beside it
    recipes = [(str(file), read_recipe(file)) for file in files]
    classes: dict[str, str] = {}
    for place, recipe in [*recipes, *_flag_classes(arguments)]:
        for section in CLASS_SECTIONS:
            name = _class_path(recipe.get(section))
            before = classes.setdefault(section, name) if name is not None else None
            if before is not None and name is not None and _short(before) != _short(name):
                raise SoraError(
                    f"{place} changes {section}.class_path from {before} to {name}, which would drop the options "
                    f"of {_short(before)}; write a recipe of its own for {_short(name)}"
                )
    for place, names in [*((p, n) for p, r in recipes for n in _names(r)), *_flag_names(arguments)]:
        _check_name(place, names[0], "", accepted("", None))
        made = classes.get(names[0])
        for depth in range(1, len(names)):
            section = ".".join(names[:depth])
            known = accepted(section, made)
            grouped = {
                one: f"{option}.{one}"
                for option in (known or () if depth == 1 else ())
                for one in accepted(f"{section}.{option}", made) or ()
            }
            _check_name(place, names[depth], section, known, grouped)


@contextmanager
def merged_vars(files: Sequence[Path], arguments: Sequence[str]) -> Iterator[list[str]]:
    """The command line with the ``vars`` of several recipes merged, while the context lasts.

    The parser would let the ``vars`` of an overlay replace those of the recipe below it.
    """
    layers = [recipe["vars"] for recipe in map(read_recipe, files) if isinstance(recipe.get("vars"), Mapping)]
    if len(layers) < 2:
        yield list(arguments)
        return
    last = max(i for i, a in enumerate(arguments) if a.partition("=")[0] in ("--config", "-c"))
    after = last + (1 if "=" in arguments[last] else 2)
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "vars.yaml"
        merged.write_text(yaml.safe_dump({"vars": functools.reduce(_merge, layers)}))
        yield [*arguments[:after], f"--config={merged}", *arguments[after:]]


def refuse_nulls(recipe: Mapping[str, Any], load: Callable[[str], Any]) -> None:
    """Refuses ``null`` for options whose type has no None: the parser lets it pass.

    Args:
        load: the class of a ``class_path``.

    Raises:
        SoraError: with the type and the default.
    """
    for place, name, options in _classes(recipe):
        made = load(name)
        _refuse_nulls(place, made, options)
        for option, group in types_of(made).items():
            if is_dataclass(group) and isinstance(options.get(option), Mapping):
                _refuse_nulls(f"{place}.{option}", group, options[option])


def _refuse_nulls(place: str, made: Any, options: Mapping[str, Any]) -> None:
    types = types_of(made)
    for option, parameter in inspect.signature(made).parameters.items():
        takes = types.get(option, Any)
        free = takes in (Any, None) or type(None) in get_args(takes) or parameter.default is None
        # Of a flag, the parser makes a text of it, which is no spec.
        if option in options and options[option] in (None, "None") and not free:
            default = "" if parameter.default is parameter.empty else f", {parameter.default!r}"
            raise SoraError(
                f"{place}.{option}=null, but {made.__name__} takes {described(takes)}; "
                + (f"leave it out for its default{default}" if default else "give one")
            )


def _classes(section: Any, place: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Where a recipe names a class, which, and with what options."""
    items: Any = (
        section.items() if isinstance(section, Mapping) else enumerate(section) if isinstance(section, list) else ()
    )
    if isinstance(section, Mapping) and isinstance(section.get("class_path"), str):
        yield place, section["class_path"], section.get("init_args") or {}
    for key, value in items:
        inner = place if key == "init_args" else f"{place}.{key}" if place else str(key)
        yield from _classes(value, inner)


def types_of(made: Any) -> dict[str, Any]:
    """The types of a constructor's arguments, by name."""
    try:
        return get_type_hints(made.__init__)
    except (NameError, TypeError):  # of what is imported for types alone: nothing can be told
        return {}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check_name(
    place: str, name: str, section: str, accepted: Sequence[str] | None, grouped: Mapping[str, str] | None = None
) -> None:
    """Refuses a name that a section does not accept.

    Args:
        grouped: options of groups within the section, by name, with the group before it.
    """
    if accepted is None or name in accepted:
        return
    dotted, prefix = (f"{section}.{name}", f"{section}.") if section else (name, "")
    if dotted in MOVED:
        raise SoraError(f"{place}: {dotted} is now {MOVED[dotted]}; write that")
    inside = grouped or {}
    if name in inside:
        raise SoraError(f"{place}: {dotted} is in a group of options; write {prefix}{inside[name]}")
    hint = did_you_mean(name, [*accepted, *inside], lambda one: prefix + inside.get(one, one))
    where = f"in {section}" if section else "at this level"
    raise SoraError(f"{place}: no option {dotted!r}; {hint}accepted {where}: {', '.join(sorted(accepted))}")


def _names(recipe: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """(section,), (section, option) and (section, option, option of a group) for all that a recipe sets."""
    for section, content in recipe.items():
        yield (section,)
        if not isinstance(content, Mapping):
            continue
        options = dict(content)
        inner = options.pop("init_args", None)
        options.pop("class_path", None)
        for option, value in [*options.items(), *(inner.items() if isinstance(inner, Mapping) else ())]:
            names = str(option).removesuffix("+").split(".")
            yield (section, *names[:2])
            if isinstance(value, Mapping) and len(names) == 1 and "class_path" not in value:
                yield from ((section, names[0], str(one).split(".")[0].removesuffix("+")) for one in value)


def _flag_names(arguments: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for flag, _ in _flags(arguments):
        if flag.startswith("--") and "help" not in flag:
            names = [part for part in flag[2:].removesuffix("+").split(".") if part != "init_args"]
            if names[1:] != ["class_path"]:
                yield flag, tuple(names[:3])


def _flag_classes(arguments: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for flag, value in _flags(arguments):
        section = flag.removeprefix("--").removesuffix(".class_path")
        if section in CLASS_SECTIONS and value is not None and not value.endswith((".yaml", ".yml")):
            yield flag, {section: value}


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every flag with its value, or with an empty one."""
    for index, argument in enumerate(arguments):
        if not argument.startswith("-") or argument.lstrip("-")[:1].isdigit():
            continue
        flag, equals, value = argument.partition("=")
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        yield flag, value if equals else ("" if following.startswith("--") else following)


def _class_path(section: Any) -> str | None:
    if isinstance(section, Mapping):
        section = section.get("class_path")
    return section if isinstance(section, str) else None


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]
