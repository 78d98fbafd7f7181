"""Spanish: article, colour, size and what follows the verb agree with the noun; adjectives come after it."""

from __future__ import annotations

from lightning_sora.world.facts import ObjectFacts
from lightning_sora.world.languages.base import Choose, Language

# Nouns with their gender: masculine "o", feminine "a".
SHAPES = {
    "sphere": (("esfera", "a"), ("bola", "a")),
    "cube": (("cubo", "o"),),
    "cylinder": (("cilindro", "o"),),
    "cone": (("cono", "o"),),
    "torus": (("anillo", "o"), ("rosquilla", "a")),
}
ARTICLES = {"o": ("un", "el"), "a": ("una", "la")}
COLORS = {
    "red": "roj{o}",
    "green": "verde",
    "blue": "azul",
    "yellow": "amarill{o}",
    "purple": "morad{o}",
    "cyan": "cian",
    "orange": "naranja",
    "pink": "rosa",
}
SIZES = {"small": "pequeñ{o}", "medium": "median{o}", "big": "grande"}
# As an adjective, or "of {color} colour", where the colour agrees with "colour" and is masculine beside every noun.
THINGS = ("{article} {noun} {color} {size}", "{article} {noun} {size} de color {masculine}")
MOTIONS = {
    "right": ("se mueve a la derecha", "se desplaza hacia la derecha"),
    "left": ("se mueve a la izquierda", "se desplaza hacia la izquierda"),
    "away": ("se aleja", "se aleja de nosotros"),
    "toward": ("se acerca a nosotros", "viene hacia nosotros"),
    "away_right": ("se aleja hacia la derecha", "se mueve a la derecha y se aleja"),
    "away_left": ("se aleja hacia la izquierda", "se mueve a la izquierda y se aleja"),
    "toward_right": ("se acerca a nosotros hacia la derecha", "se mueve a la derecha y se acerca"),
    "toward_left": ("se acerca a nosotros hacia la izquierda", "se mueve a la izquierda y se acerca"),
    "still": ("se queda quiet{o}", "no se mueve"),
    "bounce": ("rebota", "rebota arriba y abajo"),
    "spin": ("gira sobre sí mism{o}", "gira en su sitio"),
    "orbit": ("se mueve en círculo", "da vueltas en círculo"),
    "fall": ("cae", "cae al suelo"),
    "behind": ("se mueve a la {way} detrás de una pared", "pasa por detrás de una pared hacia la {way}"),
    "strike": ("se mueve a la {way} y golpea al otro objeto", "se mueve hacia la {way} y choca con el otro"),
    "struck": ("recibe un golpe y avanza", "recibe un golpe"),
}
ACROSS = " por el suelo"
CAMERAS = {
    "pan_left": ("la cámara gira a la izquierda", "la cámara hace una panorámica hacia la izquierda"),
    "pan_right": ("la cámara gira a la derecha", "la cámara hace una panorámica hacia la derecha"),
    "tilt_up": ("la cámara se inclina hacia arriba", "la cámara gira hacia arriba"),
    "tilt_down": ("la cámara se inclina hacia abajo", "la cámara gira hacia abajo"),
    "dolly_in": ("la cámara avanza", "la cámara se acerca"),
    "dolly_out": ("la cámara retrocede", "la cámara se aleja"),
    "zoom_in": ("la cámara hace zoom hacia dentro", "el zoom acerca la imagen"),
    "zoom_out": ("la cámara hace zoom hacia fuera", "el zoom aleja la imagen"),
    "orbit_left": ("la cámara rodea la escena hacia la izquierda", "la cámara da la vuelta hacia la izquierda"),
    "orbit_right": ("la cámara rodea la escena hacia la derecha", "la cámara da la vuelta hacia la derecha"),
}


def clause(thing: ObjectFacts, across: bool, choose: Choose) -> str:
    """For example: "una esfera roja pequeña se mueve a la izquierda"."""
    noun, gender = choose(SHAPES[thing.shape])
    way = "derecha" if thing.heading[0] > 0 else "izquierda"
    words = {
        "article": choose(ARTICLES[gender]), "noun": noun, "size": SIZES[thing.size].format(o=gender),
        "color": COLORS[thing.color].format(o=gender), "masculine": COLORS[thing.color].format(o="o"),
    }  # fmt: skip
    told = f"{choose(THINGS).format(**words)} {choose(MOTIONS[thing.motion]).format(o=gender, way=way)}"
    return f"{told}{ACROSS if across else ''}"


SPANISH = Language("Spanish", clause, CAMERAS)
