"""The text of HunyuanVideo: a LLaMA within a template, and a vector of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_sora.errors import SoraError, WeightsMissing, first_line
from lightning_sora.models.text_base import TEXT_ENCODERS
from lightning_sora.models.text_files import Embedded
from lightning_sora.models.text_hf import FrozenTransformer, fingerprint_of, places
from lightning_sora.models.transformers_folder import check_folder_fits
from lightning_sora.names import local_path

LAYERS_LEFT_OUT = 2  # the last ones
CLIP_TOKENS = 77


@TEXT_ENCODERS.register("hunyuan_video")
class HunyuanVideoText(FrozenTransformer):
    """What HunyuanVideo is told of a caption (Kong et al. 2024, arXiv:2412.03603, section 4.3): the states of a LLaMA
    before its last two layers, of the caption within a template whose own states are cut off, and the vector that CLIP
    makes of the whole caption. Frozen; its embeddings are cached as those of ``hf`` are.

    Args:
        path: the folder of a pipeline of diffusers, with `text_encoder`, `tokenizer`, `text_encoder_2`, `tokenizer_2`.
        max_tokens: longer captions are cut, with one warning; CLIP sees 77 tokens of its own.
        dtype: in which both run: float32, bfloat16 or float16. Embeddings come out in float32.
        cache: directory of encoded captions, for later runs; made if absent.
        memory: how many captions to keep in memory.

    Raises:
        SoraError: transformers or diffusers is not installed, a part of the pipeline is missing or cannot be held, or
            an option is out of range.

    Example:
        >>> import lightning_sora as ls
        >>> encoder = ls.TEXT_ENCODERS.create("hunyuan_video(path='models/hunyuan')")  # doctest: +SKIP
        >>> encoder(["a red cube moves left"]).pooled.shape  # doctest: +SKIP
        torch.Size([1, 768])
    """

    def __init__(
        self, path: str, *, max_tokens: int = 256, dtype: str = "float32", cache: str | None = None, memory: int = 4096
    ) -> None:
        if not (local_path(path) / "model_index.json").is_file():
            raise WeightsMissing(
                f"{path!r} is no folder of a pipeline of diffusers, which has a model_index.json; give the one of "
                "HunyuanVideo, of which the text encoders and tokenizers are taken"
            )
        super().__init__(path, max_tokens=max_tokens, dtype=dtype, cache=cache, memory=memory)

    def loaded(self, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
        llama, tokenizer = super().loaded(name, dtype)
        # What its last layers would make is not asked for: neither is kept in memory.
        llama.layers, llama.norm = llama.layers[:-LAYERS_LEFT_OUT], nn.Identity()
        llama.config.num_hidden_layers = len(llama.layers)
        return llama, tokenizer

    def further(self, name: str, dtype: torch.dtype) -> tuple[tuple[nn.Module, ...], str]:
        try:
            from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE as told
        except ImportError as problem:
            raise SoraError(
                "the text encoder 'hunyuan_video' needs diffusers, which has its template: pip install "
                "'lightning-sora[diffusers]'"
            ) from problem
        from transformers import AutoTokenizer, CLIPTextModel

        self.template, self.crop = str(told["template"]), int(told["crop_start"])
        place, words = places(str(local_path(name) / "text_encoder_2"))
        check_folder_fits(place, dtype)
        try:
            self.words = AutoTokenizer.from_pretrained(words)
            clip: Any = CLIPTextModel.from_pretrained(place, dtype=dtype)
        except (OSError, ValueError, SafetensorError) as problem:
            reason = first_line(problem)
            raise SoraError(f"cannot load the CLIP of {name!r} ({reason}); download the pipeline again") from problem
        self.pooled_dim = int(clip.config.hidden_size)
        return (clip,), f" {self.crop} {self.template!r} {fingerprint_of(clip, self.words, str(CLIP_TOKENS))}"

    def probe(self, tokens: int) -> Tensor:
        ids = torch.zeros((1, tokens + self.crop), dtype=torch.long, device=self._device.device)
        self._of_the_whole([""])
        return self._states(ids, torch.ones_like(ids))

    def _of_the_whole(self, captions: Sequence[str]) -> Tensor:
        ids = self.words(
            list(captions), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids.to(self._device.device)
        with torch.autocast(ids.device.type, enabled=False):
            return self._hidden[1](ids).pooler_output

    def _encode(self, captions: Sequence[str]) -> list[Embedded]:
        texts, most = [self.template.format(caption) for caption in captions], self.max_tokens + self.crop
        ids: list[list[int]] = self.tokenizer(texts)["input_ids"]
        longest = max(map(len, ids))
        self.warn_cut(longest - self.crop)
        if (shortest := min(map(len, ids))) <= self.crop:
            raise SoraError(
                f"the tokenizer of {self.name!r} makes {shortest} tokens of the template with a caption, of which "
                f"HunyuanVideo cuts off {self.crop}; take the tokenizer of its own pipeline"
            )
        if longest > most:
            ids = self.tokenizer(texts, truncation=True, max_length=most)["input_ids"]
        tokens, mask = self.filled(ids, max(map(len, ids)))
        hidden, pooled = self._states(tokens, mask).cpu(), self._of_the_whole(captions).float().cpu()
        return [
            Embedded(states[self.crop : len(row)].float().clone(), None, whole.clone())
            for states, row, whole in zip(hidden, ids, pooled, strict=True)
        ]
