"""A folder of real videos trains, tests and samples without hand editing; what cannot be read is reported."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from lightning_sora import media
from lightning_sora.cli import main
from tests.integration.conftest import VAE
from tests.integration.test_lab import QUIET, RECIPES, SMALL_DIT

STEPS = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1", *QUIET]
SIZE = ["--data.frames=9", "--data.height=32", "--data.width=32", "--data.batch_size=2", "--data.num_workers=0"]


def moving_square(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    video = torch.randint(60, 90, (frames, height, width, 3), generator=torch.Generator().manual_seed(seed))
    for t in range(frames):
        x = int(t / frames * (width - 16))
        video[t, 8:24, x : x + 16, seed % 3] = 250
    return video.to(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of several containers, sizes and rates, one still, and one cut short."""
    root = tmp_path_factory.mktemp("clips")
    captions = {}
    for index, (height, width, fps) in enumerate([(48, 64, 8), (64, 48, 25), (33, 71, 12.5), (120, 160, 30)]):
        name = f"square_{index}.mp4"
        media.write_mp4(root / name, moving_square(int(2 * fps), height, width, index), fps)
        captions[name] = f"a square moves right, number {index}"
    media.write_gif(root / "square.gif", moving_square(16, 40, 40, 5), 10)
    captions["square.gif"] = "a square in a gif"
    media.write_image(root / "still.png", moving_square(2, 40, 56, 6)[0])
    captions["still.png"] = "a still of a square"
    whole = (root / "square_3.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


def run_all(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """fit VAE, fit DiT, test, sample: the folder recipes with nothing but smaller sizes."""
    monkeypatch.chdir(out)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = [f"--data.root={root}", *SIZE, *STEPS]
    assert main(["fit", f"--config={RECIPES}/folder_vae.yaml", *data, f"--model.vae={VAE}"]) == 0
    dit = [f"--config={RECIPES}/folder_dit.yaml", *data, *SMALL_DIT]
    assert main(["fit", *dit]) == 0
    assert main(["test", *dit, "--ckpt_path=last"]) == 0
    checkpoint = "outputs/folder_dit/checkpoints/last.ckpt"
    assert main(["sample", f"--ckpt={checkpoint}", "--prompt=a square moves right", f"--out={out}/made"]) == 0
    assert list((out / "made").rglob("*.mp4"))
    return MlflowClient(f"sqlite:///{out}/mlflow.db")


def test_a_folder_of_clips_goes_all_the_way(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = run_all(folder, tmp_path, monkeypatch)
    experiment = client.get_experiment_by_name("folder")
    assert experiment is not None
    metrics = {k: v for run in client.search_runs([experiment.experiment_id]) for k, v in run.data.metrics.items()}
    assert {"val/psnr", "val/loss", "test/loss"} <= set(metrics)
    assert not any("adherence" in name for name in metrics), "nothing is known of real clips that could be judged"


def test_data_check_names_the_damaged_file_and_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "cut.mp4" in printed
    assert "still.png" not in printed.split("cut.mp4")[0]
