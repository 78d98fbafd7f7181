"""`lightning-sora score`: any two folders of videos, or one line that says what is wrong."""

import json
import os
import re
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
                to_webm(name.with_suffix(".mp4"), name.with_suffix(".webm"))
    return folder


def to_webm(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as inward, av.open(str(target), "w") as outward:
        stream = outward.add_stream("libvpx-vp9", rate=8)
        first = inward.streams.video[0]
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        for frame in inward.decode(first):
            outward.mux(stream.encode(frame.reformat(format="yuv420p")))
        outward.mux(stream.encode())
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
        tmp_path / "new" / "s.json", "--real", real, "--generated", fake, "--extractor", RANDOM,
        "--metrics", "fvd,kvd,jedi,temporal_flickering,motion_smoothness",
    )  # fmt: skip
    said = capsys.readouterr()
    assert "random-FD (not FVD)" in said.out
    assert "random MMD" in said.out
    assert "same-size floor" in said.out
    assert found["protocol_id"] in said.out
    assert "not verified" in said.err
    assert found["clip"] == {"frames": 12, "fps": 8.0, "resampled": False, "offset": "first"}
    assert found["protocol"]["clips"] == {"real": 24, "generated": 18}
    assert found["protocol"]["extractors"]["random"]["name"] == "random"
    assert "divisor N - 1" in found["protocol"]["metrics"]["fvd"]["definition"]
    assert set(found["environment"]) == {"lightning_sora", "torch", "torchvision"}
    assert found["folders"] == {"real": str(real), "generated": str(fake)}
    assert str(real.parent) not in json.dumps([found["protocol"], found["scores"], found["clips"]])
    values = found["scores"]["fvd"]
    assert values["title"] == "random-FD (not FVD)"
    assert set(values) >= {"value", "unbiased", "stderr", "low", "high", "small_sample_bias"}
    assert 0 < values["low"] < values["unbiased"] < values["high"]  # half as bright
    assert not {"infinity", "real_vs_real"} & set(values)  # which so few clips do not tell
    assert set(found["clips"]["temporal_flickering"]) == {p.name for p in fake.iterdir()}
    assert len(found["clips"]["motion_smoothness"]) == 18
    mean = np.mean(list(found["clips"]["temporal_flickering"].values()))
    assert found["scores"]["temporal_flickering"]["value"] == pytest.approx(mean)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_is_no_distance_from_itself(real: Path, tmp_path: Path) -> None:
    same = scores(tmp_path / "same.json", "--real", real, "--generated", real, "--extractor", RANDOM)["scores"]["fvd"]
    assert [same[n] for n in ("value", "unbiased", "low", "high")] == pytest.approx([0] * 4, abs=1e-9)
    other = paint(tmp_path / "other", 24, first=300)
    apart = scores(tmp_path / "o.json", "--real", real, "--generated", other, "--extractor", RANDOM)["scores"]["fvd"]
    assert apart["low"] <= 0 <= apart["high"]
    weak, strong = (
        scores(tmp_path / "n.json", "--real", real, "--generated", grain, "--extractor", RANDOM)["scores"]["fvd"]
        for grain in (noisy(real, tmp_path / "weak", 20), noisy(real, tmp_path / "strong", 200))
    )
    assert strong["value"] > weak["value"] > same["value"]
    assert strong["low"] > 0


def noisy(folder: Path, target: Path, level: float) -> Path:
    from lightning_sora.data.decode import read_clip

    target.mkdir()
    for index, path in enumerate(sorted(folder.iterdir())):
        clip = read_clip(path, 0, 14).double()
        grain = level * torch.randn((len(clip), 1, 1, 3), generator=torch.Generator().manual_seed(index))
        media.write_mp4(target / f"{path.stem}.mp4", (clip + grain).clamp(0, 255).to(torch.uint8), 8)
    return target


def test_a_kept_reference_stands_for_the_folder(real: Path, fake: Path, tmp_path: Path) -> None:
    assert score("--real", real, "--extractor", RANDOM, "--save-reference", tmp_path / "kept") == 0
    (kept,) = (tmp_path / "kept").glob("*.safetensors")
    by_file = scores(tmp_path / "a.json", "--reference", kept, "--generated", fake, "--extractor", RANDOM)
    by_folder = scores(tmp_path / "b.json", "--real", real, "--generated", fake, "--extractor", RANDOM)
    assert by_file["scores"]["fvd"] == pytest.approx(by_folder["scores"]["fvd"])
    assert by_file["protocol_id"] == by_folder["protocol_id"]
    assert by_file["folders"]["reference"] == str(kept)


