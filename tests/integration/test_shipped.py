"""What comes with the package: recipes by name, and a folder to start a study from."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lightning_sora as ls
from lightning_sora import shipped
from lightning_sora.ablation.plan import read_plan
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.new import new_study
from lightning_sora.recipe.files import recipe_files
from lightning_sora.recipe.recipe import Recipe
from lightning_sora.shipped import FOLDER, MODEL, MODELS, model_path, recipe_path, shipped_recipes
from lightning_sora.specs import Spec
from lightning_sora.testbench.adherence import FACTS, agreement, asked_codes, read_codes
from lightning_sora.testbench.evaluator.reading import load_evaluator
from lightning_sora.world import LEVELS

ROOT = Path(__file__).parents[2]


def test_recipes_of_the_checkout_come_with_the_package() -> None:
    for kind in ("", "ablations"):
        assert shipped_recipes(kind) == sorted(file.stem for file in (ROOT / "recipes" / kind).glob("*.yaml"))


def test_a_name_is_that_of_a_shipped_recipe_unless_something_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_path("world_dit") == FOLDER / "world_dit.yaml"
    assert recipe_path("attention", "ablations") == FOLDER / "ablations" / "attention.yaml"
    for own in ("world_dit.yaml", "mine/world_dit", "mine"):
        assert recipe_path(own) == Path(own)
    (tmp_path / "world_dit").touch()
    assert recipe_path("world_dit") == Path("world_dit")
    with pytest.raises(SoraError, match="no recipe at world_pixel, and none is called so; did you mean 'world_pixels'"):
        recipe_files(["--config", "world_pixel"])
    assert Recipe.load("world_pixels").options("data")["frames"] == 17
    assert read_plan(Path("attention")).base.name == "world_duo.yaml"


def test_a_new_study_runs_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_study"]) == 0
    told = capsys.readouterr()
    assert told.out.split() == [
        f"my_study/{name}" for name in ("README.md", "block.py", "recipe.yaml", "ablation.yaml")
    ]
    assert told.err.splitlines() == ["next: lightning-sora list attention --check my_study/block.py"]
    assert len((tmp_path / "my_study" / "README.md").read_text().splitlines()) == 6
    monkeypatch.chdir(tmp_path / "my_study")
    with ls.ATTENTION.temporary():
        small = ["--data.source=world(level='tiny', clips=8, heldout_clips=8)", "--data.batch_size=2"]
        small += ["--model.dit.dim=32", "--model.dit.depth=1", "--model.dit.num_heads=2", "--model.prompts=[]"]
        small += ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
        small += ["--evaluation.extractor=null", "--evaluation.clip_model=null"]
        assert main(["fit", "--config", "world_pixels", "--config", "recipe.yaml", *small]) == 0
        plan = read_plan(Path("ablation.yaml"))
        assert (plan.name, list(plan.arms)) == ("my_study", ["full", "mine"])
    with pytest.raises(SoraError, match="is there already; give a new folder"):
        new_study(tmp_path / "my_study")
    with pytest.raises(SoraError, match="'a b' is no name for a study"):
        new_study(tmp_path / "a b")


def test_where_no_model_comes_with_the_package_one_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "MODELS", tmp_path / "pretrained")
    for command in (["sample", "--prompt", "a red cube"], ["export", "--out", "served"]):
        assert main(command) == 2
        assert "no model is named, and none comes with this version; give the path of one" in capsys.readouterr().err
    model = ls.LatentDiffusion.create(
        "identity", dit={"patch_size": (1, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}, sampling={"steps": 2}
    )
    model.save(tmp_path / "pretrained" / shipped.MODEL)
    assert main(["sample", "--prompt", "a red cube", "--frames", "3", "--device", "cpu"]) == 0
    files = capsys.readouterr().out.split()
    assert Path(files[0]) == Path("samples/prompts/000_a-red-cube_seed0.mp4")
    assert torch.equal(ls.load(shipped.MODEL, "cpu").sample("a", 1, 8, 8), model.sample("a", 1, 8, 8))
    (tmp_path / shipped.MODEL).mkdir()  # what is here comes first
    assert shipped.model_path(shipped.MODEL) == Path(shipped.MODEL)


def test_the_model_that_comes_with_the_package_is_whole_and_small() -> None:
    folder = model_path(MODEL)
    assert folder == MODELS / "world64"
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert set(files) == {"CARD.md", "model.json", "dit.safetensors", "text.safetensors", "vae.safetensors"}
    assert sum(size for name, size in files.items() if name.endswith(".safetensors")) <= 16e6
    model = ls.load(MODEL, "cpu")
    card = (folder / "CARD.md").read_text()
    assert model.fingerprint() in card
    assert model.vae_hash in card
    assert model.vae_hash == model.vae.fingerprint()
    trained = Recipe.load("world64").options("model")
    for name in ("dim", "depth", "num_heads", "attention"):
        assert model.config["dit"][name] == trained["dit"][name]
    assert model.config["sampling"]["guidance"] == trained["sampling"]["guidance"]
    assert model.config["sampling"]["rope"] == trained["sampling"]["rope"]
    assert set(model.tasks) == set(trained["diffusion"]["tasks"])
    assert (*model.seen_sizes.native, model.seen_sizes.fps) == (17, 64, 64, 8.0)


@pytest.mark.slow
def test_it_makes_what_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Far from the figures of its card, which are of many clips; by chance a fifth is right."""
    mixture = Spec.parse(Recipe.load("world64").options("data")["source"])
    overrides = Spec.parse(mixture.options["sources"]["simple"]).options["overrides"]
    world = ls.World(replace(LEVELS["simple"], **overrides), seed=5, split="heldout")
    facts = [world.facts(index) for index in range(8)]
    model = ls.load(MODEL, "cpu")
    made = model.sample([world.caption(one) for one in facts], seed=1)
    found = load_evaluator().read(made, [8.0] * len(made))
    shares = agreement(read_codes(found), asked_codes([one.as_dict() for one in facts])).mean(dim=0)
    named = dict(zip(FACTS, shares.tolist(), strict=True))
    assert min(named[name] for name in ("color", "shape", "camera")) >= 0.5, named
    assert not caplog.records  # the text encoder knows every word
    model.sample("a red zeppelin", seed=1, steps=1)
    assert "not trained on 'zeppelin'" in caplog.text


