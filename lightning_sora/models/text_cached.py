"""The embeddings of a frozen text encoder from a cache of them, without the encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.models.safetensors_files import read_header
from lightning_sora.models.text_base import TEXT_ENCODERS, TextContext, TextEncoder
from lightning_sora.models.text_files import POOLED, Embedded, caption_key, context_of, embedded_of, read_embedding
from lightning_sora.names import local_path

ADD = "lightning-sora data cache --config RECIPE --out DIR --text \"hf(name='MODEL')\""


@TEXT_ENCODERS.register("cached")
class CachedTransformer(TextEncoder):
    """Embeddings that `lightning-sora data cache --text` kept: no weights are in memory, and captions are read as they
    come, from mapped files.

    It is the encoder that made them in all but its weights: it has its fingerprint, and a checkpoint that was trained
    with the one loads with the other, of the same weights and settings. What it costs to encode is left out of its
    FLOPs, as of cached latents: an ablation by FLOPs has ``cached`` in all of its arms, or in none.

    Args:
        path: the cache, a folder that `data cache` made; or its ``text`` folder; or that of one encoder in it.
        encoder: spec of the encoder that made it, as "hf(name='MODEL')": it is loaded when a caption comes that the
            cache lacks, as new prompts of samples are, and not before; None to refuse such captions.

    Attributes:
        folder: that holds the files.

    Raises:
        SoraError: there is no cache, one of several encoders, a damaged one, or one without the empty caption.

    Example:
        >>> import lightning_sora as ls
        >>> encoder = ls.TEXT_ENCODERS.create("cached(path='outputs/latents')")  # doctest: +SKIP
        >>> encoder(["a red cube moves left"]).embeddings.shape  # doctest: +SKIP
        torch.Size([1, 9, 4096])
    """

    trainable = False
    _device: Tensor

    def __init__(self, path: str, *, encoder: str | None = None) -> None:
        super().__init__()
        self.path, self.encoder = path, encoder
        self.folder = _folder_of_one_encoder(path)
        self._fingerprint = self.folder.name
        self._places: dict[str, tuple[Path, str, int]] = {}  # caption -> file, tensor, tokens
        self.dim = self._look()
        self._full: tuple[TextEncoder, ...] = ()  # out of reach of parameters() and state_dict()
        self.register_buffer("_device", torch.empty(0), persistent=False)
        self.check_captions([""])

    def _look(self) -> int:
        """Notes where each caption is, and what the encoder gave of them; returns the width of all."""
        widths = set()
        for file in sorted(self.folder.glob("*.safetensors")):
            header = read_header(file)
            try:
                told = json.loads(header.metadata["lightning_sora"])
                maker = told["encoder"]
            except (ValueError, LookupError, TypeError) as problem:
                raise SoraError(f"{file} does not say which encoder made it; make the cache anew: {ADD}") from problem
            if maker != self._fingerprint:
                raise SoraError(f"{file} is of the text encoder {maker}, and not of {self._fingerprint}; delete it")
            for name, one in header.tensors.items():
                if name.endswith(POOLED):
                    self.pooled_dim = one.shape[0]
                    continue
                tokens, width = one.shape
                if "tokens" in told:
                    self.padded = tokens
                widths.add(width)
                self._places.setdefault(file.stem if name == "embedding" else name, (file, name, tokens))
        if len(widths) != 1:
            raise SoraError(f"{self.folder} holds embeddings of widths {sorted(widths)}; make the cache anew: {ADD}")
        return widths.pop()

    def fingerprint(self) -> str:
        """That of the encoder that made the embeddings."""
        return self._fingerprint

    def check_captions(self, captions: Iterable[str]) -> None:
        """Refuses captions that it cannot encode, before any is trained on.

        Raises:
            SoraError: one that is not in the cache, where no ``encoder`` is given.
        """
        if self.encoder is not None:
            return
        missing = [caption for caption in dict.fromkeys(captions) if caption_key(caption) not in self._places]
        if not missing:
            return
        name = f"the caption {missing[0][:60]!r}" if missing[0] else "the empty caption"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SoraError(
            f"{self.folder} has no embedding of {name}{more}; add it by {ADD} (--prompts FILE for prompts), or give "
            "cached(..., encoder=\"hf(name='MODEL')\"), which loads the encoder when it is needed"
        )

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> TextContext:
        self.check_captions(captions)
        known = {caption: self._read(caption) for caption in dict.fromkeys(captions)}
        lacking = [caption for caption, one in known.items() if one is None]
        if lacking:
            known |= zip(lacking, embedded_of(self._encoder()(lacking)), strict=True)
        return context_of([one for caption in captions if (one := known[caption]) is not None], self._device.device)

    def _read(self, caption: str) -> Embedded | None:
        found = self._places.get(caption_key(caption))
        return None if found is None else read_embedding(found[0], found[1])

    def length(self, captions: Sequence[str]) -> int:
        places = [self._places.get(caption_key(caption)) for caption in captions]
        tokens = [place[2] for place in places if place is not None]
        return max(tokens) if len(tokens) == len(places) else super().length(captions)

    def probe(self, tokens: int) -> Any:
        """Nothing is computed: embeddings are read."""
        return torch.zeros((1, tokens, self.dim), device=self._device.device)

    def _encoder(self) -> TextEncoder:
        """The encoder itself, loaded now.

        Raises:
            SoraError: it is another than the one that made the cache.
        """
        if not self._full:
            made = TEXT_ENCODERS.create(str(self.encoder))
            told: Any = getattr(made, "fingerprint", None)
            if told is None or told() != self._fingerprint:
                raise SoraError(
                    f"encoder={self.encoder!r} is not the one that made {self.folder}: its fingerprint is "
                    f"{'none' if told is None else told()}; use the same weights, max_tokens, dtype and padded"
                )
            self._full = (made.eval().to(self._device.device),)
        return self._full[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CachedTransformer:
        super()._apply(fn, recurse)
        for made in self._full:
            made.to(self._device.device)
        return self

    # As of the encoder itself, so that a checkpoint of the one is one of the other.
    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return torch.tensor(list(self._fingerprint.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: UInt8[Tensor, " bytes"]) -> None:
        recorded = bytes(state.tolist()).decode()
        if recorded != self._fingerprint:
            raise SoraError(
                f"the checkpoint was trained with the text encoder {recorded}, but {self.folder} is of "
                f"{self._fingerprint}; give a cache of the same weights, tokenizer, max_tokens, dtype and padded"
            )


def _folder_of_one_encoder(path: str) -> Path:
    """The folder that holds the files of one encoder."""
    place = local_path(path)
    for root in (place, place / "text"):
        if any(root.glob("*.safetensors")):
            return root
        makers = sorted({file.parent for file in root.glob("*/shard-*.safetensors")} if root.is_dir() else ())
        makers = [maker for maker in makers if (root / "shards") != maker]  # of latents
        if len(makers) > 1:
            raise SoraError(
                f"{root} holds embeddings of {len(makers)} text encoders; name one by path={str(makers[0])!r} or "
                f"{str(makers[1])!r}"
            )
        if makers:
            return makers[0]
    raise WeightsMissing(f"no text embeddings at {path!r}; make them by {ADD}, and give that DIR")
