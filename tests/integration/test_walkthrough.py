"""The README's walk-through of a block of one's own, as written, with smaller sizes only."""

import re
import shlex
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from lightning_sora.ablation.reader import read_study
from lightning_sora.cli import main
from lightning_sora.data.sources import SOURCES
from tests.annotations import plain_annotations
from tests.integration.conftest import VAE
from tests.integration.test_ablate import TINY

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECTION = README[README.index("## Swap a block") : README.index("## What you can do")]


def block(language: str, first: str) -> str:
    """The code block of a language that begins with a line."""
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL) if b.startswith(first)]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "my_block.py").write_text(block("python", "# my_block.py"))
    (tmp_path / "mine.yaml").write_text(block("yaml", "# mine.yaml"))
    return tmp_path


def test_the_walk_through(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check, fit, ablate = (shlex.split(line)[1:] for line in block("bash", "lightning-sora list").splitlines())
    sizes = {key: value for key, value in TINY.items() if not isinstance(value, list)}
    small = [*(f"--{k}={'null' if v is None else v}" for k, v in sizes.items()), "--model.prompts=[]"]
    # In an order in which each finds the block not yet known.
    with plain_annotations():
        assert main(check) == 0
    assert "16 checks" in capfd.readouterr().out

    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false"]
    assert main([*fit, *small, *steps]) == 0
    (source,) = (folder / "mlruns").rglob("plugins/my_block.py")
    assert source.read_text() == (folder / "my_block.py").read_text()

    assert main([*ablate, *small, "--trainer.max_steps=3", "--seeds=0"]) == 0
    printed = capfd.readouterr().out
    assert "mine(k=3)" in printed
    found = read_study(f"sqlite:///{folder}/mlflow.db", ["mine"])
    assert {t.arm for t in found.trials if t.finished} == {"full", "mine(k=3)"}
    assert "mine(k=3)" in (folder / "outputs/ablations/mine/report/index.html").read_text()


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
    assert main(["ablate", str(file), "--plan", *keys]) == 0
    assert "(baseline)" in capfd.readouterr().out
