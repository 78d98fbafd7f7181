"""LitExpander: trains a small language model to turn short prompts into the training captions' style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_sora.errors import SoraError
from lightning_sora.lit.captioners import checkpoint_of
from lightning_sora.lit.evaluation_means import EvaluationMeans
from lightning_sora.lit.module import LitModule
from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.metrics.texts import EXPANSION_SCORES, TextScores
from lightning_sora.models.expander import EXPANDERS, Expander, checked, whole_sentences
from lightning_sora.models.flops import FORWARD_AND_BACKWARD, CountedFlops
from lightning_sora.models.text_decoder import TextDecoder, next_token_loss
from lightning_sora.models.vocabulary import Vocabulary
from lightning_sora.randomness import generator, initialize
from lightning_sora.spacetime import PatchSize
from lightning_sora.specs import SpecText


class Pairs(Protocol):
    """A batch of text pairs."""

    prompts: tuple[str, ...]
    captions: tuple[str, ...]
    ids: tuple[str, ...]

    def __len__(self) -> int: ...


class LitExpander(LitModule):
    """A decoder that reads a prompt and writes the caption, under the cross-entropy of the caption alone.

    Args:
        vocabulary: "world", "bytes", or a file with one piece of text per line.
        dim, depth, num_heads: of the transformer.
        word_drop: probability that a word of the caption is hidden from those after it, so that facts are taken from
            the prompt and not guessed from each other.
        longest: tokens of an expansion at most.
        temperature: of expansions; 0 takes the likeliest word.
        optimizer, schedule, ema_decay, seed: see :class:`LitModule`.

    Example:
        >>> import lightning_sora as ls
        >>> module = ls.LitExpander(vocabulary="world", dim=32, depth=1, num_heads=2)
        >>> ls.load("outputs/world_expander").expand(["a red cube"])  # doctest: +SKIP
    """

    boundary = ("decoder.embedding.*", "decoder.output.*")

    def __init__(
        self,
        *,
        vocabulary: str = "world",
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        word_drop: float = 0.3,
        longest: int = 192,
        temperature: float = 0.0,
        optimizer: SpecText = "muon(lr=0.006, adamw_lr=1.5e-3)",
        schedule: SpecText = "trapezoid(warmup=50, cooldown=0.4)",
        ema_decay: float | None = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, ema_decay=ema_decay, seed=seed)
        self.save_hyperparameters()
        if not 0 <= word_drop < 1 or longest < 1 or temperature < 0:
            raise SoraError(
                f"word_drop={word_drop} must lie in [0, 1), longest={longest} be at least 1 and "
                f"temperature={temperature} not negative"
            )
        self.words = Vocabulary.named(vocabulary)
        self.decoder = TextDecoder(len(self.words), dim=dim, depth=depth, num_heads=num_heads, memory=False)
        initialize(self.decoder, seed, "decoder.")
        self.word_drop, self.longest, self.temperature = word_drop, longest, temperature
        self.scores, self._means = TextScores.of(EXPANSION_SCORES), EvaluationMeans()
        self._count = CountedFlops()

    @property
    def patch(self) -> PatchSize:
        return PatchSize()

    # It sees no clips.
    def check_batch(self, batch: Any) -> None:
        """Refuses clips.

        Raises:
            SoraError: no pairs of texts.
        """
        if not hasattr(batch, "prompts"):
            raise SoraError("an expander trains on pairs of texts; set data.class_path to PromptDataModule")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.check_batch(batch)
        self.log_rate()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._last_step.note(self.trainer)

    def report_skipped(self, batch: Any) -> None:
        """No file is read."""

    def training_tokens(self, batch: Any) -> int:
        return int(self._rows(batch)[0].numel())

    def training_flops(self, batch: Any) -> int:
        """Counted, padding included."""
        ids = self._rows(batch)[0]
        return FORWARD_AND_BACKWARD * self._count(tuple(ids.shape), self.decoder, lambda: self.decoder(ids))

    def _prompt(self, text: str) -> list[int]:
        return [self.words.bos, *self.words.encode(" ".join(text.split())), self.words.bos]

    def _rows(self, batch: Pairs) -> tuple[Tensor, Tensor]:
        """Token ids of prompt and caption, and the targets, in which the prompt does not count."""
        ids, targets = [], []
        for prompt, caption in zip(batch.prompts, batch.captions, strict=True):
            head, tail = self._prompt(prompt), [*self.words.encode(caption), self.words.eos]
            ids.append(torch.tensor([*head, *tail]))
            targets.append(torch.tensor([self.words.pad] * len(head) + tail))
        device = self.decoder.output.weight.device
        return tuple(pad_sequence(r, batch_first=True, padding_value=self.words.pad).to(device) for r in (ids, targets))  # type: ignore[return-value]

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        ids, targets = self._rows(batch)
        draws = [torch.rand(ids.shape[1], generator=generator(self.seed, "word_drop", i)) for i in batch.ids]
        hidden = (torch.stack(draws) < self.word_drop).to(ids.device) & (targets != self.words.pad)
        seen = torch.where(hidden, self.words.mask, ids)
        loss = next_token_loss(self.decoder(seen[:, :-1]), targets[:, 1:], self.words.pad).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Pairs, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Pairs, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    @torch.no_grad()
    def _evaluate(self, batch: Pairs, split: str) -> None:
        with self.averaged():
            ids, targets = self._rows(batch)
            losses = next_token_loss(self.decoder(ids[:, :-1]), targets[:, 1:], self.words.pad)
            expanded = self.expand(batch.prompts, seed=self.seed)
        self._means.add(f"{split}/loss", losses)
        if self.scores is not None:
            for name, (scored, values) in self.scores.add_texts(expanded, batch.prompts, batch.ids).items():
                self.score_clips(f"{split}/{name}", scored, values)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        if self.scores is not None:
            self.log_dict({f"{split}/{name}": value for name, value in self.scores.compute().items()})
            self.scores.reset()
        self._means.log(self, prog_bar=(f"{split}/loss",))

    def predict_step(self, batch: Pairs, batch_idx: int) -> list[str]:
        """Expansions."""
        with self.averaged():
            return self.expand(batch.prompts, seed=self.seed)

    @torch.no_grad()
    def expand(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """A rich prompt for each; one without an end is cut at its last whole sentence."""
        training = self.training
        self.eval()
        keyed = [generator(seed, "expand", prompt) for prompt in prompts] if self.temperature else None
        written = self.decoder.write(
            [self._prompt(prompt) for prompt in prompts],
            end=self.words.eos,
            longest=self.longest,
            forbidden=(self.words.bos, self.words.pad, self.words.mask),
            temperature=self.temperature,
            generators=keyed,
        )
        self.train(training)
        texts = [self.words.decode(one.ids) for one in written]
        return [text if one.ended else whole_sentences(text) for text, one in zip(texts, written, strict=True)]


@EXPANDERS.register("run")
class TrainedExpander(Expander):
    """A LitExpander's checkpoint.

    Args:
        path: of the checkpoint, or of the folder of its run.
    """

    def __init__(self, device: str = "cpu", *, path: str) -> None:
        self.module = LitExpander.load(checkpoint_of(path), device)

    def expand(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        expanded = self.module.expand(prompts, seed=seed)
        return [checked(prompt, text) for prompt, text in zip(prompts, expanded, strict=True)]

    def fingerprint(self) -> str:
        return f"run {weights_sha256(self.module.decoder)[:16]} {self.module.temperature} {self.module.longest}"


def create_expander(text: str, device: str = "cpu") -> Expander:
    """An expander by a spec, such as the path of a run or "hf:DIRECTORY".

    Raises:
        SoraError: nothing there, an unknown spec, or one that does not load.
    """
    if text.startswith(("http://", "https://")):
        raise SoraError(f"an endpoint needs the name of its model too: \"openai(url='{text}', model='NAME')\"")
    return EXPANDERS.create(text, device)
