"""The tasks of a model: each score has its ceiling on true clips and its floor on controls, and the command runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.sora_tasks import capabilities, phyworld, scaling  # noqa: F401  (capabilities register themselves)
from benchmarks.sora_tasks.__main__ import KEYS, RECIPE, chosen, main
from benchmarks.sora_tasks.intervals import estimate, way
from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.options import read_options
from benchmarks.sora_tasks.protocol import CAPABILITIES, rolled
from benchmarks.sora_tasks.running import capability, judged, lines
from benchmarks.sora_tasks.scaling import fitted, optimal
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.errors import SoraError
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.spacetime import PatchSize, VideoSize
from lightning_sora.tasks import TASKS as TASK_REGISTRY
from lightning_sora.tasks.base import check_inputs

CLIPS, SEED = 4, 33  # of which colours, shapes, sizes and motions differ
#: Of the recipe, less what would be the same again.
TASKS = {
    "text": "text(world='simple')",
    "text_to_image": "text_to_image(world='simple')",
    "composition": "composition(world='simple')",
    "framing": "framing(world='simple', sizes=((48, 80),))",
    "image": "image(world='simple')",
    "first_and_last": "first_and_last(world='simple')",
    "forward": "forward(world='simple')",
    "backward": "backward(world='simple')",
    "connect": "connect(world='simple')",
    "interpolate": "interpolate(world='simple')",
    "loop": "loop(world='simple')",
    "edit": "edit(world='simple', strengths=(0.8,))",
    "geometry": "geometry(world='simple')",
    "permanence": "permanence(world='simple')",
    "length": "length(world='simple', times=(2,))",
    "inpaint": "inpaint(world='simple')",
    "outpaint": "outpaint(world='simple')",
    "law": "law(world='simple')",
    "collision": "collision(world='duo')",
}
WORLDS = {"simple": {"level": "simple"}, "duo": {"level": "duo"}}


@pytest.fixture(scope="module")
def true() -> dict[str, list[dict[str, Any]]]:
    """The lines of each task for true clips, without a VAE, and for controls of them."""
    judge, scene = Judge(), Scene(WORLDS, VideoSize(17, 48, 48), PatchSize(4, 8, 8), seed=SEED)
    found = {}
    for name, spec in TASKS.items():
        what = capability(spec, CLIPS)
        cases = what.cases(scene)
        clips = [what.completed(case, case.truth) for case in cases]
        of = {"ceiling": judged(what, judge, cases, clips), "floor": judged(what, judge, cases, clips, control=True)}
        found[name] = lines(what, cases, of, name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_true_clips_are_at_the_ceiling_and_controls_at_the_floor(name: str, true: Any) -> None:
    told = [line for line in true[name] if line["better"]]
    assert told
    for line in told:
        best, worst = line["ceiling"]["mean"], line["floor"]["mean"]
        what = f"{line['group']} {line['measure']}: {best:.3f}, control {worst:.3f}"
        if line["unit"] == "%":
            assert best > 0.7, what
            # A fact of two or three values is right by chance half of the time.
            assert best - worst >= (0.1 if line["measure"] in ("size", "whole") else 0.25), what
        elif line["unit"] == "dB":
            assert best - worst >= 10, what
        else:
            assert best < worst / 1.5, what


@pytest.mark.slow
def test_a_contrast_of_groups_is_told_case_by_case(true: Any) -> None:
    told = {line["measure"]: line for line in true["composition"] if not line["better"]}
    assert told["color"]["group"] == "held-out pairs less trained pairs"
    assert told["color"]["ceiling"]["mean"] == 0
    assert told["color"]["ceiling"]["clips"] == CLIPS


def test_every_capability_is_in_the_recipe_and_in_the_test_of_controls() -> None:
    recipe = read_options(RECIPE, KEYS, RECIPE)
    used = {spec.split("(")[0] for spec in chosen(recipe, []).values()}
    assert used == set(CAPABILITIES.list())
    assert used - {"language"} == {spec.split("(")[0] for spec in TASKS.values()}


@pytest.mark.parametrize("name", ["image", "first_and_last"])
@pytest.mark.parametrize("patch", [PatchSize(1, 8, 8), PatchSize(4, 8, 8)], ids=["frame by frame", "four frames"])
def test_the_truth_begins_and_ends_as_the_task_holds_what_is_given(name: str, patch: PatchSize) -> None:
    scene = Scene(WORLDS, VideoSize(9, 16, 16), patch)
    what = capability(TASKS[name], 2)
    for case in what.cases(scene):
        task = TASK_REGISTRY.create(case.task)
        given = task.given(case.size, patch, check_inputs(case.task, task, case.size, case.inputs))
        assert given is not None
        held = given.strength == 0
        assert torch.equal(given.video[held], case.truth[held])
        assert [t for t in range(9) if not held[t].any()] == list(case.made or ())
        shown = what.shown(case)
        assert shown is not None
        assert torch.equal(shown, torch.cat(list(case.inputs.values())))


def test_an_image_is_judged_by_what_an_image_tells() -> None:
    what = capability(TASKS["text_to_image"], CLIPS)
    cases = what.cases(Scene(WORLDS, VideoSize(17, 48, 48), PatchSize(4, 8, 8), seed=SEED))
    assert {tuple(case.truth.shape) for case in cases} == {(1, 48, 48, 3)}
    for one in what.judge(Judge(), cases, [case.truth for case in cases]):
        assert list(one) == ["color", "shape", "size", "mean", "all"]
        assert one["mean"] == (one["color"] + one["shape"] + one["size"]) / 3


def test_a_control_gives_no_case_its_own_clip() -> None:
    scene = Scene(WORLDS, VideoSize(2, 16, 16), PatchSize(1, 8, 8))
    cases = capability("composition(world='simple')", CLIPS).cases(scene)
    clips = [torch.full((1,), i) for i in range(len(cases))]
    for turn in range(4):
        other = [int(clip) for clip in rolled(cases, clips, turn)]
        assert sorted(other) == list(range(len(cases)))
        for i, k in enumerate(other):
            assert i != k
            assert cases[i].group == cases[k].group


def test_intervals_are_of_the_key_and_have_a_width_where_all_are_equal() -> None:
    values = [float(i % 3 == 0) for i in range(60)]
    one = estimate(values, "a", share=True)
    assert one == estimate(values, "a", share=True)
    assert one != estimate(values, "b", share=True)
    assert one is not None
    assert one.mean == pytest.approx(1 / 3)
    assert one.low < one.mean < one.high
    assert one.high - one.low == pytest.approx(2 * 1.96 * (2 / 9 / 60) ** 0.5, rel=0.15)
    every = estimate([1.0] * 20, "a", share=True)
    assert every is not None
    assert (every.mean, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(0.025 ** (1 / 20))
    same = estimate([0.0] * 20, "a", difference=True)
    assert same is not None
    assert (same.mean, same.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert same.low == -same.high
    assert estimate([], "a") is None
    assert way(3.0, 5.0, 1.0) == 0.5
    assert way(3.0, 1.0, 5.0) == 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = LatentDiffusion.create(
        "identity",
        text="bytes(dim=16, depth=1)",
        dit={"patch_size": (1, 4, 4), "dim": 16, "depth": 1, "num_heads": 2},
        sampling={"steps": 1, "guidance": 1.0},
    )
    made.seen_sizes.add([(9, 16, 16)], 8.0)
    return made.save(tmp_path_factory.mktemp("model") / "saved")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tasks = {
        **TASKS,
        "framing": "framing(world='simple', sizes=((16, 24),))",
        "rollout": "length(task='rollout', times=(1,))",
    }
    told = {"seed": 0, "captions": "short", "worlds": WORLDS, "tasks": tasks}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    return tmp_path / "tasks.yaml"


@pytest.mark.slow
def test_the_command_writes_the_table_and_goes_on_where_it_ended(
    model: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "out" / "page.md"
    common = ["--ckpt", str(model), "--recipe", str(recipe), "--clips", "2", "--out", str(page)]
    assert main([*common, "--only", "text", "loop"]) == 0
    assert set(json.loads(page.with_suffix(".json").read_text())["results"][0]) >= {"lines", "seconds", "control"}
    kept = (tmp_path / "out" / "page" / "loop.json").stat().st_mtime_ns
    assert main(common) == 0
    assert (tmp_path / "out" / "page" / "loop.json").stat().st_mtime_ns == kept
    text = page.read_text()
    for fact in ("fingerprint", "commit:", "torch:", "seconds:", "python -m benchmarks.sora_tasks --ckpt"):
        assert fact in text
    results = {r["name"]: r for r in json.loads(page.with_suffix(".json").read_text())["results"]}
    assert list(results) == list(yaml.safe_load(recipe.read_text())["tasks"])
    for name, result in results.items():
        assert f"## {name}\n" in text
        assert (tmp_path / "out" / "page" / f"{name}.png").stat().st_size > 0
        for line in result["lines"]:
            assert line["score"] is None or line["score"]["low"] <= line["score"]["mean"] <= line["score"]["high"]
    assert "nan" not in text
    assert text.count("| loop | all | seam") == 1
    # Another seed is another result.
    told = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**told, "seed": 1}, sort_keys=False))
    assert main([*common, "--only", "loop"]) == 0
    assert (tmp_path / "out" / "page" / "loop.json").stat().st_mtime_ns != kept


def test_mistakes_are_one_line(model: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["--ckpt", str(model), "--recipe", str(recipe), "--out", str(tmp_path / "page.md")]
    for more, said in (
        (["--only", "textt"], "--only textt: the recipe has text, "),
        (["--clips", "1"], "--clips 1: a control takes the clip of another prompt; ask for 2 at least"),
    ):
        assert main([*common, *more]) == 2
        assert said in capsys.readouterr().err
    recipe.write_text("seed: 0\n")
    assert main(common) == 2
    assert "must have the keys seed, captions, worlds, tasks" in capsys.readouterr().err
    with pytest.raises(SoraError, match="a world has no colour; it has colors"):
        Scene({"a": {"level": "tiny", "overrides": {"colour": 1}}}, VideoSize(9, 16, 16), PatchSize(1, 8, 8))
    with pytest.raises(SoraError, match="the judge reads 8 frames per second"):
        Scene(WORLDS, VideoSize(9, 16, 16), PatchSize(1, 8, 8), fps=12.0)


def test_a_power_law_is_found_and_foretells() -> None:
    points = [(10.0**k, 3.0 * 10 ** (-0.25 * k)) for k in range(6, 10)]
    worse = [(flops, 2 * error) for flops, error in points[1:]]
    assert optimal([*worse, *points]) == points
    law = fitted(points)
    assert (law.factor, law.exponent) == (pytest.approx(3.0), pytest.approx(0.25))
    assert law.low <= law.exponent <= law.high
    assert law(1e12) == pytest.approx(3e-3)
    noisy = fitted([(flops, error * (1.1 if i % 2 else 0.9)) for i, (flops, error) in enumerate(points)])
    assert noisy.low < 0.25 < noisy.high
    with pytest.raises(SoraError, match="a power law of 2 points says nothing"):
        fitted(points[:2])


@pytest.mark.slow
@pytest.mark.parametrize("attribute", list(phyworld.ATTRIBUTES))
def test_an_attribute_is_kept_by_the_true_clip_and_not_by_the_changed_one(attribute: str) -> None:
    judge = Judge()
    other = next(name for name in phyworld.ATTRIBUTES if name != attribute)
    for index, value in ((0, 0), (1, 1)):
        values = phyworld.combination(attribute, other, value, 0)
        changed = phyworld.combination(attribute, other, 1 - value, 0)
        true, false = (phyworld.rendered(index, 3, told, 32) for told in (values, changed))
        assert phyworld.kept(judge, attribute, true, true, false, values) == 1
        assert phyworld.kept(judge, attribute, false, true, false, values) == 0


@pytest.mark.slow
def test_a_study_of_pairs_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phyworld, "ATTRIBUTES", {name: phyworld.ATTRIBUTES[name] for name in ("color", "velocity")})
    study = yaml.safe_load(phyworld.RECIPE.read_text())
    study |= {"seeds": [0], "steps": 2, "batch": 2, "clips": 4, "test_clips": 4, "side": 16}
    study["dit"] |= {"dim": 16, "depth": 1, "num_heads": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    page = tmp_path / "page.md"
    assert phyworld.main(["--recipe", str(tmp_path / "study.yaml"), "--out", str(page)]) == 0
    assert "color before velocity" in page.read_text()
    assert "100, 100" in page.read_text()  # the judge, of true clips
    monkeypatch.setattr(phyworld, "train", None)  # what was made is not made again
    assert phyworld.main(["--recipe", str(tmp_path / "study.yaml"), "--out", str(page)]) == 0


@pytest.mark.release
def test_a_study_of_scaling_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "world(level='tiny', clips=4, heldout_clips=2)", "batch_size": 2, "height": 16, "width": 16}
    quiet = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
    study = {
        "recipe": "world_pixels",
        "overrides": {**{f"data.{key}": value for key, value in data.items()}, "data.frames": 5, **quiet},
        "sizes": [{"dim": 16, "depth": depth, "num_heads": 1} for depth in (1, 2)],
        "steps": [2],
        "seeds": [0],
        "quality": "val/denoising_error",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    page = tmp_path / "page.md"
    monkeypatch.chdir(tmp_path)
    assert scaling.main(["--recipe", str(tmp_path / "study.yaml"), "--out", str(page)]) == 0
    assert "training FLOPs" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 0
    monkeypatch.setattr(scaling, "fit", None)
    assert scaling.main(["--recipe", str(tmp_path / "study.yaml"), "--out", str(page)]) == 0
