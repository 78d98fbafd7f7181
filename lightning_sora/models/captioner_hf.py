"""A vision-language model of Hugging Face transformers as a captioner."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from lightning_sora.errors import SoraError, first_line
from lightning_sora.models.digests import tensor_bytes
from lightning_sora.models.text_hf import refuse_missing_folder

QUESTION = "Describe this video: what is in it, how it looks, how it moves, and how the camera moves."


class VisionLanguageModel:
    """Captions clips by frames, shown in order as images; greedy.

    Args:
        name: a local directory of an image-text-to-text model with its processor.
        question: what it is asked.
        frames: how many frames it sees, evenly spread.
        max_tokens: of a caption.

    Raises:
        SoraError: transformers is not installed, or the model cannot be loaded.
    """

    def __init__(self, name: str, question: str = QUESTION, frames: int = 8, max_tokens: int = 160) -> None:
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as problem:
            raise SoraError(
                "the captioner 'hf' needs transformers, which is not installed: pip install 'lightning-sora[hf]'"
            ) from problem
        if frames < 1 or max_tokens < 1:
            raise SoraError(f"frames={frames} and max_tokens={max_tokens} must be at least 1")
        # A name on the hub has an owner; one word is a folder, after which no hub need be asked for minutes.
        refuse_missing_folder(name if "/" in name else f"./{name}", "captioner")
        try:
            self.processor: Any = AutoProcessor.from_pretrained(name)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(name).eval()
        except (OSError, ValueError, ImportError, SafetensorError) as problem:
            reason = first_line(problem)
            raise SoraError(
                f"cannot load the captioner {name!r} ({reason}); give a directory that holds an image-text-to-text "
                "model of transformers with its processor"
            ) from problem
        self.question, self.frames, self.max_tokens = question, frames, max_tokens

    @torch.no_grad()
    def caption(self, video: UInt8[Tensor, "frames height width 3"]) -> tuple[str, float, bool]:
        """A caption, the mean log-probability of its tokens, and whether it came to its end."""
        chosen = torch.linspace(0, len(video) - 1, min(self.frames, len(video))).round().long()
        images = [Image.fromarray(video[i].cpu().numpy()) for i in chosen]
        if getattr(self.processor, "chat_template", None):
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": self.question}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        else:
            text = getattr(self.processor, "image_token", "<image>") * len(images) + self.question
        inputs = self.processor(images=images, text=text, return_tensors="pt").to(self.model.device)
        answer = self.model.generate(
            **inputs, max_new_tokens=self.max_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        new = answer.sequences[0, -len(answer.logits) :]
        logs = [float(one[0].log_softmax(-1)[token]) for one, token in zip(answer.logits, new, strict=True)]
        text = " ".join(self.processor.decode(new, skip_special_tokens=True).split())
        return text, sum(logs) / len(logs), len(new) < self.max_tokens

    @cached_property
    def digest(self) -> str:
        """A hash of weights and question."""
        digest = hashlib.blake2b(f"{self.question} {self.frames} {self.max_tokens}".encode(), digest_size=8)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor_bytes(tensor))
        return digest.hexdigest()
