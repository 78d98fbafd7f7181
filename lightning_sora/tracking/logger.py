"""The lightning logger that keeps runs in mlflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_sora.errors import SoraError
from lightning_sora.memory import peak_memory_gib
from lightning_sora.redaction import redact, redacted
from lightning_sora.tracking import provenance, store
from lightning_sora.tracking.described import Described
from lightning_sora.tracking.flatten import flatten, metric_name
from lightning_sora.tracking.outbox import Outbox, replay_earlier

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_LENGTH = 5000
DIGEST_LENGTH = 36


class MLflowTracker(Logger):
    """Keeps a run in mlflow: recipe, code, data, metrics, galleries and checkpoints.

    The run begins at the first use. After that, nothing that goes wrong with the store stops or slows the training:
    records are on disk at once, and a thread sends them (see ``Outbox``). Passwords and other secrets are replaced
    in all of them (see ``redact``).

    Args:
        uri: address of the store; None means ``MLFLOW_TRACKING_URI``, or else ``sqlite:///mlflow.db``.
        experiment: name of the mlflow experiment, which is created where missing.
        run_name: name of the run; None makes one of recipe, seed and time.
        tags: more tags for the run.
        enabled: False keeps no record.
        checkpoints: which checkpoints are copied to mlflow after a fit: "all" is best, last and milestones.
        rejoin: whether a resumed training goes on in the run that its checkpoint names.
        flush_seconds: how long metrics may wait to be sent together.
        lineage: what a fit must stand on, as an earlier record has it (``vae.hash``); None takes what is there.
    """

    def __init__(
        self,
        uri: str | None = None,
        experiment: str = "lightning-sora",
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
        enabled: bool = True,
        checkpoints: Literal["off", "best", "last", "all"] = "all",
        rejoin: bool = True,
        flush_seconds: float = 10.0,
        lineage: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.uri = store.resolve_uri(uri) if enabled else ""
        self.experiment_name, self.run_name, self.enabled = experiment, run_name, enabled
        self.checkpoints, self.rejoin, self.flush_seconds = checkpoints, rejoin, flush_seconds
        self.lineage, self.described = lineage, Described()
        self.outcome: str | None = None
        self._tags = dict(tags or {})
        self._root = Path.cwd()
        self._from_run: str | None = None
        self._client: MlflowClient | None = None
        self._outbox: Outbox | None = None
        self._run_id: str | None = None
        self._stage: str | None = None
        self._earlier_status: str | None = None
        self._from_step = self._last_step = 0
        self._advanced = False
        self._known_params: dict[str, str] = {}
        self._told: dict[str, tuple[int, str]] = {}
        self._began_at = time.monotonic()
        self._checkpoint_callback: Any = None

    def prepare(
        self,
        root: Path,
        seed: int | bool,
        from_run: str | None = None,
        from_step: int = 0,
        described: Described | None = None,
    ) -> MLflowTracker:
        """Says what only the trainer knows, before the run begins.

        Args:
            root: folder of the run's local files.
            seed: for the name of the run.
            from_run: the run that the checkpoint to go on from belongs to.
            from_step: the step of that checkpoint; what scores it is logged there.
            described: what makes the run differ from its recipe.
        """
        self._root, self._from_run, self._from_step = root, from_run, from_step
        self.described = described or self.described
        if self.run_name is None:
            moment = time.strftime("%Y%m%d-%H%M%S")
            # Two runs may begin within one second.
            self.run_name = self.described.name(root.name, f"seed{int(seed)}-{moment}-{os.urandom(2).hex()}")
        return self

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The mlflow client; begins the run on first use.

        Raises:
            SoraError: the store cannot be reached.
        """
        if self._client is None:
            self._begin()
        assert self._client is not None
        return self._client

    def _begin(self) -> None:
        from mlflow.exceptions import MlflowException

        client = store.connect(self.uri)
        self._began_at = time.monotonic()
        replay_earlier(client, self._spools, store.identity(self.uri))
        try:
            self._join_or_create(client)
        except (MlflowException, OSError) as problem:
            raise store.unusable(self.uri, problem) from problem
        self._client = client
        if self.rejoined:
            self._sender.status("RUNNING")
            if self._tags:
                self._sender.tags(self._tags)

    def _join_or_create(self, client: MlflowClient) -> None:
        if self._from_run is not None and not (self.rejoin and self._join(client, self._from_run)):
            self._tags.setdefault("resumed_from.run_id", self._from_run)
        if self._run_id is None:
            experiment = store.experiment_id(client, self.uri, self.experiment_name)
            tags = {"mlflow.user": provenance.user(), "mlflow.source.name": "lightning-sora", **self.described.tags()}
            tags = redacted(tags | self._tags)
            self._run_id = client.create_run(experiment, run_name=self.run_name, tags=tags).info.run_id

    def _join(self, client: MlflowClient, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_DOES_NOT_EXIST":  # it may well be there
                raise
            return False
        if run.info.lifecycle_stage != "active":
            return False
        self._run_id, self.run_name = run_id, run.info.run_name
        self._earlier_status = run.info.status
        self._known_params = dict(run.data.params)
        self.described.rejoin(run.data.tags)
        return True

    @property
    def run_id(self) -> str | None:
        """The id of the run on rank zero once it has begun, else None."""
        return self._run_id

    @property
    def rejoined(self) -> bool:
        """Whether this run had begun before."""
        return self._earlier_status is not None

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str:
        return ""  # the progress bar would show its end

    @property
    def save_dir(self) -> str:
        return str(self._root)

    @property
    def _spools(self) -> Path:
        return self._root / "tracking"

    @property
    def _sender(self) -> Outbox:
        client = self.experiment
        if self._outbox is None:
            assert self._run_id is not None
            self._outbox = Outbox(
                client, self._run_id, self._spools, store.identity(self.uri), every=self.flush_seconds
            )
        return self._outbox

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's call with the module's arguments: recorded unless a recipe is, which holds them."""
        if self._stage is None:
            self.log_once(params if isinstance(params, Mapping) else vars(params))

    @rank_zero_only
    def log_once(self, params: Mapping[str, Any]) -> None:
        """Records parameters that the run does not have yet; mlflow cannot change one."""
        _ = self.experiment
        new = {key: value for key, value in flatten(params).items() if key not in self._known_params}
        self._known_params.update(new)
        self._sender.params(new)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Takes values in; they are sent together, every ``flush_seconds``. Told again, a value is the same point."""
        now = int(time.time() * 1000)
        self._last_step = max(int(step or 0), self._from_step)
        self._advanced = True
        values = {metric_name(name): float(value) for name, value in metrics.items()}
        told = {name: (self._last_step, repr(value)) for name, value in values.items()}
        rows = [(n, v, now, self._last_step) for n, v in values.items() if self._told.get(n) != told[n]]
        self._told |= told
        if rows:
            self._sender.metrics(rows)

    @rank_zero_only
    def log_step(self, trainer: pl.Trainer) -> None:
        """Takes in the values of a training step before lightning tells them: a checkpoint of the step is due."""
        connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or not connector.should_update_logs:
            return
        values: dict[str, Any] = convert_tensors_to_scalars(connector.metrics["log"])
        step = values.pop("step", None)
        if step is None:
            values.setdefault("epoch", trainer.current_epoch)
        self.log_metrics(values, loop._batches_that_stepped if step is None else int(step))

    @rank_zero_only
    def sync(self) -> None:
        """Returns once everything that was told is on disk, whatever becomes of this process."""
        if self._outbox is not None:
            self._outbox.sync()

    @rank_zero_only
    def flush(self) -> None:
        """Has the metrics that wait sent now, without waiting for it."""
        if self._outbox is not None:
            self._outbox.hurry()

    @rank_zero_only
    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Records tags; a new value replaces an old one."""
        self._sender.tags({key: redact(str(value))[:TAG_LENGTH] for key, value in tags.items()})

    @rank_zero_only
    def log_text(self, text: str, artifact: str) -> None:
        """Stores a text as an artifact, such as ``code/diff.patch``."""
        self._sender.text(text, artifact)

    @rank_zero_only
    def log_files(self, path: str | Path, folder: str) -> None:
        """Stores a file, or everything in a folder, under an artifact folder such as ``samples/step_000100``."""
        self._sender.files(Path(path), folder)
        self.described.note(Path(path), folder)

    @rank_zero_only
    def log_recipe(self, stage: str, resolved: str, recipe: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Records a recipe as parameters and as files under ``recipe/``.

        A rejoined run keeps its parameters. A recipe that differs from the stored one is kept as
        ``recipe/STAGE.revision-N.yaml``, and the tag ``recipe.revision-N`` says what changed.

        Args:
            stage: "fit", "validate", "test" or "predict".
            resolved: the recipe as text that ``lightning-sora STAGE --config`` accepts.
            recipe: the same as mappings.
            sources: text of the files that it was made of, by name.
        """
        _ = self.experiment
        self._stage = stage
        # Where a run went on from is no part of what it is, and what it stands on has its own tags.
        recipe = {key: value for key, value in recipe.items() if key != "ckpt_path"}
        recipe["tracking"] = {key: value for key, value in recipe.get("tracking", {}).items() if key != "lineage"}
        changes = [
            f"{key}: {self._known_params.get(key)} -> {value}"
            for key, value in flatten(recipe).items()
            if self._known_params.get(key) != value
        ]
        name, number = f"recipe/{stage}", 0
        if self.rejoined:
            stored = self._artifacts("recipe")
            number = sum(path.startswith(f"{name}.revision-") and path.endswith(".yaml") for path in stored) + 1
            if f"{name}.yaml" in stored:
                if not changes:
                    return
                name = f"{name}.revision-{number}"
                self.log_tags({f"recipe.revision-{number}": "; ".join(changes)})
        self.log_text(resolved, f"{name}.yaml")
        for file, text in sources.items():
            self.log_text(text, f"{name}.sources/{file}")
        if stage == "fit" or not self.rejoined:
            self.log_once(recipe)

    def _artifacts(self, folder: str) -> set[str]:
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        assert self._run_id is not None
        try:
            return {item.path for item in self._client.list_artifacts(self._run_id, folder)}
        except (MlflowException, OSError) as problem:  # as if there were none, what is there would be written over
            raise store.unusable(self.uri, problem) from problem

    @rank_zero_only
    def log_provenance(self) -> None:
        """Records the state of the code, the installed packages and the machine."""
        import yaml

        code, machine = provenance.code_state(), provenance.machine()
        if self.rejoined and self._stage != "fit":
            # The run stands for its training; what scores it leaves only its own mark.
            self.log_tags({f"{self._stage}.git.commit": code.commit, f"{self._stage}.git.dirty": code.dirty})
            return
        suffix = f"-{time.strftime('%Y%m%d-%H%M%S')}" if self.rejoined else ""
        self.log_tags(
            {
                **code.tags(),
                "code.hash": provenance.code_hash(),
                "python": machine["python"],
                "torch": machine["torch"],
                "machine": ", ".join([f"{machine['cpus']} x {machine['processor']}", *machine["accelerators"]]),
            }
        )
        if code.patch:
            self.log_text(code.patch, f"code/diff{suffix}.patch")
        listed = "".join(f"{name}=={version}\n" for name, version in provenance.packages().items())
        self.log_text(listed, f"environment/packages{suffix}.txt")
        self.log_text(yaml.safe_dump(machine, sort_keys=False), f"environment/machine{suffix}.yaml")

    @rank_zero_only
    def log_data(self, name: str, fingerprint: str, context: str) -> None:
        """Records which data a run reads.

        Args:
            name: what the data are called.
            fingerprint: a hash of them.
            context: what they serve for, such as "fit".
        """
        self._sender.dataset(name[:500], fingerprint[:DIGEST_LENGTH], name, context)
        # The run stands for its training data; what scores it leaves its own mark.
        self.log_tags({"data.fingerprint" if context == "fit" else f"{context}.data.fingerprint": fingerprint})

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._checkpoint_callback = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Sends what is left and closes the run: FINISHED, FAILED, or ``outcome`` where that is set."""
        if self._client is None:
            return
        succeeded = status in ("success", "finished") and self.outcome is None
        spent = {
            f"system/{self._stage or 'run'}_seconds": time.monotonic() - self._began_at,
            "system/peak_memory_gib": peak_memory_gib(),
        }
        advanced = self._advanced
        self.log_metrics(spent, self._last_step)
        self._keep_checkpoints(copy=succeeded)
        self.log_tags(self.described.last_tags(str(self._run_id)))
        if self._earlier_status is not None and (self._stage != "fit" or not advanced):
            # Scoring a checkpoint, or failing to go on from it, changes nothing of how its training ended.
            self._sender.status(self._earlier_status)
        else:
            self._sender.status("FINISHED" if succeeded else (self.outcome or "FAILED"))
        self._sender.close()
        self._outbox = None  # another, where the run goes on after all

    def _keep_checkpoints(self, copy: bool) -> None:
        callback = self._checkpoint_callback
        if callback is None:
            return
        files = {"best": callback.best_model_path, "last": callback.last_model_path}
        files = {kind: path for kind, path in files.items() if path}
        self.log_tags({f"checkpoint.{kind}": path for kind, path in files.items()})
        if not copy or self.checkpoints == "off":
            return
        if self.checkpoints == "all":
            files |= {Path(path).stem: path for path in getattr(callback, "milestones", [])}
        else:
            files = {kind: path for kind, path in files.items() if kind == self.checkpoints}
        for path in files.values():
            self.log_files(path, "checkpoints")


def find_tracker(loggers: list[Any]) -> MLflowTracker | None:
    """The tracker among a trainer's loggers, if any."""
    found = [logger for logger in loggers if isinstance(logger, MLflowTracker)]
    if len(found) > 1:
        raise SoraError("a trainer has two MLflowTrackers; configure one, in the section `tracking`")
    return found[0] if found else None
