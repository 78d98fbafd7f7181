"""The testbench is anybody's plugin: its parts are there because a package offers them, and nothing needs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_sora as ls
from lightning_sora import media, plugins
from lightning_sora.errors import SoraError
from lightning_sora.lit.captioner import LitCaptioner
from lightning_sora.lit.captioners import CAPTIONERS
from lightning_sora.lit.expander import LitExpander
from lightning_sora.metrics.asked import default_metrics
from lightning_sora.metrics.base import METRICS
from lightning_sora.recipe.classes import find_class
from lightning_sora.registry import Registry

ITS_PARTS = {
    "caption_score": {"facts"},
    "expansion_score": {"facts"},
    "captioner": {"facts"},
    "extractor": {"world"},
    "metric": {
        "adherence",
        "depth_error",
        "identity",
        "parallax_error",
        "permanence",
        "trajectory_error",
        "world_warping_error",
    },
    "source": {"world", "worlds"},
}


def of_the_testbench(registry: Registry) -> set[str]:
    made_by = {name: registry.builder(name).__module__ for name in registry.list()}
    return {name for name, module in made_by.items() if module.startswith("lightning_sora.testbench")}


def test_its_parts_are_listed_beside_all_others() -> None:
    found = {kind: of_the_testbench(registry) for kind, registry in ls.registries().items()}
    assert {kind: names for kind, names in found.items() if names} == ITS_PARTS


def test_a_package_that_two_folders_of_metadata_name_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "offered_twice.py").write_text(
        "from lightning_sora.metrics.base import METRICS\nfrom lightning_sora.metrics.fidelity import PSNR\n\n\n"
        "@METRICS.register('offered_twice')\nclass Offered(PSNR):\n    '''Offered.'''\n"
    )
    for name in ("one", "two"):
        told = tmp_path / f"{name}-0.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
        (told / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = offered_twice\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._offered.cache_clear()
    try:
        with METRICS.temporary():
            assert "offered_twice" in METRICS.list()
            plugins.load_packages()
    finally:
        plugins._offered.cache_clear()


def test_texts_are_not_scored_where_nothing_knows_what_they_should_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_sora.metrics.texts import CAPTION_SCORES, EXPANSION_SCORES

    for registry in (CAPTION_SCORES, EXPANSION_SCORES):
        monkeypatch.setattr(registry, "_builders", {})
    assert LitCaptioner(dim=16, depth=1, decoder_depth=1, num_heads=2).facts is None
    assert LitExpander(dim=16, depth=1, num_heads=2).scores is None


def test_facts_of_another_source_are_not_taken_for_those_of_the_world() -> None:
    from lightning_sora.metrics.texts import CAPTION_SCORES, TextScores

    scores = TextScores.of(CAPTION_SCORES)
    assert scores is not None
    assert scores.add_texts(["a red cube"], [{"camera make": "none"}], ["a"]) == {"fact_all": ([], [])}


def test_a_class_is_found_by_its_name_wherever_it_lives(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    assert find_class("LitEvaluator", pl.LightningModule) is ls.LitEvaluator
    assert find_class("PromptDataModule", pl.LightningDataModule) is ls.PromptDataModule
    for old in ("lightning_sora.lit.evaluator.LitEvaluator", "lightning_sora.lit.LitEvaluator"):
        with pytest.raises(SoraError, match="did you mean LitEvaluator"):
            find_class(old, pl.LightningModule)


def test_a_part_comes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "facts").mkdir()
    monkeypatch.chdir(tmp_path)
    assert CAPTIONERS.resolve("facts").name == "facts"
    assert CAPTIONERS.resolve("./facts").name == "run"


def test_metrics_of_the_world_are_taken_where_none_are_named() -> None:
    assert "adherence" in default_metrics(None, None, ("generated", "real"))


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("lightning_sora.testbench", "lightning_sora.world")):
            raise ModuleNotFoundError(f"{name} is absent")

sys.meta_path.insert(0, Absent())
from lightning_sora import plugins
plugins._offered = lambda: ()
from lightning_sora.cli import main
from lightning_sora.data.sources import SOURCES
from lightning_sora.metrics.extractors import EXTRACTORS

recipe, sizes = sys.argv[1], sys.argv[2:]
assert main(["fit", f"--config={recipe}", *sizes, "--trainer.max_steps=1", "--trainer.val_check_interval=1"]) == 0
assert main(["test", f"--config={recipe}", *sizes, "--ckpt_path=last"]) == 0
scored = "--metrics", "fvd,motion_smoothness", "--extractor", "random(width=4, side=16)", "--frames", "9"
assert main(["score", "--real", "real", "--generated", "made", *scored, "--fps", "8", "--min-clips", "8"]) == 0
assert not {"world", "worlds"} & set(SOURCES.list()) and "world" not in EXTRACTORS.list()
assert not [name for name in sys.modules if name.startswith(("lightning_sora.testbench", "lightning_sora.world"))]
"""


@pytest.mark.slow
def test_without_it_the_package_trains_and_scores_on_folders(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for folder in ("real", "made"):
        (tmp_path / folder).mkdir()
        for index in range(8):
            video = torch.randint(0, 256, (9, 32, 32, 3), generator=draw, dtype=torch.uint8)
            media.write_mp4(tmp_path / folder / f"{index}.mp4", video, 8)
            (tmp_path / folder / f"{index}.txt").write_text(f"noise number {index}")
    recipe = Path(__file__).parents[2] / "recipes/world_pixels.yaml"
    sizes = [
        *("--data.source=folder", "--data.root=real", "--data.frames=9", "--data.batch_size=2"),
        *("--data.num_workers=0", "--model.dit.dim=32", "--model.dit.depth=1", "--model.dit.num_heads=2"),
        *("--model.sampling.steps=1", "--model.prompts=[]", "--model.text=words(dim=8, depth=1, num_heads=1)"),
        *("--evaluation.extractor=null", "--evaluation.clip_model=null", "--trainer.accelerator=cpu"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(recipe), *sizes], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
