"""Muon with a choice of the dtype that it orthogonalises in.

timm's orthogonalises in bfloat16 wherever it runs. A CPU without bfloat16 instructions multiplies such matrices 30 to
45 times slower than float32 ones, and the optimizer then takes nine tenths of a training step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import timm.optim
import torch
from jaxtyping import Float
from timm.optim.muon import _COEFFICIENTS as PRESETS
from timm.optim.muon import (
    get_adamuon_lr_scale,
    get_lr_scale,
    reshape_for_muon,
    resolve_ns_coefficients,
    scale_eps_for_ns,
)
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
Triples = Sequence[tuple[float, float, float]]

#: How far rounding may be amplified on the Gram matrix. At the limit, singular values of a thousandth of the largest
#: come out with an error of about 1e-3.
GRAM_ERROR = 0.05
#: Matrices of this side and more gain from leaving out a quarter; below, two small products cost more than a large one.
WORTH_HALVING = 128


def orthogonalize(
    update: Float[Tensor, "*batch rows columns"],
    coefficients: Triples,
    dtype: torch.dtype,
    eps: float = 1e-7,
    safety_factor: float = 1.0,
    scale_eps: bool = False,
) -> Float[Tensor, "*batch rows columns"]:
    """Replaces the singular values of a matrix by values near 1, by Newton-Schulz iteration.

    ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` from ``update / |update|``, once per ``(a, b, c)`` (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Where it costs less and rounding allows it, the polynomials act on the
    Gram matrix ``X X^T`` of the shorter side and ``X`` is multiplied once, at the end.

    Args:
        update: one matrix or a batch of matrices, of any dtype.
        dtype: of the computation and of the result.
        eps: below this norm a matrix is not scaled up.
        safety_factor: of the norm.
        scale_eps: whether ``eps`` grows with ``sqrt(columns / rows)`` and is added to the norm (arXiv:2512.05620).

    Example:
        >>> orthogonalize(torch.diag(torch.tensor([3.0, 1.0])), [(1.5, -0.5, 0.0)] * 12, torch.float32).round()
        tensor([[1., 0.],
                [0., 1.]])
    """
    x = update.to(dtype)
    norm = torch.linalg.matrix_norm(x, keepdim=True) * safety_factor
    x = x / (norm + scale_eps_for_ns(eps, update.shape) if scale_eps else norm.clamp(min=eps))
    if _gram_pays(x, coefficients):
        return _on_gram_matrix(x, coefficients)
    tall = x.shape[-2] > x.shape[-1]
    x = _plainly(x.mT.contiguous() if tall else x, coefficients)
    return x.mT if tall else x


def _gram_pays(x: Float[Tensor, "*batch rows columns"], coefficients: Triples) -> bool:
    """Whether the Gram matrix takes fewer products, and keeps its precision.

    A singular value of zero has an eigenvalue of rounding size there, which each iteration multiplies by ``a ** 2``.
    """
    (short, long), steps = sorted(x.shape[-2:]), len(coefficients)
    plainly = steps * (2 * short**2 * long + short**3)
    on_gram = 2 * short**2 * long + (4 * steps - 3) * short**3
    amplified = math.prod(a * a for a, _, _ in coefficients[:-1]) * torch.finfo(x.dtype).eps
    return on_gram < plainly and amplified < GRAM_ERROR


def _plainly(x: Float[Tensor, "*batch short long"], coefficients: Triples) -> Float[Tensor, "*batch short long"]:
    for a, b, c in coefficients:
        factor = _polynomial(_symmetric(x, x.mT), b, c)
        x = (torch.addmm if x.ndim == 2 else torch.baddbmm)(x, factor, x, beta=a)
    return x


def _on_gram_matrix(
    x: Float[Tensor, "*batch rows columns"], coefficients: Triples
) -> Float[Tensor, "*batch rows columns"]:
    tall = x.shape[-2] > x.shape[-1]
    gram, whole = _symmetric(x.mT, x) if tall else _symmetric(x, x.mT), None
    for index, (a, b, c) in enumerate(coefficients):
        factor = _polynomial(gram, b, c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        whole = factor if whole is None else _symmetric(factor, whole)
        if index + 1 < len(coefficients):
            gram = _symmetric(_symmetric(factor, gram), factor)
    if whole is None:
        return x
    return x @ whole if tall else whole @ x


def _polynomial(gram: Float[Tensor, "*batch n n"], b: float, c: float) -> Float[Tensor, "*batch n n"]:
    """``b * gram + c * gram @ gram``."""
    return _symmetric(gram, gram).mul_(c).add_(gram, alpha=b)


def _symmetric(left: Float[Tensor, "*batch n k"], right: Float[Tensor, "*batch k n"]) -> Float[Tensor, "*batch n n"]:
    """``left @ right``, which is symmetric: a large one on a CPU is computed in three of its four quarters.

    Polynomials of one symmetric matrix commute, so that their products are symmetric too.
    """
    n = left.shape[-2]
    if left.ndim > 2 or left.device.type != "cpu" or n < WORTH_HALVING:
        return left @ right
    half, product = n // 2, left.new_empty(n, n)
    torch.mm(left[:half], right[:, :half], out=product[:half, :half])
    torch.mm(left[half:], right, out=product[half:])
    product[:half, half:] = product[half:, :half].T
    return product


class Muon(timm.optim.Muon):
    """timm's Muon and AdaMuon, orthogonalising in a dtype that is fast where they run.

    Args:
        dtype: "float32", "bfloat16" or "float64"; None for bfloat16 on CUDA and float32 elsewhere. Which it is depends
            on the device alone, so that all CPUs give the same numbers.
        options: timm's.

    Raises:
        ValueError: another dtype, or an option that timm refuses.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(4))
        >>> optimizer = Muon([weight], lr=0.02, dtype="float32")
    """

    def __init__(self, params: Any, *, dtype: str | None = None, **options: Any) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(map(repr, DTYPES))}, or None")
        super().__init__(params, **options)
        self.defaults["dtype"] = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates matrices by Muon, then leaves all else to timm's AdamW."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        done: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self._is_matrix(parameter, group):
                    self._update(parameter, parameter.grad, group)
                    done.append((parameter, parameter.grad))
                    parameter.grad = None  # timm skips what has none
        super().step()
        for parameter, gradient in done:
            parameter.grad = gradient
        return loss

    def _is_matrix(self, parameter: Tensor, group: dict[str, Any]) -> bool:
        state = self.state[parameter]
        if "use_muon" not in state:
            suitable = timm.optim.muon._is_suitable_for_muon(parameter)
            state["use_muon"] = not group.get("use_fallback", False) and group.get("use_muon", suitable)
        return state["use_muon"]

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, lr, momentum, adaptive = (
            self.state[parameter],
            group["lr"],
            group["momentum"],
            group["algo"] == "adamuon",
        )
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            if adaptive:
                state["step"], state["exp_avg_sq"] = torch.tensor(0.0), torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        matrix, _ = reshape_for_muon(update, mode=group["conv_mode"])
        steps, triples = group["ns_steps"], resolve_ns_coefficients(group["ns_coefficients"], PRESETS)
        triples = triples[:steps] + triples[-1:] * (steps - len(triples))
        matrix = orthogonalize(
            matrix, triples, self._dtype(parameter), group["eps"], group["safety_factor"], group["scale_eps"]
        )
        shape, adjust = matrix.shape, group["adjust_lr_fn"]
        batched = group["conv_mode"] == "batched" and matrix.ndim > 2
        matrix = (matrix.permute(1, 2, 0) if batched else matrix).reshape(parameter.shape)
        if adaptive:
            matrix, scale = self._adapted(matrix, shape, state, group)
        else:
            scale = get_lr_scale(shape, adjust) if adjust else 1.0
        if batched and group["normalize_spatial"]:
            scale *= shape[0] ** -0.5
        if group["weight_decay"]:
            parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(matrix, alpha=-lr * scale)

    def _adapted(
        self, matrix: Tensor, shape: torch.Size, state: dict[str, Any], group: dict[str, Any]
    ) -> tuple[Tensor, float]:
        """AdaMuon (arXiv:2507.11005): scaled by its own second moment, then to one size (Eq. 8)."""
        beta, adjust = group["betas"][1], group["adjust_lr_fn"]
        scale, of_one_size = get_adamuon_lr_scale(shape, adjust) if adjust else (1.0, False)
        state["step"] += 1
        second = state["exp_avg_sq"].mul_(beta).addcmul_(matrix, matrix, value=1 - beta)
        if not of_one_size:
            second = second / (1 - beta ** state["step"].item())
        matrix = matrix / second.sqrt().add_(group["eps"])
        return (matrix / matrix.norm().add_(group["eps"]) if of_one_size else matrix), scale

    def _dtype(self, parameter: Tensor) -> torch.dtype:
        asked = self.defaults["dtype"]
        if asked is None:
            asked = "bfloat16" if parameter.device.type == "cuda" else "float32"
        return DTYPES[asked]
