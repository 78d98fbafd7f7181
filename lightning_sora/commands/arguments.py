"""Values of command-line options that several commands take."""

from __future__ import annotations

import argparse


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


def level(text: str) -> float:
    """A number between 0 and 1: how sure an interval is."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie between 0 and 1, such as 0.95")
    return value


def seeds(text: str) -> list[int]:
    """Whole numbers with commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas, such as 0,1,2") from None