def test_scores_of_one_protocol_are_compared_and_others_refused(
    real: Path, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first.json"
    scores(first, "--real", real, "--generated", fake, "--extractor", RANDOM)
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 0
    assert "(+0)" in capsys.readouterr().out
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--compare", first, "--fps", 6) == 2
    assert "clip.fps: 8.0 against 6" in capsys.readouterr().err
    assert score("--real", fake, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 2
    assert "clips.real: 24 against 18" in capsys.readouterr().err
    other = paint(tmp_path / "other", 24, first=300)  # as many, of the same names but for the first digit
    assert score("--real", other, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 2
    assert "; real:" in (said := capsys.readouterr().err) or "cannot be compared: real:" in said
    first.write_text("[]")
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 2
    assert "holds no scores" in capsys.readouterr().err
    first.unlink()
    os.mkfifo(first)
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--compare", first) == 2
    assert "is no regular file" in capsys.readouterr().err


def refusals() -> list[tuple[str, Callable[[Path, Path, Path], list], str]]:
    extractor = ["--extractor", RANDOM]
    return [
        ("short", lambda r, f, t: ["--real", r, "--generated", paint(t / "g", 16, frames=9), *extractor],
         r"12 of 16 videos under .* shorter than 12 frames: 000.mp4 \(9 frames.* and 7 more; lower --frames"),
        ("few", lambda r, f, t: ["--real", r, "--generated", paint(t / "g", 3), *extractor],
         "holds 3 videos where at least 16 are needed.*bias"),
        ("damaged", lambda r, f, t: ["--real", r, "--generated", damaged(f, t / "g"), *extractor],
         r"1 of 18 videos under .* cannot be read: 102.mp4 \(.*data check"),
        ("none", lambda r, f, t: ["--real", r, "--generated", t, *extractor], "there is no video under"),
        ("nowhere", lambda r, f, t: ["--real", r, "--generated", t / "x", *extractor], "is not a folder"),
        ("metric", lambda r, f, t: ["--real", r, "--generated", f, "--metrics", "fwd", *extractor],
         "did you mean 'fvd'"),
        ("extractor", lambda r, f, t: ["--real", r, "--generated", f, "--extractor", "i3"], "i3d"),
        ("weights", lambda r, f, t: ["--real", r, "--generated", f, "--extractor", "i3d(weights='no.pt')"], "no.pt"),
        ("no extractor", lambda r, f, t: ["--real", r, "--generated", f], "needs --extractor"),
        ("no real", lambda r, f, t: ["--generated", f, *extractor], "needs --real DIR or --reference FILE"),
        ("frames", lambda r, f, t: ["--real", r, "--generated", f, "--extractor", "mvit(weights='x')"], "x"),
        ("no clip model", lambda r, f, t: ["--generated", f, "--metrics", "clip_score"], "needs --clip-model"),
        ("useless real", lambda r, f, t: ["--real", r, "--generated", f, "--metrics=clip_score", "--clip-model=x"],
         "drop --real"),
        ("facts", lambda r, f, t: ["--generated", f, "--metrics", "adherence"], "facts of the world's clips"),
        ("all that is lacking", lambda r, f, t: ["--generated", f, "--metrics", "fvd,clip_score"],
         "--real DIR or --reference FILE, .*--extractor, .*--clip-model"),
        ("weights first", lambda r, f, t: ["--real", t / "x", "--generated", f, "--extractor", "i3d(weights='n')"],
         "there is no file 'n', where the weights of I3D"),
        ("two real sides", lambda r, f, t: ["--real", r, "--reference", "x", "--generated", f], "give one of them"),
        ("rate", lambda r, f, t: ["--real", r, "--generated", f, "--fps", "nan"], "between 0 and 1000"),
        ("minimum", lambda r, f, t: ["--real", r, "--generated", f, "--min-clips", 4], "must be at least 8"),
        ("device", lambda r, f, t: ["--real", r, "--generated", f, *extractor, "--device", "abacus"], "cannot be used"),
        ("out", lambda r, f, t: ["--real", r, "--generated", f, *extractor, "--out", t], "is a folder; give the name"),
        ("kept", lambda r, f, t: ["--real", r, "--metrics", "kvd", "--save-reference", t, *extractor], "fvd or jedi"),
        ("fast", lambda r, f, t: ["--real", r, "--generated", f, "--fps", 4, *extractor], "than 12 frames at 4"),
        ("nothing", lambda r, f, t: ["--real", r], "needs --generated DIR, or --save-reference DIR"),
        ("reference", lambda r, f, t: ["--reference", t / "r.safetensors", "--generated", f, *extractor],
         "no reference statistics"),
    ]  # fmt: skip


def damaged(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    (target / "102.mp4").write_bytes((folder / "102.mp4").read_bytes()[:700])
    return target


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("a network ran")

    monkeypatch.setattr("lightning_sora.metrics.extractors.random.RandomExtractor.features", run)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("name", "arguments", "message"), refusals(), ids=[r[0] for r in refusals()])
def test_bad_input_is_one_line(
    name: str, arguments: Callable, message: str, real: Path, fake: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert score(*arguments(real, fake, tmp_path)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-sora:")]
    assert len(said) == 1
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


def test_clips_are_cut_where_and_at_the_rate_asked(real: Path, tmp_path: Path) -> None:
    def mean(*arguments: object) -> dict:
        return scores(tmp_path / "s.json", "--generated", real, "--metrics", "temporal_flickering", *arguments)

    first, center, fast = mean(), mean("--offset", "center"), mean("--fps", 16)
    assert len({found["protocol_id"] for found in (first, center, fast)}) == 3
    assert first["clips"] != center["clips"]
    # At twice the rate every other pair of frames is one picture twice.
    assert 1 - fast["scores"]["temporal_flickering"]["value"] == pytest.approx(
        (1 - first["scores"]["temporal_flickering"]["value"]) * 5 / 11, rel=0.1
    )


def test_single_clips_need_no_crowd_and_no_extractor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = paint(tmp_path / "two", 2)
    shutil.copy(folder / "000.mp4", folder / "copy.mp4")
    media.write_image(folder / "still.png", torch.zeros(8, 8, 3, dtype=torch.uint8))
    found = scores(tmp_path / "s.json", "--generated", folder, "--metrics", "motion_smoothness")
    assert found["protocol"]["clips"] == {"generated": 3}
    said = capsys.readouterr()
    assert "1 of 3 videos" in said.err
    assert "1 still images" in said.err
    assert "motion smoothness" in said.out


@pytest.mark.parametrize("how", ["table", "sidecars"])
def test_captions_are_scored(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub(torch.nn.Module):
        """The angle between picture and caption is the number in the caption."""

        model_id = str(tmp_path)

        def __init__(self, weights: str, *options: object) -> None:
            super().__init__()
            self.width = 2

        def prepare(self, frames: torch.Tensor) -> torch.Tensor:
            return frames.permute(0, 3, 1, 2).float()[:, :, :32, :32]

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(images), -1)

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            angles = torch.tensor([float(text) for text in texts]).deg2rad()
            return torch.stack((angles.cos(), angles.sin()), dim=1)

        def describe(self) -> dict[str, str]:
            return {"model": "stub"}

        def truncated(self, texts: list[str]) -> int:
            return sum(text == "60" for text in texts)

    monkeypatch.setattr("lightning_sora.metrics.extractors.clip.CLIPEncoder", Stub)
    folder = paint(tmp_path / "made", 2)
    if how == "table":
        (folder / "metadata.csv").write_text("file_name,text\n000.mp4,0\n001.webm,60\n")
    else:
        (folder / "000.txt").write_text("0\n")
        (folder / "001.txt").write_text("60\n")
    out = tmp_path / "s.json"
    found = scores(out, "--generated", folder, "--metrics", "clip_score", "--clip-model", tmp_path)
    assert found["clips"]["clip_score"] == pytest.approx({"000.mp4": 100, "001.webm": 50})
    assert found["scores"]["clip_score"]["value"] == pytest.approx(75)
    assert found["scores"]["clip_score"]["truncated"] == 1
    (folder / ("metadata.csv" if how == "table" else "000.txt")).unlink()
    assert score("--generated", folder, "--metrics", "clip_score", "--clip-model", tmp_path) == 2


def test_an_interruption_leaves_nothing_behind(
    real: Path, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_sora.metrics.extractors.random.RandomExtractor.features", interrupted)
    out = tmp_path / "s.json"
    out.write_text("earlier")
    assert score("--real", real, "--generated", fake, "--extractor", RANDOM, "--out", out) == 130
    assert out.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_real_clips_of_many_codecs(real_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (
        "arm_wrestling.mp4",
        "pancake.mkv",
        "part_0.mp4",
        "skeleton.avi",
        "structuralize.mp4",
        "test.avi",
        "test.mp4",
    )
    folder = tmp_path / "linked"
    folder.mkdir()
    for name in good:
        (folder / name).symlink_to(real_clips / name)
    (folder / "again.mp4").symlink_to(real_clips / "part_0.mp4")
    arguments: list[object] = ["--real", folder, "--generated", folder, "--metrics", "kvd,jedi,temporal_flickering"]
    assert score(*arguments, "--extractor", RANDOM, "--min-clips", 8) == 2
    assert "1 at 25, 1 at 28, 6 at 30" in capsys.readouterr().err
    arguments += ["--fps", 15]
    assert score(*arguments, "--extractor", RANDOM, "--min-clips", 8) == 0
    said = capsys.readouterr()
    assert "distances of 8 generated from 8 real clips" in said.out
    assert "1 of 8 videos" in said.err
    (folder / "corrupted.mp4").symlink_to(real_clips / "corrupted.mp4")
    assert score(*arguments, "--extractor", RANDOM, "--min-clips", 8) == 2
    assert re.search(r"1 of 9 videos under .* cannot be read: corrupted.mp4 \(", capsys.readouterr().err)
