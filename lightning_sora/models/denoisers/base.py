"""Denoiser: what predicts a row per token from noised rows, timesteps and text; and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.text_base import TextContext
from lightning_sora.nn.rope import Stretch
from lightning_sora.randomness import initialize
from lightning_sora.registry import Registry
from lightning_sora.spacetime import PatchSize, TokenLayout
from lightning_sora.specs import Spec


@dataclass(frozen=True)
class DenoiserFacts:
    """What holds of a denoiser, so that what rests on it can ask.

    Attributes:
        objective: name of the one that its weights predict, of ``OBJECTIVES``; None where it learns any.
        packs: takes clips of several grids in one batch.
        token_times: takes a timestep per token, as known frames need it.
        stretches: its rotary positions can be stretched to sizes that it was not trained on.

    Example:
        >>> from lightning_sora.models.denoisers import DenoiserFacts
        >>> DenoiserFacts(objective="velocity", packs=False).token_times
        True
    """

    objective: str | None = None
    packs: bool = True
    token_times: bool = True
    stretches: bool = True


class Condition(NamedTuple):
    """What a denoiser is shown of a clip beside its noised rows: channels of its own, as image-to-video models have.

    Attributes:
        rows: a row per token, patches of ``condition_channels`` channels per latent position.
        image: embeddings of the first frame, or of the first and the last one after the other, for models that attend
            to such; None for the others.
    """

    rows: Float[Tensor, "batch tokens condition_dim"]
    image: Float[Tensor, "clips image_tokens image_dim"] | None = None

    def repeat(self, times: int, axis: int) -> Condition:
        """Of a batch that holds these clips several times, one after the other along an axis of the rows."""
        image = None if self.image is None else torch.cat([self.image] * times)
        return Condition(torch.cat([self.rows] * times, dim=axis), image)


class Denoiser(nn.Module, ABC):
    """Predicts a row per token from noised rows, timesteps and text.

    Args:
        channels: of a latent position, in and out.
        text_dim: width of the text encoder's vectors.
        patch_size: latent positions per token (frames, height, width).

    Attributes:
        in_dim: width of a row, in and out: ``patch_size.volume * channels``, in the order of
            :func:`~lightning_sora.spacetime.patchify`.
        facts: what holds of it.
        pretrained: whether it brings weights of its own, which are not drawn.
        checkpoint: whether its layers are recomputed in the backward pass, to save memory.
        condition_channels: what it is shown per latent position beside the noised channels; 0 for nothing.
        image_dim: width of the image embeddings that it attends to; None for none.
        image_tokens: how many of them a clip has, as its FLOPs count them.
        image_frames: of how many frames they are: 1 of the first, 2 of the first and then of the last.
        pooled_dim: width of the vector of a whole caption that it takes beside the text's; None for none.
        padded_text: whether its weights were trained on text that was encoded with its padding, which the text encoder
            saw; None where none stand behind it or either does.
        padded_to: tokens that it was padded to; None for any number.
        widths: of one whose folder says for what it is: a class method of its options that gives the channels and
            the text's width, without reading weights.
        trained_with: class in diffusers of the VAE on whose latents its weights were trained; None where none is known.
        lora_targets: ends of the names of the linear layers that low-rank adapters go to, where nothing else is asked;
            of which some may not be there.
    """

    lora_targets: ClassVar[tuple[str, ...]] = ()
    trained_with: str | None = None
    facts: DenoiserFacts = DenoiserFacts()
    pretrained: bool = False
    checkpoint: bool = False
    condition_channels: int = 0
    image_dim: int | None = None
    image_tokens: int = 257  # of CLIP: of its patches, and one of the whole
    image_frames: int = 1
    pooled_dim: int | None = None
    padded_text: bool | None = None
    padded_to: int | None = None

    def __init__(self, channels: int, text_dim: int, patch_size: PatchSize) -> None:
        super().__init__()
        self.channels, self.text_dim, self.patch_size = channels, text_dim, patch_size
        self.in_dim = patch_size.volume * channels

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        t: Float[Tensor, " clips"] | Float[Tensor, "batch tokens"],
        text: TextContext,
        layout: TokenLayout,
        stretch: Stretch | None = None,
        condition: Condition | None = None,
    ) -> Float[Tensor, "batch tokens in_dim"]:
        """One prediction.

        Args:
            x: noised rows, as the objective feeds them.
            t: timesteps in [0, 1], 0 is data and 1 is noise, per clip or per token.
            text: one context per clip.
            layout: where the tokens are; uniform or packed.
            stretch: of clips of other sizes than in training, with a row per clip; None to take positions as they are.
            condition: what it is shown beside; of a denoiser that has ``condition_channels``, and of no other.

        Raises:
            SoraError: shapes that do not fit the layout or the model, or what its :attr:`facts` rule out.
        """

    @abstractmethod
    def flops(self, layout: TokenLayout, text_tokens: int, per_token: bool = False) -> int:
        """FLOPs of one forward pass, a multiplication and an addition counting as two.

        Low-rank adapters in its layers are left out, which :mod:`lightning_sora.models.learning_flops` counts.

        Args:
            text_tokens: length of the text, padding included.
            per_token: whether each token has a timestep of its own.
        """

    @property
    def task(self) -> str:
        """What its clips are made from, where it is asked for nothing else."""
        shown = "first_and_last" if self.image_frames > 1 else "image_to_video"
        return shown if self.condition_channels else "text_to_video"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def fresh(self) -> frozenset[str]:
        """Names of the parameters that no pretrained weights stand behind, and whose values are drawn."""
        return frozenset() if self.pretrained else frozenset(name for name, _ in self.named_parameters())

    def draw(self, seed: int) -> None:
        """Draws the initial values of what is :meth:`fresh`, by the seed and the names of the parameters."""
        if not self.pretrained:
            initialize(self, seed, "dit.")

    def spec_of_its_own(self, spec: str) -> str:
        """The spec that builds it once its weights are kept elsewhere, in a checkpoint: without those it came with."""
        return spec

    def diffusers_key(self, name: str) -> str:
        """What diffusers calls a parameter or a module of this one.

        Raises:
            SoraError: diffusers has no such model.
        """
        raise SoraError(
            f"a {type(self).__name__} is no model of diffusers, so that {name!r} has no name there; save it by "
            "`lightning-sora export RUN --to pretrained`"
        )

    def check(
        self, x: Tensor, t: Tensor, text: TextContext, layout: TokenLayout, condition: Condition | None = None
    ) -> None:
        """Refuses what does not fit, before anything is computed.

        Raises:
            SoraError: what is wrong, and what would fit.
        """
        name = type(self).__name__
        if layout.packed and not self.facts.packs:
            raise SoraError(
                f"a {name} takes clips of one size in a batch, and this one packs {len(set(layout.grids))} sizes; set "
                "data.sizes to a policy of buckets, or take a denoiser that packs, such as 'wan(path=...)'"
            )
        if tuple(x.shape) != (*layout.shape, self.in_dim):
            raise SoraError(
                f"rows of shape {tuple(x.shape)} do not fit: the layout and the model ask for "
                f"{(*layout.shape, self.in_dim)} (batch, tokens, in_dim)"
            )
        if tuple(t.shape) not in ((layout.clips,), layout.shape):
            raise SoraError(
                f"t of shape {tuple(t.shape)} is neither per clip {(layout.clips,)} nor per token {layout.shape}"
            )
        if t.dim() == 2 and not self.facts.token_times:
            raise SoraError(f"a {name} takes one timestep per clip, and not one per token, as known frames ask for")
        clips, _, width = text.embeddings.shape
        if clips != layout.clips or width != self.text_dim:
            raise SoraError(
                f"text of {clips} clips and width {width}, but the layout has {layout.clips} clips and the model "
                f"text_dim={self.text_dim}"
            )
        wanted = (*layout.shape, self.patch_size.volume * self.condition_channels)
        shown = None if condition is None else tuple(condition.rows.shape)
        if shown != (wanted if self.condition_channels else None):
            raise SoraError(
                f"a {name} of condition_channels={self.condition_channels} is to be shown "
                f"{f'rows of shape {wanted}' if self.condition_channels else 'nothing'} beside the noised ones, and is "
                f"shown {'nothing' if shown is None else f'rows of shape {shown}'}"
            )


DENOISERS: Registry[Denoiser] = Registry(
    "denoiser",
    name="denoiser",
    given=("channels", "text_dim"),
    contract="lightning_sora.models.denoisers.contract",
)


def asked_denoiser(denoiser: str | None, attention: str | Sequence[str] | None) -> str | None:
    """The spec of a denoiser with the attention that is asked for beside it; None for none.

    Raises:
        SoraError: the attention of no denoiser, or one that the spec names as well.

    Example:
        >>> from lightning_sora.models.denoisers.base import asked_denoiser
        >>> asked_denoiser("diffusers(path='wan')", "window*3, full")
        "diffusers(path='wan', attention='window*3, full')"
    """
    if attention is None:
        return denoiser
    if denoiser is None:
        raise SoraError(
            f"model.attention={attention!r} is of the denoiser that model.denoiser names, and it names none; of the "
            "package's own it is model.dit.attention"
        )
    spec = DENOISERS.resolve(denoiser)
    if "attention" in spec.options:
        raise SoraError(f"model.denoiser={denoiser!r} and model.attention={attention!r} both name attention; drop one")
    plain = attention if isinstance(attention, str) else tuple(map(str, attention))
    return str(Spec(spec.name, {**spec.options, "attention": str(plain) if isinstance(plain, str) else plain}))
