"""Values of command-line options that several commands take."""

from __future__ import annotations

import argparse

from lightning_sora.errors import SoraError


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A number between 0 and 1000, such as a rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number between 0 and 1000")
    return value


def triple(text: str) -> tuple[int, int, int]:
    """Three whole numbers with commas between, of frames, height and width."""
    try:
        frames, height, width = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be three whole numbers, as 4,16,16") from None
    return frames, height, width


def assignments(given: list[str]) -> dict[str, str]:
    """Changes to a recipe, each KEY=VALUE, by key."""
    found = {}
    for item in given:
        key, equals, value = item.removeprefix("--").partition("=")
        if not equals:
            raise SoraError(f"{item!r} must be KEY=VALUE, as in data.root=FOLDER")
        found[key] = value
    return found
