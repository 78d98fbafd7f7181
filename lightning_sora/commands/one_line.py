"""The parser of all commands but those that run a recipe: its errors are one line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.names import at_home, local_path

PROGRAM = "lightning-sora"


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line and no abbreviations."""

    def __init__(self, *args: object, **options: object) -> None:
        options["allow_abbrev"] = False
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        begin, unknown, flags = message.partition("unrecognized arguments: ")
        parsers, prog = list(_parsers(self)), self.prog
        if unknown and not begin:  # told by the outermost parser, of options of the innermost
            prog = parsers[-1].prog if len(parsers) == 2 else prog
            known = [flag for parser in parsers for flag in parser._option_string_actions]
            message += f"; {did_you_mean(flags.split()[0].partition('=')[0], known)}".rstrip().removesuffix(";")
        raise SoraError(f"{message}{'' if message.endswith('?') else ';'} see `{prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            setattr(found, name, _at_home(value))
        return found, left


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _parsers(one)


def _at_home(value: Any) -> Any:
    """What an option says, with paths from the home folder: a shell leaves ``--out=~/x`` as it is."""
    if isinstance(value, Path):
        return local_path(value)
    if isinstance(value, str):
        return at_home(value)
    return [_at_home(item) for item in value] if isinstance(value, list) else value