@pytest.mark.release
def test_a_wheel_works_outside_of_the_checkout(tmp_path: Path) -> None:
    """Built and unpacked elsewhere; the packages that it needs are those of this environment."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if name.startswith(("lightning_sora", "recipes", "pyproject", "README", "LICENSE")):
            target = tmp_path / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                target.symlink_to(os.readlink(ROOT / name))
            else:
                target.write_bytes((ROOT / name).read_bytes())
    uv = [str(Path(sys.executable).parent / "uv"), "--quiet"]
    subprocess.run(
        [*uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", "dist", "source"],
        cwd=tmp_path, check=True, timeout=300,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([*uv, "pip", "install", "--no-deps", "--target", "site", str(wheel)], cwd=tmp_path, check=True)
    assert sorted(file.stem for file in tmp_path.glob("site/lightning_sora/recipes/sora_tasks/*.yaml")) == sorted(
        file.stem for file in (ROOT / "recipes" / "sora_tasks").glob("*.yaml")
    )
    (tmp_path / "work").mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lightning_sora.cli", *command],
            cwd=tmp_path / "work", env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert "image_to_video" in run("list", "task")
    small = (
        "--data.source=world(level='tiny', clips=16, heldout_clips=8)",
        "--trainer.max_steps=1",
        "--model.prompts=[]",
    )
    run("fit", "--config", "world_pixels", *small, "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu")
    run("new", "my_study")
    run("sample", "--prompt", "a red ball rolls behind a blue cube while the camera pans left", "--device", "cpu")
    assert {file.suffix for file in (tmp_path / "work" / "samples").rglob("*.*")} == {".mp4", ".gif", ".json", ".png"}
    run("sample", "--ckpt", "outputs/world_pixels", "--prompt", "a red cube", "--out", "made", "--device", "cpu")
    assert {file.suffix for file in (tmp_path / "work" / "made").iterdir()} == {".mp4", ".gif", ".json", ".png"}
