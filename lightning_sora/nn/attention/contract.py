"""The contract of an attention block: what it declares (its receptive field, pairs, FLOPs, kernels) is what it does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.contracts import Contract, ContractViolation, require, require_close
from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import AttentionBlock, TextKeys, create_attention, create_operator
from lightning_sora.nn.attention.joint import JointText
from lightning_sora.nn.attention.kernels import KERNELS
from lightning_sora.nn.attention.masked import MaskedBlock
from lightning_sora.nn.attention.partition import PartitionBlock
from lightning_sora.nn.rope import Rope, rotary
from lightning_sora.randomness import coarse_generator, initialize
from lightning_sora.spacetime import TokenGrid, TokenLayout

DIM, HEADS, DEPTH, TEXT_TOKENS = 24, 2, 4, 5
MIXED = (TokenGrid(3, 2, 5), TokenGrid(1, 4, 3), TokenGrid(2, 5, 4), TokenGrid(1, 4, 3))
LAYOUTS = {
    "video": TokenLayout.uniform(TokenGrid(3, 5, 4), 2),
    "image": TokenLayout.uniform(TokenGrid(1, 4, 6), 3),
    "packed": TokenLayout.pack(MIXED),
}
LAYERS = (0, 1)
TOLERANCE = 1e-5


# What the checks are made of.
def make(spec: str, layer: int = 0, kernel: str | None = None) -> AttentionBlock:
    """A block with keyed initial values."""
    block = create_attention(spec, DIM, HEADS, layer=layer, depth=DEPTH, kernel=kernel)
    initialize(block, seed=1)
    return block


CONTRACT = Contract(make)


def rope_of(layout: TokenLayout) -> Rope:
    return rotary(layout.coordinates()[: layout.shape[1], 1:], DIM // HEADS)


def tokens_of(layout: TokenLayout, seed: int = 2) -> Tensor:
    return torch.randn(*layout.shape, DIM, generator=coarse_generator(seed, "contract"))


def text_of(layout: TokenLayout) -> TextKeys:
    """Text of another length in each clip."""
    joint = JointText(DIM, HEADS)
    initialize(joint, seed=3)
    embeddings = torch.randn(layout.clips, TEXT_TOKENS, DIM, generator=coarse_generator(4, "contract"))
    lengths = torch.arange(layout.clips) % TEXT_TOKENS + 1
    return joint(embeddings, torch.arange(TEXT_TOKENS) < lengths[:, None])


def _cases(spec: str) -> Iterator[tuple[AttentionBlock, TokenLayout, str]]:
    for layer in LAYERS:
        for name, layout in LAYOUTS.items():
            yield make(spec, layer), layout, f"layer {layer}, {name} layout"


def _texts(layout: TokenLayout) -> Iterator[tuple[TextKeys | None, str]]:
    yield None, "without text"
    yield text_of(layout), "with joint text"


# The contract.
@CONTRACT.law
def keeps_shape_and_dtype(spec: str) -> None:
    """Tokens come out as they went in, in float32 and in float64."""
    for block, layout, where in _cases(spec):
        for dtype in (torch.float32, torch.float64):
            x, rope = tokens_of(layout).to(dtype), rope_of(layout)
            y = block.to(dtype)(x, layout, rope.to(dtype))
            require(y.shape == x.shape, f"{where}: {tuple(x.shape)} went in, {tuple(y.shape)} came out")
            require(y.dtype == dtype, f"{where}: {dtype} went in, {y.dtype} came out")


@CONTRACT.law
def gradient_reaches_every_parameter(spec: str) -> None:
    """No parameter is idle."""
    for block, layout, where in _cases(spec):
        require(list(block.parameters()), "the block has no parameters: call super().__init__() and use self.project")
        block(tokens_of(layout), layout, rope_of(layout), text_of(layout)).square().sum().backward()
        for name, parameter in block.named_parameters():
            require(parameter.grad is not None, f"{where}: no gradient reaches {name}; it is not used")
            assert parameter.grad is not None
            require(parameter.grad.isfinite().all(), f"{where}: the gradient of {name} is not finite")
            # With one token per group the softmax is constant: queries and keys then have no say.
            if layout.grids[0].frames > 1:
                require(parameter.grad.abs().sum() > 0, f"{where}: the gradient of {name} is zero")


@CONTRACT.law
def sees_its_receptive_field_and_nothing_else(spec: str) -> None:
    """In float64: the gradient of a token is exactly zero outside the field, and not zero inside."""
    for block, layout, where in _cases(spec):
        field = block.receptive_field(layout)
        require(field.shape == (layout.total, layout.total), f"{where}: the field must be [total, total]")
        require(field.diagonal().all(), f"{where}: every token must see itself")
        clip = layout.coordinates()[:, 0]
        for token, influence in influences(block, layout):
            leaks = (influence != 0) & (clip != clip[token])
            require(not leaks.any(), f"{where}: token {token} sees tokens of another clip: {_some(leaks)}")
            leaks = (influence != 0) & ~field[token]
            require(not leaks.any(), f"{where}: token {token} sees {_some(leaks)}, outside its receptive field")
            blind = (influence == 0) & field[token]
            require(not blind.any(), f"{where}: token {token} does not see {_some(blind)} of its receptive field")


def influences(block: AttentionBlock, layout: TokenLayout) -> Iterator[tuple[int, Tensor]]:
    """For some tokens: how much each token of the batch moves them, in float64."""
    block = block.double()
    x = tokens_of(layout).double().requires_grad_()
    weights = torch.randn(DIM, generator=coarse_generator(5, "contract")).double()
    y = block(x, layout, rope_of(layout).double()).reshape(layout.total, DIM) @ weights
    for token in range(0, layout.total, 7):
        (gradient,) = torch.autograd.grad(y[token], x, retain_graph=True)
        yield token, gradient.reshape(layout.total, DIM).abs().sum(dim=-1)


def _some(chosen: Tensor) -> str:
    found = chosen.nonzero()[:, 0].tolist()
    return f"{', '.join(map(str, found[:4]))}{' ...' if len(found) > 4 else ''}"


@CONTRACT.law
def packed_equals_one_clip_at_a_time(spec: str) -> None:
    """Neighbours in a pack change nothing."""
    layout = LAYOUTS["packed"]
    for layer in LAYERS:
        block, x = make(spec, layer), tokens_of(layout)
        for text, where in _texts(layout):
            together = layout.split(block(x, layout, rope_of(layout), text))
            for i, part in enumerate(layout.split(x)):
                alone = layout.clip(i)
                own = None if text is None else TextKeys(text.k[i : i + 1], text.v[i : i + 1], text.mask[i : i + 1])
                expected = block(part[None], alone, rope_of(alone), own)[0]
                require_close(
                    together[i], expected, f"layer {layer}, {where}: clip {i} of a pack differs from itself alone"
                )


@CONTRACT.law
def uniform_equals_packed(spec: str) -> None:
    """A batch of equal clips is the same clips packed."""
    layout = LAYOUTS["video"]
    packed = TokenLayout.pack(layout.grids)
    for layer in LAYERS:
        block, x = make(spec, layer), tokens_of(layout)
        for text, where in _texts(layout):
            expected = block(x.reshape(1, -1, DIM), packed, rope_of(packed), text).reshape(x.shape)
            found = block(x, layout, rope_of(layout), text)
            require_close(
                found, expected, f"layer {layer}, {where}: a batch of equal clips differs from a pack of them"
            )


@CONTRACT.law
def order_of_clips_has_no_say(spec: str) -> None:
    """Other places in a pack permute the result."""
    block, layout = make(spec), LAYOUTS["packed"]
    parts, order = layout.split(tokens_of(layout)), [2, 0, 3, 1]
    other = TokenLayout.pack([MIXED[i] for i in order])
    before = layout.split(block(layout.join(parts), layout, rope_of(layout)))
    after = other.split(block(other.join([parts[i] for i in order]), other, rope_of(other)))
    for position, i in enumerate(order):
        require_close(after[position], before[i], f"clip {i} changes with its place in a pack")


@CONTRACT.law
def text_joins_in(spec: str) -> None:
    """Every token sees its own clip's text, all of it and no padding, and no other clip's."""
    for block, layout, where in _cases(spec):
        x, rope, text = tokens_of(layout), rope_of(layout), text_of(layout)
        base = block(x, layout, rope, text).reshape(layout.total, DIM)
        clip = layout.coordinates()[:, 0]
        without = block(x, layout, rope).reshape(layout.total, DIM)
        idle = (base - without).abs().amax(dim=1) <= TOLERANCE / 10
        require(not idle.any(), f"{where}: joint text does not move tokens {_some(idle)}")
        v = text.v.clone()
        v[~text.mask] = 100.0
        padded = block(x, layout, rope, TextKeys(text.k, v, text.mask)).reshape(layout.total, DIM)
        require_close(padded, base, f"{where}: padding of the text is seen; use the mask")
        v = text.v.clone()
        v[0] += 1.0
        moved = block(x, layout, rope, TextKeys(text.k, v, text.mask)).reshape(layout.total, DIM)
        require_close(moved[clip != 0], base[clip != 0], f"{where}: the text of clip 0 is seen by other clips")


@CONTRACT.law
def equals_softmax_over_its_receptive_field(spec: str) -> None:
    """Against softmax written out over all tokens of the batch and their text, where a block is softmax attention."""
    for block, layout, where in _cases(spec):
        if not block.softmax:
            return
        x, rope = tokens_of(layout), rope_of(layout)
        clip = layout.coordinates()[:, 0]
        for text, words in _texts(layout):
            q, k, v = (a.reshape(layout.total, HEADS, -1) for a in block.project(x, rope))
            seen = block.receptive_field(layout)
            if text is not None:
                k, v = torch.cat([k, text.k.flatten(0, 1)]), torch.cat([v, text.v.flatten(0, 1)])
                owner = torch.arange(layout.clips).repeat_interleave(TEXT_TOKENS)
                seen = torch.cat([seen, (clip[:, None] == owner) & text.mask.flatten()], dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
            weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
            expected = block.out(torch.einsum("hqk,khd->qhd", weights, v).reshape(*layout.shape, DIM))
            message = f"{where}, {words}: differs from softmax over its receptive field (softmax = False if meant)"
            require_close(block(x, layout, rope, text), expected, message)


@CONTRACT.law
@torch.no_grad()
def kernels_agree(spec: str) -> None:
    """Every kernel that the block names and this machine has gives the same; every other is refused."""
    for block, layout, where in _cases(spec):
        results = {}
        for kernel in KERNELS.list():
            if kernel not in block.kernels:
                try:
                    block.use_kernel(kernel)
                except SoraError:
                    continue
                raise ContractViolation(f"kernel {kernel!r} is not in `kernels`, but use_kernel takes it")
            block.use_kernel(kernel)
            if kernel == "varlen" and not torch.cuda.is_available():
                continue
            results[kernel] = block(tokens_of(layout), layout, rope_of(layout), text_of(layout))
        first, *others = results
        for other in others:
            require_close(results[other], results[first], f"{where}: kernels {first!r} and {other!r} disagree")


@CONTRACT.law
def bfloat16_is_finite_and_close(spec: str) -> None:
    """Under autocast, forward and backward."""
    for block, layout, where in _cases(spec):
        x, rope, text = tokens_of(layout), rope_of(layout), text_of(layout)
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x, layout, rope, text)
        y.float().sum().backward()
        finite = all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
        require(finite and y.isfinite().all(), f"{where}: not finite under bfloat16")
        require_close(y.float(), block(x, layout, rope, text), f"{where}: bfloat16 is far from float32", tolerance=0.08)


@CONTRACT.law
def compiles(spec: str) -> None:
    """Compiled, it gives the same."""
    layout = LAYOUTS["video"]
    block = make(spec, layer=1)
    x, rope = tokens_of(layout), rope_of(layout)
    expected = block(x, layout, rope)  # plans are made outside
    compiled = torch.compile(lambda x: block(x, layout, rope), backend="aot_eager", dynamic=False)
    require_close(compiled(x), expected, "compiled differs from eager")
    torch.compiler.reset()


@CONTRACT.law
def recomputes_under_checkpointing(spec: str) -> None:
    """Activation checkpointing changes no gradient."""
    layout = LAYOUTS["packed"]
    gradients = []
    for recompute in (False, True):
        block, x = make(spec), tokens_of(layout).requires_grad_()

        def run(x: Tensor, block: AttentionBlock = block) -> Tensor:
            return block(x, layout, rope_of(layout), text_of(layout))

        y = checkpoint(run, x, use_reentrant=False) if recompute else run(x)
        y.square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    require_close(gradients[1], gradients[0], "checkpointing changes the gradient")


@CONTRACT.law
def state_loads_strictly(spec: str) -> None:
    """Saved state, a deep copy and a pickle all give the same block; keyed initial values repeat."""
    layout = LAYOUTS["video"]
    x, rope = tokens_of(layout), rope_of(layout)
    first = make(spec)
    expected = first(x, layout, rope)
    second = create_attention(spec, DIM, HEADS, layer=0, depth=DEPTH)
    second.load_state_dict(first.state_dict(), strict=True)
    copies = {"its state": second, "a deep copy": copy.deepcopy(first), "a pickle": pickle.loads(pickle.dumps(first))}
    for words, other in {**copies, "keyed initialisation": make(spec)}.items():
        require(torch.equal(other(x, layout, rope), expected), f"{words} gives another block")


@CONTRACT.law
def is_carried_whole_by_other_networks(spec: str) -> None:
    """Between projections that are not its own, a block does the same; or it is refused there, by name."""
    layout = LAYOUTS["video"]
    x, rope = tokens_of(layout), rope_of(layout)
    for layer in LAYERS:
        block = make(spec, layer)
        try:
            operator = create_operator(spec, DIM, HEADS, layer=layer, depth=DEPTH)
        except SoraError:
            continue
        own = operator.state_dict()
        operator.load_state_dict({name: value for name, value in block.state_dict().items() if name in own})
        q, k, v = block.project(x, rope)
        carried = block.out(operator.passed_on(operator.attend(q, k, v, layout).flatten(2), x))
        require_close(carried, block(x, layout, rope), f"layer {layer}: carried by another network")


@CONTRACT.law
def shares_a_sequence_with_text(spec: str) -> None:
    """In a network that has text in the sequence, before or behind: tokens see their field and all text, text sees
    everything."""
    layout = LAYOUTS["video"]
    for layer in LAYERS:
        block, text = make(spec, layer), text_of(layout)
        q, k, v = block.project(tokens_of(layout), rope_of(layout))
        tokens = torch.ones(q.shape[:2], dtype=torch.bool)
        for first in (0, TEXT_TOKENS):
            queries, keys, values = (
                torch.roll(torch.cat(pair, dim=1), first, 1) for pair in ((q, text.k), (k, text.k), (v, text.v))
            )
            mask = torch.roll(torch.cat([tokens, text.mask], dim=1), first, 1)
            mixed = torch.roll(block.attend_jointly(queries, keys, values, layout, mask, first), -first, 1)
            where = f"layer {layer}, text {'before' if first else 'behind'} the tokens"
            require_close(mixed[:, : layout.shape[1]], block.attend(q, k, v, layout, text), f"{where}: tokens")
            dense = KERNELS.builder("matmul")(text.k, keys, values, mask)
            require_close(mixed[:, layout.shape[1] :], dense, f"{where}: text")


@CONTRACT.law
def counts_its_flops(spec: str) -> None:
    """Exactly what torch's counter sees; of tiles, what is visible in them."""
    for layer in LAYERS:
        for name, layout in LAYOUTS.items():
            block = make(spec, layer, kernel="matmul")
            for text, words in _texts(layout):
                with FlopCounterMode(display=False) as counter:
                    block(tokens_of(layout), layout, rope_of(layout), text)
                declared = block.flops(layout, 0 if text is None else TEXT_TOKENS)
                wasted = 4 * (_computed_pairs(block, layout) - block.pairs(layout)) * DIM if _dense(block) else 0
                counted = counter.get_total_flops() - wasted
                where = f"layer {layer}, {name} layout, {words}"
                require(declared == counted, f"{where}: flops() says {declared}, torch counts {counted}")


@CONTRACT.law
def counts_its_pairs(spec: str) -> None:
    """``pairs`` is the size of the receptive field."""
    for block, layout, where in _cases(spec):
        seen = int(block.receptive_field(layout).sum())
        require(block.pairs(layout) == seen, f"{where}: pairs() says {block.pairs(layout)}, the field holds {seen}")


def _dense(block: AttentionBlock) -> bool:
    inner = getattr(block, "inner", block)
    return isinstance(inner, MaskedBlock) and not isinstance(inner, PartitionBlock)


def _computed_pairs(block: AttentionBlock, layout: TokenLayout) -> int:
    """What a kernel without sparsity computes: all pairs of each tile."""
    inner: Any = getattr(block, "inner", block)
    total = 0
    for grid in layout.grids:
        total += inner.plan(grid).computed
    return total


@CONTRACT.law
def refuses_widths_that_do_not_divide(spec: str) -> None:
    """A width that the heads do not divide is a user's mistake, told as one."""
    try:
        create_attention(spec, DIM + 1, HEADS, layer=0, depth=DEPTH)
    except SoraError:
        return
    raise ContractViolation(f"dim={DIM + 1} with num_heads={HEADS} is accepted")
