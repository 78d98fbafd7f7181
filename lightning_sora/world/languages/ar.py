"""Arabic: adjectives come after the noun and agree with it in gender and definiteness, as the verb does in gender."""

from __future__ import annotations

from lightning_sora.world.facts import ObjectFacts
from lightning_sora.world.languages.base import Choose, Language

# Nouns, and whether they are feminine.
SHAPES = {
    "sphere": ("كرة", True),
    "cube": ("مكعب", False),
    "cylinder": ("أسطوانة", True),
    "cone": ("مخروط", False),
    "torus": ("حلقة", True),
}
# Masculine and feminine.
COLORS = {
    "red": ("أحمر", "حمراء"),
    "green": ("أخضر", "خضراء"),
    "blue": ("أزرق", "زرقاء"),
    "yellow": ("أصفر", "صفراء"),
    "purple": ("بنفسجي", "بنفسجية"),
    "cyan": ("سماوي", "سماوية"),
    "orange": ("برتقالي", "برتقالية"),
    "pink": ("وردي", "وردية"),
}
SIZES = {"small": ("صغير", "صغيرة"), "medium": ("متوسط", "متوسطة"), "big": ("كبير", "كبيرة")}
# Without an article, and with "the", which adjectives take too. The colour is an adjective; or it follows "its colour
# is" or "with its colour", where it agrees with "colour" and is masculine beside every noun.
THINGS = (
    ("{noun} {color} {size}", "{noun} {size} لونه{h} {masculine}"),
    ("ال{noun} ال{color} ال{size}", "ال{noun} ال{size} بلونه{h} ال{masculine}"),
)
# {y} is the prefix of the verb, {a} the ending of an adverbial adjective, {h} that of "its".
MOTIONS = {
    "right": ("{y}تحرك إلى اليمين", "{y}تحرك نحو اليمين"),
    "left": ("{y}تحرك إلى اليسار", "{y}تحرك نحو اليسار"),
    "away": ("{y}بتعد", "{y}بتعد عنا"),
    "toward": ("{y}قترب منا", "{y}تقدم نحونا"),
    "away_right": ("{y}بتعد إلى اليمين", "{y}بتعد عنا نحو اليمين"),
    "away_left": ("{y}بتعد إلى اليسار", "{y}بتعد عنا نحو اليسار"),
    "toward_right": ("{y}قترب منا إلى اليمين", "{y}تقدم نحونا إلى اليمين"),
    "toward_left": ("{y}قترب منا إلى اليسار", "{y}تقدم نحونا إلى اليسار"),
    "still": ("{y}بقى ثابت{a}", "لا {y}تحرك"),
    "bounce": ("{y}قفز", "{y}قفز صعودا وهبوطا"),
    "spin": ("{y}دور حول نفسه{h}", "{y}دور في مكانه{h}"),
    "orbit": ("{y}تحرك في دائرة", "{y}دور في دائرة"),
    "fall": ("{y}سقط", "{y}سقط على الأرض"),
    "behind": ("{y}تحرك إلى {way} خلف جدار", "{y}مر خلف جدار نحو {way}"),
    "strike": ("{y}تحرك إلى {way} و{y}صدم الآخر", "{y}تحرك نحو {way} و{y}صطدم بالآخر"),
    "struck": ("{y}تلقى صدمة و{y}تابع", "{y}تلقى صدمة"),
}
MASCULINE, FEMININE = {"y": "ي", "a": "ا", "h": ""}, {"y": "ت", "a": "ة", "h": "ا"}
ACROSS = " على الأرض"
CAMERAS = {
    "pan_left": ("الكاميرا تدور إلى اليسار", "الكاميرا تلتفت إلى اليسار"),
    "pan_right": ("الكاميرا تدور إلى اليمين", "الكاميرا تلتفت إلى اليمين"),
    "tilt_up": ("الكاميرا تميل إلى الأعلى", "الكاميرا تلتفت إلى الأعلى"),
    "tilt_down": ("الكاميرا تميل إلى الأسفل", "الكاميرا تلتفت إلى الأسفل"),
    "dolly_in": ("الكاميرا تتقدم إلى الأمام", "الكاميرا تقترب"),
    "dolly_out": ("الكاميرا تتراجع إلى الخلف", "الكاميرا تبتعد"),
    "zoom_in": ("الكاميرا تقرب الصورة", "الصورة تكبر"),
    "zoom_out": ("الكاميرا تبعد الصورة", "الصورة تصغر"),
    "orbit_left": ("الكاميرا تدور حول المشهد إلى اليسار", "الكاميرا تلتف حول المشهد إلى اليسار"),
    "orbit_right": ("الكاميرا تدور حول المشهد إلى اليمين", "الكاميرا تلتف حول المشهد إلى اليمين"),
}


def clause(thing: ObjectFacts, across: bool, choose: Choose) -> str:
    """For example: "كرة حمراء صغيرة تتحرك إلى اليسار"."""
    noun, feminine = SHAPES[thing.shape]
    way = "اليمين" if thing.heading[0] > 0 else "اليسار"
    words = {
        "noun": noun, "size": SIZES[thing.size][feminine], "color": COLORS[thing.color][feminine],
        "masculine": COLORS[thing.color][False], "way": way, **(FEMININE if feminine else MASCULINE),
    }  # fmt: skip
    told = f"{choose(choose(THINGS))} {choose(MOTIONS[thing.motion])}".format(**words)
    return f"{told}{ACROSS if across else ''}"


ARABIC = Language("Arabic", clause, CAMERAS, comma="، ")
