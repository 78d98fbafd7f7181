"""The record: what a run leaves in mlflow, read back through the client, and what a failing store does to it."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

from lightning_sora.cli import main
from lightning_sora.tracking.flatten import VALUE_LENGTH
from lightning_sora.tracking.outbox import Outbox, replay_earlier

# Whole trainings.
pytestmark = pytest.mark.slow

RECIPE = """
seed_everything: 5
vars: {width: 4}
model:
  class_path: tracking_toys.ToyModel
  init_args: {dim: "${vars.width}", lr: 0.02, note: "%s"}
data:
  class_path: tracking_toys.ToyData
  init_args: {dim: "${vars.width}"}
trainer:
  max_steps: 8
  val_check_interval: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
tracking: {experiment: toys, tags: {study: tests}}
"""


@pytest.fixture
def fit(client, tmp_path, monkeypatch):
    """Runs a command on the toy recipe, in this process."""
    sys.path.append(str(Path(__file__).parent))
    monkeypatch.setattr(sys, "argv", ["lightning-sora"])
    (tmp_path / "toy.yaml").write_text(RECIPE % "")

    def run(*flags: str, command: str = "fit", config: str = "toy.yaml") -> int:
        return main([command, "--config", config, *flags])

    yield run
    sys.path.remove(str(Path(__file__).parent))


def only_run(client):
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def series(client, run, name):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def artifact(client, run, path):
    return Path(client.download_artifacts(run.info.run_id, path)).read_text()


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]["net.weight"]


# What a run leaves.


def test_a_fit_leaves_its_whole_record(client, fit, tmp_path):
    note = "a long note. " * 100
    (tmp_path / "toy.yaml").write_text(RECIPE % note)
    assert fit("--model.lr=0.03") == 0
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("toy-lr=0.03-seed5-")

    # The recipe: as parameters, whole as a file, and the file that it was made of.
    assert run.data.params["model.lr"] == "0.03"
    assert run.data.params["model.dim"] == "4"
    assert run.data.params["parameters"] == "4"
    assert len(run.data.params["model.note"]) == VALUE_LENGTH
    assert f"({len(note)} characters; whole in recipe/)" in run.data.params["model.note"]
    assert yaml.safe_load(artifact(client, run, "recipe/fit.yaml"))["model"]["init_args"]["note"] == note
    assert artifact(client, run, "recipe/fit.sources/0_toy.yaml") == RECIPE % note

    # Metrics of every step.
    assert [step for step, _ in series(client, run, "train/loss")] == list(range(8))
    assert [value for _, value in series(client, run, "val/loss")] == [2.0, 0.0, 2.0, 4.0]
    assert run.data.metrics["system/peak_memory_gib"] > 0.1
    assert run.data.metrics["system/fit_seconds"] > 0

    # Where it came from.
    tags = run.data.tags
    assert tags["data.fingerprint"] == "f" * 64
    assert tags["val.data.fingerprint"] == "d" * 64
    assert tags["vae.hash"] == "the-hash"
    assert tags["vae.run_id"] == "the-run"
    assert tags["study"] == "tests"
    assert tags["command.fit"].endswith("--model.lr=0.03")
    assert tags["git.commit"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "f" * 36
    assert "torch==" in artifact(client, run, "environment/packages.txt")
    assert yaml.safe_load(artifact(client, run, "environment/machine.yaml"))["torch"] == torch.__version__

    # Checkpoints: by step, in the folder and in the store, whose files are beside the database.
    for name, step in (("best", 4), ("last", 8)):
        local = tmp_path / "outputs/toy/checkpoints" / f"{name}.ckpt"
        kept = tmp_path / "mlruns/toys" / run.info.run_id / f"artifacts/checkpoints/{name}.ckpt"
        assert torch.load(local, weights_only=True)["global_step"] == step
        assert kept.read_bytes() == local.read_bytes()
    assert not list(tmp_path.glob("outputs/**/*.part"))


def test_the_stored_recipe_run_again_gives_the_same_losses(client, fit, tmp_path):
    assert fit("--vars.width=5", "--trainer.max_steps=4") == 0
    first = only_run(client)
    stored = client.download_artifacts(first.info.run_id, "recipe/fit.yaml")
    assert fit(config=stored) == 0
    second = next(r for r in client.search_runs([first.info.experiment_id]) if r.info.run_id != first.info.run_id)
    assert second.data.params == first.data.params
    assert series(client, second, "train/loss") == series(client, first, "train/loss")
    assert artifact(client, second, "recipe/fit.yaml") == Path(stored).read_text()
    # The first run's checkpoints are still there, under another name.
    (aside,) = tmp_path.glob("outputs/toy/checkpoints-*")
    assert torch.load(aside / "last.ckpt", weights_only=True)["run_id"] == first.info.run_id


def test_resuming_rejoins_the_run_and_tells_what_changed(client, fit, tmp_path):
    assert fit("--trainer.max_steps=4") == 0
    # What the user writes wins over what the checkpoint remembers.
    assert fit("--trainer.max_steps=6", "--model.lr=0.5", "--ckpt_path=last") == 0
    run = only_run(client)
    assert [step for step, _ in series(client, run, "train/loss")] == list(range(6))
    assert run.data.params["model.lr"] == "0.02"
    assert run.data.tags["recipe.revision-1"] == "trainer.max_steps: 4 -> 6; model.lr: 0.02 -> 0.5"
    revision = yaml.safe_load(artifact(client, run, "recipe/fit.revision-1.yaml"))
    assert revision["model"]["init_args"]["lr"] == 0.5
    last = torch.load("outputs/toy/checkpoints/last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.02  # the optimizer's state is restored
    assert last["hyper_parameters"]["lr"] == 0.5

    # What the model stands on is that of the checkpoint, not of the model as it was made.
    assert run.data.tags["origin"] == "restored"

    # Scoring joins too, at the step of what it scores; it ends as it was.
    assert fit("--ckpt_path=best", command="test") == 0
    run = only_run(client)
    assert [step for step, _ in series(client, run, "test/loss")] == [4]
    assert run.data.tags["test.data.fingerprint"] == "e" * 64
    assert run.data.tags["data.fingerprint"] == "f" * 64
    assert run.info.status == "FINISHED"
    # So does a resumption that cannot start.
    assert fit("--vars.width=3", "--ckpt_path=last") == 2
    assert only_run(client).info.status == "FINISHED"


def test_a_resumed_fit_can_begin_a_run_of_its_own(client, fit):
    assert fit("--trainer.max_steps=2") == 0
    first = only_run(client)
    assert fit("--ckpt_path=last", "--trainer.max_steps=4", "--tracking.rejoin=false") == 0
    runs = client.search_runs([first.info.experiment_id])
    assert len(runs) == 2
    assert runs[0].data.tags["resumed_from.run_id"] == first.info.run_id


# How runs end before their time.


@pytest.fixture
def hangup():
    """Sets what SIGHUP does by default, as the shell that starts a command may."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_a_signal_keeps_a_checkpoint_from_which_the_run_goes_on_exactly(client, fit, capsys, hangup, name, status):
    hangup(signal.SIG_DFL)
    assert fit("--trainer.default_root_dir=whole", "--tracking.enabled=false") == 0
    assert fit("--model.signal_at=4", f"--model.signal_name={name}") == status
    run = only_run(client)
    assert run.info.status == "KILLED"
    assert torch.load("outputs/toy/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    capsys.readouterr()
    assert fit("--ckpt_path=last") == 0
    assert only_run(client).info.status == "FINISHED"
    assert torch.equal(weights("outputs/toy/checkpoints/last.ckpt"), weights("whole/checkpoints/last.ckpt"))
    # Each step is logged once.
    assert [step for step, _ in series(client, run, "train/loss")] == list(range(8))


def test_under_nohup_the_end_of_the_terminal_ends_nothing(client, fit, hangup):
    hangup(signal.SIG_IGN)
    assert fit("--model.signal_at=4", "--model.signal_name=SIGHUP") == 0
    assert only_run(client).info.status == "FINISHED"


def test_ctrl_c_outside_of_training_is_one_line_too(client, fit, capsys):
    assert fit("--ckpt_path=none", "--model.signal_at=0", command="test") == 130
    assert "lightning-sora: interrupted" in capsys.readouterr().err
    assert only_run(client).info.status == "KILLED"


def test_a_crash_leaves_the_last_good_checkpoint_and_a_failed_run(client, fit):
    with pytest.raises(ArithmeticError):
        fit("--model.fail_at=5")
    assert only_run(client).info.status == "FAILED"
    assert torch.load("outputs/toy/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_checkpoints_between_validations_and_milestones_are_kept(client, fit):
    flags = ("--checkpoint.every_n_steps=3", "--checkpoint.keep_every_n_steps=4", "--trainer.val_check_interval=4")
    assert fit(*flags, "--trainer.max_steps=7") == 0
    kept = {path.name for path in Path("outputs/toy/checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "step_00000004.ckpt"}
    assert torch.load("outputs/toy/checkpoints/step_00000004.ckpt", weights_only=True)["global_step"] == 4


def test_milestones_count_optimizer_steps_not_batches(client, fit):
    flags = ("--checkpoint.keep_every_n_steps=2", "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=5")
    assert fit(*flags, "--trainer.val_check_interval=4", "--tracking.enabled=false") == 0
    last = torch.load("outputs/toy/checkpoints/last.ckpt", weights_only=True)
    (state,) = [state for state in last["callbacks"].values() if "milestones" in state]
    assert [Path(path).name for path in state["milestones"]] == ["step_00000002.ckpt", "step_00000004.ckpt"]
    assert len(list(Path("outputs/toy/checkpoints").glob("step_*"))) == 2


def kept(folder):
    """The step of every checkpoint in a folder, and what `last` tells of the best."""
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in Path(folder).glob("*.ckpt")}
    states = torch.load(Path(folder) / "last.ckpt", weights_only=True)["callbacks"].values()
    return steps, next(state for state in states if "milestones" in state)


@pytest.mark.parametrize("told", ["as now", "as by earlier versions"])
def test_a_fit_whose_files_were_moved_goes_on_with_its_best_and_its_milestones(client, fit, tmp_path, told):
    assert fit("--trainer.max_steps=6", "--checkpoint.keep_every_n_steps=2") == 0
    Path("outputs/toy").rename("moved")
    if told != "as now":
        for path in Path("moved/checkpoints").glob("*.ckpt"):
            content = torch.load(path, weights_only=True)
            for state in content["callbacks"].values():
                for name in ("fit", "monitor", "mode"):
                    state.pop(name, None)
            path.unlink()
            torch.save(content, path)
    flags = ("--ckpt_path=last", "--trainer.max_steps=7", "--trainer.default_root_dir=moved")
    assert fit(*flags, "--trainer.val_check_interval=1") == 0
    assert not list(tmp_path.glob("**/checkpoints-*"))
    steps, state = kept("moved/checkpoints")
    milestones = {f"step_{step:08d}.ckpt": step for step in (2, 4, 6)}
    assert steps == {"last.ckpt": 7, "best.ckpt": 4, **milestones}
    assert (state["best_model_path"], state["best_model_score"]) == (str(tmp_path / "moved/checkpoints/best.ckpt"), 0)
    assert state["milestones"] == [str(tmp_path / "moved/checkpoints" / name) for name in milestones]
    assert only_run(client).data.tags["checkpoint.best"] == state["best_model_path"]
    # Into another folder, it takes its best along.
    assert (
        fit("--ckpt_path=moved/checkpoints/last.ckpt", "--trainer.max_steps=8", "--trainer.val_check_interval=1") == 0
    )
    steps, state = kept("outputs/toy/checkpoints")
    assert steps == {"last.ckpt": 8, "best.ckpt": 4}
    assert state["best_model_path"] == str(tmp_path / "outputs/toy/checkpoints/best.ckpt")
    assert state["milestones"] == [str(tmp_path / "moved/checkpoints" / name) for name in milestones]


def test_a_moved_fit_overwrites_no_other_in_its_old_place(client, fit, tmp_path):
    assert fit("--trainer.max_steps=6", "--tracking.enabled=false") == 0
    Path("outputs/toy").rename("moved")
    assert fit("--trainer.max_steps=2", "--model.lr=0.5", "--tracking.enabled=false") == 0
    other = weights("outputs/toy/checkpoints/last.ckpt")
    flags = ("--trainer.max_steps=8", "--tracking.enabled=false")
    assert fit("--ckpt_path=moved/checkpoints/last.ckpt", *flags) == 0
    (aside,) = tmp_path.glob("outputs/toy/checkpoints-*")
    assert torch.equal(weights(aside / "last.ckpt"), other)
    assert kept("outputs/toy/checkpoints")[0] == {"last.ckpt": 8, "best.ckpt": 4}


def test_going_back_to_a_milestone_keeps_the_best_that_came_later(client, fit):
    flags = ("--trainer.val_check_interval=1", "--tracking.enabled=false", "--checkpoint.keep_every_n_steps=2")
    assert fit(*flags, "--trainer.max_steps=6") == 0
    assert fit(*flags, "--trainer.max_steps=3", "--ckpt_path=outputs/toy/checkpoints/step_00000002.ckpt") == 0
    steps, state = kept("outputs/toy/checkpoints")
    assert (steps["last.ckpt"], steps["best.ckpt"], state["best_model_score"]) == (3, 4, 0)


def test_another_metric_decides_anew_and_the_best_by_the_first_is_kept(client, fit):
    assert fit("--trainer.max_steps=6", "--tracking.enabled=false") == 0
    flags = ("--checkpoint.monitor=train/loss", "--tracking.enabled=false")
    assert fit(*flags, "--trainer.max_steps=8", "--ckpt_path=last") == 0
    steps, state = kept("outputs/toy/checkpoints")
    assert steps == {"last.ckpt": 8, "best.ckpt": 8, "best_val_loss_min.ckpt": 4}
    assert state["best_model_score"] > 0


def test_two_fits_at_once_in_one_folder_are_refused(client, fit, capsys):
    import fcntl

    Path("outputs/toy").mkdir(parents=True)
    with open("outputs/toy/.checkpoints.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fit() == 2
    assert "another fit is writing to" in capsys.readouterr().err


# The store.


def test_a_server_that_is_not_there_is_told_at_once(fit, capsys):
    assert fit("--tracking.uri=http://127.0.0.1:9") == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error:" in text]
    assert "http://127.0.0.1:9 cannot be used" in line
    assert "--tracking.enabled=false" in line
    assert not Path("outputs/toy/checkpoints").exists()


def test_training_outlives_the_store_and_what_waited_is_sent_in_order(client, fit, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    honest, close = MlflowClient.log_batch, Outbox.close
    away, back, taken = (threading.Event() for _ in range(3))

    def failing(self, run_id, metrics=(), *args, **kwargs):
        losses = any(metric.key == "train/loss" for metric in metrics)
        if not back.is_set() and losses:
            away.set()
            raise MlflowException("away")
        made = honest(self, run_id, metrics, *args, **kwargs)
        if losses:
            taken.set()
        return made

    def closing(self):
        assert away.wait(60)  # however slow the thread that sends is, it failed once
        back.set()
        for _ in range(600):  # an attempt that began before may yet fail, and would be the last one
            self.hurry()
            if taken.wait(0.1):
                break
        close(self)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    monkeypatch.setattr(Outbox, "close", closing)
    monkeypatch.setattr("lightning_sora.tracking.outbox.FIRST_PAUSE", 0.0)
    assert fit("--tracking.flush_seconds=0") == 0
    monkeypatch.undo()
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in series(client, run, "train/loss")] == list(range(8))
    assert not list(Path("outputs/toy/tracking").glob("*"))


def test_what_a_dead_store_missed_is_sent_by_the_next_run(client, tmp_path):
    run = client.create_run("0").info.run_id
    waiting = {"kind": "metrics", "rows": [["a", 1.5, 0, 3]], "run_id": run}
    refused = {"kind": "files", "path": str(tmp_path / "gone"), "folder": "x", "run_id": run}
    (tmp_path / f"spool-{run}.jsonl").write_text(json.dumps(waiting) + "\n" + json.dumps(refused) + "\n")
    replay_earlier(client, tmp_path)
    assert [(m.step, m.value) for m in client.get_metric_history(run, "a")] == [(3, 1.5)]
    # What can never be sent is not tried for ever.
    assert not list(tmp_path.glob("spool-*"))
    assert "gone" in (tmp_path / f"refused-{run}.jsonl").read_text()


def test_thousands_of_metrics_and_parameters_are_recorded(client, tmp_path):
    from lightning_sora.tracking import MLflowTracker

    tracker = MLflowTracker(experiment="many").prepare(tmp_path / "out", seed=0)
    tracker.log_once({f"p{i}": i for i in range(1200)})
    tracker.log_metrics({f"m/{i}": float(i) for i in range(2500)} | {"nan": float("nan"), "r@5": 1.0}, step=1)
    tracker.log_files(__file__, "samples/step_1")
    tracker.finalize("success")
    run = client.get_run(tracker.run_id)
    assert len(run.data.params) == 1200
    assert run.data.metrics["m/2499"] == 2499
    assert run.data.metrics["r_5"] == 1
    assert client.list_artifacts(tracker.run_id, "samples/step_1")[0].path.endswith("test_tracking.py")


def test_other_ranks_record_nothing(client, tmp_path, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from lightning_sora.tracking import MLflowTracker

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracker = MLflowTracker().prepare(tmp_path, seed=0)
    tracker.log_metrics({"a": 1.0})
    tracker.log_tags({"a": 1})
    tracker.finalize("success")
    assert tracker.run_id is None
    assert client.search_runs([e.experiment_id for e in client.search_experiments()]) == []
