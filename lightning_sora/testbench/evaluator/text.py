"""The evaluator's text tower: captions of the world to vectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.world import CAMERAS, COLLISION, COLORS, MOTIONS, SHAPES, SIZES
from lightning_sora.world import captions as wordings

WORD = re.compile(r"[a-z]+|[.,]")
MOST_WORDS = 160
UNKNOWN, PAD = 0, 1


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that captions of the world may hold, sorted; without those of collisions, which it does not read."""
    texts: list[str] = [*COLORS, *SHAPES, *SIZES, *wordings.COUNTS, *wordings.SURFACES, ". , wall"]
    texts += [name.replace("_", " ") for name in (*MOTIONS, *CAMERAS)]
    for table in (wordings.SHORT_MOTIONS, wordings.DENSE_MOTIONS, wordings.CAMERA_MOTIONS, wordings.SIZE_WORDS):
        texts += [wording for name, options in table.items() if name not in COLLISION for wording in options]
    texts.append(
        "a the in on at from front back middle left right looking scene high above somewhat near ground "
        "grey plain of tiles softly chequered floor under even light lit with soft shadows carries object objects "
        "solid solids wall stands there is also an upright medium"
    )
    return tuple(sorted({word for text in texts for word in WORD.findall(text.lower())}))


class CaptionTower(nn.Module):
    """A transformer over the words of a caption, averaged.

    Words that the world never says are one unknown word; a caption is read up to ``MOST_WORDS`` words.

    Args:
        outward: width of the result.
    """

    def __init__(self, outward: int, dim: int = 64, depth: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.codes = {word: code + 2 for code, word in enumerate(vocabulary())}
        self.words = nn.Embedding(len(self.codes) + 2, dim)
        self.order = nn.Embedding(MOST_WORDS, dim)
        layers = [
            nn.TransformerEncoderLayer(dim, num_heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, outward)

    def forward(self, captions: Sequence[str]) -> Float[Tensor, "captions outward"]:
        """Vectors of captions, each independent of the others."""
        rows = [self.encode(caption) for caption in captions]
        length = max(map(len, rows))
        device = self.words.weight.device
        codes = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], device=device)
        blank = codes == PAD
        x = self.words(codes) + self.order.weight[:length]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=blank)
        kept = (~blank)[..., None].to(x.dtype)
        return self.out((self.norm(x) * kept).sum(1) / kept.sum(1))

    def encode(self, caption: str) -> list[int]:
        """The codes of a caption's words; at least one."""
        words = WORD.findall(caption.lower())[:MOST_WORDS]
        return [self.codes.get(word, UNKNOWN) for word in words] or [UNKNOWN]
