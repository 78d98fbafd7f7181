"""How much memory a network takes, estimated before any is: of its weights, and of a training.

What a training keeps of a batch is taken to be proportional to the widths of the linear layers: for each token 1.1
values per input and output of a layer, 1.0 where few weights are trained, as of low-rank adapters, and 0.73 of that in
bfloat16 under autocast, where norms stay in float32. This was measured on a Wan transformer of 23.5 million parameters,
as the bytes that autograd saves (1.04 to 1.09 of all weights, and of the package's own transformer of 20.6 million
1.06 to 1.15), and as the peak of a first step of AdamW on 4,096 tokens, on a CPU:

    all weights              1.87 GiB, estimated 1.84
    under autocast           1.42 GiB, estimated 1.42
    layers recomputed        0.87 to 1.10 GiB, estimated 0.78
    q, k, v, out of attn1    1.53 to 1.55 GiB, estimated 1.49

Attention is taken to be fused, which saves no scores.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from lightning_sora.errors import SoraError
from lightning_sora.memory import available_memory

#: Values that are saved for the backward pass per token and per input and output of a linear layer.
SAVED, SAVED_BY_ADAPTERS = 1.1, 1.0
#: What bfloat16 under autocast saves, of that.
OF_AUTOCAST = 0.73
GIB = 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingMemory:
    """What a training step takes, in bytes.

    Attributes:
        weights: of the network; 0 where they are in memory already.
        gradients: of what is trained.
        optimizer: its states.
        average: the moving average, in float32.
        activations: what is saved of a batch for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "average", "activations")
        told = [f"{name} {getattr(self, name) / GIB:.1f}" for name in parts if getattr(self, name)]
        return f"{self.total / GIB:.1f} GiB ({', '.join(told)})"


