"""What lightning cannot do, or would do otherwise: one line before anything is run, or it runs as it was asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import FSDPPrecision

from lightning_sora.cli import main
from lightning_sora.lit.precision import convert_weights_alone
from lightning_sora.testbench.prompts import PromptBatch
from tests.integration.conftest import SOURCE, make_data

RECIPE = {
    "model": {
        "class_path": "LitDiT",
        "init_args": {
            "vae": "identity",
            "text": "bytes(dim=8, depth=1, num_heads=1)",
            "dit": {"patch_size": [4, 8, 8], "dim": 16, "depth": 1, "num_heads": 2},
            "sampling": {"steps": 2},
            "schedule": "constant",
            "ema_decay": 0.5,
        },
    },
    "data": {
        "class_path": "SpacetimeDataModule",
        "init_args": {
            "source": SOURCE.format(clips=8),
            "frames": 5,
            "height": 16,
            "width": 16,
            "fps": 8,
            "batch_size": 4,
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "tracking": {"enabled": False},
}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command on a small recipe; its status and the line that it ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-sora"])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))

    def run(*flags: str, name: str = "fit") -> tuple[int, str]:
        status = main([name, "--config", "small.yaml", *flags])
        told = capsys.readouterr().err
        assert "Traceback" not in told
        lines = [line for line in told.splitlines() if line.startswith("lightning-sora: error: ")]
        return status, "\n".join(lines)

    return run


def scores() -> dict[str, list[float]]:
    """Of each clip in the last validation."""
    read = json.loads(Path("outputs/small/clips/val.json").read_text())["scores"]
    return {name: list(values.values()) for name, values in read.items()}


@pytest.mark.slow
def test_double_and_half_precision_train_what_single_does(command):
    told = {}
    for precision in ("32", "64", "bf16-true"):
        assert command(f"--trainer.precision={precision}") == (0, "")
        told[precision] = scores()
        weights = torch.load("outputs/small/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        kind = {"32": torch.float32, "64": torch.float64, "bf16-true": torch.bfloat16}[precision]
        assert {value.dtype for value in weights.values()} == {kind}
    for name, values in told["32"].items():
        assert told["64"][name] == pytest.approx(values, rel=1e-5)
        assert told["bf16-true"][name] == pytest.approx(values, rel=0.02)
    assert command("--trainer.precision=bf16-true", "--ckpt_path=last", name="test") == (0, "")
    assert command("--trainer.precision=64", "--ckpt_path=last", name="predict") == (0, "")


def test_batches_pass_sharded_precision_whole():
    (batch, *_) = make_data().loader("train")
    plugin = FSDPPrecision("bf16-true")
    with pytest.raises(ValueError, match="frozen dataclass"):
        plugin.convert_input(batch)
    convert_weights_alone(plugin)
    assert plugin.convert_input(batch) is batch
    pairs = PromptBatch(("a",), ("b",), ("c",))
    assert plugin.convert_input(pairs) is pairs
    assert plugin.convert_input([torch.ones(2)])[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*precision=.?16")  # lightning warns, and this package refuses
@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("trainer.precision=16-mixed", "does not run on this cpu; set trainer.precision=bf16-mixed"),
        ("trainer.precision=16", "trainer.precision=16 does not run on this cpu"),
        ("trainer.precision=transformer-engine", "precision=transformer-engine: Requirement 'transformer_engine"),
        ("trainer.precision=8", "trainer.precision: expected one of 64, 32, 16, transformer-engine"),
        ("trainer.strategy=fsdp", "strategy=fsdp"),
        ("trainer.strategy=fsdp2", "trainer.strategy='fsdp2' is not known; did you mean fsdp"),
        ("trainer.strategy=lightning.pytorch.strategies.DDPStrategy", "trainer.strategy.class_path"),
        ("trainer.strategy=nonsense", "trainer.strategy='nonsense' is not known; known: auto, ddp"),
        ("trainer.strategy=deepspeed", "must have DeepSpeed installed"),
        ("trainer.accelerator=cpuu", "trainer.accelerator='cpuu' is not known; did you mean cpu"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu"),
        ("trainer.devices=two", "trainer.devices=two"),
        ("trainer.devices=-1", "trainer.devices=-1"),
        ("trainer.devices=0", "trainer.devices=0"),
        ("trainer.devices=[0]", "trainer.devices="),
        ("trainer.num_nodes=0", "trainer.num_nodes=0"),
        ("trainer.barebones=true", "trainer.barebones=true allows neither checkpoints"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 must be at least 1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be at least 0"),
        ("trainer.val_check_interval=7", "val_check_interval"),
        ("model.dit.dim=null", "model.dit.dim: expected int, but got 'None'"),
        ("model.sampling.guidance=null", "model.sampling.guidance=null, but SamplingConfig takes float or str; leave"),
        ("model.dit.attention=null", "model.dit.attention=null, but DiTConfig takes str or list[str]; leave it out"),
        ("model.seed=null", "model.seed=null, but LitDiT takes int; leave it out for its default, 0"),
        ("model.dit=null", "model.dit"),
        ("model.diffusion.weigh=clips", "model.diffusion.weigh: expected one of clip, token, batch, but got 'clips'"),
        ("data.frames=null", "data.frames=null, but SpacetimeDataModule takes int"),
        ("data.seed=null", "data.seed=null"),
    ],
)  # fmt: skip
def test_what_lightning_or_a_part_cannot_take_is_one_line(command, flag, told):
    status, line = command(f"--{flag}")
    assert status == 2
    assert told in line


def test_devices_that_would_lie_idle_are_refused(command):
    status, line = command("--trainer.devices=2", "--trainer.strategy=single_device")
    assert status == 2
    assert "trainer.devices=2, but SingleDeviceStrategy uses 1" in line


@pytest.mark.parametrize("name", ["-", "-c", ""])
def test_ranks_that_have_no_script_to_run_are_refused(command, monkeypatch, name):
    monkeypatch.setattr("sys.argv", [name])
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    status, line = command("--trainer.devices=2")
    assert status == 2
    assert f"2 ranks are started by running the same script once for each, but {name!r} is no file" in line


def test_no_prompts_are_no_gallery(command):
    assert command("--model.prompts=null") == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_folder_to_go_on_from_names_the_checkpoints_in_it(command, name):
    assert command() == (0, "")
    status, line = command("--ckpt_path", "outputs/small", name=name)
    assert status == 2
    assert "outputs/small is a folder and no sharded checkpoint; it holds outputs/small/checkpoints/best.ckpt" in line
    Path("sharded").mkdir()
    Path("sharded/meta.pt").touch()
    status, line = command("--ckpt_path", "sharded", name=name)
    assert status == 2
    assert "sharded is a sharded checkpoint, which SingleDeviceStrategy cannot read; set trainer.strategy" in line
