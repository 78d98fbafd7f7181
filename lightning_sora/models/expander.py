"""Prompt expansion: short prompts into rich ones, in the style of the captions that a model was trained on."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError

from lightning_sora.errors import SoraError, WeightsMissing, first_line
from lightning_sora.models.digests import tensor_bytes
from lightning_sora.models.text_hf import refuse_missing_folder
from lightning_sora.registry import Registry

INSTRUCTION = (
    "You turn short prompts for a text-to-video model into rich ones. Keep everything that the prompt says. Add what "
    "it leaves open: scene, light, surfaces, the course of motion, the camera. Answer with the rich prompt alone, in "
    "at most four sentences."
)
RETRIED = (429, 500, 502, 503, 504)


class Expander(ABC):
    """Rewrites prompts; never hands one back unchanged in silence."""

    @abstractmethod
    def expand(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """A rich prompt for each; where chance has a part, that of a prompt depends on it and the seed alone.

        Raises:
            SoraError: an expansion is empty, or cannot be had.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """What moves the expansions, for protocol cards."""


EXPANDERS: Registry[Expander] = Registry("prompt expander", name="expander", given=("device",), path="run")


def checked(prompt: str, expanded: str) -> str:
    """The expansion in single spaces.

    Raises:
        SoraError: it is empty.
    """
    text = " ".join(expanded.split())
    if not text:
        raise SoraError(f"the expansion of {prompt!r} came out empty; try another expander, or sample without one")
    return text


@EXPANDERS.register("hf")
class LanguageModel(Expander):
    """Any causal language model of Hugging Face transformers, asked in words; greedy.

    Args:
        name: a local directory.
        instruction: what it is told; with a chat template as the system's message, else before the prompt.
        max_tokens: of an answer; one that is longer is cut at its last whole sentence.

    Raises:
        SoraError: transformers is not installed, or the model cannot be loaded.
    """

    def __init__(
        self, device: str = "cpu", *, name: str, instruction: str = INSTRUCTION, max_tokens: int = 160
    ) -> None:
        if max_tokens < 1:
            raise SoraError(f"max_tokens={max_tokens} must be at least 1")
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as problem:
            raise WeightsMissing(
                "the expander 'hf' needs transformers, which is not installed: pip install 'lightning-sora[hf]'"
            ) from problem
        refuse_missing_folder(name, "language model")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self.model: Any = AutoModelForCausalLM.from_pretrained(name).eval().to(device)
        except (OSError, ValueError, ImportError, SafetensorError) as problem:
            reason = first_line(problem)
            raise WeightsMissing(
                f"cannot load the language model {name!r} ({reason}); give a directory that holds a causal model of "
                "transformers with its tokenizer"
            ) from problem
        self.name, self.instruction, self.max_tokens = name, instruction, max_tokens

    @torch.no_grad()
    def expand(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        found = []
        for prompt in prompts:
            ids = self._asked(prompt).to(self.model.device)
            room = getattr(self.model.config, "max_position_embeddings", None)
            if room is not None and ids.shape[1] + self.max_tokens > room:
                raise SoraError(
                    f"the prompt {prompt[:60]!r} with its instruction has {ids.shape[1]} tokens, and {self.name} has "
                    f"room for {room} with the {self.max_tokens} of the answer; shorten one of them"
                )
            pad = (
                self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
            )
            answer = self.model.generate(ids, max_new_tokens=self.max_tokens, do_sample=False, pad_token_id=pad)
            new = answer[0, ids.shape[1] :]
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            whole = len(new) < self.max_tokens or int(new[-1]) == self.tokenizer.eos_token_id
            found.append(checked(prompt, text if whole else whole_sentences(text)))
        return found

    def _asked(self, prompt: str) -> torch.Tensor:
        if not getattr(self.tokenizer, "chat_template", None):
            text = f"{self.instruction}\n\nPrompt: {prompt}\nRich prompt:"
            return self.tokenizer(text, return_tensors="pt")["input_ids"]
        try:
            text = self._templated([("system", self.instruction), ("user", prompt)])
        except TemplateError:  # some templates know no system's message
            text = self._templated([("user", f"{self.instruction}\n\n{prompt}")])
        # The template has written the marks already.
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]

    def _templated(self, messages: Sequence[tuple[str, str]]) -> str:
        told = [{"role": role, "content": content} for role, content in messages]
        return self.tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self.instruction} {self.max_tokens}".encode(), digest_size=8)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor_bytes(tensor))
        return f"hf {digest.hexdigest()}"


