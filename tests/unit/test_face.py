"""The public face of the package: its names, what they cost, and that their examples run as written."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import lightning_sora as ls

NAMES = [
    "ATTENTION",
    "AttentionBlock",
    "CAPTIONERS",
    "ClipVAE",
    "Crop",
    "DataSpec",
    "DiTConfig",
    "DiffusionConfig",
    "ENGINES",
    "EXPANDERS",
    "EXTRACTORS",
    "Evaluated",
    "Evaluation",
    "FVD",
    "GUIDANCE",
    "KVD",
    "Given",
    "LatentDiffusion",
    "LitCaptioner",
    "LitDiT",
    "LitEvaluator",
    "LitExpander",
    "LitModule",
    "LitVAE",
    "MANIFESTS",
    "METRICS",
    "MaskedBlock",
    "Needs",
    "OBJECTIVES",
    "PartitionBlock",
    "PatchSize",
    "PerVideoMetric",
    "PromptDataModule",
    "Recipe",
    "Results",
    "SAMPLERS",
    "SCHEDULES",
    "SIZES",
    "SOURCES",
    "Samples",
    "SamplingConfig",
    "Score",
    "SoraError",
    "SpacetimeBatch",
    "SpacetimeDataModule",
    "Study",
    "TASKS",
    "TEXT_ENCODERS",
    "Task",
    "TaskMixture",
    "TIMESTEPS",
    "TokenGrid",
    "TokenLayout",
    "VAELossConfig",
    "VAES",
    "Verdicts",
    "VideoMetric",
    "VideoSize",
    "WEIGHTINGS",
    "World",
    "__version__",
    "ablate",
    "cache_latents",
    "caption",
    "check_data",
    "compare",
    "create_attention",
    "export",
    "inspect_data",
    "list_attention",
    "load",
    "open_collection",
    "patchify",
    "read_video",
    "register_attention",
    "register_metric",
    "register_task",
    "sample",
    "sample_again",
    "sample_task",
    "registries",
    "save_video",
    "score",
    "unpatchify",
]


def test_public_names_are_these_and_no_others() -> None:
    assert dir(ls) == ls.__all__ == sorted(NAMES)


def test_type_checkers_see_the_names_that_run() -> None:
    tree = ast.parse(Path(ls.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.asname) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {(f"lightning_sora.{module}", name) for module, names in ls._PLACES.items() for name in names}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="lod"):
        ls.lod  # noqa: B018


@pytest.mark.slow
def test_importing_the_package_imports_nothing_large() -> None:
    large = {"torch", "lightning", "mlflow", "numpy", "huggingface_hub"}
    told = f"import sys, lightning_sora; print(sorted({large} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *sorted(set(NAMES) - {"__version__"})])
def test_every_example_runs_as_written(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = getattr(ls, name) if name else ls
    tests = doctest.DocTestFinder(recurse=False).find(found, name or "lightning_sora", globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with ExitStack() as stack:  # what an example registers is known to no other test
        for registry in ls.registries().values():
            stack.enter_context(registry.temporary())
        for test in tests:
            test.globs["__name__"] = "__main__"
            assert runner.run(test).failed == 0
    if isinstance(found, type) and name != "SoraError":
        assert any(test.examples for test in tests), f"{name} shows no example"


def test_every_public_name_is_explained() -> None:
    for name in set(NAMES) - {"__version__"}:
        found = getattr(ls, name)
        told = found if callable(found) else type(found)
        assert (told.__doc__ or "").strip(), name
        assert importlib.import_module(told.__module__).__doc__, name


def test_a_notebook_makes_a_block_and_runs_it() -> None:
    block = ls.create_attention("window(size=(2,4,4))", dim=192, num_heads=4)
    layout = ls.TokenLayout.uniform(ls.TokenGrid(4, 8, 8), clips=2)
    x = torch.randn(*layout.shape, 192)
    y = block(x, layout)
    assert y.shape == x.shape
    changed = x.clone()
    changed[0, -1] += 1  # the far corner of the first clip
    moved = (block(changed, layout) - y).abs().amax(-1) > 1e-6
    assert moved.sum() == 2 * 4 * 4  # of its own window, and of no other clip


def test_a_distance_counts_clips_without_names() -> None:
    world = ls.World("tiny")
    clips = [world.render(world.facts(i), frames=9, height=32, width=32, fps=8) for i in range(8)]
    named, numbered = ls.FVD("world"), ls.FVD("world")
    for side, real in ((clips[:4], True), (clips[4:], False)):
        numbered.update(side[:1], real=real, fps=8)
        numbered.update(torch.stack(side[1:]), real=real, fps=[8.0] * 3)
        named.update(side, [f"{real} {i}" for i in range(4)], real=real, fps=[8.0] * 4)
    assert float(numbered.compute()["value"]) == pytest.approx(float(named.compute()["value"]), rel=1e-5)
    assert not numbered.paired()
    numbered.update(clips[:1], ["real 0"], real=True, fps=8)
    with pytest.raises(ls.SoraError, match="given more than once"):
        numbered.compute()


def test_videos_are_written_by_their_ending_and_read_as_they_are(tmp_path: Path) -> None:
    ramp = torch.arange(0, 250, 10, dtype=torch.uint8)[:, None, None, None].expand(25, 32, 48, 3)
    file = ls.save_video(tmp_path / "deep" / "ramp.MP4", ramp, fps=10)
    video, fps = ls.read_video(file)
    assert (fps, video.shape) == (10, ramp.shape)
    assert (video.float() - ramp.float()).abs().max() < 6
    video, fps = ls.read_video(file, frames=3, fps=5, start=1.0)  # pictures of 1.0, 1.2 and 1.4 s
    assert fps == 5
    assert [round(float(frame.float().mean()) / 10) for frame in video] == [10, 12, 14]
    assert len(ls.read_video(file, fps=5)[0]) == 13
    with pytest.raises(ls.SoraError, match="25 frames at 10 per second from 0 s on, and 26"):
        ls.read_video(file, frames=26)
    with pytest.raises(ls.SoraError, match="start=-1"):
        ls.read_video(file, start=-1)
    with pytest.raises(ls.SoraError, match="no file at"):
        ls.read_video(tmp_path / "none.mp4")
    still = ls.save_video(tmp_path / "still.png", ramp[3:4])
    assert ls.read_video(still)[0].unique().tolist() == [30]
    with pytest.raises(ls.SoraError, match=r"\.mp4, \.gif"):
        ls.save_video(tmp_path / "ramp.avi", ramp)
