"""A frozen text encoder from Hugging Face transformers, with its embeddings cached."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_sora.errors import SoraError, WeightsMissing, first_line, some
from lightning_sora.models.digests import tensor_bytes
from lightning_sora.models.text_base import TextContext, TextEncoder
from lightning_sora.models.text_files import (
    Embedded,
    caption_key,
    context_of,
    embeddings_bytes,
    read_embedding,
    stored_keys,
    whole_keys,
)
from lightning_sora.models.transformers_folder import check_folder_fits
from lightning_sora.names import local_path
from lightning_sora.sealing import write_whole

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenTransformer(TextEncoder):
    """The last hidden states of a pretrained encoder (T5, BERT, CLIP's text tower, ...).

    Its weights belong to no checkpoint, optimizer or average of ours: a checkpoint records their
    fingerprint alone, and refuses to load beside other weights. Each caption is encoded once and kept
    on the CPU, the most recent ``memory`` ones; with ``cache``, also as one file per caption, for
    later runs; what :meth:`store` wrote there is read. Each embedding is verified by its digest when it is read.

    Args:
        name: a local directory, or a name on the hub; of the folder of a pipeline of diffusers, its `text_encoder`
            and `tokenizer` are taken.
        max_tokens: longer captions are cut, with one warning.
        dtype: in which the encoder runs: float32, bfloat16 or float16. Embeddings come out in float32.
        cache: directory of encoded captions, keyed by fingerprint and caption; made if absent.
        memory: how many captions to keep in memory.
        padded: pads every caption to ``max_tokens``, and has the encoder see the padding, as those who trained
            CogVideoX and LTX did: its embeddings are given, too, and what text becomes depends on them. They are kept
            in ``dtype``.

    Raises:
        SoraError: transformers is not installed, the model cannot be loaded or held, or an option is out of range.
    """

    trainable = False
    _device: Tensor

    def __init__(
        self,
        name: str,
        *,
        max_tokens: int = 256,
        dtype: str = "float32",
        cache: str | None = None,
        memory: int = 4096,
        padded: bool = False,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise SoraError(f"dtype={dtype!r} of the text encoder is unknown; choose one of {', '.join(DTYPES)}")
        if max_tokens < 1 or memory < 1:
            raise SoraError(f"max_tokens={max_tokens} and memory={memory} must be at least 1")
        self.name, self.max_tokens, self.memory = name, max_tokens, memory
        self.padded = max_tokens if padded else None
        self.cache = None if cache is None else Path(cache)
        backbone, self.tokenizer = self.loaded(name, DTYPES[dtype])
        positions = getattr(backbone.config, "max_position_embeddings", None)
        if positions is not None and max_tokens > positions:
            raise SoraError(
                f"max_tokens={max_tokens} but {name!r} has {positions} positions; set max_tokens={positions}"
            )
        # Out of reach of parameters(), state_dict() and initialisation; _apply moves it between devices.
        more, settings = self.further(name, DTYPES[dtype])
        self._hidden: tuple[nn.Module, ...] = tuple(one.requires_grad_(False).eval() for one in (backbone, *more))
        self.dim = int(backbone.config.hidden_size)
        settings = f"{max_tokens} {dtype}{' padded' if padded else ''}{settings}"
        self._fingerprint = fingerprint_of(backbone, self.tokenizer, settings)
        if self.cache is not None:
            self._refuse_stored_by_another(self.cache)
        self._known: OrderedDict[str, Embedded] = OrderedDict()
        self._shards: dict[str, Path] | None = None  # where captions of a stored cache are, looked up once
        self._warned = False
        self.register_buffer("_device", torch.empty(0), persistent=False)

    def loaded(self, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
        """The network, whose last hidden states are the embeddings, and its tokenizer."""
        return _load(name, dtype)

    def further(self, name: str, dtype: torch.dtype) -> tuple[tuple[nn.Module, ...], str]:
        """Networks beside the one, and what of them is in the fingerprint; of most encoders none."""
        return (), ""

    def fingerprint(self) -> str:
        """A hash of weights, configuration, tokenizer and settings."""
        return self._fingerprint

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> TextContext:
        missing = [c for c in dict.fromkeys(captions) if c not in self._known and not self._read(c)]
        for rows in (missing[i : i + 64] for i in range(0, len(missing), 64)):
            for caption, embedding in zip(rows, self._encode(rows), strict=True):
                self._known[caption] = embedding
                self._write(caption, embedding)
        embeddings = []
        for caption in captions:
            self._known.move_to_end(caption)
            embeddings.append(self._known[caption])
        while len(self._known) > self.memory:
            self._known.popitem(last=False)
        return context_of(embeddings, self._device.device)

    def probe(self, tokens: int) -> Tensor:
        ids = torch.zeros((1, tokens), dtype=torch.long, device=self._device.device)
        return self._states(ids, torch.ones_like(ids))

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last hidden states, in the precision of the weights: whoever asks, a caption has one embedding."""
        with torch.autocast(ids.device.type, enabled=False):
            seen = None if self.padded else mask
            return self._hidden[0](input_ids=ids, attention_mask=seen).last_hidden_state

    def _encode(self, captions: Sequence[str]) -> list[Embedded]:
        ids: list[list[int]] = self.tokenizer(list(captions))["input_ids"]
        self.warn_cut(max(map(len, ids)))
        self._warn_unknown(captions, ids)
        ids = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        # A tokenizer without special tokens gives nothing for the empty caption; one token stands for it.
        ids = [row or [self.tokenizer.pad_token_id] for row in ids]
        hidden = self._states(*self.filled(ids, self.padded or max(map(len, ids)))).cpu()
        if self.padded:
            return [Embedded(states.clone(), len(row)) for states, row in zip(hidden, ids, strict=True)]
        return [Embedded(states[: len(row)].float().clone()) for states, row in zip(hidden, ids, strict=True)]

    def filled(self, ids: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
        """Token ids of a batch, with padding behind, and a mask of what is none: both int64 [captions length]."""
        tokens = torch.full((len(ids), length), self.tokenizer.pad_token_id)
        for row, filled in zip(ids, tokens, strict=True):
            filled[: len(row)] = torch.tensor(row)
        mask = torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]
        return tokens.to(self._device.device), mask.to(self._device.device, torch.long)

    def warn_cut(self, longest: int) -> None:
        """Says once that captions are cut, where they are."""
        if not self._warned and longest > self.max_tokens:
            logger.warning("captions of up to %d tokens are cut to max_tokens=%d", longest, self.max_tokens)
            self._warned = True

    def _warn_unknown(self, captions: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        unknown, others = self.tokenizer.unk_token_id, ("bos", "eos", "pad", "cls", "sep")
        if unknown is None or unknown in {getattr(self.tokenizer, f"{name}_token_id", None) for name in others}:
            return  # of some, one mark serves for several things
        for caption, row in zip(captions, ids, strict=True):
            if unknown in row:
                logger.warning("the tokenizer of %s does not know all of the words of %.60r", self.name, caption)

    # The cache on disk.
    def _path(self, caption: str) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / self._fingerprint / f"{caption_key(caption)}.safetensors"

    def _read(self, caption: str) -> bool:
        path = self._path(caption)
        if path is None:
            return False
        if path.exists():
            self._known[caption] = read_embedding(path, "embedding")
            return True
        if self._shards is None:
            self._shards = {}
            for shard in sorted(path.parent.glob("shard-*.safetensors")):
                self._shards |= dict.fromkeys(stored_keys(shard), shard)
        if path.stem not in self._shards:
            return False
        self._known[caption] = read_embedding(self._shards[path.stem], path.stem)
        return True

    def _refuse_stored_by_another(self, cache: Path) -> None:
        stored = {shard.parent.name for shard in cache.glob("*/shard-*.safetensors")}
        if stored and self._fingerprint not in stored:
            raise SoraError(
                f"{cache} holds embeddings of the text encoder {' and '.join(sorted(stored))}, but {self.name!r} with "
                f"these settings is {self._fingerprint}; use the same weights, max_tokens, dtype and "
                "padded, or another cache"
            )

    @torch.no_grad()
    def store(self, captions: Sequence[str], folder: Path, per_shard: int = 1024) -> int:
        """Encodes captions, into shards under a folder that is then given as ``cache``; what is there already stays.

        Returns:
            how many of the captions are there now: all, each once.
        """
        home = folder / self._fingerprint
        there: set[str] = set()
        number = 0
        for path in sorted(home.glob("shard-*.safetensors")):
            if keys := whole_keys(path):
                there |= keys
                number = int(path.stem.partition("-")[2]) + 1
            else:
                path.unlink()
        wanted = list(dict.fromkeys(captions))
        missing = [caption for caption in wanted if caption_key(caption) not in there]
        for first in range(0, len(missing), per_shard):
            some = missing[first : first + per_shard]
            rows = [row for i in range(0, len(some), 64) for row in self._encode(some[i : i + 64])]
            content = dict(zip(map(caption_key, some), rows, strict=True))
            write_whole(home / f"shard-{number:08d}.safetensors", embeddings_bytes(content, self._fingerprint))
            number += 1
        return len(wanted)

    def _write(self, caption: str, embedding: Embedded) -> None:
        path = self._path(caption)
        if path is None:
            return
        write_whole(path, embeddings_bytes({"embedding": embedding}, self._fingerprint))

    # What nn.Module must know of weights that it does not own.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTransformer:
        super()._apply(fn, recurse)
        for one in self._hidden:
            one.to(self._device.device)
        return self

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return torch.tensor(list(self._fingerprint.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: UInt8[Tensor, " bytes"]) -> None:
        recorded = bytes(state.tolist()).decode()
        if recorded != self._fingerprint:
            raise SoraError(
                f"the checkpoint was trained with the text encoder {recorded}, but {self.name!r} with these settings "
                f"is {self._fingerprint}; use the same weights, tokenizer, max_tokens, dtype and padded"
            )


def refuse_missing_folder(name: str, kind: str) -> None:
    """Raises SoraError if a name is meant as a path, and nothing is there: a hub's own complaint would not say so."""
    if name.startswith(("/", "./", "../", "~")) and not os.path.isdir(name):
        raise WeightsMissing(
            f"cannot load the {kind} {name!r}: no such directory; give one that holds a model of transformers"
        )


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    except ImportError as problem:
        raise SoraError(
            "the text encoder 'hf' needs transformers, which is not installed: pip install 'lightning-sora[hf]'"
        ) from problem
    refuse_missing_folder(name, "text encoder")
    place, words = places(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(words)
        # Of T5 and its kin without the decoder, which those who make videos do not publish, and which is as large.
        whole = AutoConfig.from_pretrained(place).model_type not in ("t5", "mt5", "umt5")
        kind = AutoModel if whole else AutoModelForTextEncoding
        check_folder_fits(place, dtype, but=() if whole else ("decoder.", "lm_head."))
        model, found = kind.from_pretrained(place, dtype=dtype, output_loading_info=True)
    except SoraError:  # which says what to do
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as problem:
        reason = first_line(problem)
        raise SoraError(
            f"cannot load the text encoder {name!r} ({reason}); give a directory that holds a transformers model with "
            "its tokenizer, or a name on the hub that this machine can reach"
        ) from problem
    if lacking := sorted(key for key in found["missing_keys"] if "pooler" not in key):  # which no last state needs
        raise SoraError(
            f"{name!r} lacks weights of the {type(model).__name__} that its config.json describes: "
            f"{some(lacking)}; download it again"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not whole:
        encoder = model.get_encoder()
        encoder.config.is_encoder_decoder = True  # as of the whole model, so that both have one fingerprint
        return encoder, tokenizer
    if model.config.is_encoder_decoder:
        return model.get_encoder(), tokenizer
    return getattr(model, "text_model", model), tokenizer


def places(name: str) -> tuple[str, str]:
    """Where the model and its tokenizer are: those of a pipeline of diffusers lie in folders of its own.

    Raises:
        SoraError: a pipeline that lacks one of them.
    """
    place, told = local_path(name), "model_index.json"
    if (place / told).is_file():
        model, words = place / "text_encoder", place / "tokenizer"
    elif place.name.startswith("text_encoder") and (place.parent / told).is_file():
        model, words = place, place.parent / place.name.replace("text_encoder", "tokenizer")
    else:
        return name, name
    for folder in (model, words):
        if not folder.is_dir():
            raise WeightsMissing(f"{name!r} is of a pipeline without {folder.name}/; download that folder, too")
    return str(model), str(words)


def fingerprint_of(backbone: nn.Module, tokenizer: Any, settings: str) -> str:
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    config = {k: v for k, v in backbone.config.to_dict().items() if not k.startswith("_")}  # type: ignore[operator, union-attr]
    config.pop("transformers_version", None)
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
