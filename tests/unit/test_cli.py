"""The door: what it imports, what it accepts, and what it says when it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import yaml

from lightning_sora.cli import main

BASE = """
seed_everything: 3
vars: {width: 6}
model:
  class_path: tracking_toys.ToyModel
  init_args: {dim: "${vars.width}", lr: 0.05}
data:
  class_path: ToyData
  init_args: {dim: "${model.init_args.dim}"}
trainer: {max_steps: 4, accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="session")
def toys():
    sys.path.append(str(Path(__file__).parent))
    import tracking_toys

    return tracking_toys


@pytest.fixture
def recipe(tmp_path, monkeypatch, toys):
    """Writes recipes into a fresh working directory; `recipe(name, text)` gives the name back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-sora"])

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    write("base.yaml", BASE)
    return write


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail by one line, and gives that line."""

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("lightning-sora: error: ")]
        assert len(lines) == 1
        assert "Traceback" not in captured.err + captured.out
        assert "usage:" not in captured.err
        return lines[0]

    return run


@pytest.fixture
def resolved(capsys):
    """The recipe that a command line stands for."""

    def run(*arguments: str) -> dict:
        assert main(["fit", *arguments, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return run


# What needs no recipe.


def test_help_and_light_commands_import_nothing_heavy():
    code = """
import sys
from lightning_sora.cli import main
for words in (["--help"], ["sample", "--help"], ["list", "--help"], ["ui", "--help"], ["data", "--help"], ["nonsense"]):
    main(words)
print(sorted({"torch", "lightning", "mlflow", "jsonargparse", "numpy", "av"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "fit" in done.stdout


def test_an_unknown_command_names_its_neighbours(refused):
    line = refused("fti")
    assert "did you mean 'fit'" in line
    assert "sample" in line


def test_no_command_shows_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "commands that run a recipe" in capsys.readouterr().out


def test_a_misspelt_flag_of_a_light_command_is_one_line(refused):
    assert "--pattern" in refused("list", "attention", "--pattern", "x")


def test_an_impossible_size_is_refused_before_anything_is_loaded(refused, tmp_path):
    assert "'0' must be a whole number of at least 1" in refused(
        "sample", "--ckpt", "x", "--prompt", "a", "--width", "0"
    )
    assert "no checkpoint at" in refused("sample", "--ckpt", str(tmp_path / "x.ckpt"), "--prompt", "a")
    assert "nothing to sample" in refused("sample", "--ckpt", "x")


def test_ui_without_a_store_says_where_it_looked(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert str(tmp_path / "mlflow.db") in refused("ui")
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be read as one" * 9)
    assert "not an mlflow store" in refused("ui")


def test_list_prints_specs_that_the_registry_can_read_back(capsys):
    from lightning_sora.diffusion.timesteps import TIMESTEPS
    from lightning_sora.registry import Spec

    assert main(["list", "timesteps"]) == 0
    specs = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [Spec.parse(line).name for line in specs] == TIMESTEPS.list()


def test_list_filters_and_fails_where_nothing_matches(capsys):
    assert main(["list", "objective", "vel*"]) == 0
    assert capsys.readouterr().out.startswith("velocity")
    assert main(["list", "objective", "zzz*"]) == 1


# How recipes are put together.


def test_an_overlay_merges_and_interpolation_reaches_across_files(recipe, resolved):
    recipe("over.yaml", "vars: {rate: 0.5}\nmodel: {init_args: {lr: '${vars.rate}'}}")
    config = resolved("--config", "base.yaml", "--config", "over.yaml")
    assert config["model"]["init_args"]["lr"] == 0.5
    assert config["model"]["init_args"]["dim"] == config["data"]["init_args"]["dim"] == 6
    assert config["vars"] == {"width": 6, "rate": 0.5}


def test_an_override_on_the_command_line_is_followed_by_what_refers_to_it(recipe, resolved):
    config = resolved("--config", "base.yaml", "--vars.width=9")
    assert config["data"]["init_args"]["dim"] == 9
    config = resolved("--config", "base.yaml", "--model.dim=7", "--data.root=there")
    assert config["data"]["init_args"] == {"dim": 7, "batches": 4, "root": "there"}
    assert config["model"]["init_args"]["lr"] == 0.05


def test_the_output_folder_is_named_after_the_recipe(recipe, resolved):
    assert resolved("--config", "base.yaml")["trainer"]["default_root_dir"] == "outputs/base"


@pytest.mark.parametrize("name", ["OtherModel", "tracking_toys.OtherModel"])
def test_an_overlay_may_not_change_a_class(recipe, refused, name):
    recipe("swap.yaml", f"model: {{class_path: {name}}}")
    line = refused("fit", "--config", "base.yaml", "--config", "swap.yaml")
    assert "swap.yaml changes model.class_path from tracking_toys.ToyModel" in line
    assert "OtherModel" in refused("fit", "--config", "base.yaml", f"--model={name}")


def test_an_overlay_may_repeat_a_class_in_short(recipe, resolved):
    recipe("same.yaml", "model: {class_path: ToyModel, init_args: {lr: 1.0}}")
    config = resolved("--config", "base.yaml", "--config", "same.yaml")
    assert config["model"]["init_args"]["dim"] == 6


def test_batches_are_not_dealt_to_ranks_twice(recipe, resolved):
    assert resolved("--config", "base.yaml")["trainer"]["use_distributed_sampler"] is False


def test_predictions_are_written(recipe, tmp_path):
    assert main(["predict", "--config", "base.yaml", "--ckpt_path=none"]) == 0
    folder = tmp_path / "outputs/base/predictions"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a/1.mp4", "plain", "a_1.mp4", "other"]
    assert [row["caption"] for row in rows] == ["A/1.MP4", "PLAIN", "A_1.MP4", "OTHER"]
    assert {row["file"] for row in rows} == {path.name for path in folder.glob("*.mp4")}
    assert len({row["file"] for row in rows}) == 4  # ids that differ by what file names cannot hold stay apart
    assert rows[1]["file"] == "plain.mp4"
    with av.open(str(folder / "plain.mp4")) as video:
        assert video.streams.video[0].average_rate == 4
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (16, 16, 3)
    assert abs(frames[4].mean() - 100) < 3


def test_resuming_within_an_epoch_warns_of_nothing_untrue(recipe, recwarn):
    flags = ("fit", "--config", "base.yaml", "--tracking.enabled=false", "--checkpoint.monitor=null")
    assert main([*flags, "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]) == 0
    assert main([*flags, "--trainer.max_steps=3", "--trainer.limit_val_batches=0", "--ckpt_path=last"]) == 0
    told = [str(warning.message) for warning in recwarn]
    assert not any("not resumable" in text or "eval mode" in text for text in told)


# How mistakes are told.


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("model: {init_args: {dims: 1}}", "bad.yaml: no option 'model.dims'; did you mean model.dim? accepted"),
        ("trainer: {max_step: 1}", "no option 'trainer.max_step'; did you mean trainer.max_steps"),
        ("trainr: {max_steps: 1}", "no option 'trainr'; did you mean trainer"),
        ("checkpoint: {monitr: x}", "did you mean checkpoint.monitor?"),
        ("tracking: {experimint: x}", "did you mean tracking.experiment?"),
        ("model: {init_args: {dim: '${vars.widht}'}}", "model.dim: Interpolation key"),
        ("model: {init_args: {dim: lots}}", "model.dim: expected int, but got 'lots'"),
        ("trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.Timer, init_args: {durations: 1}}]}",
         "lightning.pytorch.callbacks.Timer has no option 'durations'; did you mean duration?"),
        ("model: {init_args: {dim: [}}", "bad.yaml is not readable YAML"),
        ("just words", "must hold sections"),
        ("trainer: {max_epochs: -5}", "lightning cannot run this recipe"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_one_line(recipe, refused, overlay, told):
    recipe("bad.yaml", overlay)
    assert told in refused("fit", "--config", "base.yaml", "--config", "bad.yaml")


def test_a_misspelt_flag_is_one_line(recipe, refused):
    line = refused("fit", "--config", "base.yaml", "--model.dimm=3")
    assert "did you mean model.dim?" in line
    assert "signal_at" in line  # all that is accepted is listed
    assert "no option 'mdl'" in refused("fit", "--config", "base.yaml", "--mdl.dim=3")
    # An abbreviation is a mistake too.
    assert "did you mean model.lr?" not in refused("fit", "--config", "base.yaml", "--trainer.max_st=3")


def test_an_unknown_class_names_its_neighbours(recipe, refused):
    recipe("lost.yaml", BASE.replace("tracking_toys.ToyModel", "ToyModl"))
    assert "did you mean ToyModel" in refused("fit", "--config", "lost.yaml")
    recipe("lost.yaml", BASE.replace("tracking_toys.ToyModel", "nowhere.ToyModel"))
    assert "No module named 'nowhere'" in refused("fit", "--config", "lost.yaml")


def test_a_missing_recipe_names_its_neighbours(recipe, refused):
    assert "no recipe at bas.yaml; did you mean base.yaml?" in refused("fit", "--config", "bas.yaml")
    assert "needs a recipe" in refused("fit")


def test_a_checkpoint_that_cannot_serve_is_told_before_compute(recipe, refused, toys):
    import torch

    Path("broken.ckpt").write_bytes(b"PK\x03\x04 cut short")
    assert "broken.ckpt" in refused("fit", "--config", "base.yaml", "--ckpt_path", "broken.ckpt")
    assert "no checkpoint at away.ckpt" in refused("fit", "--config", "base.yaml", "--ckpt_path", "away.ckpt")
    torch.save({"module": "LitDiT", "state_dict": {}, "global_step": 1}, "other.ckpt")
    assert "holds a LitDiT, not a ToyModel" in refused("fit", "--config", "base.yaml", "--ckpt_path", "other.ckpt")
    assert "fit this recipe first" in refused("fit", "--config", "base.yaml", "--ckpt_path", "last")
    assert "test needs --ckpt_path" in refused("test", "--config", "base.yaml")


def test_a_mistake_that_a_worker_meets_is_one_line(recipe, refused):
    recipe("worker.yaml", BASE.replace("ToyData", "UnreadableData") + "tracking: {enabled: false}")
    line = refused("fit", "--config", "worker.yaml")
    assert line == "lightning-sora: error: clip 0: cannot be read; remove it"


@pytest.mark.slow
def test_a_training_that_diverges_is_one_line_and_what_to_do_is_an_option_of_the_recipe(recipe, refused, caplog):
    flags = ("fit", "--config", "base.yaml", "--tracking.enabled=false", "--checkpoint.monitor=null", "--model.lr=1e30")
    line = refused(*flags)
    assert "step 2: the loss is not finite on batch 1 of epoch 0" in line
    assert main([*flags, "--finite.on_error=skip"]) == 0
    assert "step 2: the loss is not finite on batch 1 of epoch 0; the step is left out" in caplog.text
    assert "but got 'ignore'" in refused(*flags, "--finite.on_error=ignore")


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(recipe):
    with pytest.raises(ArithmeticError):
        main(["fit", "--config", "base.yaml", "--model.fail_at=1"])
