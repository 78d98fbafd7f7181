"""Text as tokens and back, without loss: words where they are known, bytes elsewhere."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path
from lightning_sora.texts import read_text

PIECE = re.compile(r" ?[^\W\d_]+|\s|.", re.DOTALL)
#: Word lists that come with the package, by name.
SHIPPED = {"world": Path(__file__).with_name("world_words.txt")}


class Vocabulary:
    """Token ids of text: 256 bytes, four marks, then words, each with the space before it if there is one.

    Any text is encoded and decoded exactly; words that are not listed cost a token per byte.

    Args:
        words: pieces such as " red" or "A"; a leading space is part of the piece.

    Raises:
        SoraError: a piece that could never be met, or is listed twice.
    """

    bos, eos, pad, mask = 256, 257, 258, 259

    def __init__(self, words: Sequence[str] = ()) -> None:
        never = [word for word in words if PIECE.findall(word) != [word]]
        if never or len(set(words)) < len(words):
            raise SoraError(
                f"words {never[:5] or 'listed twice'} cannot stand in a vocabulary: each is letters with at most one "
                "space before them, listed once"
            )
        self.words = tuple(words)
        self._ids = {word: 260 + index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return 260 + len(self.words)

    @classmethod
    def named(cls, name: str) -> Vocabulary:
        """ "bytes", the name of a shipped list ("world"), or the path of a file with one piece per line.

        Raises:
            SoraError: no such list.
        """
        if name == "bytes":
            return cls()
        path = SHIPPED.get(name, local_path(name))
        if not os.path.isfile(path):
            raise SoraError(
                f"no vocabulary {str(path)!r}; give 'bytes', {', '.join(map(repr, SHIPPED))} or a file of words"
            )
        content = read_text(path)
        return cls(content.removesuffix("\n").split("\n") if content else ())

    @classmethod
    def of_texts(cls, texts: Iterable[str], least: int = 2) -> Vocabulary:
        """The pieces of more than one letter that occur at least ``least`` times, sorted."""
        counts = Counter(piece for text in texts for piece in PIECE.findall(text))
        return cls(sorted(piece for piece, count in counts.items() if count >= least and len(piece.encode()) > 1))

    def encode(self, text: str) -> list[int]:
        """Token ids, without marks."""
        ids: list[int] = []
        for piece in PIECE.findall(text):
            known = self._ids.get(piece)
            ids.extend(piece.encode("utf-8", errors="replace") if known is None else [known])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the end mark; other marks are passed over, broken characters replaced."""
        found = bytearray()
        for token in ids:
            if token == self.eos:
                break
            if token < 256:
                found.append(token)
            elif token >= 260:
                found += self.words[token - 260].encode()
        return found.decode("utf-8", errors="replace")
