"""VBench's samples and results: names, seeds, totals and what is logged, against its rules written out here."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.vbench import place_video, read_vbench, vbench_rows
from lightning_sora.tracking.store import connect, resolve_uri

#: By hand: (value - least) / (most - least) of each, dynamic degree with half a weight, of what stands below.
VALUES = {
    "subject_consistency": 0.5731, "background_consistency": 0.63075, "temporal_flickering": 0.81465,
    "motion_smoothness": 0.85175, "aesthetic_quality": 0.5, "imaging_quality": 0.5, "dynamic_degree": 1.0,
    "object_class": 0.25, "multiple_objects": 0.25, "human_action": 0.25, "color": 0.25, "spatial_relationship": 0.25,
    "scene": 0.20555, "appearance_style": 0.07205, "temporal_style": 0.091, "overall_consistency": 0.091,
}  # fmt: skip
#: Six dimensions half way and one, of half the weight, at the end; nine a quarter of the way.
TOTALS = {"quality_score": (6 * 0.5 + 0.5) / 6.5, "semantic_score": 0.25}
TOTALS["total_score"] = (4 * TOTALS["quality_score"] + TOTALS["semantic_score"]) / 5


def results(folder: Path, values: dict[str, Any], name: str = "x_eval_results.json") -> Path:
    told = {
        d: [v, [{"video_path": f"videos/a cat-{j}.mp4", "video_results": v} for j in range(2)]]
        for d, v in values.items()
    }
    (folder / name).write_text(json.dumps(told))
    return folder / name


def test_names_and_seeds_are_those_of_the_suite() -> None:
    prompts = ["A 3D model of a 1800s victorian house.", "a cat, in the style of Ukiyo"]
    found = [(row.name, row.seed) for row in vbench_rows(prompts)]
    wanted = []
    for i, prompt in enumerate(prompts):
        for j in range(5):
            wanted.append((f"{prompt}-{j}.mp4", 100000 * i + j))
    assert found == wanted
    rows = vbench_rows(["a long text of a cat", "of a dog"], 2, named_by=["a cat", "a dog"])
    assert [(row.prompt, row.name) for row in rows][1:3] == [
        ("a long text of a cat", "a cat-1.mp4"), ("of a dog", "a dog-0.mp4")
    ]  # fmt: skip


def test_of_a_prompt_that_occurs_twice_the_last_is_made_and_seeds_count_all_lines() -> None:
    rows = vbench_rows(["The bund Shanghai, oil painting", "a cat", "The bund Shanghai, oil painting"], 2)
    assert [(row.name, row.seed) for row in rows] == [
        ("a cat-0.mp4", 100000), ("a cat-1.mp4", 100001),
        ("The bund Shanghai, oil painting-0.mp4", 200000), ("The bund Shanghai, oil painting-1.mp4", 200001),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "samples", "named_by", "words"),
    [
        (["a/b"], 5, None, "it has a slash"),
        (["ä" * 130], 5, None, "longer than 255 bytes"),
        (["a"], 0, None, "0 samples of each prompt"),
        (["a"], 100_000, None, "seeds would repeat"),
        (["a", "b"], 5, ["a"], "2 prompts are named by 1 lines"),
    ],
)
def test_prompts_that_cannot_be_named(prompts: list[str], samples: int, named_by: list[str] | None, words: str) -> None:
    with pytest.raises(SoraError, match=words):
        vbench_rows(prompts, samples, named_by)


def test_videos_stand_alone_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "000.mp4").write_bytes(b"one")
    for content in (b"one", b"two"):
        (tmp_path / "000.mp4").unlink()
        (tmp_path / "000.mp4").write_bytes(content)
        place_video(tmp_path / "000.mp4", tmp_path / "vbench", "a house.-0.mp4")
        place_video(tmp_path / "000.mp4", tmp_path / "vbench", "a house.-0.mp4")  # again changes nothing
        assert os.listdir(tmp_path / "vbench") == ["a house.-0.mp4"]
        assert (tmp_path / "vbench" / "a house.-0.mp4").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["000.mp4", "vbench"]


def test_totals_are_those_of_the_suite(tmp_path: Path) -> None:
    found = read_vbench([results(tmp_path, VALUES)])
    assert found.dimensions == VALUES
    assert found.totals == pytest.approx(TOTALS)
    assert found.clips["scene"] == {"a cat-0.mp4": 0.20555, "a cat-1.mp4": 0.20555}
    halves = list(VALUES.items())
    parts = [results(tmp_path, dict(halves[:7]), "a.json"), results(tmp_path, dict(halves[7:]), "b.json")]
    assert read_vbench(parts).totals == pytest.approx(TOTALS)
    assert set(read_vbench(parts[:1]).totals) == {"quality_score"}
    assert read_vbench([results(tmp_path, {"scene": 0.5}, "c.json")]).totals == {}
    (tmp_path / "d.json").write_text(json.dumps({"color": [0.5, [["of", "another shape"]]], "human_action": [1]}))
    assert read_vbench([tmp_path / "d.json"]).clips == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is no result of VBench"), ('{"scene": 0.5}', "'scene' is 0.5; VBench writes"),
        ('{"scene": [NaN, []]}', "'scene' is"), ('{"scene": [true, []]}', "'scene' is"), ("{", "not JSON"),
    ],
)  # fmt: skip
def test_files_that_are_no_results(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SoraError, match=words):
        read_vbench([tmp_path / "x.json"])
    one = results(tmp_path, {"scene": 0.5})
    with pytest.raises(SoraError, match="is told by another file as well"):
        read_vbench([one, one])


def test_results_go_to_the_run_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = connect(resolve_uri())
    artifacts = (tmp_path / "kept").as_uri()
    run = client.create_run(client.create_experiment("films", artifact_location=artifacts)).info.run_id
    file = results(tmp_path, VALUES)
    assert main(["score", "--vbench", str(file), "--run", run]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(VALUES | TOTALS)
    assert client.get_run(run).data.metrics == pytest.approx({f"vbench/{n}": v for n, v in (VALUES | TOTALS).items()})
    assert {item.path for item in client.list_artifacts(run, "vbench")} == {
        "vbench/x_eval_results.json", "vbench/summary.json",
    }  # fmt: skip
    for flags, words in (
        (["--vbench", str(file), "--run", "0" * 32], "cannot be logged to the run 000"),
        (["--vbench", str(file)], "give both --vbench FILE and --run ID"),
        (["--vbench", str(file), "--run", run, "--generated", "x"], "scores no folder"),
    ):
        assert main(["score", *flags]) == 2
        assert words in capsys.readouterr().err
