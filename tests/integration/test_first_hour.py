"""What a newcomer stumbles over: told before it costs anything."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

import lightning_sora as ls
from lightning_sora.cli import main
from lightning_sora.tracking.store import connect, resolve_uri
from tests.integration.conftest import make_data, make_dit, make_vae

pytestmark = pytest.mark.slow


def train(module: pl.LightningModule, folder: Path) -> Path:
    """The folder of a run of two steps."""
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(make_dit("identity", patch_size=(4, 8, 8)), tmp_path_factory.mktemp("runs") / "little_dit")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"optimizer": "torch.optim.SGD(lr=0.1)"}, r"names without a module: 'SGD'; write SGD\(lr=0.1\)"),
        ({"optimizer": "adamm(lr=0.1)"}, "did you mean"),
        ({"optimizer": "adamw(rl=0.1)"}, "does not accept 'rl'"),
        ({"schedule": "cosin(warmup=1)"}, "did you mean 'cosine'"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused_as_the_model_is_made(change: dict[str, str], told: str) -> None:
    with pytest.raises(ls.SoraError, match=told):
        make_vae(**change)


def test_a_model_of_a_hub_is_no_spec() -> None:
    with pytest.raises(ls.SoraError, match="is no file here; give the path of a LitVAE's checkpoint, \"diffusers"):
        make_dit("THUDM/CogVideoX-2b")


def test_the_learning_rate_is_logged(make_trainer: Callable[..., pl.Trainer]) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.fit(make_vae(optimizer="adamw(lr=0.01)", schedule="cosine(warmup=0)"), datamodule=make_data())
    # The rate of the last of three steps, two thirds of the way down: (1 + cos(120 degrees)) / 2 is a quarter.
    assert float(trainer.callback_metrics["train/learning_rate"]) == pytest.approx(0.0025)


def test_a_size_that_was_not_trained_on_is_told(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ls.load(trained, "cpu")
    assert isinstance(model, ls.LitDiT)
    with caplog.at_level(logging.WARNING, "lightning_sora"):
        same = model.sample("a red cube")
    assert not caplog.messages
    assert torch.equal(same, model.sample(["a red cube"], 5, 16, 16)[0])
    model.sample(["", "a"], 9, 16, 24)
    assert caplog.messages == [
        "frames=9 (trained on 5), width=24 (trained on 16) is beyond what this model has seen: samples may be worse",
        "a prompt is empty: what is sampled for it is what the model makes of none",
    ]


def test_samples_of_two_fits_do_not_mix(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--ckpt", str(trained), "--prompt", "a red cube", "--device", "cpu"]) == 0
    (told,) = (Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".json"))
    assert told.parent == trained / "samples" / "prompts"
    assert json.loads(told.read_text())["size"] == [5, 16, 16]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_a_recipe_lacks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(Path(__file__).parents[2] / "recipes" / "world_pixels.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, "fit")
    assert "give one by --config FILE, or by its name: those here are recipes/mine.yaml; known are folder_dit" in told
    told = refused(capsys, "fit", "--config", recipe, "--trainer.logger=CSVLogger")
    assert told.endswith("CSVLogger needs save_dir; give it by --trainer.logger.save_dir=...")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    told = refused(capsys, "fit", "--config", recipe, "--trainer.logger=WandbLogger")
    assert "a part of this recipe cannot be imported" in told
    assert not list(tmp_path.glob("mlflow.db"))
    told = refused(capsys, "sample", "--ckpt", "x.ckpt", "--prompt", "a", "--seeds", "3")
    assert "unrecognized arguments: --seeds 3; did you mean --seed" in told
    assert told.endswith("see `lightning-sora sample --help`")


def test_a_fit_ends_with_where_things_are_and_a_next_command_that_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": {
            "class_path": "LitDiT",
            "init_args": {"vae": "identity", "dit": {"patch_size": [4, 8, 8], "dim": 16, "depth": 1, "num_heads": 2},
                          "text": "bytes(dim=8, depth=1, num_heads=1)", "sampling": {"steps": 2}},
        },
        "data": {"class_path": "SpacetimeDataModule", "init_args": {
            "source": "world(level='tiny', clips=4, heldout_clips=4)", "frames": 5, "height": 16, "width": 16}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0},
    }  # fmt: skip
    Path("mine.yaml").write_text(f"# What mine is for.\n{yaml.safe_dump(recipe)}")
    assert main(["fit", "--config", "mine.yaml", "--model.dit.dim=32", "--trainer.max_steps", "2"]) == 0
    checkpoints, run, after = capsys.readouterr().err.splitlines()[-3:]
    assert checkpoints.startswith("checkpoints: outputs/mine/checkpoints: ")
    assert "last.ckpt" in checkpoints
    assert run.endswith(f"in sqlite:///{tmp_path}/mlflow.db; `lightning-sora ui` shows it")
    assert after == "next: lightning-sora test --config mine.yaml --model.dit.dim=32 --ckpt_path last"
    assert main(shlex.split(after.removeprefix("next: lightning-sora "))) == 0
    after = capsys.readouterr().err.splitlines()[-1]
    assert after == "next: lightning-sora sample --ckpt outputs/mine/checkpoints/last.ckpt --prompt 'A PROMPT'"
    assert main(shlex.split(after.removeprefix("next: lightning-sora "))) == 0
    (found,) = connect(resolve_uri()).search_runs(["1"])
    assert found.info.run_name.startswith("mine-dim=32,max_steps=2-seed0-")
    assert "`model.dit.dim=32`" in found.data.tags["mlflow.note.content"]
    assert "What mine is for." in found.data.tags["mlflow.note.content"]
    # The flags of the fit, forgotten: one that does not fit, and one that nothing else would tell.
    told = refused(capsys, "test", "--config", "mine.yaml", "--ckpt_path=last")
    assert told.endswith(
        "does not fit the model of this recipe: it was trained with --model.dit.dim=32; add that, or give --config "
        "outputs/mine/fit.yaml"
    )
    with caplog.at_level(logging.WARNING, "lightning_sora"):
        flags = ("--model.dit.dim=32", "--model.dit.attention=spatial", "--ckpt_path=last")
        assert main(["validate", "--config", "mine.yaml", *flags]) == 0
        assert "was trained with" not in caplog.text
        Path("other.yaml").write_text(
            Path("mine.yaml").read_text().replace("dim: 16", "dim: 32\n      attention: spatial")
        )
        assert main(["validate", "--config", "other.yaml", "--ckpt_path=outputs/mine/checkpoints/last.ckpt"]) == 0
        assert (
            "was trained with --model.dit.attention=full; add that, or give --config outputs/mine/fit.yaml"
            in caplog.text
        )
    # Run again as it is recorded, it refuses other weights than those of the record.
    recorded = yaml.safe_load(Path("outputs/mine/fit.yaml").read_text())
    recorded["tracking"]["lineage"]["vae.hash"] = "0123456789abcdef"
    Path("again.yaml").write_text(yaml.safe_dump(recorded))
    assert "this recipe was recorded with vae.hash=0123456789abcdef, but" in refused(
        capsys, "fit", "--config", "again.yaml"
    )
