"""Guidance: how strongly the prompt pulls.

A guide is a function ``(predict, x_t, t) -> x_0``; ``predict(*kinds)`` gives the ``x_0`` of each kind at ``x_t``: the
"conditional", the "unconditional", or that of a "weak" model. Each costs a call of the network, so a guide asks only
for what it uses; what it asks for at once may be computed in one batch (see :data:`TOGETHER_TOKENS`).
At a given ``x_t``, guiding ``x_0`` and guiding velocities or noises is the same wherever the guide is linear: they
depend linearly on each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Rows = Float[Tensor, "batch tokens dim"]
Predict = Callable[..., Sequence[Rows]]
"""``predict(*kinds)``: a prediction of each kind."""

TOGETHER_TOKENS = 128
"""Predictions of one network that a guide asks for at once are computed in one batch if the clips have no more tokens
than this in total. That took 0.67 to 0.74 times as long as two passes at 20 tokens, 0.87 to 0.90 at 128 of one clip,
1.05 at 240 of twelve and 1.16 to 1.28 at 1,280 of 64 (one EPYC core limited to AVX2, transformers 192 and 384 wide)."""


def classifier_free(conditional: Rows, unconditional: Rows, scale: float) -> Rows:
    """``unconditional + scale * (conditional - unconditional)`` (Ho and Salimans 2022, arXiv:2207.12598, Eq. 6)."""
    return unconditional + scale * (conditional - unconditional)


@dataclass(frozen=True)
class Guidance(ABC):
    """A way to guide; see the module.

    Attributes:
        scale: 1 is the conditional prediction as it is.
    """

    scale: float = 2.5

    def __post_init__(self) -> None:
        _finite(scale=self.scale)

    @property
    def weak(self) -> str:
        """Path of the weak model's checkpoint, where the guide uses one."""
        raise SoraError(f"guidance {type(self).__name__} has no weak model")

    def start(self) -> Guide:
        """A guide for one sampling: what it remembers from step to step begins anew."""
        return self.guide

    @abstractmethod
    def guide(self, predict: Predict, x_t: Rows, t: float) -> Rows:
        """The guided ``x_0``."""


Guide = Callable[[Predict, Tensor, float], Tensor]
GUIDANCE: Registry[Guidance] = Registry("guidance", name="guidance")


def guidance_of(value: float | str) -> Guidance:
    """The guidance of a spec; a number is the scale of plain classifier-free guidance.

    Raises:
        SoraError: unknown, or a scale that is not finite.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return GUIDANCE.create(str(value))
    _finite(guidance=value)
    return ClassifierFree(float(value))


@GUIDANCE.register("cfg")
@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, Eq. 6)."""

    def guide(self, predict: Predict, x_t: Rows, t: float) -> Rows:
        if self.scale == 1:
            return _conditional(predict)
        conditional, unconditional = predict("conditional", "unconditional")
        return classifier_free(conditional, unconditional, self.scale)


@GUIDANCE.register("interval")
@dataclass(frozen=True)
class Interval(ClassifierFree):
    """Guidance only where ``low < t <= high`` (Kynkäänniemi et al. 2024, arXiv:2404.07724, Eq. 6, in ``t``).

    Args:
        low: the noise level above which guidance sets in, from 0.
        high: the noise level up to which it stays, at most 1.
    """

    low: float = 0.1
    high: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low < self.high <= 1:
            raise SoraError(f"low={self.low}, high={self.high} must satisfy 0 <= low < high <= 1")

    def guide(self, predict: Predict, x_t: Rows, t: float) -> Rows:
        return super().guide(predict, x_t, t) if self.low < t <= self.high else _conditional(predict)


@GUIDANCE.register("rescaled")
@dataclass(frozen=True)
class Rescaled(ClassifierFree):
    """Guidance brought back to the conditional's standard deviation, per clip (Lin et al. 2023, arXiv:2305.08891,
    Eq. 15 and 16), on ``x_0``.

    Args:
        rescale: 0 leaves plain guidance, 1 rescales fully.
    """

    rescale: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rescale <= 1:
            raise SoraError(f"rescale={self.rescale} must lie in [0, 1]")

    def guide(self, predict: Predict, x_t: Rows, t: float) -> Rows:
        if self.scale == 1:
            return _conditional(predict)
        conditional, unconditional = predict("conditional", "unconditional")
        guided = classifier_free(conditional, unconditional, self.scale)
        ratio = _spread(conditional) / _spread(guided).clamp(min=1e-8)
        return guided * (self.rescale * ratio + 1 - self.rescale)


@GUIDANCE.register("apg")
@dataclass(frozen=True)
class AdaptiveProjected(Guidance):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416, Alg. 1): of the pull of the prompt, the part
    along the conditional prediction, which saturates, is weakened.

    Args:
        eta: what is kept of the parallel part; 1 with the others at their defaults is plain guidance.
        threshold: largest norm of the pull per clip; None for no limit.
        momentum: of the pull from step to step; the paper's are negative.
    """

    eta: float = 0.0
    threshold: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite(eta=self.eta, momentum=self.momentum)
        if self.threshold is not None and self.threshold <= 0:
            raise SoraError(f"threshold={self.threshold} must be positive, or None for no limit")

    def start(self) -> Guide:
        running: list[Tensor] = []

        def guide(predict: Predict, x_t: Tensor, t: float) -> Tensor:
            if self.scale == 1:
                return _conditional(predict)
            conditional, unconditional = predict("conditional", "unconditional")
            pull = conditional - unconditional
            if running:
                pull = pull + self.momentum * running.pop()
            running.append(pull)
            return self._apply(conditional, pull)

        return guide

    def guide(self, predict: Predict, x_t: Rows, t: float) -> Rows:
        return self.start()(predict, x_t, t)

    def _apply(self, conditional: Rows, pull: Rows) -> Rows:
        if self.threshold is not None:
            pull = pull * (self.threshold / _norm(pull).clamp(min=1e-12)).clamp(max=1)
        unit = conditional.double() / _norm(conditional.double()).clamp(min=1e-12)
        parallel = ((pull.double() * unit).sum(dim=(1, 2), keepdim=True) * unit).to(pull)
        return conditional + (self.scale - 1) * (pull - parallel + self.eta * parallel)


@GUIDANCE.register("autoguidance")
@dataclass(frozen=True)
class Autoguidance(Guidance):
    """Away from a weaker model of the same prompt (Karras et al. 2024, arXiv:2406.02507, Eq. 5).

    Args:
        checkpoint: path of the weaker model: smaller, or trained for less long, on the same latents.
    """

    checkpoint: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise SoraError("autoguidance needs the weaker model: autoguidance(scale=2.0, checkpoint='PATH.ckpt')")

    @property
    def weak(self) -> str:
        return self.checkpoint

    def guide(self, predict: Predict, x_t: Rows, t: float) -> Rows:
        if self.scale == 1:
            return _conditional(predict)
        conditional, weak = predict("conditional", "weak")
        return classifier_free(conditional, weak, self.scale)


def _conditional(predict: Predict) -> Rows:
    (conditional,) = predict("conditional")
    return conditional


def _norm(x: Rows) -> Float[Tensor, "batch 1 1"]:
    return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)


def _spread(x: Rows) -> Float[Tensor, "batch 1 1"]:
    return x.std(dim=(1, 2), keepdim=True)


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise SoraError(f"{name}={value} must be a finite number; a scale of 1 is no guidance")
