"""Losses, gradients and weights that are not finite: told at their step, with its clips, and never saved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_sora.errors import SoraError, some
from lightning_sora.lit.evaluation_means import of_all_ranks

log = logging.getLogger(__name__)

IN_A_ROW = 10
"""Steps: after as many that had to be left out, it is not single clips."""
SHOWN = 32
"""Names in a message; the others are counted."""

Named = Iterable[tuple[str, Tensor]]


class FiniteSteps(pl.Callback):
    """Stops a training at the first step whose loss or gradient is not finite, or leaves such steps out.

    A step that is left out counts, and changes neither weights nor the optimizer's state. Weights that are not finite
    after a step stop the training whatever is asked, since no step brings them back; and no checkpoint holds such.

    Args:
        on_error: "raise" or "skip". Skipped steps are named, and counted as ``train/skipped_steps``; after
            :data:`IN_A_ROW` of them in a row the training stops all the same.

    Raises:
        SoraError: neither of both.
    """

    def __init__(self, on_error: Literal["raise", "skip"] = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise SoraError(f"finite.on_error={on_error!r} must be 'raise' or 'skip'")
        self.on_error = on_error
        self.skipped = 0
        self._in_a_row, self._skips = 0, False  # whether the present batch was left out
        self._step = 0
        self._clips: tuple[str, ...] = ()  # of the present batch
        self._losses: list[tuple[Tensor, tuple[str, ...]]] = []  # since the last step: whether finite, and whose
        self._taken: list[tuple[str, ...]] = []  # the batches of the last step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step, self._in_a_row, self._skips = trainer.global_step, 0, False
        self._losses.clear()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._clips = tuple(getattr(batch, "ids", (f"batch {batch_idx} of epoch {trainer.current_epoch}",)))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._losses.append((loss.detach().isfinite().all(), self._clips))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        losses = [(bool(finite), clips) for finite, clips in self._losses]
        self._losses, self._taken = [], [clips for _, clips in losses]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        lossless = all(finite for finite, _ in losses)
        # Not each value: where the norm overflows, clipping makes zeros of all, and an optimizer infinite squares.
        finite = lossless and _have_norm(p.grad for p in parameters if p.grad is not None)
        if trainer.strategy.reduce_boolean_decision(finite):
            return
        lossless = trainer.strategy.reduce_boolean_decision(lossless)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if lossless and scaler is not None and scaler.get_scale() > 1:
            return  # it looks for the largest scale without overflow, and leaves this step out itself
        told = _whose_loss(trainer, losses) if not lossless else _whose_gradient(trainer, pl_module, self._taken)
        told = f"step {self._step + 1}: {told}"
        if self.on_error == "raise":
            first = trainer.global_step == self._step  # of several optimizers
            raise SoraError(
                f"{told}; {_remedy(pl_module)}; finite.on_error=skip leaves such steps out. "
                f"{'No weight was changed by it' if first else 'Nothing of it is saved'}, and checkpoints of earlier "
                "steps are kept"
            )
        log.warning("%s; the step is left out", told)
        self._skips = True
        for parameter in parameters:  # an optimizer leaves alone what has no gradient
            parameter.grad = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still gathered
            return
        self._step = trainer.global_step
        self._in_a_row = self._in_a_row + 1 if self._skips else 0
        self.skipped += self._skips
        self._skips = False
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1, reduce_fx="max")
        if self._in_a_row == IN_A_ROW:
            raise SoraError(
                f"step {self._step}: the last {IN_A_ROW} steps were left out, as their losses or gradients are not "
                f"finite (see the log); {_remedy(pl_module)}. Checkpoints of earlier steps are kept"
            )
        _check(
            trainer,
            ((name, p) for name, p in pl_module.named_parameters() if p.requires_grad),
            f"step {self._step} made weights that are not finite of finite gradients",
            f"it was on {some((c for clips in self._taken for c in clips), SHOWN)}; {_remedy(pl_module)}. Nothing of "
            "it is saved, and checkpoints of earlier steps are kept",
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        averages: Mapping[str, Tensor] = getattr(getattr(pl_module, "ema", None), "shadow", {})
        _check(
            trainer,
            [*_learned(pl_module), *((f"average of {name}", value) for name, value in averages.items())],
            f"no checkpoint of step {trainer.global_step} is written, as it holds weights that are not finite",
            _remedy(pl_module),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values of all of them are; of sharded ones, this rank's part."""
    own = [_own(tensor) for tensor in tensors if tensor.is_floating_point()]
    # A tenth of the time of looking at each value; but squares may overflow where values do not.
    return bool(nn.utils.get_total_norm(own).isfinite()) or all(bool(tensor.isfinite().all()) for tensor in own)


