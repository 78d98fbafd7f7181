"""Captions, drawn: shaped and in the direction of their script, quickly, and never as empty boxes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from lightning_sora import lettering, media
from lightning_sora.lettering import Line, lines

DEJAVU = findfont("DejaVu Sans")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Letters so large that two libraries put them on the same pixels."""
    lettering._width.cache_clear()
    monkeypatch.setattr(lettering, "SIZE", 60)
    yield
    lettering._width.cache_clear()


def ink(text: str) -> np.ndarray:
    """How dark each column is that a line of this caption fills."""
    (line,) = lines(text, 2000)
    dark = line.picture()[0].astype(float).sum(axis=0)
    return np.trim_zeros(dark)


def ink_by_pillow(text: str) -> np.ndarray:
    """The same by another library, which puts one glyph after the other, from left to right."""
    font = ImageFont.truetype(DEJAVU, lettering.SIZE, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("L", (1000, 200))
    ImageDraw.Draw(image).text((50, 50), text, fill=255, font=font)
    return np.trim_zeros(np.asarray(image).astype(float).sum(axis=0))


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two profiles, each in 30 columns."""
    coarse = [[part.mean() for part in np.array_split(row, 30)] for row in (one, other)]
    return float(np.corrcoef(*coarse)[0, 1])


@pytest.mark.parametrize(
    ("text", "glyphs"),
    [
        ("großer Würfel à", "großer Würfel à"),
        ("Красный куб", "Красный куб"),
        # Joined forms of beh, ain, kaf and meem as they stand from left to right.
        ("مكعب", "\ufe90\ufecc\ufedc\ufee3"),
        ("קוביה", "קוביה"[::-1]),
        ("(קוביה) abc", "abc (" + "קוביה"[::-1] + ")"),
        ("abc קוביה", "abc " + "קוביה"[::-1]),
        ("e\u0301", "é"),
    ],
)
def test_every_script_is_shaped_and_in_its_direction(large: None, text: str, glyphs: str) -> None:
    drawn, expected = ink(text), ink_by_pillow(glyphs)
    assert len(drawn) == pytest.approx(len(expected), rel=0.03)
    assert likeness(drawn, expected) > 0.9
    if glyphs != glyphs[::-1] and len(glyphs) > 3:
        assert likeness(drawn, ink_by_pillow(glyphs[::-1])) < 0.8


def test_a_caption_from_the_right_stands_at_the_right() -> None:
    for text, at_right in (("קוביה אדומה", True), ("123 קוביה", True), ("a קוביה", False), ("a cube", False)):
        sheet = Image.new("RGB", (300, 20), media.BACKGROUND)
        (line,) = lines(text, 200)
        lettering.draw(sheet, line, 10, 0, 200, media.INK)
        columns = np.nonzero((np.asarray(sheet).sum(-1) < 600).any(axis=0))[0]
        assert (columns.max() > 200) == at_right
        assert (columns.min() < 20) == (not at_right)
        assert columns.max() < 210


@pytest.mark.parametrize("letter", ["w", "и", "ب", "ß"])
def test_a_word_without_end_is_cut_where_a_line_is_full_in_few_measurements(
    letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    measure = lettering._width
    monkeypatch.setattr(lettering, "_width", lambda text: asked.append(text) or measure(text))
    cut = lines(letter * 1000, 240)
    assert "".join(line.text for line in cut) == letter * 1000
    assert all(measure(line.text) <= 240 for line in cut)
    assert all(measure(line.text + letter) > 240 for line in cut[:-1])
    assert sum(map(len, asked)) < 20_000  # letters; a search from the far end looked at 20 million


def test_a_caption_of_a_million_letters_is_told_by_its_length() -> None:
    cut = lines("мир " * 250_000, 240)
    assert len(cut) == lettering.MOST_LINES + 1
    assert cut[-1] == Line("... (1000000 letters in all)")


def test_what_belongs_to_a_letter_is_not_parted_from_it() -> None:
    cut = lines("x\u0332" * 200, 100)
    assert not any(line.text.startswith("\u0332") for line in cut)


@pytest.fixture
def without_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No other fonts than matplotlib's."""
    monkeypatch.setattr(lettering, "_of_system", lambda: ())
    monkeypatch.setattr(lettering, "_of_packages", lambda: ())
    monkeypatch.setattr(lettering, "_TOLD", set())
    lettering._file_with.cache_clear()
    yield
    lettering._file_with.cache_clear()
    lettering._width.cache_clear()


def test_what_no_font_has_is_spelled_and_said_once(without_fonts: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (line,) = lines("a 中国 👩\u200d👧 \x1b end", 2000)
        lines("中", 2000)
    assert line.text == "a [U+4E2D] [U+56FD] [woman] [girl] [U+001B] end"
    assert lines("Ａ \ufdf2", 2000)[0].text == "A \u0627\u0644\u0644\u0647"  # wide, and a ligature: as letters
    (told,) = [record.getMessage() for record in caplog.records]
    assert "中 (U+4E2D)" in told
    assert "fonts-noto-cjk" in told
    usual = FT2Font(DEJAVU).get_charmap()
    assert all(ord(letter) in usual for letter in line.text)  # no box


def test_a_font_of_the_system_is_used_for_what_it_alone_has(
    without_fonts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pen = TTGlyphPen(None)
    for corner in ((0, 0), (0, 1000), (1000, 1000), (1000, 0)):
        (pen.moveTo if corner == (0, 0) else pen.lineTo)(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "full"])
    builder.setupCharacterMap({0x4E2D: "full"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "full": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "full": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "square.ttf")
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    monkeypatch.setattr(lettering, "_of_system", lambda: (f"{tmp_path}/damaged.ttf", f"{tmp_path}/square.ttf"))
    lettering._file_with.cache_clear()
    (line,) = lines("中", 100)
    picture, _ = line.picture()
    assert line.text == "中"
    assert (picture > 200).sum() == pytest.approx(lettering.SIZE**2, rel=0.2)  # the square, and no box around nothing
    assert not caplog.records


@pytest.mark.slow
def test_a_sheet_shows_captions_of_any_script(tmp_path: Path) -> None:
    video = torch.full((2, 16, 16, 3), 7, dtype=torch.uint8)
    media.contact_sheet(tmp_path / "sheet.png", [video] * 3, ["مكعب أحمر", "красный куб", "\udcff"], scale=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    rows = np.array_split((sheet[:, :250].sum(-1) < 300).sum(axis=1), 3)
    assert all(row.sum() > 40 for row in rows)