def parameters_in_words(count: int) -> str:
    """A number of parameters, as "1.4 billion"."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.1f}{word}"
    return str(count)


def training_memory(
    network: nn.Module,
    tokens: int,
    *,
    states: int = 2,
    average: bool = False,
    checkpoint: bool = False,
    autocast: bool = False,
    loaded: bool = True,
) -> TrainingMemory:
    """What a training step of a network takes; it may be on torch's meta device, where nothing is allocated.

    Args:
        network: its parameters that require gradients are what is trained.
        tokens: of a micro-batch, those of all clips together.
        states: that the optimizer keeps of each parameter: 2 of AdamW, 1 of Muon, of the parameter's precision.
        average: whether a moving average is kept.
        checkpoint: whether the layers of its longest list are recomputed in the backward pass.
        autocast: whether it computes in bfloat16 by autocast. Weights that are in half precision save as much.
        loaded: whether its weights are in memory already.

    Example:
        >>> from torch import nn
        >>> from lightning_sora.models.memory_estimate import training_memory
        >>> training_memory(nn.Linear(1000, 1000, bias=False), tokens=1000).optimizer
        8000000
    """
    whole = [*network.parameters(), *network.buffers()]
    trained = [value for value in network.parameters() if value.requires_grad]
    gradients = sum(value.numel() * value.element_size() for value in trained)
    mostly = 2 * sum(value.numel() for value in trained) > sum(value.numel() for value in network.parameters())
    of_precision = 1.0 if _in_float32(network) and not autocast else OF_AUTOCAST
    per_feature = (SAVED if mostly else SAVED_BY_ADAPTERS) * 4 * of_precision
    return TrainingMemory(
        weights=0 if loaded else sum(value.numel() * value.element_size() for value in whole),
        gradients=gradients,
        optimizer=states * gradients,
        average=4 * sum(value.numel() for value in trained) if average else 0,
        activations=round(tokens * per_feature * _features(network, checkpoint)),
    )


def _in_float32(network: nn.Module) -> bool:
    """Whether most of its weights are; parts of networks in half precision are kept in it."""
    single = sum(value.numel() for value in network.parameters() if value.dtype == torch.float32)
    return 2 * single > sum(value.numel() for value in network.parameters())


def _features(network: nn.Module, checkpoint: bool) -> float:
    """Inputs and outputs of the linear layers together, those that are kept at a time."""
    everything = _linears(network)
    lists = [one for one in network.modules() if isinstance(one, nn.ModuleList) and len(one)]
    if not checkpoint or not lists:
        return everything
    blocks = max(lists, key=lambda some: sum(_linears(one) for one in some))
    of_each = [_linears(one) for one in blocks]
    # What goes into each block is kept; one block at a time is computed anew, beside the gradients of what it saves.
    width = min((m.in_features for m in blocks.modules() if isinstance(m, nn.Linear)), default=0)
    return everything - sum(of_each) + 2 * max(of_each) + len(of_each) * width


def _linears(network: nn.Module) -> int:
    return sum(one.in_features + one.out_features for one in network.modules() if isinstance(one, nn.Linear))


def check_fits(
    needed: int, what: str, remedy: str, *, device: torch.device | str = "cpu", available: int | None = None
) -> None:
    """Refuses what cannot be held, before anything is allocated.

    Args:
        needed: bytes.
        what: that needs them, with its verb, as the message begins.
        remedy: what to do instead.
        device: that is to hold it.
        available: bytes that can be taken there; None to ask it. Where nobody tells, nothing is refused.

    Raises:
        SoraError: it needs more than there is.

    Example:
        >>> from lightning_sora.models.memory_estimate import check_fits
        >>> check_fits(57 * 2**30, "a network needs", "take a smaller one", available=23 * 2**30)
        Traceback (most recent call last):
        lightning_sora.errors.SoraError: a network needs about 57.0 GiB, and cpu has 23.0 GiB free; take a smaller one
    """
    free = available_memory(str(device)) if available is None else available
    if free is not None and needed > free:
        where = "this machine" if str(device) == "cpu" else str(device)
        raise SoraError(f"{what} about {needed / GIB:.1f} GiB, and {where} has {free / GIB:.1f} GiB free; {remedy}")


def check_weights_fit(
    name: str, parameters: int, *, dtype: torch.dtype = torch.float32, instead: str = "", available: int | None = None
) -> None:
    """Refuses a network whose weights alone are more than this machine can hold.

    Args:
        name: of its class.
        parameters: how many it has.
        dtype: that they are held in.
        instead: what helps of its kind, behind the remedy.
        available: as of :func:`check_fits`.

    Raises:
        SoraError: they do not fit.
    """
    if torch.get_default_device().type == "meta":  # where nothing is held
        return
    precision = str(dtype).removeprefix("torch.")
    check_fits(
        parameters * dtype.itemsize,
        f"{name}, of {parameters_in_words(parameters)} parameters, needs in {precision}, for its weights alone,",
        f"take a smaller one, or a machine with more memory{instead}",
        available=available,
    )


def check_training_fits(
    network: nn.Module,
    tokens: int,
    *,
    states: int = 2,
    average: bool = False,
    checkpoint: bool = False,
    autocast: bool = False,
    loaded: bool = True,
    device: torch.device | str = "cpu",
    available: int | None = None,
) -> TrainingMemory:
    """Refuses a training whose step would not fit, before it begins.

    Layers that see texts or clips, and not tokens, are counted as if they saw tokens: what is saved of a batch was up
    to 1.7 times less than estimated (HunyuanVideo). So a step is refused where it would not fit with half of that, and
    warned of where it may not.

    Args:
        network, tokens, states, average, checkpoint, autocast, loaded: as of :func:`training_memory`.
        device, available: as of :func:`check_fits`.

    Returns:
        the estimate.

    Raises:
        SoraError: it needs more than there is.
    """
    needed = training_memory(
        network, tokens, states=states, average=average, checkpoint=checkpoint, autocast=autocast, loaded=loaded
    )
    count = sum(value.numel() for value in network.parameters())
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    ways = [
        "low-rank adapters (model.tuning)" if 2 * trained > count else "",
        "" if checkpoint else "checkpoint=True of the denoiser",
        "no model.ema_decay" if average else "",
        "" if autocast or not _in_float32(network) else "trainer.precision=bf16-mixed",
        "fewer tokens (data.batch_size, frames, height, width)",
    ]
    more = "" if loaded else "its weights and "
    what = (
        f"training {parameters_in_words(trained)} of {parameters_in_words(count)} parameters on {tokens:,} tokens at a "
        f"time needs for {more}a step, {needed},"
    )
    remedy = f"what helps: {', '.join(way for way in ways if way)}"
    free = available_memory(str(device)) if available is None else available
    if free is not None and needed.total - needed.activations // 2 <= free < needed.total:
        log.warning("%s and %.1f GiB are free: it may not fit; %s", what, free / GIB, remedy)
    else:
        check_fits(needed.total, what, remedy, device=device, available=free)
    return needed
