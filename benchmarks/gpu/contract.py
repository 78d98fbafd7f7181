"""Every attention block on the device against the same block on a CPU in float64: outputs and gradients.

For each block, kernel and precision, over uniform, image and packed layouts, an even and an odd layer, with and
without joint text, the largest error is told, as a share of the largest value of what it is an error of. On a CPU these
errors are about 1e-6 of outputs and 2e-6 of gradients in float32, at most 0.01 and 0.09 in bfloat16.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.part import Case, Row
from benchmarks.gpu.session import Session, first_line
from lightning_sora.nn.attention import AttentionBlock, TextKeys, create_attention, list_attention
from lightning_sora.nn.rope import rotary
from lightning_sora.randomness import generator, initialize
from lightning_sora.spacetime import TokenGrid, TokenLayout

HEADS, DEPTH, TEXT_TOKENS = 2, 4, 7
PRECISIONS = ("float32", "bf16 autocast", "bf16 weights")
#: Of outputs and of gradients.
TOLERANCES = {"float32": (2e-5, 1e-4), "bf16 autocast": (0.05, 0.2), "bf16 weights": (0.05, 0.2)}
COMPILED = (1e-4, 1e-3)
#: A gradient is measured against its own largest value, but not against less than this share of the largest of all: one
#: that vanishes, as a query's does where a token sees itself alone, is noise.
GRADIENT_FLOOR = 0.1
#: In reduced size: a rule for pairs, and one that is no softmax.
REDUCED_BLOCKS = ("tile", "linear")
#: Kernels that run in half precision on CUDA alone.
HALF_ONLY = ("varlen",)


@dataclass(frozen=True)
class Setting:
    """One input that a block is put to."""

    layout: TokenLayout
    layer: int
    text: bool
    words: str


def settings(reduced: bool, few: bool = False) -> list[Setting]:
    """Layouts, layers, text; or, if few, one of each layout."""
    size = 1 if reduced else 2
    layouts = {
        "video": TokenLayout.uniform(TokenGrid(3, 3 * size, 4 * size), 2),
        "image": TokenLayout.uniform(TokenGrid(1, 4 * size, 6 * size), 3),
        "packed": TokenLayout.pack(
            [TokenGrid(3, 2, 5 * size), TokenGrid(1, 4, 3), TokenGrid(2, 5, 4 * size), TokenGrid(1, 4, 3)]
        ),
    }
    found = []
    for (name, layout), layer, text in itertools.product(layouts.items(), (0, 1), (False, True)):
        if not few or (layer, text) == ((1, True) if name == "video" else (0, False)):
            words = f"{name}, layer {layer}, {'joint text' if text else 'no text'}"
            found.append(Setting(layout, layer, text, words))
    return found


def cases(session: Session) -> list[Case]:
    """Each block by its first kernel; then by its others, FlexAttention last, which is compiled; then compiled."""
    blocks = REDUCED_BLOCKS if session.reduced else list_attention()
    kernels = {block: _kernels(session, block) for block in blocks}
    own = [(block, kernels[block][0]) for block in blocks]
    others = [(block, kernel) for block in blocks for kernel in kernels[block][1:]]
    others.sort(key=lambda pair: pair[1] == "flex")
    found = []
    for block, kernel in own + others:
        # At reduced size the other kernels, of which FlexAttention is slow on a CPU, are tried in one precision.
        for precision in PRECISIONS[:1] if session.reduced and (block, kernel) in others else PRECISIONS:
            if kernel in HALF_ONLY and (precision == "float32" or not session.cuda):
                continue
            labels = {"block": block, "kernel": kernel, "check": precision}
            found.append(Case(labels, partial(_against_float64, session, block, kernel, precision)))
    for block, kernel in own[:1] if session.reduced else own:
        labels = {"block": block, "kernel": kernel, "check": f"compiled ({session.backend}), against eager"}
        found.append(Case(labels, partial(_compiled, session, block, kernel)))
    return found


def _kernels(session: Session, block: str) -> tuple[str, ...]:
    return create_attention(block, _dim(session), HEADS, layer=0, depth=DEPTH).kernels


def _against_float64(session: Session, spec: str, kernel: str, precision: str) -> Iterator[Row]:
    worst = Worst()
    # FlexAttention is slow on a CPU, and compiled anew for each shape on CUDA: one setting of each layout is enough.
    for setting in settings(session.reduced, few=session.reduced or kernel == "flex"):
        exact = _exact(spec, setting, _dim(session))
        # FlexAttention has no backward pass on a CPU.
        backward = session.cuda or kernel != "flex"
        try:
            found = compute(spec, setting, _dim(session), session.device, precision, kernel, backward=backward)
        except Exception as problem:
            raise RuntimeError(f"{setting.words}: {first_line(problem)}") from problem
        worst.add(found, exact, setting.words)
    yield worst.row(TOLERANCES[precision])


def _compiled(session: Session, spec: str, kernel: str) -> Iterator[Row]:
    worst = Worst()
    for setting in settings(session.reduced, few=True):
        if setting.words.startswith("image"):  # what an image adds is not compiled otherwise
            continue
        torch.compiler.reset()
        eager, compiled = (
            compute(spec, setting, _dim(session), session.device, "float32", kernel, backend=backend)
            for backend in (None, session.backend)
        )
        worst.add(compiled, eager, setting.words)
    yield worst.row(COMPILED)


class Worst:
    """The largest errors of several computations, and where."""

    def __init__(self) -> None:
        self.errors: list[tuple[float, str]] = []
        self.gradient_errors: list[tuple[float, str]] = []

    def add(self, found: dict[str, Tensor], exact: dict[str, Tensor], where: str) -> None:
        expected = exact["output"]
        self.errors.append((_relative(found["output"] - expected, float(expected.abs().max())), where))
        names = [name for name in found if name != "output"]
        largest = max((float(exact[name].abs().max()) for name in names), default=0.0)
        for name in names:
            scale = max(float(exact[name].abs().max()), GRADIENT_FLOOR * largest)
            self.gradient_errors.append((_relative(found[name] - exact[name], scale), f"{name}: {where}"))

    def row(self, tolerances: tuple[float, float]) -> Row:
        error, where = max(self.errors)
        row: Row = {"error": error, "tolerance": tolerances[0], "where": where}
        passed = error <= tolerances[0]
        if self.gradient_errors:
            gradient, where = max(self.gradient_errors)
            row |= {"gradient_error": gradient, "gradient_tolerance": tolerances[1], "gradient_where": where}
            passed = passed and gradient <= tolerances[1]
        return row | {"passed": passed, "settings": len(self.errors)}


def _relative(difference: Tensor, scale: float) -> float:
    error = float(difference.abs().max()) / scale
    return error if error == error else float("inf")  # a NaN is as wrong as can be


def compute(
    spec: str,
    setting: Setting,
    dim: int,
    device: torch.device,
    precision: str,
    kernel: str | None = None,
    *,
    backward: bool = True,
    backend: str | None = None,
) -> dict[str, Tensor]:
    """The output of a block and its gradients by input, text and parameters, as float64 on the CPU.

    Args:
        precision: of :data:`PRECISIONS`, or "float64".
        backend: compiles the block by it.
    """
    layout, dtype = setting.layout, {"float64": torch.float64, "bf16 weights": torch.bfloat16}.get(precision)
    block: AttentionBlock = create_attention(spec, dim, HEADS, layer=setting.layer, depth=DEPTH, kernel=kernel)
    initialize(block, seed=1)
    block.to(device, dtype)
    x, weight, text = _inputs(setting, dim, device, dtype)
    leaves = {"x": x, **({"text k": text.k, "text v": text.v} if text else {}), **dict(block.named_parameters())}
    rope = rotary(layout.coordinates(device)[: layout.shape[1], 1:], dim // HEADS)
    run: Any = block
    if backend:
        block(x, layout, rope, text)  # so that plans are made, not compiled
        run = torch.compile(block, backend=backend, dynamic=False)
    autocast: Any = torch.autocast(device.type, torch.bfloat16) if precision == "bf16 autocast" else nullcontext()
    with autocast, torch.set_grad_enabled(backward):
        y = run(x, layout, rope, text)
    results = {"output": y}
    if backward:
        gradients = torch.autograd.grad((y.to(weight.dtype) * weight).sum(), list(leaves.values()))
        results |= dict(zip(leaves, gradients, strict=True))
    return {name: value.detach().double().cpu() for name, value in results.items()}


def _inputs(
    setting: Setting, dim: int, device: torch.device, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, TextKeys | None]:
    """Tokens, the weights of the output in the loss, and text of another length in each clip."""
    layout = setting.layout
    draws = generator(2, "gpu contract", setting.words)
    x, weight = (torch.randn(*layout.shape, dim, generator=draws) for _ in range(2))
    shape = (layout.clips, TEXT_TOKENS, HEADS, dim // HEADS)
    k, v = (torch.randn(shape, generator=draws).to(device, dtype).requires_grad_() for _ in range(2))
    lengths = torch.arange(layout.clips) % TEXT_TOKENS + 1
    mask = (torch.arange(TEXT_TOKENS) < lengths[:, None]).to(device)
    text = TextKeys(k, v, mask) if setting.text else None
    return x.to(device, dtype).requires_grad_(), weight.to(device, dtype), text


@cache
def _exact(spec: str, setting: Setting, dim: int) -> dict[str, Tensor]:
    return compute(spec, setting, dim, torch.device("cpu"), "float64")


def _dim(session: Session) -> int:
    return HEADS * (16 if session.reduced else 64)
