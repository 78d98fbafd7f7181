"""The contract of a denoiser: a row for each row, one clip at a time, and what it declares of itself is so.

It is put to a denoiser with keyed initial values, or with its own weights where it brings some.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.contracts import Contract, no_global_draws, require, require_close
from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers.base import DENOISERS, Condition, Denoiser
from lightning_sora.models.lora import add_lora, linear_layers, usual_targets
from lightning_sora.models.text_base import TextContext
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import TokenGrid, TokenLayout

#: What a denoiser is made for that does not say for what it is.
CHANNELS, TEXT_DIM = 4, 8
VIDEO, IMAGE = TokenGrid(3, 2, 4), TokenGrid(1, 4, 2)
LENGTHS, TEXT_TOKENS = (5, 3), 6
#: Of float32 sums in another order.
TOLERANCE = 2e-5


def make(spec: str) -> Denoiser:
    """A denoiser for evaluation, of which no parameter is at a zero that hides what is behind it."""
    resolved = DENOISERS.resolve(spec)
    widths = getattr(DENOISERS.builder(resolved.name), "widths", None)
    channels, text_dim = (CHANNELS, TEXT_DIM) if widths is None else widths(**resolved.options)
    denoiser = DENOISERS.create(spec, channels, text_dim)
    denoiser.draw(1)
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            drawn = torch.randn(parameter.shape, generator=coarse_generator(2, "contract", name))
            parameter.add_(drawn.to(parameter), alpha=0.02)
    return denoiser.eval()


CONTRACT = Contract(make)
Rows = Float[Tensor, "batch tokens in_dim"]


# What the laws put in.
def rows_of(denoiser: Denoiser, layout: TokenLayout, width: int | None = None, purpose: str = "rows") -> Rows:
    width = denoiser.in_dim if width is None else width
    drawn = [
        torch.randn(length, width, generator=coarse_generator(3, purpose, clip))
        for clip, length in enumerate(layout.lengths)
    ]
    return layout.join(drawn)


def text_of(denoiser: Denoiser, clips: int, first: int = 0) -> TextContext:
    """Texts of two lengths, by turns."""
    size = (TEXT_TOKENS, denoiser.text_dim)
    places = range(first, first + clips)
    rows = [torch.randn(size, generator=coarse_generator(4, "contract", place)) for place in places]
    lengths = torch.tensor([LENGTHS[place % 2] for place in places])
    pooled = None
    if denoiser.pooled_dim is not None:
        drawn = [torch.randn(denoiser.pooled_dim, generator=coarse_generator(5, "contract", p)) for p in places]
        pooled = torch.stack(drawn)
    return TextContext(torch.stack(rows), torch.arange(TEXT_TOKENS) < lengths[:, None], pooled)


def condition_of(denoiser: Denoiser, layout: TokenLayout, first: int = 0) -> Condition | None:
    if not denoiser.condition_channels:
        return None
    rows = rows_of(denoiser, layout, denoiser.patch_size.volume * denoiser.condition_channels, f"condition{first}")
    if denoiser.image_dim is None:
        return Condition(rows)
    size = (denoiser.image_tokens, denoiser.image_dim)
    images = [
        torch.randn(size, generator=coarse_generator(6, "contract", first + clip)) for clip in range(layout.clips)
    ]
    return Condition(rows, torch.stack(images))


def predicted(denoiser: Denoiser, layout: TokenLayout, t: Tensor | None = None) -> Rows:
    times = torch.linspace(0.2, 0.9, layout.clips) if t is None else t
    shown = condition_of(denoiser, layout)
    return denoiser(rows_of(denoiser, layout), times, text_of(denoiser, layout.clips), layout, condition=shown)


def _layouts() -> Iterator[tuple[TokenLayout, str]]:
    yield TokenLayout.uniform(VIDEO, 2), "of videos"
    yield TokenLayout.uniform(IMAGE, 2), "of images"


# The laws.
@CONTRACT.law
@torch.no_grad()
def gives_a_row_for_each_row(spec: str) -> None:
    """Videos and images: rows of the width that went in, finite, in float32."""
    denoiser = make(spec)
    for layout, where in _layouts():
        found = predicted(denoiser, layout)
        expected = (*layout.shape, denoiser.in_dim)
        require(tuple(found.shape) == expected, f"{where}: rows of {tuple(found.shape)} instead of {expected}")
        require(found.dtype == torch.float32, f"{where}: {found.dtype} came out of float32")
        require(found.isfinite().all(), f"{where}: a row is not finite")


@CONTRACT.law
def gradient_reaches_every_parameter(spec: str) -> None:
    """No parameter is idle."""
    denoiser = make(spec).requires_grad_(True)
    predicted(denoiser, TokenLayout.uniform(VIDEO, 2)).square().sum().backward()
    for name, parameter in denoiser.named_parameters():
        require(parameter.grad is not None and parameter.grad.isfinite().all(), f"no finite gradient reaches {name}")


@CONTRACT.law
@torch.no_grad()
def predicts_each_clip_alone(spec: str) -> None:
    """Neighbours in a batch change nothing; packed, where it says that it packs, and refused where it does not."""
    denoiser = make(spec)
    layouts = [TokenLayout.uniform(VIDEO, 2)]
    packed = TokenLayout.pack([VIDEO, IMAGE])
    if denoiser.facts.packs:
        layouts.append(packed)
    else:
        try:
            predicted(denoiser, packed)
        except SoraError:
            pass
        else:
            require(False, "clips of two sizes in a batch are taken (DenoiserFacts(packs=True) if meant)")
    for layout in layouts:
        together, times = predicted(denoiser, layout), torch.linspace(0.2, 0.9, layout.clips)
        rows, shown = rows_of(denoiser, layout), condition_of(denoiser, layout)
        for clip, found in enumerate(layout.split(together)):
            own = layout.clip(clip)
            condition = None
            if shown is not None:
                image = None if shown.image is None else shown.image[clip : clip + 1]
                condition = Condition(layout.split(shown.rows)[clip][None], image)
            text = text_of(denoiser, 1, first=clip)
            alone = denoiser(layout.split(rows)[clip][None], times[clip : clip + 1], text, own, condition=condition)
            require_close(
                alone[0], found, f"clip {clip} alone and {'packed' if layout.packed else 'batched'}", TOLERANCE
            )


@CONTRACT.law
@torch.no_grad()
def takes_a_timestep_per_token_as_it_says(spec: str) -> None:
    """The same one for all tokens of a clip is that of the clip, and another one changes it; or such are refused."""
    denoiser, layout = make(spec), TokenLayout.uniform(VIDEO, 2)
    times = torch.linspace(0.2, 0.9, 2)
    spread = times[:, None].expand(layout.shape).contiguous()
    try:
        found = predicted(denoiser, layout, spread)
    except SoraError:
        require(not denoiser.facts.token_times, "a timestep per token is refused (DenoiserFacts(token_times=False))")
        return
    require(denoiser.facts.token_times, "a timestep per token is taken (DenoiserFacts(token_times=True) if meant)")
    require_close(found, predicted(denoiser, layout, times), "one timestep for all tokens of a clip", TOLERANCE)
    spread[:, -1] = 0.0
    require(not torch.equal(predicted(denoiser, layout, spread), found), "the timestep of a token has no say")


@CONTRACT.law
@torch.no_grad()
def hears_what_it_is_told(spec: str) -> None:
    """Text, timestep and what it is shown beside change the prediction; what is behind the end of a text does not."""
    denoiser, layout = make(spec), TokenLayout.uniform(VIDEO, 2)
    rows, times, text = rows_of(denoiser, layout), torch.linspace(0.2, 0.9, 2), text_of(denoiser, 2)
    shown = condition_of(denoiser, layout)
    found = denoiser(rows, times, text, layout, condition=shown)
    behind = torch.where(text.mask[..., None], text.embeddings, text.embeddings.flip(-1) + 1)
    padded = TextContext(behind, text.mask, text.pooled)
    require_close(
        denoiser(rows, times, padded, layout, condition=shown), found, "what is behind the end of a text", TOLERANCE
    )
    others = {
        "text": denoiser(rows, times, text_of(denoiser, 2, first=2), layout, condition=shown),
        "timestep": denoiser(rows, times.flip(0), text, layout, condition=shown),
    }
    if shown is not None:
        others["what it is shown"] = denoiser(rows, times, text, layout, condition=condition_of(denoiser, layout, 7))
    for name, other in others.items():
        require(not torch.equal(other, found), f"{name} has no say")


@CONTRACT.law
@torch.no_grad()
def declares_no_flops_that_it_does_not_spend(spec: str) -> None:
    """Never more than torch's counter sees, and at least half of it: blocks of tiles compute more than they declare."""
    denoiser = make(spec)
    layouts = [TokenLayout.uniform(VIDEO, 2), *([TokenLayout.pack([VIDEO, IMAGE])] if denoiser.facts.packs else [])]
    for layout in layouts:
        text = text_of(denoiser, layout.clips)
        text = replace(text, mask=torch.ones_like(text.mask))  # of padding, some compute less than of text
        rows, times = rows_of(denoiser, layout), torch.linspace(0.2, 0.9, layout.clips)
        with FlopCounterMode(display=False) as counter:
            denoiser(rows, times, text, layout, condition=condition_of(denoiser, layout))
        counted, declared = int(counter.get_total_flops()), denoiser.flops(layout, TEXT_TOKENS)
        require(counted / 2 <= declared <= counted, f"declares {declared} FLOPs, and torch counts {counted}")


