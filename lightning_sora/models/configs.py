"""Options of models, grouped by the part that owns them: one nested section of a recipe, one argument in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.registry import check_types
from lightning_sora.specs import SpecText, canonical, is_mapping

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """A group of options; where one is taken, a mapping of its options is taken too."""

    def __post_init__(self) -> None:
        for name in self.names():
            value = getattr(self, name)
            if is_mapping(value) or (isinstance(value, list | tuple) and any(map(is_mapping, value))):
                texts = canonical(value) if is_mapping(value) else [canonical(one) for one in value]
                object.__setattr__(self, name, texts)
        check_types(self.section(), type(self), {name: getattr(self, name) for name in self.names()})

    @classmethod
    def of(cls: type[C], given: C | Mapping[str, Any] | None) -> C:
        """The group of options, or of a mapping of some of them; None for the defaults.

        Raises:
            SoraError: an unknown option, or a value of another type.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping | None):
            raise SoraError(f"{cls.section()}={given!r} must be a {cls.__name__} or a mapping of its options")
        known = cls.names()
        for option in given or {}:
            if option not in known:
                hint = did_you_mean(option, known, f"{cls.section()}.{{}}".format)
                raise SoraError(
                    f"no option '{cls.section()}.{option}'; {hint}accepted in {cls.section()}: {', '.join(known)}"
                )
        return cls(**(given or {}))

    @classmethod
    def section(cls) -> str:
        """How recipes call the group."""
        return cls.__name__.removesuffix("Config").lower()

    @classmethod
    def names(cls) -> list[str]:
        """The options of the group."""
        return [one.name for one in fields(cls)]

    def plain(self) -> dict[str, Any]:
        """The options as JSON and checkpoints hold them."""
        return {name: plain(value) for name, value in asdict(self).items()}


def plain(value: Any) -> Any:
    """A value as JSON and checkpoints hold it: groups as mappings, specs as texts, tuples as lists."""
    if isinstance(value, Config):
        return value.plain()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, str) else value  # of a spec its text, without the type


@dataclass(frozen=True)
class DiTConfig(Config):
    """The transformer; see :class:`~lightning_sora.models.denoisers.DiT`.

    Args:
        patch_size: latent positions per token (frames, height, width).
        dim: width of the tokens.
        depth: number of layers.
        num_heads: divides ``dim``; ``dim / num_heads`` is even and at least 6.
        mlp_ratio: hidden width of the gated MLP over ``dim``.
        attention: a block's spec, or a pattern over layers such as "spatial, temporal".
        kernel: how attention is computed, apart from what it computes.
        modulation: one projection of the condition for all layers, or one per layer.
        conditioning: text by an attention of its own, or jointly, as further keys of every self-attention.
        checkpoint: recompute layers in the backward pass, to save memory.

    Example:
        >>> import lightning_sora as ls
        >>> ls.DiTConfig(dim=96, patch_size=(4, 8, 8)).depth
        6
    """

    patch_size: Sequence[int] = (1, 1, 1)
    dim: int = 256
    depth: int = 6
    num_heads: int = 4
    mlp_ratio: float = 2.67
    attention: SpecText | list[SpecText] = "full"
    kernel: str = "sdpa"
    modulation: Literal["single", "per_block"] = "single"
    conditioning: Literal["cross", "joint"] = "cross"
    checkpoint: bool = False


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """What is predicted, at which noise levels, and what counts.

    Args:
        objective: spec of what is predicted: "velocity", "x", "eps", "v", "edm".
        weighting: spec of the loss's weight over timesteps.
        timesteps: spec of the training timesteps.
        tasks: spec of a task -> share of the clips that are trained on it, in any unit; None for text-to-video alone.
        text_drop: fraction of training captions replaced by the empty one, for guidance.
        weigh: what counts the same in the gradient over an epoch, under any ``data.sizes``: each clip, token or batch.
        val_timesteps: strata of t at which each validation clip is scored.

    Raises:
        SoraError: a value out of range.

    Example:
        >>> import lightning_sora as ls
        >>> ls.DiffusionConfig(objective="x", timesteps="logit_normal(mean=1.0)").text_drop
        0.1
    """

    objective: SpecText = "velocity"
    weighting: SpecText = "uniform"
    timesteps: SpecText = "logit_normal"
    tasks: dict[str, float] | None = None
    text_drop: float = 0.1
    weigh: Literal["clip", "token", "batch"] = "clip"
    val_timesteps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.text_drop < 1:
            raise SoraError(f"text_drop={self.text_drop} must lie in [0, 1)")
        if self.weigh not in ("clip", "token", "batch"):
            raise SoraError(f"weigh={self.weigh!r} must be 'clip', 'token' or 'batch'")
        if self.val_timesteps < 1:
            raise SoraError(f"val_timesteps={self.val_timesteps} must be at least 1")


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How samples are drawn where nothing else is asked.

    Args:
        sampler: spec of the solver, such as "euler" or "dpmpp_2m".
        steps: of the solver.
        guidance: a spec, or the scale of plain classifier-free guidance; 1 is none.
        shift: of the times towards noise (Esser et al. 2024, Eq. 23); 1 is none.
        shift_by_size: multiply the shift by the root of a clip's tokens over those of the longest trained on (ibid.).
        rope: what to do along an axis that is longer than any trained on, or shorter: take positions as they are,
            interpolate between trained ones, or change the base of the rotations (see ``nn.rope.SCALINGS``).

    Example:
        >>> import lightning_sora as ls
        >>> ls.SamplingConfig(steps=8, guidance="cfg(scale=4.0)").sampler
        'euler'
    """

    sampler: SpecText = "euler"
    steps: int = 20
    guidance: float | SpecText = 2.5
    shift: float = 1.0
    shift_by_size: bool = False
    rope: Literal["none", "interpolate", "ntk"] = "none"