@EXPANDERS.register("openai")
class Endpoint(Expander):
    """An endpoint of the OpenAI kind, by its URL: vLLM, llama.cpp, Ollama or a hosted one.

    Args:
        url: up to and with the version, as in "http://localhost:8000/v1", or of the chat completions themselves.
        model: the name that the endpoint knows it by.
        key_env: the environment variable that holds the key, if one is needed; the key itself is never stored.
        instruction: the system's message.
        temperature, max_tokens: of the answer.
        timeout: seconds that an answer may take.
        retries: further tries, after growing pauses, where the endpoint is busy or out of order.

    Raises:
        SoraError: no http(s) URL.
    """

    def __init__(
        self,
        device: str = "cpu",  # that of the others; this one computes elsewhere
        *,
        url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        instruction: str = INSTRUCTION,
        temperature: float = 0.0,
        max_tokens: int = 256,
        timeout: float = 60.0,
        retries: int = 3,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise SoraError(f"url={url!r} must begin with http:// or https://, as in http://localhost:8000/v1")
        if timeout <= 0 or retries < 0 or max_tokens < 1:
            raise SoraError(
                f"timeout={timeout} and max_tokens={max_tokens} must be positive and retries={retries} not negative"
            )
        self.url, self.model, self.key_env = url.rstrip("/").removesuffix("/chat/completions"), model, key_env
        self.instruction, self.temperature, self.max_tokens = instruction, temperature, max_tokens
        self.timeout, self.retries, self.pause = timeout, retries, 1.0

    def expand(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        return [checked(prompt, self._answer(prompt, seed)) for prompt in prompts]

    def _answer(self, prompt: str, seed: int) -> str:
        asked = {
            "model": self.model,
            "messages": [{"role": "system", "content": self.instruction}, {"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(asked).encode(), headers)
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _content(json.load(response)["choices"][0])
            except urllib.error.HTTPError as problem:
                reason = f"it answers {problem.code} {problem.reason}{_told(problem)}"
                if problem.code == 404:
                    reason += f" at {request.full_url}"
                if problem.code not in RETRIED:
                    break
            except (urllib.error.URLError, HTTPException, OSError) as problem:
                reason = str(getattr(problem, "reason", problem)) or type(problem).__name__
            except (ValueError, LookupError, TypeError):
                reason = "its answer is not that of a chat completion"
                break
        raise SoraError(
            f"the expander at {self.url} gives no expansion of {prompt!r}: {reason}; check the url, the model "
            f"{self.model!r} and the key in ${self.key_env}"
        )

    def fingerprint(self) -> str:
        told = f"{self.instruction} {self.temperature} {self.max_tokens}"
        return f"openai {self.url} {self.model} {hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"


def _content(choice: Mapping[str, Any]) -> str:
    """The text of an answer; one that was cut ends at its last whole sentence.

    Raises:
        TypeError: it has none, as of a refusal or a call of a tool.
    """
    content = choice["message"]["content"]
    if not isinstance(content, str):
        raise TypeError
    return whole_sentences(content) if choice.get("finish_reason") == "length" else content


def _told(problem: urllib.error.HTTPError) -> str:
    """What the endpoint says of an error, if it says it as the protocol does."""
    try:
        error = json.loads(problem.read())["error"]
        return f" ({' '.join(str(error.get('message', error) if isinstance(error, dict) else error).split())[:200]})"
    except (ValueError, LookupError, TypeError, OSError):
        return ""


def whole_sentences(text: str) -> str:
    """The whole sentences of a text that was cut; the text where there is none."""
    return text[: text.rfind(".") + 1] or text
