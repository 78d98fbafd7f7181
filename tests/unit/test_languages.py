"""Captions of the world in other languages, and in English as people write it, read back by other dictionaries."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from lightning_sora.data.sources import Source, create_source
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import Crop, VideoSize
from lightning_sora.world import CAMERAS, COLORS, MOTIONS, SHAPES, SIZES, Facts, World
from lightning_sora.world.facts import CameraFacts, ObjectFacts
from lightning_sora.world.languages import LANGUAGES
from lightning_sora.world.motion import positions

# Each fact by what tells it; of a motion, each of its parts. Taken from grammars, not from the tables that are tested.
READ: dict[str, dict[str, Any]] = {
    "es": {
        "color": {"red": "roj", "green": "verde", "blue": "azul", "yellow": "amarill", "purple": "morad",
                  "cyan": "cian", "orange": "naranja", "pink": r"rosa\b"},
        "shape": {"sphere": "esfera|bola", "cube": "cubo", "cylinder": "cilindro", "cone": "cono",
                  "torus": "anillo|rosquilla"},
        "size": {"small": "pequeñ", "medium": "median", "big": "grande"},
        "motion": {"away": "aleja", "toward": "acerca|viene", "right": "derecha", "left": "izquierda",
                   "behind": "pared", "still": r"quiet|\bno se mueve", "bounce": "rebota", "spin": "gira",
                   "orbit": "círculo", "fall": r"\bcae\b"},
        "across": "por el suelo",
        "camera": {"pan_left": "(gira a|panorámica hacia) la izquierda",
                   "pan_right": "(gira a|panorámica hacia) la derecha",
                   "tilt_up": "arriba", "tilt_down": "abajo", "dolly_in": "cámara (avanza|se acerca)",
                   "dolly_out": "cámara (retrocede|se aleja)", "zoom_in": "zoom hacia dentro|zoom acerca",
                   "zoom_out": "zoom hacia fuera|zoom aleja", "orbit_left": "(rodea|vuelta).*izquierda",
                   "orbit_right": "(rodea|vuelta).*derecha"},
    },
    "zh": {
        "color": dict(zip(COLORS, "红绿蓝黄紫青橙粉", strict=True)),
        "shape": {"sphere": "球", "cube": "方体|方块", "cylinder": "圆柱", "cone": "圆锥", "torus": "圆环"},
        "size": {"small": "小", "medium": "中号", "big": "大"},
        "motion": {"away": "远", "toward": "朝我们|向我们", "right": "右", "left": "左", "behind": "墙",
                   "still": "不动", "bounce": "弹跳", "spin": "转", "orbit": "圈", "fall": "掉"},
        "across": "沿地面",
        "camera": {"pan_left": "左(摇|转)", "pan_right": "右(摇|转)", "tilt_up": "上(摇|转)", "tilt_down": "下(摇|转)",
                   "dolly_in": "前", "dolly_out": "后", "zoom_in": "放大", "zoom_out": "缩小",
                   "orbit_left": "左(环绕|绕行)", "orbit_right": "右(环绕|绕行)"},
    },
    "ar": {
        "color": {"red": "أحمر|حمراء", "green": "أخضر|خضراء", "blue": "أزرق|زرقاء", "yellow": "أصفر|صفراء",
                  "purple": "بنفسجي", "cyan": "سماوي", "orange": "برتقالي", "pink": "وردي"},
        "shape": {"sphere": "كرة", "cube": "مكعب", "cylinder": "أسطوانة", "cone": "مخروط", "torus": "حلقة"},
        "size": {"small": "صغير", "medium": "متوسط", "big": "كبير"},
        "motion": {"away": "بتعد", "toward": "قترب|تقدم", "right": "اليمين", "left": "اليسار", "behind": "جدار",
                   "still": "ثابت|لا [يت]تحرك", "bounce": "قفز", "spin": "نفسه|مكانه", "orbit": "دائرة", "fall": "سقط"},
        "across": "(?<!سقط )على الأرض",
        "camera": {"pan_left": "(تدور|تلتفت) إلى اليسار", "pan_right": "(تدور|تلتفت) إلى اليمين", "tilt_up": "الأعلى",
                   "tilt_down": "الأسفل", "dolly_in": "تتقدم|تقترب", "dolly_out": "تتراجع|تبتعد",
                   "zoom_in": "تقرب|تكبر", "zoom_out": "تبعد|تصغر", "orbit_left": "المشهد إلى اليسار",
                   "orbit_right": "المشهد إلى اليمين"},
    },
}  # fmt: skip
COMMAS = {"es": ", ", "zh": "，", "ar": "، "}


def the(names: dict[str, str], text: str) -> str:
    """The one fact that a text tells."""
    (found,) = [name for name, words in names.items() if re.search(words, text)]
    return found


def read_clause(language: str, text: str) -> tuple[str, ...]:
    """Colour, shape, size, motion and, where told, that it is across the ground."""
    words = READ[language]
    facts = [the(words[name], text) for name in ("color", "shape", "size")]
    parts = {name for name, told in words["motion"].items() if re.search(told, text)}
    order = ("behind", "away", "toward", "right", "left")
    motion = "_".join(sorted(parts, key=lambda part: order.index(part) if part in order else 0))
    return (*facts, motion, "across" if re.search(words["across"], text) else "seen")


def thing(color: str, shape: str, size: str, motion: str, way: str = "right") -> ObjectFacts:
    heading = (1.0 if way == "right" else -1.0, 0.0)
    return ObjectFacts(color, shape, size, 1.0, motion, heading, (0.0, 0.0), 2.0, 0.0, 0.0)


@cache
def facts_of(level: str, count: int = 40) -> tuple[Facts, ...]:
    world = World(level, seed=5)
    return tuple(world.facts(index) for index in range(count))


@pytest.mark.parametrize("language", READ)
def test_every_clause_is_told_and_no_two_facts_share_words(language: str) -> None:
    own, draw = LANGUAGES[language], random.Random(0)
    motions = [(motion, "right") for motion in MOTIONS] + [("behind", "left")]
    told: dict[str, tuple[str, ...]] = {}
    for color, shape, size, (motion, way) in itertools.product(COLORS, SHAPES, SIZES, motions):
        for across, choose in itertools.product(
            (False, True), (lambda wordings: wordings[0], draw.choice, draw.choice)
        ):
            if across and motion not in ("behind", *MOTIONS[:8]):
                continue  # no other motion is told so
            text = own.clause(thing(color, shape, size, motion, way), across, choose)
            wanted = (color, shape, size, f"{motion}_{way}" if motion == "behind" else motion)
            assert read_clause(language, text) == (*wanted, "across" if across else "seen"), text
            assert told.setdefault(text, (*wanted, str(across))) == (*wanted, str(across)), text


@pytest.mark.parametrize("language", READ)
def test_every_camera_is_told_and_no_two_share_words(language: str) -> None:
    cameras = LANGUAGES[language].cameras
    assert [*cameras] == [name for name in CAMERAS if name != "static"]
    wordings = [wording for all_of in cameras.values() for wording in all_of]
    assert len(set(wordings)) == len(wordings)
    for name, own in cameras.items():
        assert all(the(READ[language]["camera"], wording) == name for wording in own)


@pytest.mark.parametrize("language", READ)
@pytest.mark.parametrize("level", ["simple", "hard"])
def test_a_caption_tells_each_object_in_turn_and_the_camera(language: str, level: str) -> None:
    for facts in facts_of(level):
        caption = World(level).caption(facts, key=facts.index, language=language)
        assert caption == World(level).caption(facts, "short", facts.index, language)
        *clauses, last = caption.split(COMMAS[language])
        if facts.camera.motion == "static":
            clauses.append(last)
        else:
            assert the(READ[language]["camera"], last) == facts.camera.motion
        english = World(level).caption(facts, key=facts.index).split(", ")
        for clause, told, one in zip(clauses, english, facts.objects, strict=False):
            way = "right" if one.heading[0] > 0 else "left"
            motion = f"behind_{way}" if one.motion == "behind" else one.motion
            across = "across" if "across the ground" in told else "seen"
            assert read_clause(language, clause) == (one.color, one.shape, one.size, motion, across)
        assert len(clauses) == len(facts.objects)


#: Written by hand. Colour, shape, size, motion, camera; then Spanish, Chinese and Arabic in their plainest words.
SENTENCES = [
    (("red", "sphere", "small", "left", "static"),
     "una esfera roja pequeña se mueve a la izquierda",
     "一个红色的小球体向左移动",
     "كرة حمراء صغيرة تتحرك إلى اليسار"),
    (("red", "cube", "small", "still", "pan_left"),
     "un cubo rojo pequeño se queda quieto, la cámara gira a la izquierda",
     "一个红色的小立方体静止不动，镜头向左摇",
     "مكعب أحمر صغير يبقى ثابتا، الكاميرا تدور إلى اليسار"),
    (("yellow", "sphere", "medium", "spin", "zoom_in"),
     "una esfera amarilla mediana gira sobre sí misma, la cámara hace zoom hacia dentro",
     "一个黄色的中号球体原地旋转，镜头变焦放大",
     "كرة صفراء متوسطة تدور حول نفسها، الكاميرا تقرب الصورة"),
    (("yellow", "cone", "big", "spin", "static"),
     "un cono amarillo grande gira sobre sí mismo",
     "一个黄色的大圆锥体原地旋转",
     "مخروط أصفر كبير يدور حول نفسه"),
    (("blue", "cylinder", "big", "behind", "static"),
     "un cilindro azul grande se mueve a la derecha detrás de una pared",
     "一个蓝色的大圆柱体在墙后面向右移动",
     "أسطوانة زرقاء كبيرة تتحرك إلى اليمين خلف جدار"),
    (("purple", "torus", "medium", "fall", "dolly_out"),
     "un anillo morado mediano cae, la cámara retrocede",
     "一个紫色的中号圆环掉下来，镜头向后拉远",
     "حلقة بنفسجية متوسطة تسقط، الكاميرا تتراجع إلى الخلف"),
    (("green", "cube", "big", "bounce", "tilt_up"),
     "un cubo verde grande rebota, la cámara se inclina hacia arriba",
     "一个绿色的大立方体弹跳，镜头向上摇",
     "مكعب أخضر كبير يقفز، الكاميرا تميل إلى الأعلى"),
    (("pink", "cone", "small", "away_left", "static"),
     "un cono rosa pequeño se aleja hacia la izquierda",
     "一个粉色的小圆锥体向左边远方移动",
     "مخروط وردي صغير يبتعد إلى اليسار"),
    (("cyan", "sphere", "big", "orbit", "static"),
     "una esfera cian grande se mueve en círculo",
     "一个青色的大球体绕圈移动",
     "كرة سماوية كبيرة تتحرك في دائرة"),
    (("orange", "torus", "small", "toward", "static"),
     "un anillo naranja pequeño se acerca a nosotros",
     "一个橙色的小圆环向我们移动",
     "حلقة برتقالية صغيرة تقترب منا"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "spanish", "chinese", "arabic"), SENTENCES)
def test_sentences(told: tuple[str, ...], spanish: str, chinese: str, arabic: str) -> None:
    *of_object, camera = told
    facts = Facts(0, 2.0, (thing(*of_object),), None, CameraFacts(camera, 36.0, 30.0, 12.0, (0.0, 0.0, 0.5)), None)  # type: ignore[arg-type]
    for language, sentence in (("es", spanish), ("zh", chinese), ("ar", arabic)):
        assert World("simple").caption(facts, language=language) == sentence


FEMININE = {"es": "esfera|bola|rosquilla", "ar": "كرة|أسطوانة|حلقة"}


def test_words_agree_with_the_noun_in_every_wording() -> None:
    draw = random.Random(1)
    for color, shape, size, motion in itertools.product(COLORS, SHAPES, SIZES, MOTIONS):
        for _ in range(3):
            text = LANGUAGES["es"].clause(thing(color, shape, size, motion), False, draw.choice)
            feminine = re.search(FEMININE["es"], text) is not None
            article, _, *rest = re.sub(r" de color (\w+o|verde|azul|cian|naranja|rosa)\b", "", text).split()
            assert article in (("una", "la") if feminine else ("un", "el")), text
            agreeing = [word for word in rest if re.match("roj|amarill|morad|pequeñ|median|quiet|mism", word)]
            assert all(word.endswith("a" if feminine else "o") for word in agreeing), text

            text = LANGUAGES["ar"].clause(thing(color, shape, size, motion), False, draw.choice)
            feminine = re.search(FEMININE["ar"], text) is not None
            definite = text.startswith("ال")
            its = f"{'ب' if definite else ''}لونه{'ا' if feminine else ''} {'ال' if definite else ''}"  # masculine
            noun, rest = text.split()[:3], text.split()[3:]
            if its in text:
                masculine = text.split(its)[1].split()[0]
                assert not masculine.endswith(("ة", "اء")), text
                noun, rest = text.split()[:2], text.split(f"{its}{masculine} ")[1].split()
            assert {word.startswith("ال") for word in noun} == {definite}, text
            assert all(word.endswith(("ة", "اء")) == feminine for word in noun), text
            assert next(word for word in rest if word != "لا")[0] == ("ت" if feminine else "ي"), text


def test_a_colour_has_a_wording_that_is_the_same_beside_every_noun() -> None:
    # Else what is held out would hold out a word too: beside a masculine noun, say, a red that cones alone have.
    for language, word in (("es", "de color rojo"), ("ar", "أحمر")):
        draw = random.Random(2)
        clause = LANGUAGES[language].clause
        texts = [clause(thing("red", shape, "big", "fall"), False, draw.choice) for shape in SHAPES * 20]
        of_color = [text for text in texts if word in text]
        assert len({the(READ[language]["shape"], text) for text in of_color}) == len(SHAPES)


@pytest.mark.parametrize("language", ["en", *READ])
def test_a_key_chooses_among_wordings(language: str) -> None:
    world, facts = World("hard"), facts_of("hard")[3]
    wordings = {key: world.caption(facts, key=key, language=language) for key in range(12)}
    assert len(set(wordings.values())) > 6
    assert all(world.caption(facts, key=key, language=language) == text for key, text in wordings.items())


def test_a_language_that_is_not_there_is_refused() -> None:
    world, facts = World("tiny"), facts_of("tiny", 1)[0]
    assert world.caption(facts, key=3) == world.caption(facts, key=3, language="en")
    with pytest.raises(SoraError, match=r"unknown caption language 'fr'; choose one of: en, es, zh, ar"):
        world.caption(facts, language="fr")
    with pytest.raises(SoraError, match=r"captions in Spanish \('es'\) are 'short', not 'dense'; ask for 'short'"):
        world.caption(facts, "dense", language="es")


NATURAL = {
    "sphere": "sphere|ball", "cube": "cube|box|block", "cylinder": "cylinder|can|tube", "cone": "cone",
    "torus": "torus|ring|donut",
}  # fmt: skip
SIZED = {"small": "small|little", "medium": "medium-sized|medium", "big": "big|large"}
NOUN = re.compile(
    rf"\b(?P<article>an?|the)(?: (?P<size>{'|'.join(SIZED.values())}))? (?P<color>{'|'.join(COLORS)}) "
    rf"(?P<shape>{'|'.join(NATURAL.values())})\b"
)


def test_natural_prompts_are_true_and_leave_sizes_out() -> None:
    world = World("medium", seed=5)
    sized, objects, related, stills = 0, 0, 0, set()
    for facts, key in itertools.product(facts_of("medium"), range(1, 4)):
        text = world.caption(facts, "natural", key)
        by_color, found = {one.color: one for one in facts.objects}, list(NOUN.finditer(text))
        assert sorted(match["color"] for match in found) == sorted(by_color), text
        for match in found:
            one = by_color[match["color"]]
            assert re.fullmatch(NATURAL[one.shape], match["shape"]), text
            assert match["size"] is None or re.fullmatch(SIZED[one.size], match["size"]), text
            first = (match["size"] or match["color"])[0]
            assert match["article"] == "the" or (match["article"] == "an") == (first in "aeiou"), text
            sized, objects = sized + (match["size"] is not None), objects + 1
            if (rest := text[match.end() :].split()) and rest[0] in ("that", "which", "rolls"):
                assert rest[0] != "rolls" or one.shape == "sphere", text
        assert ("camera" in text) or facts.camera.motion == "static", text
        if facts.camera.motion == "static":
            stills.add("camera" in text)
        pair = re.search(rf"({'|'.join(COLORS)}) \w+ [^,]*?\b(behind|in front of) an? [^,]*?({'|'.join(COLORS)})", text)
        if pair and "wall" not in pair[0]:
            far, near = (pair[1], pair[3]) if pair[2] == "behind" else (pair[3], pair[1])
            times = torch.linspace(0, facts.duration, 5)
            gap = positions(by_color[far], times, facts.duration) - positions(by_color[near], times, facts.duration)
            assert (gap[:, 1] > 0).all(), text
            related += 1
    assert 0.4 < sized / objects < 0.6
    assert related > 5
    assert stills == {False, True}


def test_a_natural_prompt_says_who_is_behind_whom() -> None:
    ball = replace(thing("red", "sphere", "big", "right"), center=(0.3, 2.5))
    cube = replace(thing("blue", "cube", "big", "still"), center=(0.0, -0.5))
    facts = Facts(7, 2.0, (cube, ball), None, CameraFacts("pan_left", 33.0, 34.0, 14.0, (0.0, 0.0, 0.5)), None)  # type: ignore[arg-type]
    texts = {World("medium").caption(facts, "natural", key) for key in range(1, 200)}
    assert any(
        "ball rolls" in text and "behind a blue" in text and "while the camera pans left" in text for text in texts
    )
    assert any(re.search("ball rolls behind a (big |large )?blue (cube|box|block)", text) for text in texts)
    assert any("blue cube" in text and "in front of a red ball" in text for text in texts)
    assert not any(re.search(r"red [^,]* in front of|blue [^,]* behind a", text) for text in texts)


ALL = {"languages": ["en", "es", "zh", "ar"], "alternatives": ["natural", "natural", "dense"]}


def source(name: str, split: str, **options: object) -> Source:
    return create_source(f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})", split, 0)


def load(clips: Source, index: int) -> tuple[str, ...]:
    clip = clips.load(index, Crop(VideoSize(1, 8, 8), None), generator=torch.Generator())
    return (clip.caption, *clip.alternatives)


@pytest.mark.parametrize(
    ("name", "own"), [("world", {"level": "simple"}), ("worlds", {"captions": ["short"], "levels": ["simple"]})]
)
def test_a_clip_of_training_has_a_caption_in_each_language_and_style(name: str, own: dict[str, object]) -> None:
    plain, told = (source(name, "train", **own, **options) for options in ({}, ALL))
    assert plain.fingerprint() == source(name, "train", **own, languages=("en",)).fingerprint() != told.fingerprint()
    for index in range(4):
        (caption,), captions = load(plain, index), load(told, index)
        assert captions == load(told, index)
        assert captions[0] == caption
        assert len(set(captions)) == 7
        signs = ("(una?|el|la) ", "一个", "[ء-ي]", "[a-z]", "[a-z]", r"\.$")
        assert all(re.search(sign, text) for sign, text in zip(signs, captions[1:], strict=True))
    world = source("world", "train", level="simple", **ALL)
    assert {len(load(world, index)) for index in range(3)} == {7}


def test_a_language_named_again_gives_further_wordings() -> None:
    lists = (["en", "ar"], ["en", "ar", "ar", "ar"])
    once, often = (source("world", "train", level="simple", languages=names) for names in lists)
    assert once.fingerprint() != often.fingerprint()
    for index in range(1, 4):
        captions = load(often, index)
        assert captions[:2] == load(once, index)
        read = {read_clause("ar", caption.split("، ")[0]) for caption in captions[1:]}
        assert len(read) == 1
    assert any(len(set(load(often, index))) == 4 for index in range(4))


@pytest.mark.parametrize("name", ["world", "worlds"])
def test_what_is_held_out_has_one_caption_in_one_language(name: str) -> None:
    options: dict[str, object] = {"captions": ["short"]} if name == "worlds" else {}
    plain, same, spanish = (
        source(name, "val", **options, **more) for more in ({}, ALL, {"heldout_language": "es", **ALL})
    )
    assert load(plain, 1) == load(same, 1)
    assert plain.fingerprint() == same.fingerprint() != spanish.fingerprint()
    (caption,) = load(spanish, 1)
    read_clause("es", caption.split(", ")[0])
    assert load(source(name, "val", **options, languages=["es"]), 1) == (caption,)
    english = source(name, "train", **options, heldout_language="es")
    assert english.fingerprint() == source(name, "train", **options).fingerprint()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"languages": []}, r"languages=\[\] must name at least one"),
        ({"languages": ["en", "fr"]}, "unknown caption language 'fr'"),
        ({"languages": ["es"], "captions": "dense"}, "captions in Spanish .* are 'short', not 'dense'"),
        ({"alternatives": ["long"]}, "unknown caption level 'long'"),
    ],
)
def test_captions_that_are_not_there_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(SoraError, match=words):
        source("world", "train", **options)
