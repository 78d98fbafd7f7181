"""LitCaptioner: trains a video-to-text captioner, and scores what it writes by the facts that it gets right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics.text import BLEUScore

from lightning_sora.errors import SoraError
from lightning_sora.lit.evaluation_means import EvaluationMeans
from lightning_sora.lit.module import LitModule
from lightning_sora.metrics.texts import CAPTION_SCORES, CaptionScore, TextScores
from lightning_sora.models.captioner import Captioner
from lightning_sora.models.flops import FORWARD_AND_BACKWARD, CountedFlops
from lightning_sora.models.text_decoder import Written, next_token_loss
from lightning_sora.randomness import generator, initialize
from lightning_sora.spacetime import PatchSize, SpacetimeBatch
from lightning_sora.specs import SpecText


class LitCaptioner(LitModule):
    """A captioner under the cross-entropy of each next token.

    Args:
        vocabulary: "world", "bytes", or a file with one piece of text per line.
        dim, depth, decoder_depth, num_heads, attention: see :class:`Captioner`.
        word_drop: probability that a word is hidden from the words after it, so that they are read off the clip
            rather than guessed from the text (Bowman et al. 2016, arXiv:1511.06349, section 3.1).
        patch: pixels per row of the data's batches.
        longest: tokens of a written caption at most.
        optimizer, schedule, ema_decay, seed: see :class:`LitModule`.

    Example:
        >>> import lightning_sora as ls
        >>> module = ls.LitCaptioner(dim=32, depth=1, decoder_depth=1, num_heads=2, attention="window(size=(1, 2, 2))")
        >>> module.patch
        PatchSize(frames=4, height=8, width=8)
    """

    boundary = ("captioner.form.*", "captioner.hue.*", "captioner.decoder.embedding.*", "captioner.decoder.output.*")

    def __init__(
        self,
        *,
        vocabulary: str = "world",
        dim: int = 128,
        depth: int = 4,
        decoder_depth: int = 3,
        num_heads: int = 4,
        attention: SpecText | list[SpecText] = "full",
        word_drop: float = 0.3,
        patch: Sequence[int] = (4, 8, 8),
        longest: int = 192,
        optimizer: SpecText = "muon(lr=0.006, adamw_lr=1.5e-3)",
        schedule: SpecText = "trapezoid(warmup=50, cooldown=0.4)",
        ema_decay: float | None = 0.99,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, ema_decay=ema_decay, seed=seed)
        self.save_hyperparameters()
        if not 0 <= word_drop < 1 or longest < 1:
            raise SoraError(f"word_drop={word_drop} must lie in [0, 1) and longest={longest} be at least 1")
        self.captioner = Captioner(
            PatchSize.of(patch),
            vocabulary=vocabulary,
            dim=dim,
            depth=depth,
            decoder_depth=decoder_depth,
            num_heads=num_heads,
            attention=attention,
        )
        initialize(self.captioner, seed, "captioner.")
        self.word_drop, self.longest = word_drop, longest
        self.facts = TextScores.of(CAPTION_SCORES)
        self.bleu, self._means = BLEUScore(n_gram=4, smooth=True), EvaluationMeans()
        self._count = CountedFlops()

    @property
    def patch(self) -> PatchSize:
        return self.captioner.patch

    def check_batch(self, batch: SpacetimeBatch) -> None:
        """Refuses latents, other patches, and clips without a caption to learn from.

        Raises:
            SoraError: any of these.
        """
        super().check_batch(batch)
        if batch.space != "pixel":
            raise SoraError("a captioner looks at pixels, but this source yields latents; give a source of pixels")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        empty = [name for name, caption in zip(batch.ids, batch.captions, strict=True) if not caption]
        if empty:
            raise SoraError(f"clip {empty[0]} has no caption to learn from; caption it, or leave it out")

    def training_flops(self, batch: SpacetimeBatch) -> int:
        """Counted with the clips' own captions."""
        ids = self.captioner.tokens(batch.captions)
        key = (batch.layout.grids, ids.shape)
        return FORWARD_AND_BACKWARD * self._count(key, self.captioner, lambda: self._losses(batch, ids, ids))

    def _losses(self, batch: SpacetimeBatch, ids: Tensor, seen: Tensor) -> Tensor:
        memory = self.captioner.look(batch.patches, batch.layout)
        logits = self.captioner.decoder(seen[:, :-1], memory)
        return next_token_loss(logits, ids[:, 1:], self.captioner.vocabulary.pad)

    def _dropped(self, ids: Int[Tensor, "clips tokens"], batch: SpacetimeBatch) -> Int[Tensor, "clips tokens"]:
        words = self.captioner.vocabulary
        draws = [
            torch.rand(ids.shape[1], generator=generator(self.seed, "word_drop", *key)) < self.word_drop
            for key in batch.keys
        ]
        hidden = torch.stack(draws).to(ids.device) & (ids != words.bos) & (ids != words.pad)
        return torch.where(hidden, words.mask, ids)

    def training_step(self, batch: SpacetimeBatch, batch_idx: int) -> Tensor:
        ids = self.captioner.tokens(batch.captions)
        losses = self._losses(batch, ids, self._dropped(ids, batch))
        self.log("train/loss", losses.mean(), prog_bar=True, batch_size=len(batch))
        return batch.weighed(losses, "clip")

    def protocol(self, split: str) -> dict[str, Any]:
        told = {"decoding": "greedy"}
        if self.facts is not None:
            told["judge"] = ", ".join(score.method for score in self.facts.scores if isinstance(score, CaptionScore))
        return super().protocol(split) | told

    def validation_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: SpacetimeBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: SpacetimeBatch, split: str) -> None:
        written = self.write(batch)
        texts = [self.captioner.vocabulary.decode(one.ids) for one in written]
        with self.averaged():
            tokens = self.captioner.tokens(batch.captions)
            losses = self._losses(batch, tokens, tokens)
        self._means.add(f"{split}/loss", losses)
        self.score_clips(f"{split}/loss", batch.ids, losses.tolist())
        self.bleu.update(texts, [[caption] for caption in batch.captions])
        if batch.facts is not None and self.facts is not None:
            for name, (ids, values) in self.facts.add_texts(texts, batch.facts, batch.ids).items():
                self.score_clips(f"{split}/{name}", ids, values)

    @torch.no_grad()
    def write(self, batch: SpacetimeBatch) -> list[Written]:
        """The likeliest caption of each clip, token by token, by the moving average."""
        training = self.training
        self.eval()
        with self.averaged():
            written = self.captioner.write(batch.patches, batch.layout, longest=self.longest)
        self.train(training)
        return written

    def on_validation_epoch_end(self) -> None:
        self._log_written("val")

    def on_test_epoch_end(self) -> None:
        self._log_written("test")

    def _log_written(self, split: str) -> None:
        found = {**(self.facts.compute() if self.facts is not None else {}), "bleu": self.bleu.compute()}
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})
        if self.facts is not None:
            self.facts.reset()
        self.bleu.reset()
        self._means.log(self, prog_bar=(f"{split}/loss",))

    def predict_step(self, batch: SpacetimeBatch, batch_idx: int) -> list[str]:
        """Captions."""
        return [self.captioner.vocabulary.decode(one.ids) for one in self.write(batch)]
