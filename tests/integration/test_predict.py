"""predict of a file of prompts: what `sample` makes of each row, on any number of devices."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch

import lightning_sora as ls
from lightning_sora import media, writing
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.predicting import AskedClips, read_requests

pytestmark = pytest.mark.slow

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
RECIPE = [
    "--config=world_pixels", "--data.source=world(level='tiny', clips=4, heldout_clips=4)", "--data.frames=5",
    "--data.height=16", "--data.width=16", "--data.batch_size=4", "--model.dit.dim=16", "--model.dit.depth=1",
    "--model.dit.num_heads=2", "--model.text=bytes(dim=8, depth=1, num_heads=1)", "--model.sampling.steps=2",
    "--evaluation.extractor=null", "--evaluation.clip_model=null", *QUIET,
]  # fmt: skip
CHECKPOINT = Path("outputs/world_pixels/checkpoints/last.ckpt")
PREDICTIONS = Path("outputs/world_pixels/predictions")
ROWS: list[dict[str, Any]] = [
    {"prompt": "a red cube", "seed": 3},
    {"prompt": "a cone", "negative": "a cube", "guidance": 2.0, "frames": 9, "rope": "ntk", "fps": 4},
    {"prompt": "a red cube", "image": "still.png", "seed": 3},
    {"prompt": "ein Würfel", "task": "text_to_image", "height": 24, "steps": 3},
]
NAMES = ["000_a-red-cube_seed3", "001_a-cone_seed0", "002_a-red-cube_seed3", "003_ein-würfel_seed0"]


@pytest.fixture(scope="module", autouse=True)
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model and a file of requests."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["fit", *RECIPE, "--trainer.max_steps=6", "--trainer.val_check_interval=6"]) == 0
        (folder / "asked").mkdir()
        clip = ls.World("tiny").render(ls.World("tiny").facts(0), frames=1, height=16, width=16, fps=8)
        ls.save_video("asked/still.png", clip)
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        (folder / "asked" / "rows.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
        yield folder


def predict(*flags: str) -> int:
    return main(["predict", *RECIPE, "--ckpt_path=last", *flags])


def test_each_row_is_what_sample_makes_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--prompts=asked/rows.jsonl") == 0
    assert f"samples: {PREDICTIONS / 'rows'}" in capsys.readouterr().err
    made = PREDICTIONS / "rows"
    assert {file.name for file in made.iterdir()} == {
        f"{name}{end}" for name in NAMES for end in (".mp4", ".gif", ".json")
    }
    for row, name in zip(ROWS, NAMES, strict=True):
        asked = {key: value for key, value in row.items() if key not in ("prompt", "image")}
        inputs = {"image": "asked/still.png"} if "image" in row else {}
        alone = ls.sample(CHECKPOINT, row["prompt"], inputs=inputs, out=tmp_path / name, device="cpu", **asked)
        video, gif = ((file.read_bytes(), (made / f"{name}{file.suffix}").read_bytes()) for file in alone.files[:2])
        assert frames_of(video[0]) == frames_of(video[1])
        assert gif[0] == gif[1]
        told, sampled = (json.loads(file.read_text()) for file in (made / f"{name}.json", alone.files[2]))
        assert told == sampled | {"request": sampled["request"] | {"model": told["request"]["model"]}}
        assert main(["sample", "--again", str(made / f"{name}.json"), "--device=cpu"]) == 0


def test_a_text_file_has_a_prompt_per_line(lab: Path) -> None:
    (lab / "prompts.txt").write_text("a red cube\n\na cone\n")
    assert predict("--prompts=prompts.txt") == 0
    assert sorted(file.name for file in (PREDICTIONS / "prompts").glob("*.mp4")) == [
        "000_a-red-cube_seed0.mp4", "001_a-cone_seed0.mp4",
    ]  # fmt: skip


def test_what_the_recipe_samples_by_is_kept_for_again(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "one.jsonl").write_text('{"prompt": "a cone", "guidance": 2.0}')
    assert predict("--prompts=one.jsonl", "--model.sampling.steps=3", "--model.sampling.guidance=4.0") == 0
    file = PREDICTIONS / "one" / "000_a-cone_seed0.json"
    assert (json.loads(file.read_text())["steps"], json.loads(file.read_text())["guidance"]) == (3, 2.0)
    assert main(["sample", "--again", str(file), "--device=cpu"]) == 0
    assert predict("--prompts=one.jsonl", "--model.sampling.shift=2.0") == 2
    assert "model.sampling.shift=2 is not the 1 that the checkpoint keeps" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def shown(folder: Path) -> dict[str, bytes | int]:
    """What two makings of a video share: JSON, with the digest of its pixels, GIF, and how many frames the MP4 has.

    x264 may write the same small pictures in more ways than one.
    """
    files = contents(folder)
    return {name: frames_of(content) if name.endswith(".mp4") else content for name, content in files.items()}


def frames_of(content: bytes) -> int:
    with av.open(io.BytesIO(content)) as container:
        return sum(1 for _ in container.decode(video=0))


def written(folder: Path) -> dict[str, int]:
    """When the JSON of each row was."""
    return {name: (folder / f"{name}.json").stat().st_mtime_ns for name in NAMES}


@pytest.fixture
def rows(lab: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Path:
    """The rows in a file of the test's own, predicted once."""
    file = lab / "asked" / f"{request.node.name}.jsonl"
    file.write_text((lab / "asked" / "rows.jsonl").read_text())
    assert predict(f"--prompts={file}") == 0
    made = PREDICTIONS / file.stem
    assert f"samples: {made}: 4 made\n" in capsys.readouterr().err
    return file


