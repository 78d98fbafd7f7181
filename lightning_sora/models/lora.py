"""Low-rank adapters of a denoiser (LoRA; Hu et al. 2021, arXiv:2106.09685), which peft puts into its linear layers.

A linear layer of weight W becomes ``W x + alpha / rank * B A x``. W is frozen, A is drawn, and B is zero, so that
at the start nothing is changed.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.models.adapted import adapted, has_adapters
from lightning_sora.models.denoisers.base import Denoiser
from lightning_sora.randomness import coarse_generator

INSTALL = "pip install 'lightning-sora[peft]'"
ADAPTER = "default"  # as peft calls the one that there is

M = TypeVar("M", bound=nn.Module)


class Size(NamedTuple):
    """Of an adapter: its rank, and the alpha that its product is multiplied by, over the rank."""

    rank: int
    alpha: float


class Adapter(NamedTuple):
    """One adapter, as its two matrices."""

    down: Float[Tensor, "rank in_features"]
    up: Float[Tensor, "out_features rank"]
    alpha: float

    @property
    def size(self) -> Size:
        return Size(len(self.down), self.alpha)


def add_lora(
    denoiser: Denoiser,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[str, ...]:
    """Puts adapters into linear layers of a denoiser, in place, and freezes everything else of it.

    Initial values depend on the seed and the names of the layers alone, as all initial values do.

    Args:
        rank: of the adapters.
        alpha: what they are multiplied by, times the rank; None for the rank itself, which multiplies by one.
        targets: ends of the names of the layers, such as "attn1.to_q"; None for the denoiser's ``lora_targets``.
        dropout: of what goes into an adapter, in training.

    Returns:
        the names of the layers.

    Raises:
        SoraError: a value out of range, a target that no linear layer has, or peft is not installed.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.models.lora import add_lora
        >>> dit = {"patch_size": (1, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
        >>> model = ls.LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit)
        >>> add_lora(model.dit, rank=4, targets=["attention.out"])
        ('blocks.0.attention.out',)
    """
    check_size(rank, alpha, dropout)
    size = Size(rank, float(rank if alpha is None else alpha))
    names = targeted(denoiser, usual_targets(denoiser) if targets is None else targets)
    inject(denoiser, dict.fromkeys(names, size), dropout, seed)
    return names


def check_size(rank: int, alpha: float | None, dropout: float) -> None:
    """Raises SoraError for adapters that cannot be."""
    if rank < 1:
        raise SoraError(f"rank={rank} of LoRA must be at least 1")
    if alpha is not None and not (alpha > 0 and math.isfinite(alpha)):
        raise SoraError(f"alpha={alpha} of LoRA must be above 0; leave it out for the rank, which multiplies by one")
    if not 0 <= dropout < 1:
        raise SoraError(f"dropout={dropout} of LoRA must lie in [0, 1)")


def linear_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Those that adapters can go to, by name; of those that have one, the layer beneath it."""
    found = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            found[name.removesuffix(".base_layer")] = module
    return found


def usual_targets(denoiser: Denoiser) -> list[str]:
    """Those of the denoiser's ``lora_targets`` that it has."""
    layers = linear_layers(denoiser)
    return [end for end in denoiser.lora_targets if any(name.endswith(f".{end}") for name in layers)]


def targeted(denoiser: Denoiser, targets: Sequence[str]) -> tuple[str, ...]:
    """The names of the linear layers that end so.

    Raises:
        SoraError: a target that none has, or none at all.
    """
    layers = linear_layers(denoiser)
    found: dict[str, None] = {}
    for target in targets:
        hits = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not hits:
            ends = dict.fromkeys(_end(name) for name in layers)
            raise SoraError(
                f"no linear layer of this {type(denoiser).__name__} ends in {target!r}, which LoRA is to go to; "
                f"{did_you_mean(target, ends, repr)}there are {', '.join(ends)}"
            )
        found |= dict.fromkeys(hits)
    if not found:
        raise SoraError(
            f"a {type(denoiser).__name__} says of none of its layers that LoRA goes there; name some by targets=[...]"
        )
    return tuple(name for name in layers if name in found)


def ends_of(denoiser: Denoiser, names: Collection[str]) -> tuple[str, ...]:
    """Targets of which :func:`targeted` makes these names: few, where the same layers of all blocks are named."""
    ends = tuple(dict.fromkeys(_end(name) for name in names))
    return ends if set(targeted(denoiser, ends)) == set(names) else tuple(names)


def _end(name: str) -> str:
    """What tells a layer from the others of its block."""
    return re.split(r"\.\d+\.", name)[-1]


def inject(denoiser: nn.Module, sizes: Mapping[str, Size], dropout: float = 0.0, seed: int = 0) -> None:
    """Puts an adapter into each layer that is named, and freezes everything else.

    Raises:
        SoraError: there are adapters already, or peft is not installed.
    """
    peft = _peft()
    if has_adapters(denoiser):
        raise SoraError(f"this {type(denoiser).__name__} has LoRA adapters already; a second set is not taken")
    ranks = {_exactly(name): size.rank for name, size in sizes.items()}
    alphas = {_exactly(name): size.alpha for name, size in sizes.items()}
    first = next(iter(sizes.values()))
    same = len(set(sizes.values())) == 1
    config = peft.LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,
        rank_pattern={} if same else ranks,
        alpha_pattern={} if same else alphas,
        target_modules="|".join(map(re.escape, sizes)),  # which it matches whole
        lora_dropout=dropout,
        init_lora_weights=False,
    )
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # it draws what is drawn anew below
        peft.inject_adapter_in_model(config, denoiser, ADAPTER)
    for name, layer in adapted(denoiser):
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        bound = 1 / math.sqrt(down.shape[1])  # Kaiming's for a linear layer, as in the authors' code
        drawn = torch.empty(down.shape).uniform_(
            -bound, bound, generator=coarse_generator(seed, "init", f"lora.{name}")
        )
        with torch.no_grad():
            down.copy_(drawn)
            up.zero_()


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}"