def _have_norm(gradients: Iterable[Tensor]) -> bool:
    return bool(nn.utils.get_total_norm([_own(one) for one in gradients]).isfinite())


def _remedy(module: pl.LightningModule) -> str:
    clip = "set trainer.gradient_clip_val, " if module.automatic_optimization else ""  # lightning cannot for two
    return f"lower the learning rate of model.optimizer, {clip}or look at these clips"


def refuse_not_finite(checkpoint: Mapping[str, Any], module: nn.Module) -> None:
    """Refuses a checkpoint whose weights or averages are not finite.

    Args:
        module: what it is a checkpoint of, which tells weights from other state.

    Raises:
        SoraError: with some of their names.
    """
    state = checkpoint.get("state_dict", {})
    stored = [(name, state[name]) for name, _ in module.named_parameters() if name in state]
    stored += [(name, _without_infinities(state[name])) for name, _ in module.named_buffers() if name in state]
    stored += checkpoint.get("ema", {}).get("shadow", {}).items()
    if not are_finite(value for _, value in stored):
        bad = _not_finite(stored)
        raise SoraError(
            f"the checkpoint of step {checkpoint.get('global_step')} holds values that are not finite, in {len(bad)} "
            f"of {len(stored)} tensors: {some(bad, SHOWN)}; its training had diverged: give an earlier one, such as "
            "best.ckpt, or train anew with a lower learning rate"
        )


def _learned(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights, and what else of a module is measured in training."""
    yield from module.named_parameters()
    for name, value in module.named_buffers():
        yield name, _without_infinities(value)


def _without_infinities(buffer: Tensor) -> Tensor:
    """A buffer to be looked at: masks hold infinities by right."""
    return buffer.nan_to_num(nan=float("nan"), posinf=0, neginf=0)


def _check(trainer: pl.Trainer, named: Named, what: str, then: str) -> None:
    pairs = list(named)
    if trainer.strategy.reduce_boolean_decision(are_finite(value for _, value in pairs)):
        return
    bad = sorted({name for names in of_all_ranks(trainer, _not_finite(pairs)) for name in names})
    raise SoraError(f"{what}, in {len(bad)} of {len(pairs)} tensors: {some(bad, SHOWN)}; {then}")


def _whose_loss(trainer: pl.Trainer, losses: Sequence[tuple[bool, tuple[str, ...]]]) -> str:
    everyone = of_all_ranks(trainer, [clips for finite, clips in losses if not finite])
    return f"the loss is not finite on {some((c for bad in everyone for clips in bad for c in clips), SHOWN)}"


def _whose_gradient(trainer: pl.Trainer, module: nn.Module, taken: Sequence[tuple[str, ...]]) -> str:
    gradients = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
    everyone = of_all_ranks(trainer, (_not_finite(gradients), taken))
    bad = sorted({name for names, _ in everyone for name in names})
    what = f"its gradient is not, in {len(bad)} tensors ({some(bad, 3)})" if bad else "its gradient's norm overflows"
    clips = (clip for _, batches in everyone for one in batches for clip in one)
    return f"the loss is finite but {what}, on {some(clips, SHOWN)}"


def _not_finite(named: Named) -> list[str]:
    return [name for name, value in named if not bool(_own(value).isfinite().all())]


def _own(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.coalesce().values() if tensor.is_sparse else tensor
