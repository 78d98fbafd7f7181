"""The lab end to end, small: fit a VAE, fit a DiT on it, test, sample; what mlflow knows; running it again."""

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from lightning_sora.cli import main
from lightning_sora.lit import LitDiT, LitVAE
from tests.integration.conftest import VAE

RECIPES = Path(__file__).parents[2] / "recipes"
SIZE = ["--data.frames=5", "--data.height=16", "--data.width=16", "--data.batch_size=4"]
WORLD = ["--data.source=world(level='tiny', clips=16, heldout_clips=4)", *SIZE]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
STEPS = ["--trainer.max_steps=24", "--trainer.val_check_interval=24", "--trainer.log_every_n_steps=1", *QUIET]
SMALL_VAE = [f"--model.vae={VAE}"]
SMALL_DIT = [
    "--model.dit.dim=16",
    "--model.dit.depth=1",
    "--model.dit.num_heads=2",
    "--model.text=bytes(dim=8, depth=1, num_heads=1)",
    "--model.sampling.steps=2",
]
# Half a second is too short for the evaluator to read: judged only where clips are longer.
UNJUDGED = ["--evaluation.extractor=null", "--evaluation.clip_model=null"]
VAE_FIT = ["fit", f"--config={RECIPES}/world_vae.yaml", *WORLD, *STEPS, *SMALL_VAE, "--evaluation.extractor=null"]
DIT_FIT = ["fit", f"--config={RECIPES}/world_dit.yaml", *WORLD, *STEPS, *SMALL_DIT, *UNJUDGED]
JUDGED = [
    "--data.source=world(level='tiny', clips=16, heldout_clips=20)",
    "--data.frames=9",
    "--evaluation.extractor=world",
    "--evaluation.clip_model=world",
]
DIT_TEST = ["test", *DIT_FIT[1:], *JUDGED, "--ckpt_path=last"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which everything was run once."""
    root = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(VAE_FIT) == 0
        assert main(DIT_FIT) == 0
        assert main(DIT_TEST) == 0
    return root


@pytest.fixture
def client(lab: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(lab)
    return MlflowClient(f"sqlite:///{lab}/mlflow.db")


def runs_of(client: MlflowClient) -> tuple[Run, Run]:
    experiment = client.get_experiment_by_name("world")
    assert experiment is not None
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)
    return runs[0], runs[1]


def artifacts(client: MlflowClient, run: Run, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in client.list_artifacts(run.info.run_id, folder):
        found |= artifacts(client, run, item.path) if item.is_dir else {item.path}
    return found


def test_mlflow_holds_metrics_gallery_checkpoints_and_lineage(client: MlflowClient) -> None:
    vae, dit = runs_of(client)
    assert {"val/psnr", "val/ssim", "train/kl", "train/active_channels", "kl/val_channel_00"} <= set(vae.data.metrics)
    assert {"val/loss", "val/loss_t0", "test/loss", "test/adherence_color"} <= set(dit.data.metrics)
    judged = {"fvd", "fvd_low", "fvd_high", "fvd_small_sample_bias", "rfvd", "kvd", "clip_score", "identity"}
    assert {f"test/{name}" for name in judged} <= set(dit.data.metrics)
    assert dit.data.metrics["test/fvd"] > dit.data.metrics["test/fvd_small_sample_bias"]
    assert dit.data.tags["vae.run_id"] == vae.info.run_id
    assert dit.data.tags["vae.hash"] == LitVAE.load("outputs/world_vae/checkpoints/last.ckpt").vae.fingerprint()
    assert dit.data.params["model.dit.attention"] == "full"
    kept = artifacts(client, dit)
    assert {"recipe/fit.yaml", "samples/test/contact_sheet.png", "samples/step_000024/00.gif"} <= kept
    assert any(path.endswith("last.ckpt") for path in kept)
    assert (vae.info.status, dit.info.status) == ("FINISHED", "FINISHED")


def test_the_gallery_shows_every_prompt(lab: Path) -> None:
    prompts = yaml.safe_load((RECIPES / "world_dit.yaml").read_text())["model"]["init_args"]["prompts"]
    folder = lab / "outputs/world_dit/samples/test"
    assert len(list(folder.glob("*.gif"))) == len(list(folder.glob("*.mp4"))) == len(prompts)
    with Image.open(folder / "00.gif") as gif:
        assert gif.size == (64, 64)  # 16 pixels, four times as large
    with av.open(str(folder / "00.mp4")) as mp4:
        assert sum(1 for _ in mp4.decode(video=0)) == 5


def losses(client: MlflowClient, run: Run) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]


def test_the_stored_recipe_run_again_gives_the_same_losses(client: MlflowClient, lab: Path, tmp_path: Path) -> None:
    _, first = runs_of(client)
    recipe = client.download_artifacts(first.info.run_id, "recipe/fit.yaml", str(tmp_path))
    flags = ["--tracking.experiment=again", f"--trainer.default_root_dir={tmp_path}/out"]
    assert main(["fit", f"--config={recipe}", *flags]) == 0
    experiment = client.get_experiment_by_name("again")
    assert experiment is not None
    (second,) = client.search_runs([experiment.experiment_id])
    assert len(losses(client, first)) >= 20
    assert losses(client, first)[:20] == losses(client, second)[:20]
    assert first.data.metrics["val/loss"] == second.data.metrics["val/loss"]


def test_sample_writes_what_was_asked_for(client: MlflowClient, tmp_path: Path) -> None:
    checkpoint = "--ckpt=outputs/world_dit/checkpoints/last.ckpt"
    size = ["--frames=9", "--height=16", "--width=32"]
    assert main(["sample", checkpoint, "--prompt=a red cube", *size, f"--out={tmp_path}"]) == 0
    (mp4,) = tmp_path.rglob("*.mp4")
    (gif,) = tmp_path.rglob("*.gif")
    with av.open(str(mp4)) as video:
        frames = list(video.decode(video=0))
        assert len(frames) == 9
        assert frames[0].width / frames[0].height == pytest.approx(32 / 16)
    with Image.open(gif) as image:
        assert image.width / image.height == pytest.approx(32 / 16)


def test_a_sample_depends_on_its_seed_and_prompt_alone(lab: Path) -> None:
    model = LitDiT.load(lab / "outputs/world_dit/checkpoints/last.ckpt")
    alone = model.sample(["a blue cone"], seed=3, keys=[("k",)])[0]
    among = model.sample(["a red cube", "a blue cone"], seed=3, keys=[("other",), ("k",)])[1]
    assert (alone.int() - among.int()).abs().max() <= 1  # another batch size may round another way
    other = model.sample(["a blue cone"], seed=4, keys=[("k",)])[0]
    assert not torch.equal(alone, other)


def test_a_checkpoint_holds_its_vae(lab: Path) -> None:
    """A DiT samples without the checkpoint of the VAE that it was trained on."""
    model = LitDiT.load(lab / "outputs/world_dit/checkpoints/last.ckpt")
    original = LitVAE.load(lab / "outputs/world_vae/checkpoints/last.ckpt")
    assert model.model.vae.fingerprint() == original.vae.fingerprint()
    assert not torch.equal(model.model.vae.latent_std, torch.ones_like(model.model.vae.latent_std))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--config=nowhere.yaml"], ["no recipe at nowhere.yaml"]),
        ([*DIT_FIT, "--model.atention=full"], ["atention", "did you mean model.dit.attention"]),
        ([*DIT_FIT, "--model.dit.atention=full"], ["did you mean model.dit.attention", "accepted in model.dit"]),
        ([*DIT_FIT, "--model.depth=3"], ["in a group of options; write model.dit.depth"]),
        ([*DIT_FIT, "--model.attention=full"], ["of the package's own it is model.dit.attention"]),
        ([*DIT_FIT, "--model.dit.attention=fulll"], ["fulll", "did you mean 'full'"]),
        ([*DIT_FIT, "--data.frames=6"], ["frames=6", "5 or 9"]),
        ([*DIT_FIT, "--data.patch=[4,4,4]"], ["data.patch=[4, 4, 4]", "set data.patch to [4, 16, 16]"]),
        ([*DIT_FIT, "--model.vae=missing.ckpt"], ["no checkpoint at missing.ckpt"]),
        ([*DIT_FIT, "--model.vae=causal_conv"], ["without its weights", "spec:causal_conv"]),
        ([*DIT_FIT, "--model.vae=mlflow.db"], ["mlflow.db cannot be read as a checkpoint"]),
        ([*DIT_FIT, "--model.vae=outputs/world_dit/checkpoints/last.ckpt"], ["holds a LitDiT, not a LitVAE"]),
        ([*DIT_FIT, "--data.source=folder"], ["root"]),
        ([*DIT_FIT, "--data.source=world(levl=3)"], ["does not accept 'levl'"]),
        ([*DIT_FIT, "--model.optimizer=mouon"], ["unknown optimizer 'mouon'", "muon"]),
        ([*DIT_FIT, "--model.optimizer=muon(lrr=1)"], ["does not accept 'lrr'"]),
        (
            ["sample", "--ckpt=outputs/world_dit/checkpoints/last.ckpt", "--prompt=x", "--guidance=nan"],
            ["guidance=nan", "finite"],
        ),
        (["sample", "--ckpt=missing.ckpt", "--prompt=x"], ["no checkpoint at missing.ckpt"]),
        (
            ["sample", "--ckpt=outputs/world_dit/checkpoints/last.ckpt", "--prompt=x", "--height=30"],
            ["height=30", "16 or 32"],
        ),
    ],
)
def test_mistakes_end_in_one_clear_line(
    client: MlflowClient, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*.ckpt")}
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
    assert error.startswith("lightning-sora: error:")
    after = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*.ckpt")}
    assert before == after, "a mistake changed a checkpoint"


def test_peak_memory_and_speed_are_recorded(client: MlflowClient) -> None:
    _, dit = runs_of(client)
    assert dit.data.metrics["speed/tokens_per_s"] > 0
    assert 0.1 < dit.data.metrics["speed/peak_memory_gib"] < 24
    json.dumps(dit.data.metrics)


def test_every_recipe_parses_as_it_stands(lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(lab)
    for recipe in sorted(RECIPES.glob("*.yaml")):
        flags = ["--data.root=/somewhere"] if recipe.stem.startswith("folder") else []
        assert main(["fit", f"--config={recipe}", *flags, "--print_config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["trainer"]["max_steps"] > 0