@CONTRACT.law
def declares_no_flops_of_adapters(spec: str) -> None:
    """With low-rank adapters in it, it declares what it does without them: theirs are counted beside. Without peft, no
    adapters can be there."""
    if importlib.util.find_spec("peft") is None:
        return
    layout = TokenLayout.uniform(VIDEO, 2)
    plain, tuned, both = make(spec), make(spec), make(spec)
    ends = usual_targets(plain) or list(linear_layers(plain))[-1:]
    if not ends:
        return
    declared = plain.flops(layout, TEXT_TOKENS)
    both.flops(layout, TEXT_TOKENS)  # what it may remember is no excuse
    for denoiser in (tuned, both):
        add_lora(denoiser, rank=2, targets=ends)
        found = denoiser.flops(layout, TEXT_TOKENS)
        require(found == declared, f"declares {found} FLOPs with adapters in it, and {declared} without")


@CONTRACT.law
@torch.no_grad()
def is_rebuilt_by_its_own_spec(spec: str) -> None:
    """A copy, and what its own spec makes with its weights loaded, predict the same: a checkpoint needs no folder."""
    denoiser, layout = make(spec), TokenLayout.uniform(VIDEO, 2)
    found = predicted(denoiser, layout)
    require(torch.equal(predicted(copy.deepcopy(denoiser), layout), found), "a deep copy predicts something else")
    rebuilt = DENOISERS.create(denoiser.spec_of_its_own(spec), denoiser.channels, denoiser.text_dim).eval()
    rebuilt.load_state_dict(denoiser.state_dict())
    require(torch.equal(predicted(rebuilt, layout), found), "what its own spec makes predicts something else")


