"""The shipped ablation recipes: each can be planned."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from lightning_sora.cli import main
from lightning_sora.data.sources import SOURCES
from tests.host_toys import TEXT, host_folder
from tests.integration.conftest import VAE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


SMALL = "world(level='tiny', clips=32)"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.stem, marks=[] if file.stem == "attention" else pytest.mark.release)
        for file in sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
    ],
)
def test_every_ablation_recipe_can_be_planned(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "recipes" / "ablations" / f"{name}.yaml"
    ids = [info.id for info in SOURCES.create(SMALL, root=None, split="train", seed=0).infos]
    (folder / "outputs" / "captions").mkdir(parents=True)
    told = yaml.safe_load(file.read_text())
    arms = told["arms"]
    for table in [v for v in (arms.values() if isinstance(arms, dict) else []) if str(v).endswith(".parquet")]:
        columns = {"id": ids, "caption": [f"{table} {name}" for name in ids], "confidence": [1.0] * len(ids)}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / table)
    keys = [] if "before" in told else [f"--data.source={SMALL}"]
    if told["base"].endswith("world_dit.yaml") and keys:  # its VAE is trained before
        keys.append(f"--model.vae=spec:{VAE}")
    if told["base"].endswith("wan_lora.yaml"):  # of a folder that is not at hand
        network = f"--model.denoiser=diffusers(path={str(host_folder('wan', folder / 'wan'))!r})"
        keys += [network, f"--model.vae=spec:{VAE}", f"--model.text=bytes(dim={TEXT}, depth=1)", "--data.root=null"]
        keys += ["--data.frames=17", "--data.height=32", "--data.width=32", "--data.num_workers=0"]
    assert main(["ablate", str(file), "--plan", *keys]) == 0
    assert "(baseline)" in capfd.readouterr().out