def _peft() -> Any:
    try:
        import peft
    except ImportError as problem:
        raise SoraError(f"LoRA needs peft, which is not installed: {INSTALL}") from problem
    return peft


def adapters(denoiser: nn.Module) -> dict[str, Adapter]:
    """The adapters of a denoiser by the names of its layers, as they are now."""
    return {
        name: Adapter(
            layer.lora_A[ADAPTER].weight.detach(),
            layer.lora_B[ADAPTER].weight.detach(),
            float(layer.lora_alpha[ADAPTER]),
        )
        for name, layer in adapted(denoiser)
    }


@torch.no_grad()
def fill(denoiser: nn.Module, values: Mapping[str, Adapter]) -> None:
    """Copies values into the adapters that are there, all of them."""
    for name, layer in adapted(denoiser):
        layer.lora_A[ADAPTER].weight.copy_(values[name].down)
        layer.lora_B[ADAPTER].weight.copy_(values[name].up)


def merged(denoiser: M) -> M:
    """A denoiser whose layers have the products of their adapters in their weights, and which needs no peft.

    Products are made in float32 and rounded once, to the precision of the weights. What has no adapter is shared with
    the given one, and not copied; a denoiser without any comes back itself.
    """
    if not has_adapters(denoiser):
        return denoiser
    shared = {id(value): value for value in (*denoiser.parameters(), *denoiser.buffers())}
    plain = copy.deepcopy(denoiser, shared)
    for name, layer in list(adapted(plain)):
        base = layer.base_layer
        delta = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float() * layer.scaling[ADAPTER]
        weight = (base.weight.detach().float() + delta.detach()).to(base.weight)
        base.weight = nn.Parameter(weight, requires_grad=False)
        owner, _, last = name.rpartition(".")
        setattr(plain.get_submodule(owner), last, base)
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain
