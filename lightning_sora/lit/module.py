"""LitModule: what every trained model of the lab shares."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.lit.awaited import Awaited
from lightning_sora.lit.checkpoint import check_module, read_checkpoint, remedy_of
from lightning_sora.lit.duration import Begun, planned_steps, refuse_finished
from lightning_sora.lit.ema import ExponentialMovingAverage
from lightning_sora.lit.finite import FiniteSteps, refuse_not_finite
from lightning_sora.lit.last_step import LastStep, waits
from lightning_sora.lit.older import grouped
from lightning_sora.lit.optimizers import SCHEDULES, check_optimizer, create_optimizer
from lightning_sora.lit.precision import convert_weights_alone, warn_of_slow_bfloat16
from lightning_sora.metrics.base import Side
from lightning_sora.models.configs import Config, plain
from lightning_sora.models.pixels import from_uint8
from lightning_sora.models.seen_sizes import SeenSizes
from lightning_sora.registry import Spec
from lightning_sora.spacetime import DataSpec, PatchSize, SpacetimeBatch

log = logging.getLogger(__name__)

MANY = 1_000_000
"""Steps, of a schedule that is only looked at."""


class LitModule(pl.LightningModule):
    """Optimizer, schedule, moving average, and a checkpoint that describes itself.

    Args:
        optimizer: spec, see :func:`lightning_sora.lit.optimizers.create_optimizer`.
        schedule: spec of the learning rate over the fit, by ``trainer.max_steps`` and ``max_epochs``.
        ema_decay: of the moving average used for evaluation and sampling; None for none.
        seed: of initial values and of every keyed draw.

    Example:
        >>> import lightning_sora as ls
        >>> module = ls.LitVAE(optimizer="muon(lr=0.01, adamw_lr=1e-3)", schedule="cosine(warmup=50)", ema_decay=0.99)
        >>> isinstance(module, ls.LitModule)
        True
    """

    #: Wildcards of parameters at either end of the network, for optimizers that treat them apart.
    boundary: ClassVar[tuple[str, ...]] = ()
    #: Arguments that are groups of options.
    groups: ClassVar[Mapping[str, type[Config]]] = {}
    evaluated_sides: ClassVar[tuple[Side, ...]] = ()
    """Whose videos a test gives back, by :meth:`test_step`, to be evaluated."""

    def __init__(self, *, optimizer: str, schedule: str, ema_decay: float | None, seed: int) -> None:
        super().__init__()
        check_optimizer(optimizer)  # both now, before a run is recorded
        SCHEDULES.create(schedule, MANY)
        self.seed = seed
        self._optimizer_spec, self._schedule_spec = optimizer, schedule
        self.ema = ExponentialMovingAverage(ema_decay) if ema_decay is not None else None
        self.seen_sizes = SeenSizes()
        self.awaited = Awaited()
        self.run_id: str | None = None  # the tracked run that a loaded checkpoint came from
        self.skipped_clips = 0
        self._begun, self._last_step, self._skipped_since = Begun(), LastStep(), 0
        self.clip_scores: dict[str, dict[str, float]] = {}  # metric -> clip -> value, of the evaluation that runs
        self._reported: set[str] = set()

    @property
    def native_size(self) -> tuple[int, int, int] | None:
        """Frames, height and width of the longest clip that it was trained on."""
        return self.seen_sizes.native

    @property
    def native_fps(self) -> float:
        """Frames per second of that clip."""
        return self.seen_sizes.fps

    # What one token of a batch must cover.
    @property
    def patch(self) -> PatchSize:
        """Pixels per row of the batches that this module takes."""
        raise NotImplementedError(f"{type(self).__name__} must say its patch")

    def gallery(self) -> tuple[dict[str, list[Tensor]], list[str]]:
        """What to show: videos (uint8 [frames height width 3]) by the name of their version, and their captions.

        The same prompts, clips and noise at every call.
        """
        return {}, []

    def training_tokens(self, batch: SpacetimeBatch) -> int:
        """Tokens of one training step on this batch."""
        return batch.layout.total

    def training_flops(self, batch: SpacetimeBatch) -> int:
        """FLOPs of one training step on this batch, forward and backward, recomputation not counted."""
        raise NotImplementedError(f"{type(self).__name__} must count its FLOPs")

    def protocol(self, split: str) -> dict[str, Any]:
        """What the scores of a split mean: everything but the model that moves them."""
        return {"split": split, "seed": self.seed, "ema": self.ema is not None, "dtype": str(self.dtype)}

    def clips_to_test(self) -> int:
        """How many clips the test that begins will see, on all ranks together."""
        loaders: Any = self.trainer.test_dataloaders
        return sum(len(loader.dataset) for loader in (loaders if isinstance(loaders, list) else [loaders]))

    def score_clips(self, metric: str, ids: Sequence[str], values: Sequence[float]) -> None:
        """Remembers scores of single clips, for what pairs runs clip by clip."""
        self.clip_scores.setdefault(metric, {}).update(zip(ids, values, strict=True))

    def configure_callbacks(self) -> list[pl.Callback]:
        # Also where no recipe gives one.
        return [] if any(isinstance(one, FiniteSteps) for one in self.trainer.callbacks) else [FiniteSteps()]  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        return self.scheduled(create_optimizer(self._optimizer_spec, self.named_parameters(), self.boundary))

    @property
    def planned_steps(self) -> int:
        """The steps that the fit will have made at its end."""
        return planned_steps(self.trainer, self._begun)

    def scheduled(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer with the recipe's schedule, stepped once per optimizer step."""
        factor = SCHEDULES.create(self._schedule_spec, self.planned_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Evaluates with the moving average, where there is one."""
        if self.ema is None:
            yield
        else:
            with self.ema.applied(self):
                yield

    def check_patch(self, patch: PatchSize) -> None:
        """Refuses pixels cut for another model.

        Raises:
            SoraError: the patch of the data is not the patch of the model.
        """
        if patch != self.patch:
            raise SoraError(
                f"data.patch={list(patch)} but this model's tokens cover {list(self.patch)} pixels "
                f"(VAE stride times DiT patch size); set data.patch to {list(self.patch)}"
            )

    def check_batch(self, batch: SpacetimeBatch) -> None:
        """Refuses batches cut for another model, before any compute is spent.

        Raises:
            SoraError: the patch of the data is not the patch of the model.
        """
        if batch.space == "pixel":
            self.check_patch(batch.patch)

    def videos(self, batch: SpacetimeBatch) -> Float[Tensor, "clips 3 frames height width"]:
        """The clips of a batch of one grid in [-1, 1]."""
        return from_uint8(batch.videos(), self.dtype)

    def data_spec(self) -> DataSpec | None:
        """What the trainer's data say of themselves; None where they say nothing."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return data.describe() if hasattr(data, "describe") else None

    # Lightning's hooks.
    def setup(self, stage: str) -> None:
        self.awaited.settle(stage)
        # Buffers are equal on all ranks by construction. DDP would broadcast them at every call, and hang where
        # one rank evaluates a batch more than another.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        if (data := self.data_spec()) is not None:
            self.check_patch(data.patch)  # now, rather than at the first batch
        self._begun = Begun()
        self._last_step.begin(self.trainer.fit_loop.state_dict())
        convert_weights_alone(self.trainer.precision_plugin)
        warn_of_slow_bfloat16(str(self.trainer.precision), self.trainer.strategy.root_device.type)

    def on_fit_start(self) -> None:
        if self.ema is not None:
            self.ema.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.check_batch(batch)
        self.log_rate()
        patch = self.patch if batch.space == "latent" else batch.patch  # in pixels
        self.seen_sizes.add(list({grid.size(patch) for grid in batch.layout.grids}), batch.fps[0])

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.check_batch(batch)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.check_batch(batch)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.check_batch(batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_average()

    def update_average(self) -> None:
        """Takes one optimizer step into the moving average, before any callback may save it."""
        if self.ema is not None:
            self.ema.update(self)

    def log_rate(self) -> None:
        """Logs the learning rate of the step, of the first group of parameters."""
        optimizers = self.optimizers()
        first: Any = optimizers[0] if isinstance(optimizers, list) else optimizers
        self.log("train/learning_rate", float(first.param_groups[0]["lr"]), batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: SpacetimeBatch, batch_idx: int) -> None:
        self.report_skipped(batch)
        self._skipped_since = self._skipped_since + len(batch.skipped) if waits(self.trainer) else 0
        self._last_step.note(self.trainer)
        if batch.budget:
            self.log("data/token_use", batch.layout.total / batch.budget, batch_size=len(batch))
            longest = max(batch.layout.lengths) * len(batch)
            self.log("data/padding_spared", 1 - batch.layout.total / longest, batch_size=len(batch))

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._last_step.note(self.trainer)

    def on_validation_batch_end(self, outputs: Any, batch: SpacetimeBatch, *args: Any) -> None:
        self.report_skipped(batch)

    def on_test_batch_end(self, outputs: Any, batch: SpacetimeBatch, *args: Any) -> None:
        self.report_skipped(batch)

    def log_by_source(self, name: str, values: Float[Tensor, " clips"], batch: SpacetimeBatch) -> None:
        """Logs the mean over a batch's clips of each source of a mixture, as ``name_source``."""
        for source in dict.fromkeys(batch.sources):
            members = [place for place, one in enumerate(batch.sources) if one == source]
            self.log(f"{name}_{source}", values[members].mean(), batch_size=len(members))

    def report_skipped(self, batch: SpacetimeBatch) -> None:
        """Counts and logs clips that could not be read, and names each once."""
        if not batch.skipped:
            return
        self.skipped_clips += len(batch.skipped)
        for reason in set(batch.skipped) - self._reported:
            log.warning("skipped: %s", reason)
        self._reported |= set(batch.skipped)
        self.log("data/skipped_clips", float(self.skipped_clips), batch_size=len(batch), reduce_fx="max")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["module"] = type(self).__name__
        checkpoint["directory"] = os.getcwd()  # of what its specs name by relative paths
        given = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = plain(dict(given))
        checkpoint["skipped_clips"] = self.skipped_clips - self._skipped_since
        self._last_step.rewind(self.trainer, checkpoint)
        checkpoint["native"] = self.seen_sizes.state_dict()
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_module(checkpoint, type(self).__name__)
        refuse_not_finite(checkpoint, self)
        self.skipped_clips = checkpoint["skipped_clips"]
        self.run_id = checkpoint.get("run_id")
        self.seen_sizes.load_state_dict(checkpoint["native"])
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"], self.device)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._begun = Begun.of(checkpoint)
            refuse_finished(self.trainer, self._begun)
            if "loops" in checkpoint:
                self._last_step.begin(checkpoint["loops"]["fit_loop"])
            self._keep_the_recipe(checkpoint)

    def _keep_the_recipe(self, checkpoint: dict[str, Any]) -> None:
        """Resumes the optimizer's state, but under the options that the recipe gives now.

        Raises:
            SoraError: the recipe names another optimizer, whose state this is not.
        """
        asked, stored = (Spec.parse(s) for s in (self._optimizer_spec, checkpoint["hyper_parameters"]["optimizer"]))
        if asked.name != stored.name:
            raise SoraError(
                f"the checkpoint was trained by {stored.name!r} and its state does not fit {asked.name!r}; resume with "
                f"model.optimizer={stored}, or start a new fit"
            )
        made = self.configure_optimizers()
        fresh = made if isinstance(made, list) else [made]
        for now, optimizer, scheduler in zip(
            fresh, checkpoint["optimizer_states"], checkpoint["lr_schedulers"], strict=True
        ):
            schedule = now["lr_scheduler"]["scheduler"]
            scheduler["base_lrs"] = schedule.base_lrs
            for saved, group in zip(optimizer["param_groups"], now["optimizer"].param_groups, strict=True):
                saved |= {name: value for name, value in group.items() if name != "params"}
                saved["lr"] = group["initial_lr"] * schedule.lr_lambdas[0](scheduler["last_epoch"])

    # Checkpoints as models.
    @classmethod
    def rebuild_arguments(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments that make the model of a checkpoint."""
        return grouped(checkpoint["hyper_parameters"], cls.groups)

    @classmethod
    def relocated(
        cls, arguments: dict[str, Any], checkpoint: dict[str, Any], base: str | Path | None
    ) -> dict[str, Any]:
        """The arguments with what stands elsewhere found again; see :func:`~lightning_sora.lit.moved.found_again`."""
        if base is not None:
            raise SoraError(f"base={str(base)!r}: a {cls.__name__} stands on no pretrained folder; leave it out")
        return arguments

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu", *, base: str | Path | None = None) -> Self:
        """The trained model of a checkpoint, with its moving average applied, ready to evaluate.

        Args:
            base: where the pretrained folder is now that it was trained upon, if neither where it was asked for nor
                beside the directory of the training.

        Raises:
            SoraError: no such file, not a checkpoint, one of another module, or one that stands on other weights.
        """
        checkpoint = read_checkpoint(path)
        check_module(checkpoint, cls.__name__)
        try:
            module = cls(**cls.relocated(cls.rebuild_arguments(checkpoint), checkpoint, base))
        except SoraError as problem:
            raise SoraError(f"{path} cannot be rebuilt: {problem}{remedy_of(problem)}") from problem
        module.on_load_checkpoint(checkpoint)
        try:
            module.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as problem:
            raise SoraError(
                f"{path} does not hold the {cls.__name__} that it describes ({' '.join(str(problem).split())[:200]}); "
                "it was written by another version or edited"
            ) from problem
        if module.ema is not None:
            parameters = dict(module.named_parameters())
            for name, average in module.ema.shadow.items():
                parameters[name].data.copy_(average)
            module.ema = None
        return module.to(device).eval().requires_grad_(False)


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
