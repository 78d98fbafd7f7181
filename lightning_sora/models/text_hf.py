"""A frozen text encoder from Hugging Face transformers, with its embeddings cached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.models.text_base import TextContext, TextEncoder
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
        name: a local directory, or a name on the hub.
        max_tokens: longer captions are cut, with one warning.
        dtype: in which the encoder runs: float32, bfloat16 or float16. Embeddings come out in float32.
        cache: directory of encoded captions, keyed by fingerprint and caption; made if absent.
        memory: how many captions to keep in memory.

    Raises:
        SoraError: transformers is not installed, the model cannot be loaded, or an option is out of range.
    """

    trainable = False
    _device: Tensor

    def __init__(
        self, name: str, *, max_tokens: int = 256, dtype: str = "float32", cache: str | None = None, memory: int = 4096
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise SoraError(f"dtype={dtype!r} of the text encoder is unknown; choose one of {', '.join(DTYPES)}")
        if max_tokens < 1 or memory < 1:
            raise SoraError(f"max_tokens={max_tokens} and memory={memory} must be at least 1")
        self.name, self.max_tokens, self.memory = name, max_tokens, memory
        self.cache = None if cache is None else Path(cache)
        backbone, self.tokenizer = _load(name, DTYPES[dtype])
        positions = getattr(backbone.config, "max_position_embeddings", None)
        if positions is not None and max_tokens > positions:
            raise SoraError(
                f"max_tokens={max_tokens} but {name!r} has {positions} positions; set max_tokens={positions}"
            )
        # Out of reach of parameters(), state_dict() and initialisation; _apply moves it between devices.
        self._hidden: tuple[nn.Module] = (backbone.requires_grad_(False).eval(),)
        self.dim = int(backbone.config.hidden_size)
        self._fingerprint = _fingerprint(backbone, self.tokenizer, f"{max_tokens} {dtype}")
        if self.cache is not None:
            self._refuse_stored_by_another(self.cache)
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._shards: dict[str, Path] | None = None  # where captions of a stored cache are, looked up once
        self._warned = False
        self.register_buffer("_device", torch.empty(0), persistent=False)

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
        padded = nn.utils.rnn.pad_sequence(embeddings, batch_first=True).to(self._device.device)
        lengths = torch.tensor([len(e) for e in embeddings], device=padded.device)
        return TextContext(padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None])

    def probe(self, tokens: int) -> Tensor:
        ids = torch.zeros((1, tokens), dtype=torch.long, device=self._device.device)
        return self._hidden[0](input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    def _encode(self, captions: Sequence[str]) -> list[Float[Tensor, "text_tokens dim"]]:
        ids: list[list[int]] = self.tokenizer(list(captions))["input_ids"]
        if not self._warned and any(len(row) > self.max_tokens for row in ids):
            longest = max(map(len, ids))
            logger.warning("captions of up to %d tokens are cut to max_tokens=%d", longest, self.max_tokens)
            self._warned = True
        self._warn_unknown(captions, ids)
        ids = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        # A tokenizer without special tokens gives nothing for the empty caption; one token stands for it.
        ids = [row or [self.tokenizer.pad_token_id] for row in ids]
        lengths = torch.tensor([len(row) for row in ids])
        rows = [torch.tensor(row) for row in ids]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        tokens = tokens.to(self._device.device)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(tokens)
        hidden = self._hidden[0](input_ids=tokens, attention_mask=mask).last_hidden_state
        return [row[:length].float().cpu() for row, length in zip(hidden, lengths.tolist(), strict=True)]

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
        return self.cache / self._fingerprint / f"{_key(caption)}.safetensors"

    def _read(self, caption: str) -> bool:
        path = self._path(caption)
        if path is None:
            return False
        if path.exists():
            self._known[caption] = _embedding(path, "embedding")
            return True
        if self._shards is None:
            self._shards = {}
            for shard in sorted(path.parent.glob("shard-*.safetensors")):
                self._shards |= dict.fromkeys(_keys(shard), shard)
        if path.stem not in self._shards:
            return False
        self._known[caption] = _embedding(self._shards[path.stem], path.stem)
        return True

    def _refuse_stored_by_another(self, cache: Path) -> None:
        stored = {shard.parent.name for shard in cache.glob("*/shard-*.safetensors")}
        if stored and self._fingerprint not in stored:
            raise SoraError(
                f"{cache} holds embeddings of the text encoder {' and '.join(sorted(stored))}, but {self.name!r} with "
                f"these settings is {self._fingerprint}; use the same weights, max_tokens and dtype, or another cache"
            )

    @torch.no_grad()
    def store(self, captions: Sequence[str], folder: Path, per_shard: int = 1024) -> int:
        """Encodes captions once, into shards under a folder that is then given as ``cache``.

        Returns:
            how many there are.
        """
        home = folder / self._fingerprint
        for first in range(0, len(captions), per_shard):
            path = home / f"shard-{first:08d}.safetensors"
            some = captions[first : first + per_shard]
            keys = [_key(caption) for caption in some]
            if path.exists() and _holds(path, keys):
                continue
            rows = [row for i in range(0, len(some), 64) for row in self._encode(some[i : i + 64])]
            write_whole(path, _embeddings_bytes(dict(zip(keys, rows, strict=True)), self._fingerprint))
        return len(captions)

    def _write(self, caption: str, embedding: Tensor) -> None:
        path = self._path(caption)
        if path is None:
            return
        write_whole(path, _embeddings_bytes({"embedding": embedding}, self._fingerprint))

    # What nn.Module must know of weights that it does not own.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTransformer:
        super()._apply(fn, recurse)
        self._hidden[0].to(self._device.device)
        return self

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return torch.tensor(list(self._fingerprint.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: UInt8[Tensor, " bytes"]) -> None:
        recorded = bytes(state.tolist()).decode()
        if recorded != self._fingerprint:
            raise SoraError(
                f"the checkpoint was trained with the text encoder {recorded}, but {self.name!r} with these settings "
                f"is {self._fingerprint}; use the same weights, tokenizer, max_tokens and dtype"
            )


def _key(caption: str) -> str:
    return hashlib.blake2b(caption.encode("utf-8", errors="replace"), digest_size=16).hexdigest()


def _digest(embedding: Tensor) -> str:
    content = embedding.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(f"{embedding.dtype} {tuple(embedding.shape)} ".encode() + content).hexdigest()[:32]


def _embeddings_bytes(embeddings: Mapping[str, Tensor], fingerprint: str) -> bytes:
    """A safetensors file of embeddings, with the digest of each."""
    told = {"encoder": fingerprint, "sha256": {key: _digest(embedding) for key, embedding in embeddings.items()}}
    tensors = {key: embedding.contiguous() for key, embedding in embeddings.items()}
    return save(tensors, metadata={"lightning_sora": json.dumps(told, sort_keys=True)})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except (SafetensorError, UnicodeDecodeError) as problem:
        raise _damaged(path, str(problem)) from problem


def _damaged(path: Path, reason: str) -> SoraError:
    return SoraError(f"{path} is damaged ({' '.join(reason.split())}); delete it, and its captions are encoded again")


def _keys(path: Path) -> list[str]:
    with _opened(path) as content:
        return list(content.keys())


def _embedding(path: Path, key: str) -> Tensor:
    """One embedding of a file, as it was written; one without a digest is taken as it is.

    Raises:
        SoraError: it is damaged.
    """
    with _opened(path) as content:
        embedding = content.get_tensor(key)
        told = (content.metadata() or {}).get("lightning_sora")
    try:
        expected = None if told is None else json.loads(told)["sha256"][key]
    except (ValueError, LookupError, TypeError) as problem:
        raise _damaged(path, "its digests cannot be read") from problem
    if expected is not None and expected != _digest(embedding):
        raise _damaged(path, "an embedding is not what was written")
    return embedding


def _holds(path: Path, keys: Sequence[str]) -> bool:
    """Whether a file has these embeddings, each as it was written."""
    try:
        if set(_keys(path)) != set(keys):
            return False
        for key in keys:
            _embedding(path, key)
    except SoraError as problem:
        logger.warning("%s: now", problem)
        return False
    return True


def refuse_missing_folder(name: str, kind: str) -> None:
    """Raises SoraError if a name is meant as a path, and nothing is there: a hub's own complaint would not say so."""
    if name.startswith(("/", "./", "../", "~")) and not os.path.isdir(name):
        raise WeightsMissing(
            f"cannot load the {kind} {name!r}: no such directory; give one that holds a model of transformers"
        )


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as problem:
        raise SoraError(
            "the text encoder 'hf' needs transformers, which is not installed: pip install 'lightning-sora[hf]'"
        ) from problem
    refuse_missing_folder(name, "text encoder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, ImportError, SafetensorError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise SoraError(
            f"cannot load the text encoder {name!r} ({reason}); give a directory that holds a transformers model with "
            "its tokenizer, or a name on the hub that this machine can reach"
        ) from problem
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.is_encoder_decoder:
        return model.get_encoder(), tokenizer
    return getattr(model, "text_model", model), tokenizer


def _fingerprint(backbone: nn.Module, tokenizer: Any, settings: str) -> str:
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    config = {k: v for k, v in backbone.config.to_dict().items() if not k.startswith("_")}  # type: ignore[operator, union-attr]
    config.pop("transformers_version", None)
    digest.update(repr(sorted(config.items(), key=lambda item: item[0])).encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