@CONTRACT.law
def draws_what_is_fresh_by_name(spec: str) -> None:
    """Initial values repeat, other seeds give others, what is pretrained stays, and no global generator is moved."""
    denoiser = make(spec)
    names = {name for name, _ in denoiser.named_parameters()}
    fresh = denoiser.fresh()
    require(fresh <= names, f"fresh() names {sorted(fresh - names)[:3]}, which are no parameters")
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    with no_global_draws("draw"):
        denoiser.draw(7)
    first = {name: value.clone() for name, value in denoiser.state_dict().items()}
    denoiser.draw(7)
    again = denoiser.state_dict()
    require(all(torch.equal(first[name], again[name]) for name in names), "the same seed draws other values")
    kept = names - fresh
    require(all(torch.equal(before[name], first[name]) for name in kept), "what is pretrained is drawn anew")
    denoiser.draw(8)
    others = denoiser.state_dict()
    require(
        not fresh or any(not torch.equal(first[name], others[name]) for name in fresh), "another seed draws the same"
    )


@CONTRACT.law
@torch.no_grad()
def refuses_what_does_not_fit(spec: str) -> None:
    """Rows of another width, times of another number, text of another width: a user's mistake, told as one."""
    denoiser, layout = make(spec), TokenLayout.uniform(VIDEO, 2)
    rows, times, text = rows_of(denoiser, layout), torch.linspace(0.2, 0.9, 2), text_of(denoiser, 2)
    shown = condition_of(denoiser, layout)
    wide = TextContext(torch.cat([text.embeddings] * 2, dim=-1), text.mask, text.pooled)
    beside = Condition(rows) if shown is None else None
    for name, call in {
        "rows of another width": (rows[..., :-1], times, text, shown),
        "three timesteps for two clips": (rows, torch.zeros(3), text, shown),
        "text of another width": (rows, times, wide, shown),
        "something beside" if shown is None else "nothing beside": (rows, times, text, beside),
    }.items():
        *given, condition = call
        try:
            denoiser(*given, layout, condition=condition)
        except SoraError:
            continue
        require(False, f"{name}: taken")
