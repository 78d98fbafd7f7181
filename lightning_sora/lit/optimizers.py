"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import timm.optim
import torch
from torch import nn

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.lit.muon import Muon
from lightning_sora.registry import Registry, Spec, check_types

# Muon orthogonalises the update of a hidden matrix; what reads tokens in or writes predictions out is
# left to AdamW (https://kellerjordan.github.io/posts/muon/).
MATRIX_OPTIMIZERS = ("muon", "nmuon", "adamuon", "nadamuon")

#: Of a rate or a decay; optimizers multiply it by up to a thousand as they begin.
LARGEST = 1e34

#: What a training by plain backward passes cannot use, and why.
UNSUITABLE = {
    "Optimizer": "is the base of all optimizers, not one of them",
    "LBFGS": "evaluates the loss several times a step, and takes no parameter groups",
    "Muon": "takes matrices alone; use 'muon', which leaves all else to AdamW",
    "SparseAdam": "takes sparse gradients alone; use 'adam'",
    "adahessian": "needs second derivatives",
}


def create_optimizer(
    spec: str, named_parameters: Iterable[tuple[str, nn.Parameter]], boundary: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """An optimizer of timm's registry, or of ``torch.optim`` by its class name.

    Vectors, biases and gains get no weight decay.

    Args:
        spec: such as "adamw(lr=1e-3, weight_decay=0.01)", "muon(lr=0.02)" or "RAdam(lr=1e-3)".
            ``muon(adamw_lr=...)`` sets the rate of the parameters that Muon leaves to AdamW, and ``dtype`` what it
            orthogonalises in: see :class:`lightning_sora.lit.muon.Muon`.
        boundary: wildcards of the parameters that :data:`MATRIX_OPTIMIZERS` leave to AdamW: the layers
            at either end of the network, tables and embeddings.

    Raises:
        SoraError: an unknown or unsuitable optimizer, an unknown option, or a value that the optimizer refuses.
    """
    parsed, builder = check_optimizer(spec)
    options = dict(parsed.options)
    weight_decay = options.pop("weight_decay", 0.0)
    boundary = tuple(boundary)
    named = [(n, p) for n, p in named_parameters if p.requires_grad]
    matrices = [(n, p) for n, p in named if p.ndim >= 2]
    vectors = [p for _, p in named if p.ndim < 2]
    if parsed.name in MATRIX_OPTIMIZERS:
        left_out = {n for n, _ in matrices if any(fnmatch.fnmatchcase(n, pattern) for pattern in boundary)}
        inner = [p for n, p in matrices if n not in left_out]
        outer = [p for n, p in matrices if n in left_out]
        groups: list[dict[str, Any]] = [
            {"params": inner, "weight_decay": weight_decay},
            {"params": outer, "weight_decay": weight_decay, "use_fallback": True},
            {"params": vectors, "weight_decay": 0.0, "use_fallback": True},
        ]
        if "adamw_lr" in options:
            options["fallback_lr_scale"] = options.pop("adamw_lr") / options.setdefault("lr", 0.02)
    else:
        groups = [
            {"params": [p for _, p in matrices], "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    try:
        if parsed.name in MATRIX_OPTIMIZERS:
            # The kind's own options (Nesterov, AdaMuon), and the momentum that timm gives when it makes one by name.
            defaults = getattr(timm.optim.get_optimizer_class(parsed.name), "keywords", {})
            return Muon(groups, **{"momentum": 0.9, **defaults, **options})
        if isinstance(builder, str):
            return timm.optim.create_optimizer_v2(groups, opt=builder, filter_bias_and_bn=False, **options)
        return builder(groups, **options)
    except (ValueError, TypeError, AssertionError, ImportError) as problem:  # the last two: no GPU, no apex
        raise SoraError(f"optimizer {str(parsed)!r} cannot be made: {problem}") from problem


def check_optimizer(spec: str) -> tuple[Spec, str | type[torch.optim.Optimizer]]:
    """Refuses what :func:`create_optimizer` could not make, of whatever parameters.

    Raises:
        SoraError: an unknown or unsuitable optimizer, or an unknown option.
    """
    bare = spec.removeprefix("torch.optim.")
    if bare != spec:
        name = bare.partition("(")[0]
        raise SoraError(f"optimizer {spec!r}: parts have names without a module: {name!r}; write {bare}")
    parsed = Spec.parse(spec)
    builder = _builder(parsed.name)
    _check_options(parsed.name, builder, dict(parsed.options))
    return parsed, builder


def _builder(name: str) -> str | type[torch.optim.Optimizer]:
    if name in UNSUITABLE:
        raise SoraError(f"optimizer {name!r} {UNSUITABLE[name]}")
    if name in timm.optim.list_optimizers():
        return name
    candidate = getattr(torch.optim, name, None)
    if inspect.isclass(candidate) and issubclass(candidate, torch.optim.Optimizer):
        return candidate
    known = [*timm.optim.list_optimizers(), *(n for n in dir(torch.optim) if n[0].isupper())]
    raise SoraError(
        f"unknown optimizer {name!r}; {did_you_mean(name, known, repr)}known: timm.optim.list_optimizers() and the "
        "classes of torch.optim"
    )


def _check_options(name: str, builder: str | type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    cls = timm.optim.get_optimizer_class(name, bind_defaults=False) if isinstance(builder, str) else builder
    extra = ["weight_decay", *(["adamw_lr"] if name in MATRIX_OPTIMIZERS else [])]
    own = ["dtype"] if name in MATRIX_OPTIMIZERS else []
    accepted = list(dict.fromkeys([*(n for n in inspect.signature(cls).parameters if n != "params"), *extra, *own]))
    unknown = [o for o in options if o not in accepted]
    if unknown:
        raise SoraError(
            f"optimizer {name!r} does not accept {', '.join(map(repr, unknown))}; it accepts: {', '.join(accepted)}"
        )
    check_types(f"optimizer {name!r}", cls, options)
    for option in {"lr", *extra} & options.keys():
        value = options[option]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise SoraError(f"optimizer {name!r}: {option}={value!r} must be a number of 0 or more")
        if value > LARGEST:
            raise SoraError(
                f"optimizer {name!r}: {option}={value!r} must be at most {LARGEST:g}, for float32 to hold it"
            )
    if options.get("lr") == 0:
        raise SoraError(f"optimizer {name!r}: lr=0 trains nothing; give a positive one")


Schedule = Callable[[int], float]
SCHEDULES: Registry[Schedule] = Registry("learning-rate schedule", name="schedule", given=("total",))


def _warm(step: int, warmup: int) -> float:
    """The factor of the warm-up: step 0 is not idle, and step ``warmup`` is the first at the peak."""
    return min(1.0, (step + 1) / (warmup + 1))


def _check_schedule(warmup: int, final: float = 0.0) -> None:
    if warmup < 0:
        raise SoraError(f"warmup={warmup} counts steps; it must be 0 or more")
    if final < 0:
        raise SoraError(f"final={final} is a factor of the learning rate; it must be 0 or more")


@SCHEDULES.register("constant")
def constant(total: int, *, warmup: int = 0) -> Schedule:
    """Linear warm-up, then flat.

    Args:
        warmup: steps of it.
    """
    _check_schedule(warmup)
    return lambda step: _warm(step, warmup)


@SCHEDULES.register("cosine")
def cosine(total: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to ``final`` times the peak (Loshchilov and Hutter 2017).

    Args:
        warmup: steps of it.
        final: where it ends, as a share of the peak.
    """
    _check_schedule(warmup, final)

    def factor(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
        return _warm(step, warmup) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


@SCHEDULES.register("trapezoid")
def trapezoid(total: int, *, warmup: int = 0, cooldown: float = 0.3, final: float = 0.0) -> Schedule:
    """Linear warm-up, flat, then linear down over the last ``cooldown`` of the run (Hägele et al. 2024).

    Args:
        warmup: steps of it.
        cooldown: the last part of the run, as a share of its steps.
        final: where it ends, as a share of the peak.
    """
    _check_schedule(warmup, final)
    if not 0 <= cooldown <= 1:
        raise SoraError(f"cooldown={cooldown} is a fraction of the run; it must lie in [0, 1]")

    def factor(step: int) -> float:
        start = total * (1 - cooldown)
        progress = min(1.0, max(0.0, (step - start) / max(1.0, total - start)))
        return _warm(step, warmup) * (1 - (1 - final) * progress)

    return factor
