"""`lightning-sora score`: any two folders of videos, or one line that says what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sora import media
from lightning_sora.cli import main

RANDOM = "random(width=4, side=16)"


def paint(folder: Path, count: int, *, gain: float = 1.0, first: int = 0, frames: int = 20) -> Path:
    """Drifting coloured waves, in three containers and sizes."""
    folder.mkdir(parents=True)
    for index in range(first, first + count):
        rng = np.random.default_rng(index)
        height, width = ((32, 48), (48, 32), (40, 40))[index % 3]
        t, y, x = np.meshgrid(np.arange(frames + index % 4), np.arange(height), np.arange(width), indexing="ij")
        angle, speed, tone = rng.uniform(0, 3, 3), rng.uniform(0.1, 0.6), rng.uniform(60, 190, 3)
        wave = np.stack([np.sin(0.2 * x * np.cos(a) + 0.2 * y * np.sin(a) + speed * t) for a in angle], -1)
        video = gain * (tone + 50 * wave)
        pixels = torch.from_numpy(video.clip(0, 255).astype(np.uint8))
        name = folder / f"{index:03d}"
        if index % 3 == 2:
            media.write_gif(name.with_suffix(".gif"), pixels, 8)
        else:
            media.write_mp4(name.with_suffix(".mp4"), pixels, 8)
            if index % 3 == 1:
                remux(name.with_suffix(".mp4"), name.with_suffix(".mkv"))
    return folder


def remux(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as inward, av.open(str(target), "w") as outward:
        stream = outward.add_stream_from_template(inward.streams.video[0])
        for packet in inward.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                outward.mux(packet)
    source.unlink()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("score") / "real", 24)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("score") / "fake", 18, gain=0.5, first=100)


def score(*arguments: object) -> int:
    return main(["score", *map(str, arguments), "--frames", "12"])


def scores(out: Path, *arguments: object) -> dict:
    assert score(*arguments, "--out", out) == 0
    return json.loads(out.read_text())


def test_mixed_files_are_scored_with_their_card(
    real: Path, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scores(
        tmp_path / "s.json", "--real", real, "--generated", fake, "--extractor", RANDOM,
        "--metrics", "fvd,kvd,jedi,temporal_flickering,motion_smoothness",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "random-FD (not FVD)" in printed
    assert "not verified" in printed
    assert found["protocol_id"] in printed
    assert found["protocol"]["clip"] == {"frames": 12, "fps": None, "offset": "first"}
    assert found["protocol"]["clips"] == {"real": 24, "generated": 18}
    assert found["protocol"]["extractor"]["name"] == "random"
    values = found["scores"]["fvd"]
    assert values["low"] < values["unbiased"] < values["high"]
    assert values["unbiased"] > values["halves_high"]  # half as bright is farther than the real halves are apart
    assert set(found["clips"]["temporal_flickering"]) == {p.name for p in fake.iterdir()}
    assert len(found["clips"]["motion_smoothness"]) == 18
    mean = np.mean(list(found["clips"]["temporal_flickering"].values()))
    assert found["scores"]["temporal_flickering"]["value"] == pytest.approx(mean)


def test_a_folder_is_no_distance_from_itself(real: Path, tmp_path: Path) -> None:
    same = scores(tmp_path / "same.json", "--real", real, "--generated", real, "--extractor", RANDOM)["scores"]["fvd"]
    assert [same[n] for n in ("value", "unbiased", "low", "high")] == pytest.approx([0] * 4, abs=1e-9)
    other = paint(tmp_path / "other", 24, first=300)
    apart = scores(tmp_path / "o.json", "--real", real, "--generated", other, "--extractor", RANDOM)["scores"]["fvd"]
    assert apart["low"] <= 0 <= apart["high"]


def test_a_kept_reference_stands_for_the_folder(real: Path, fake: Path, tmp_path: Path) -> None:
    assert score("--real", real, "--extractor", RANDOM, "--save-reference", tmp_path / "kept") == 0
    (kept,) = (tmp_path / "kept").glob("*.safetensors")
    by_file = scores(tmp_path / "a.json", "--reference", kept, "--generated", fake, "--extractor", RANDOM)
    by_folder = scores(tmp_path / "b.json", "--real", real, "--generated", fake, "--extractor", RANDOM)
    assert by_file["scores"]["fvd"] == pytest.approx(by_folder["scores"]["fvd"])
    assert len(by_file["protocol"]["reference"]) == 64


def test_scores_of_one_protocol_are_compared_and_others_refused(
    real: Path, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first.json"
    scores(first, "--real", real, "--generated", fake, "--extractor", RANDOM)
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 0
    assert "(+0)" in capsys.readouterr().out
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--compare", first, "--fps", 6) == 2
    assert "clip.fps: None against 6" in capsys.readouterr().err
    assert score("--real", fake, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 2
    assert "clips.real: 24 against 18" in capsys.readouterr().err


def refusals() -> list[tuple[str, Callable[[Path, Path, Path], list], str]]:
    extractor = ["--extractor", RANDOM]
    return [
        ("short", lambda r, f, t: ["--real", r, "--generated", paint(t / "g", 16, frames=9), *extractor],
         r"12 of 16 videos of .* shorter than 12 frames: .*lower --frames"),
        ("few", lambda r, f, t: ["--real", r, "--generated", paint(t / "g", 3), *extractor],
         "holds 3 videos; at least 16 are needed"),
        ("damaged", lambda r, f, t: ["--real", r, "--generated", damaged(f, t / "g"), *extractor],
         r"1 of 18 videos of .* cannot be read \(100.mkv: .*data check"),
        ("none", lambda r, f, t: ["--real", r, "--generated", t, *extractor], "holds 0 videos"),
        ("nowhere", lambda r, f, t: ["--real", r, "--generated", t / "x", *extractor], "is not a folder"),
        ("metric", lambda r, f, t: ["--real", r, "--generated", f, "--metrics", "fwd", *extractor], "did you mean fvd"),
        ("extractor", lambda r, f, t: ["--real", r, "--generated", f, "--extractor", "i3"], "i3d"),
        ("weights", lambda r, f, t: ["--real", r, "--generated", f, "--extractor", "i3d(weights='no.pt')"], "no.pt"),
        ("no extractor", lambda r, f, t: ["--real", r, "--generated", f], "needs --extractor"),
        ("no real", lambda r, f, t: ["--generated", f, *extractor], "give --real DIR or --reference FILE"),
        ("no captions", lambda r, f, t: ["--generated", f, "--metrics", "clip_score"], "18 have none"),
        ("frames", lambda r, f, t: ["--real", r, "--generated", f, "--extractor", "mvit(weights='x')"], "x"),
        ("nothing", lambda r, f, t: ["--real", r], "nothing to score"),
        ("reference", lambda r, f, t: ["--reference", t / "r.safetensors", "--generated", f, *extractor],
         "no reference statistics"),
    ]  # fmt: skip


def damaged(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    (target / "100.mkv").write_bytes((folder / "100.mkv").read_bytes()[:700])
    return target


@pytest.mark.parametrize(("name", "arguments", "message"), refusals(), ids=[r[0] for r in refusals()])
def test_bad_input_is_one_line(
    name: str, arguments: Callable, message: str, real: Path, fake: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert score(*arguments(real, fake, tmp_path)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-sora:")]
    assert len(said) == 1
    import re

    assert re.search(message, said[0]), said[0]


def test_a_reference_of_another_protocol_is_refused(
    real: Path, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--real", real, "--extractor", RANDOM, "--save-reference", tmp_path) == 0
    (kept,) = tmp_path.glob("*.safetensors")
    arguments = ["--reference", str(kept), "--generated", str(fake), "--extractor", RANDOM, "--frames", "10"]
    assert main(["score", *arguments]) == 2
    assert "clip.frames: 12 against 10" in capsys.readouterr().err
    assert score("--reference", kept, "--generated", fake, "--extractor", "random(width=4, side=16, seed=1)") == 2
    assert "extractor.weights" in capsys.readouterr().err


def test_real_clips_of_many_codecs(real_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [p for p in sorted(real_clips.iterdir()) if p.suffix in (".mp4", ".avi", ".mkv") and p.stem != "corrupted"]
    long = tmp_path / "long"
    long.mkdir()
    for path in good:
        shutil.copy(path, long)
    for path in good[: max(0, 8 - len(good))]:  # a folder of eight, some of them twice
        shutil.copy(path, long / f"again_{path.name}")
    assert score("--real", long, "--generated", long, "--extractor", RANDOM, "--min-clips", 8) == 0
    shutil.copy(real_clips / "corrupted.mp4", long)
    assert score("--real", long, "--generated", long, "--extractor", RANDOM, "--min-clips", 8) == 2
    assert "corrupted.mp4" in capsys.readouterr().err
