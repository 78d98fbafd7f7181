"""What a diffusion model predicts: the terms that train it, and the guided denoiser that a sampler calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.diffusion.guidance import TOGETHER_TOKENS, Guidance
from lightning_sora.diffusion.paths import Objective
from lightning_sora.diffusion.samplers import Denoise, Progress
from lightning_sora.models.denoisers import Condition, Denoiser
from lightning_sora.models.given import Given, GivenRows
from lightning_sora.models.text import TextContext, TextEncoder
from lightning_sora.nn.rope import Stretch
from lightning_sora.spacetime import TokenLayout

#: Called with a timestep and the guided ``x_0`` there.
OnStep = Callable[[float, Tensor], None]


class Predictor(Protocol):
    """What predicts ``x_0`` from noised rows and text."""

    dit: Denoiser
    text: TextEncoder
    objective: Objective

    @property
    def dtype(self) -> torch.dtype: ...

    def stretch(self, layout: TokenLayout, rope: str) -> Stretch | None: ...


class DenoisingTerms(NamedTuple):
    """What a prediction from noised rows is measured by.

    Attributes:
        t: the timestep of each clip, 0 is data and 1 is noise.
        error: the mean squared error of each clip, in the objective's own terms, over the tokens at that timestep.
        x_0: the data that the prediction implies.
    """

    t: Float[Tensor, " clips"]
    error: Float[Tensor, " clips"]
    x_0: Float[Tensor, "batch tokens latent_dim"]


class SampleOptions(TypedDict, total=False):
    """Options of ``LatentDiffusion.sample``."""

    negative: str
    given: Given | Sequence[Given | None] | None
    seed: int
    sampler: str | None
    steps: int | None
    guidance: float | str | None
    rope: str | None
    shift_by_size: bool | None
    keys: Sequence[tuple[Any, ...]] | None
    progress: Progress
    on_step: OnStep | None


def guided(
    own: Predictor,
    weak: Callable[[str], Predictor],
    prompts: Sequence[str],
    layout: TokenLayout,
    guidance: Guidance,
    on_step: OnStep | None = None,
    negative: str = "",
    given: GivenRows | None = None,
    rope: str = "none",
    condition: Condition | None = None,
) -> Denoise:
    """``(x_t, t) -> x_0`` for some prompts; the solver's state stays in float32.

    What the guide asks one model for at once is computed in one batch where that is faster (see
    :data:`~lightning_sora.diffusion.guidance.TOGETHER_TOKENS`).

    Args:
        weak: gives the weaker model of autoguidance by its path.
        on_step: called after each guided prediction.
        negative: what guidance leads away from.
        given: what of the clips is kept, or not noised above a level.
        rope: what is done with the positions of clips of other sizes than a model was trained on.
        condition: what a denoiser of ``condition_channels`` is shown of the clips.
    """
    guide = guidance.start()
    captions = {"conditional": list(prompts), "unconditional": [negative] * len(prompts), "weak": list(prompts)}
    contexts: dict[tuple[str, ...], TextContext] = {}
    layouts = {1: layout}
    axis = int(layout.packed)  # along which clips are joined

    def context(model: Predictor, kinds: tuple[str, ...]) -> TextContext:
        if kinds not in contexts:
            apart = [context(model, (kind,)) for kind in kinds] if len(kinds) > 1 else []
            contexts[kinds] = TextContext.join(apart) if apart else model.text(captions[kinds[0]])
        return contexts[kinds]

    def run(kinds: tuple[str, ...], x_t: Tensor, t: float) -> Sequence[Tensor]:
        model = weak(guidance.weak) if "weak" in kinds else own
        at = layouts.setdefault(len(kinds), TokenLayout(layout.grids * len(kinds), layout.packed))
        rows = torch.cat([x_t] * len(kinds), dim=axis)
        if given is None:
            times = torch.full((at.clips,), t, device=x_t.device)
            spread = at.per_token(times[:, None])
        else:
            kept = given.repeat(len(kinds), axis)
            times, rows = kept.levels(t), kept.noised(rows, t)
            spread = times[..., None]
        shown = None if condition is None else condition.repeat(len(kinds), axis)
        noised = model.objective.input(rows, spread).to(model.dtype)  # times stay as exact as they are
        prediction = model.dit(noised, times, context(model, kinds), at, model.stretch(at, rope), shown)
        x_0 = model.objective.x_0(prediction.float(), rows, spread)
        return (x_0 if given is None else kept.kept(x_0, t)).chunk(len(kinds), dim=axis)

    def denoise(x_t: Tensor, t: float) -> Tensor:
        if given is not None and bool(given.held(t).all()):
            return given.rows  # nothing is to be predicted yet

        def predict(*kinds: str) -> Sequence[Tensor]:
            if "weak" not in kinds and layout.total <= TOGETHER_TOKENS:
                return run(kinds, x_t, t)
            return [run((kind,), x_t, t)[0] for kind in kinds]

        x_0 = guide(predict, x_t, t)
        if on_step is not None:
            on_step(t, x_0)
        return x_0

    return denoise