def test_a_prediction_that_was_ended_goes_on(
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file, write_gif, ended = lab / "asked" / "ended.jsonl", media.write_gif, list[Path]()
    file.write_text((lab / "asked" / "rows.jsonl").read_text())
    made = PREDICTIONS / "ended"

    def end_at_the_third(path: Path, *args: Any, **options: Any) -> None:
        ended.append(path)
        if len(ended) == 3:
            raise KeyboardInterrupt
        write_gif(path, *args, **options)

    monkeypatch.setattr(media, "write_gif", end_at_the_third)
    assert predict(f"--prompts={file}") == 130
    assert sorted(one.name for one in made.glob("*.json")) == [f"{name}.json" for name in NAMES[:2]]
    assert (made / f"{NAMES[2]}.mp4").exists()
    half = made / f".{NAMES[2]}.gif.999999.part"
    half.write_bytes(b"GIF89a")
    monkeypatch.setattr(writing, "_SWEPT", set())  # as of a new process
    before = contents(made)
    times = {name: (made / f"{name}.json").stat().st_mtime_ns for name in NAMES[:2]}
    capsys.readouterr()

    assert predict(f"--prompts={file}") == 0
    told = capsys.readouterr().err
    assert f"samples: {made}: 2 made, 2 kept as they were there\n" in told
    assert "is made again" not in caplog.text  # what was not finished was not there
    assert {name: written(made)[name] for name in NAMES[:2]} == times
    at_once = lab / "asked" / "at_once.jsonl"
    at_once.write_text(file.read_text())
    assert predict(f"--prompts={at_once}") == 0
    assert shown(made) == shown(PREDICTIONS / "at_once")
    assert before[f"{NAMES[2]}.mp4"] == contents(made)[f"{NAMES[2]}.mp4"]
    assert len(ended) == 3 + 2 + 4


def test_what_is_damaged_is_made_again(
    rows: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = PREDICTIONS / rows.stem
    before, times, was = contents(made), written(made), shown(made)
    (made / f"{NAMES[0]}.mp4").write_bytes(before[f"{NAMES[0]}.mp4"][:-100])
    (made / f"{NAMES[1]}.gif").unlink()
    (made / f"{NAMES[2]}.json").write_bytes(before[f"{NAMES[2]}.json"][:50])
    assert predict(f"--prompts={rows}") == 0
    assert f"{NAMES[0]} is made again: what is there has a MP4 that is cut short or has no digest" in caplog.text
    assert f"{NAMES[1]} is made again: what is there has no GIF" in caplog.text
    assert f"{NAMES[2]} is made again: what is there has a JSON that cannot be read" in caplog.text
    assert f"samples: {made}: 3 made, 1 kept as they were there" in capsys.readouterr().err
    assert shown(made) == was
    assert [name for name in NAMES if written(made)[name] == times[name]] == [NAMES[3]]


def test_what_another_request_or_model_made_is_made_again(
    lab: Path, rows: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = PREDICTIONS / rows.stem
    assert predict(f"--prompts={rows}", "--model.sampling.steps=1") == 0
    assert caplog.text.count("is made again: what is there has another steps") == 3  # the last row says its own
    assert f"{made}: 3 made, 1 kept as they were there" in capsys.readouterr().err

    still, begun = (lab / "asked" / "still.png"), (lab / "asked" / "still.png").read_bytes()
    clip = ls.World("tiny").render(ls.World("tiny").facts(1), frames=1, height=16, width=16, fps=8)
    ls.save_video(still, clip)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines[0]["prompt"], lines[1]["guidance"] = "a red cylinder", 3.0
    rows.write_text("\n".join(json.dumps(line) for line in lines))
    assert predict(f"--prompts={rows}", "--model.sampling.steps=1") == 0
    assert f"{made} has videos of no row of this file: {NAMES[0]}; they are left there" in caplog.text
    assert f"{NAMES[1]} is made again: what is there has another guidance" in caplog.text
    assert f"{NAMES[2]} is made again: what is there has another inputs" in caplog.text
    assert f"{made}: 3 made, 1 kept as they were there" in capsys.readouterr().err
    still.write_bytes(begun)

    other = lab / "other.ckpt"
    trained = torch.load(CHECKPOINT, weights_only=False)
    torch.save(trained, other)
    assert main(["predict", *RECIPE, f"--ckpt_path={other}", f"--prompts={rows}"]) == 0
    for weights in trained["ema"]["shadow"].values():
        weights *= 1.1
    torch.save(trained, other)
    capsys.readouterr()
    caplog.clear()
    assert main(["predict", *RECIPE, f"--ckpt_path={other}", f"--prompts={rows}"]) == 0
    assert caplog.text.count("is made again: what is there has another model") == 4
    assert f"{made}: 4 made\n" in capsys.readouterr().err


BAD = [
    ('{"prompt": "a"', "is no JSON"),
    ('["a"]', "has no prompt"),
    ('{"prompt": "a", "sed": 1}', "a request has no 'sed'; did you mean 'seed'"),
    ('{"prompt": "a", "seed": 1.5}', "seed=1.5 must be a whole number"),
    ('{"prompt": "a", "frames": "9"}', "frames='9' must be"),
    ('{"prompt": "a", "image": "none.png"}', "no image at asked/none.png"),
    ('{"prompt": "a", "video": "still.png"}', "video alone tells no task"),
]


@pytest.mark.parametrize(("line", "said"), BAD, ids=[said for _, said in BAD])
def test_a_row_that_is_no_request_is_told_with_its_line(line: str, said: str) -> None:
    Path("asked/bad.jsonl").write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(SoraError) as told:
        read_requests("asked/bad.jsonl", model=str(CHECKPOINT))
    assert str(told.value).startswith("asked/bad.jsonl:3")
    assert said in str(told.value)


def test_what_cannot_be_predicted_is_one_line(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "empty.txt").write_text("\n")
    for flags, said in (
        (["--prompts=none.txt"], "none.txt"),
        (["--prompts=empty.txt"], "empty.txt has no prompts"),
        (["--prompts=asked/rows.jsonl", "--ckpt_path=none"], "prompts are sampled by a trained model"),
    ):
        assert predict(*flags) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "Traceback" not in told


def test_rows_are_divided_over_ranks() -> None:
    rows = AskedClips(read_requests("asked/rows.jsonl", model=str(CHECKPOINT)), Path("out"))

    def of(rank: int, ranks: int) -> list[int]:
        rows.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
        return [row.index for row in rows.predict_dataloader()]

    assert [of(rank, 3) for rank in range(3)] == [[0, 3], [1], [2]]
    with pytest.raises(SoraError, match="4 prompts cannot be dealt to 5 ranks"):
        of(0, 5)


@pytest.mark.release
def test_two_ranks_make_what_one_makes(lab: Path) -> None:
    flags = ["--ckpt_path=last", "--prompts=asked/rows.jsonl", "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "PYTHONPATH": str(Path(ls.__file__).parents[1])}
    made = lab / PREDICTIONS / "rows"
    shutil.rmtree(made, ignore_errors=True)
    assert predict("--prompts=asked/rows.jsonl") == 0
    shutil.copytree(made, lab / "alone")
    (made / f"{NAMES[0]}.json").unlink()  # of either rank one goes on
    (made / f"{NAMES[1]}.mp4").write_bytes(b"half")
    kept = {name: (made / f"{name}.json").stat().st_mtime_ns for name in NAMES[2:]}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lightning_sora.cli", "predict", *RECIPE, *flags],
            env=environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{NAMES[1]} is made again: what is there has a MP4 that is cut short or has no digest" in done.stderr
    assert "2 made, 2 kept as they were there" in done.stderr
    assert shown(made) == shown(lab / "alone")
    assert {name: written(made)[name] for name in kept} == kept
    shutil.rmtree(made)
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"samples: {PREDICTIONS / 'rows'}: 4 made\n" in done.stderr
    assert shown(made) == shown(lab / "alone")


def test_samples_of_vbench_have_its_names_and_seeds(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "all_dimension.txt").write_text("a red cube.\na cone, in the style of Ukiyo\n")
    flags = ["--prompts=all_dimension.txt", "--vbench=2"]
    assert predict(*flags) == 0
    made = PREDICTIONS / "all_dimension"
    wanted = {
        "a red cube.-0.mp4": 0,
        "a red cube.-1.mp4": 1,
        "a cone, in the style of Ukiyo-0.mp4": 100000,
        "a cone, in the style of Ukiyo-1.mp4": 100001,
    }
    assert {file.name for file in (made / "vbench").iterdir()} == set(wanted)
    for index, (name, seed) in enumerate(wanted.items()):
        alone = ls.sample(CHECKPOINT, name[:-6], seed=seed, out=lab / "alone" / str(index), device="cpu")
        assert alone.files[0].read_bytes() == (made / "vbench" / name).read_bytes()
    (made / "vbench" / "a red cube.-1.mp4").unlink()
    capsys.readouterr()
    assert predict(*flags) == 0  # nothing is sampled again, and what is missing is put back
    assert "4 kept" in capsys.readouterr().err
    assert {file.name for file in (made / "vbench").iterdir()} == set(wanted)
    (lab / "rich.txt").write_text("a shiny red cube\na tall cone\n")
    assert predict("--prompts=rich.txt", "--vbench=1", "--vbench_names=all_dimension.txt") == 0
    rich = PREDICTIONS / "rich"
    assert {file.name for file in (rich / "vbench").iterdir()} == {name for name in wanted if name.endswith("-0.mp4")}
    assert json.loads((rich / "000_a-shiny-red-cube_seed0.json").read_text())["request"]["prompts"] == [
        "a shiny red cube"
    ]
    for wrong, words in (
        (["--vbench=5"], "--vbench says how prompts are sampled; give --prompts"),
        (["--prompts=rich.txt", "--vbench_names=all_dimension.txt"], "give --vbench 5"),
        (["--prompts=rich.txt", "--vbench=0"], "0 samples of each prompt"),
        (["--prompts=asked/rows.jsonl", "--vbench=5"], "has requests of its own seeds"),
    ):
        assert predict(*wrong) == 2
        assert words in capsys.readouterr().err
