"""Recipes of the field's data sets: in miniature they train on folders that are made here, and sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_sora import media
from lightning_sora.cli import main
from tests.unit.test_field_sets import frames_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = [
    "--model.dit.dim=16", "--model.dit.depth=2", "--model.dit.num_heads=2", "--data.height=16", "--data.width=16",
    "--data.num_workers=0", "--data.batch_size=2", "--model.vae=identity", "--model.sampling.steps=2",
    "--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_steps=2",
    "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false", "--data.patch=[1,2,2]",
]  # fmt: skip


@pytest.mark.parametrize("name", ["ucf101_dit", "skytimelapse_dit"])
def test_a_recipe_trains_in_miniature_and_its_samples_have_the_length_of_the_protocol(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for number in range(6):
        if name == "ucf101_dit":
            file = tmp_path / "data" / "YoYo" / f"v_YoYo_g{number:02d}_c01.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            shades = torch.arange(60, dtype=torch.uint8)[:, None, None, None] * 3
            media.write_mp4(file, shades.expand(60, 24, 32, 3).contiguous(), 25.0)
        else:
            frames_of(tmp_path / "data" / "sky_train" / f"v{number}" / "1", 25, "f_{:08d}.png")
            for frame in range(25, 60):
                picture = torch.full((16, 24, 3), 4 * frame, dtype=torch.uint8)
                media.write_image(tmp_path / "data" / "sky_train" / f"v{number}" / "1" / f"f_{frame:08d}.png", picture)
    common = [f"--config={ROOT / 'recipes' / name}.yaml", "--data.root=data", *SMALL]
    assert main(["fit", *common]) == 0
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "yo yo" if "ucf" in name else "", "seed": 7}))
    assert main(["predict", *common, "--ckpt_path=last", "--prompts=rows.jsonl"]) == 0
    (made,) = tmp_path.rglob("predictions/rows/*.mp4")
    from lightning_sora.data import decode

    info = decode.probe(made)
    assert (info.frames, info.height, info.width) == (16, 16, 16)


@pytest.mark.parametrize("name", ["ucf101_dit", "skytimelapse_dit"])
def test_recipes_that_were_not_run_say_so_in_their_first_line(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    assert "Not run here" in text.splitlines()[0]
    assert "arXiv 2401.03048" in text
    told = yaml.safe_load(text)["data"]["init_args"]
    assert (told["frames"], told["height"], told["width"]) == (16, 256, 256)
    assert 25 / told["fps"] == pytest.approx(3, rel=1e-4)
