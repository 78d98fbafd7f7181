"""The contract of a text encoder: a caption means the same whatever stands beside it, and padding means nothing."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.contracts import Contract, no_global_draws, require, require_close
from lightning_sora.models.text import TEXT_ENCODERS, TextContext, TextEncoder
from lightning_sora.randomness import coarse_generator, initialize

CAPTIONS = (
    "a red circle moves right",
    "",
    "a",
    "Ein roter Kreis, 向右移动 🔴",
    "a red circle moves right in front of a large blue square that turns slowly, seen from above",
)
TOLERANCE = 2e-5


def make(spec: str) -> TextEncoder:
    """An encoder for evaluation; one that is trained with the DiT gets keyed initial values."""
    encoder = TEXT_ENCODERS.create(spec)
    if encoder.trainable:
        initialize(encoder, 1, "text.")
    return encoder.eval()


CONTRACT = Contract(make)


def _rows(context: TextContext) -> list[Tensor]:
    """The embeddings of each caption, without padding."""
    return [row[mask] for row, mask in zip(context.embeddings, context.mask, strict=True)]


@CONTRACT.law
@torch.no_grad()
def has_the_width_that_it_declares(spec: str) -> None:
    """Embeddings of ``dim`` in float32, and a mask of the same clips and tokens."""
    encoder = make(spec)
    context = encoder(CAPTIONS)
    told = f"embeddings are {tuple(context.embeddings.shape)} of {context.embeddings.dtype}"
    require(
        context.embeddings.ndim == 3 and context.embeddings.shape[0] == len(CAPTIONS), f"{told}: not one per caption"
    )
    require(context.embeddings.shape[2] == encoder.dim, f"{told}, dim says {encoder.dim}")
    require(context.embeddings.dtype == torch.float32, f"{told}, not float32")
    require(context.embeddings.isfinite().all(), "embeddings are not finite")
    require(context.mask.shape == context.embeddings.shape[:2], f"{told}, the mask is {tuple(context.mask.shape)}")
    require(context.mask.dtype == torch.bool, f"the mask is {context.mask.dtype}, not bool")


@CONTRACT.law
@torch.no_grad()
def every_caption_has_tokens_and_padding_follows_them(spec: str) -> None:
    """Also the empty caption, which is the unconditional one; the mask is true up to a caption's end and not beyond."""
    encoder = make(spec)
    for captions in (CAPTIONS, ("",), ("   \n",)):
        mask = encoder(captions).mask
        for caption, row in zip(captions, mask, strict=True):
            require(row.any(), f"the caption {caption!r} has no token; give it one that stands for it")
            require(not (row[1:] & ~row[:-1]).any(), f"the mask of {caption!r} has a gap: padding stands at the end")


@CONTRACT.law
@torch.no_grad()
def captions_do_not_mix(spec: str) -> None:
    """A caption has the same embeddings alone as in any batch, in any order, padded to any length."""
    encoder = make(spec)
    together = _rows(encoder(CAPTIONS))
    backwards = _rows(encoder(CAPTIONS[::-1]))[::-1]
    for caption, found, other in zip(CAPTIONS, together, backwards, strict=True):
        (alone,) = _rows(encoder([caption]))
        require_close(found, alone, f"{caption!r} in a batch differs from itself alone", TOLERANCE)
        require_close(other, alone, f"{caption!r} depends on its place in the batch", TOLERANCE)


@CONTRACT.law
@torch.no_grad()
def encodes_the_same_every_time(spec: str) -> None:
    """Nothing is drawn, and nothing remembered that changes a result; repeated captions are equal."""
    encoder = make(spec)
    with no_global_draws("encoding"):
        first = encoder(CAPTIONS)
    encoder(["another caption"])
    again = encoder(CAPTIONS)
    same = torch.equal(first.mask, again.mask) and torch.equal(first.embeddings, again.embeddings)
    require(same, "encoding captions a second time gives other embeddings")
    one, other = _rows(encoder([CAPTIONS[0], CAPTIONS[0]]))
    require_close(one, other, "a caption that stands twice in a batch has two embeddings", TOLERANCE)


@CONTRACT.law
@torch.no_grad()
def tells_captions_apart(spec: str) -> None:
    """Different captions have different embeddings, the empty one too."""
    rows = _rows(make(spec)(CAPTIONS))
    for i, row in enumerate(rows):
        for j in range(i):
            same = row.shape == rows[j].shape and bool((row - rows[j]).abs().max() <= TOLERANCE)
            require(not same, f"{CAPTIONS[j]!r} and {CAPTIONS[i]!r} have the same embeddings")


@CONTRACT.law
@torch.no_grad()
def counts_its_tokens(spec: str) -> None:
    """``length`` is what a batch is padded to, by which FLOPs are counted."""
    encoder = make(spec)
    for captions in (CAPTIONS, CAPTIONS[:1], ("",)):
        told, found = encoder.length(captions), encoder(captions).mask.shape[1]
        require(told == found, f"length() says {told} tokens, a batch has {found}")


@CONTRACT.law
@torch.no_grad()
def its_probe_costs_what_a_caption_costs(spec: str) -> None:
    """By ``probe`` its FLOPs are counted, which budgets are matched by: as many as of a caption of so many tokens."""
    tokens = make(spec).length(CAPTIONS[:1])
    counted = []
    for encoder, run in ((make(spec), lambda e: e(CAPTIONS[:1])), (make(spec), lambda e: e.probe(tokens))):
        with FlopCounterMode(display=False) as counter:
            run(encoder)
        counted.append(counter.get_total_flops())
    require(counted[0] == counted[1], f"a caption of {tokens} tokens costs {counted[0]} FLOPs, probe {counted[1]}")


@CONTRACT.law
def learns_if_it_says_so(spec: str) -> None:
    """If ``trainable``, a gradient reaches every parameter; if not, none is asked for and none flows."""
    encoder = make(spec)
    context = encoder(CAPTIONS)
    if not encoder.trainable:
        free = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        require(not free, f"trainable is False, but {', '.join(free[:3])} would be trained; freeze the weights")
        require(not context.embeddings.requires_grad, "trainable is False, but embeddings carry a gradient")
        return
    weights = torch.randn(context.embeddings.shape, generator=coarse_generator(2, "contract"))
    require(context.embeddings.requires_grad, "trainable is True, but embeddings carry no gradient")
    (context.embeddings * weights).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        require(parameter.grad is not None, f"no gradient reaches {name}; it is not used")
        assert parameter.grad is not None
        require(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
        require(parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero")


@CONTRACT.law
@torch.no_grad()
def bfloat16_is_finite(spec: str) -> None:
    """Under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        context = make(spec)(CAPTIONS)
    require(context.embeddings.isfinite().all(), "embeddings are not finite under bfloat16")


@CONTRACT.law
@torch.no_grad()
def state_loads_strictly(spec: str) -> None:
    """Saved state, a deep copy and a pickle give the same encoder; keyed initial values repeat."""
    first = make(spec)
    expected = first(CAPTIONS).embeddings
    second = TEXT_ENCODERS.create(spec).eval()
    second.load_state_dict(first.state_dict(), strict=True)
    copies = {"its state": second, "a deep copy": copy.deepcopy(first), "a pickle": pickle.loads(pickle.dumps(first))}
    for words, other in {**copies, "keyed initialisation": make(spec)}.items():
        require(torch.equal(other(CAPTIONS).embeddings, expected), f"{words} gives another encoder")
