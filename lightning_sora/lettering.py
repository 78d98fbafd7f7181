"""Captions as people write them, drawn: every script shaped and in its direction, and nothing that is not there.

matplotlib lays the letters out. They come from DejaVu, which is part of it, or else from a font of the system or of an
installed package that has them. A sign that no font has is spelled: a symbol by its name, a letter by its code point.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

log = logging.getLogger(__name__)

SIZE, ABOVE, LINE = 13, 15, 20  # pixels: of the letters, from the top of a line to where they stand, of a line
MOST_LINES = 60  # of one caption; what is longer is told by its length
FONT_FILE = re.compile(r"\.(ttf|otf|ttc)$", re.IGNORECASE)
#: The plain upright one of a family is what a caption is to be in.
STYLED = re.compile(r"bold|italic|oblique|black|light|thin|medium|serif|mono|condensed|heavy", re.IGNORECASE)
FROM_LEFT, FROM_RIGHT = "\N{LEFT-TO-RIGHT MARK}", "\N{RIGHT-TO-LEFT MARK}"
UNSEEN = {FROM_LEFT, FROM_RIGHT, "\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}", "\N{VARIATION SELECTOR-16}"}

_TOLD: set[str] = set()


@dataclass(frozen=True)
class Line:
    """A line of a caption.

    Attributes:
        text: what stands in it, spelled where there is no font.
        from_right: whether its script begins at the right.
    """

    text: str
    from_right: bool = False

    def picture(self) -> tuple[np.ndarray, int]:
        """How dark each pixel is, and how many rows of that are below where the letters stand."""
        mark = FROM_RIGHT if self.from_right else FROM_LEFT
        font = _font(_fonts_of(self.text))
        font.set_text(mark + self.text)
        font.draw_glyphs_to_bitmap(antialiased=True)
        return np.array(font.get_image()), font.get_descent() // 64


def lines(text: str, width: int) -> list[Line]:
    """A caption in lines of at most this many pixels; a word that is wider is cut."""
    words = _spelled(unicodedata.normalize("NFC", text)).split()
    from_right = _begins_at_right(text)
    found: list[Line] = []
    line, filled, space = "", 0, _width(" ")
    pieces = ((piece, part) for word in words for part, piece in enumerate(_cut(word, width)))
    for piece, part in pieces:
        wide = _width(piece)
        if line and (part or filled + space + wide > width):
            found.append(Line(line, from_right))
            line, filled = "", 0
            if len(found) == MOST_LINES:
                return [*found, Line(f"... ({len(text)} letters in all)")]
        filled += (space if line else 0) + wide
        line = f"{line} {piece}" if line else piece
    return [*found, Line(line, from_right)] if line else found


def draw(sheet: Image.Image, line: Line, left: int, top: int, width: int, colour: tuple[int, int, int]) -> None:
    """Draws a line into a column of this width: at its left, or at its right if the script begins there."""
    ink, below = line.picture()
    ink = ink[:, :width]
    start = left + (width - ink.shape[1] if line.from_right else 0)
    mask = Image.fromarray(ink)
    sheet.paste(Image.new("RGB", mask.size, colour), (start, top + ABOVE - (ink.shape[0] - below)), mask)


def _begins_at_right(text: str) -> bool:
    """The direction of the first letter that has one (UAX #9, P2 and P3)."""
    strong = (unicodedata.bidirectional(letter) for letter in text)
    return next((kind for kind in strong if kind in ("L", "R", "AL")), "L") != "L"


def _cut(word: str, width: int) -> Iterator[str]:
    """A word in pieces that fit; none begins with a sign that belongs to the one before it."""
    letters = _clusters(word)
    guess = 16
    while letters:
        fits, too_many = 1, len(letters) + 1
        guess = min(guess, len(letters))
        while too_many - fits > 1:
            if _width("".join(letters[:guess])) <= width:
                fits = guess
            else:
                too_many = guess
            # Neighbouring pieces are about as long: from there, a few steps suffice.
            guess = min(2 * fits, len(letters)) if too_many > len(letters) else (fits + too_many) // 2
        yield "".join(letters[:fits])
        letters, guess = letters[fits:], fits


def _clusters(text: str) -> list[str]:
    found: list[str] = []
    for letter in text:
        joins = unicodedata.category(letter) in ("Mn", "Mc", "Me") or letter in UNSEEN
        if found and (joins or found[-1][-1] == "\N{ZERO WIDTH JOINER}"):
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _spelled(text: str) -> str:
    """The text with what no font has told in words or numbers."""
    parts: list[str] = []
    missing: list[str] = []
    spelled = False  # what stands before
    for letter in text:
        if letter.isspace() or _file_with(letter) is not None:
            if not (spelled and letter in UNSEEN):
                parts.append(letter)
                spelled = False
        elif letter not in UNSEEN and (plain := _plain(letter)):
            parts.append(plain)
            spelled = False
        elif letter not in UNSEEN:
            missing.append(letter)
            name = unicodedata.name(letter, "").lower() if unicodedata.category(letter)[0] == "S" else ""
            parts.append(f"{' ' if spelled else ''}[{name or f'U+{ord(letter):04X}'}]")
            spelled = True
    _tell(set(missing))
    return "".join(parts)


def _plain(letter: str) -> str:
    """A ligature or a letter of another width as the letters that it stands for, if a font has those."""
    letters = unicodedata.normalize("NFKC", letter)
    return letters if letters != letter and all(one.isspace() or _file_with(one) for one in letters) else ""


def _tell(missing: set[str]) -> None:
    new = sorted(letter for letter in missing - _TOLD if letter.isprintable())
    _TOLD.update(new)
    if new:
        log.warning(
            "no font here has %d signs of a caption, such as %s: they are spelled where it is drawn; install a font "
            "that has them, such as Debian's fonts-noto-core and fonts-noto-cjk",
            len(new), ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in new[:4]),
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _width(text: str) -> int:
    font = _font(_fonts_of(text))
    font.set_text(text)
    return -(-font.get_width_height()[0] // 64)


def _fonts_of(text: str) -> tuple[str, ...]:
    """The files that the letters of a text are in, the usual one first."""
    files = {_file_with(letter) for letter in set(text)} - {None}
    return (_usual(), *sorted(str(file) for file in files if file != _usual()))


def _font(files: tuple[str, ...]) -> FT2Font:
    from matplotlib.font_manager import get_font

    font = get_font(files)
    font.set_size(SIZE, 72)
    return font


@cache
def _usual() -> str:
    from matplotlib.font_manager import findfont

    return str(findfont("DejaVu Sans"))


@cache
def _file_with(letter: str) -> str | None:
    return next((file for file in _files() if ord(letter) in _letters_of(file)), None)


@cache
def _letters_of(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # a damaged one, or one of bitmaps
        return frozenset()


def _files() -> Iterator[str]:
    """Files of fonts: the usual one, those of the system, those of installed packages; plain ones first."""
    yield _usual()
    yield from _of_system()
    yield from _of_packages()


@cache
def _of_system() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts

    return _plain_first(findSystemFonts())


@cache
def _of_packages() -> tuple[str, ...]:
    from importlib.metadata import distributions

    found = (file for one in distributions() for file in one.files or () if FONT_FILE.search(file.name))
    return _plain_first([str(file.locate()) for file in found if "matplotlib" not in file.parts])


def _plain_first(files: list[str]) -> tuple[str, ...]:
    return tuple(sorted(files, key=lambda file: (STYLED.search(Path(file).name) is not None, file)))
