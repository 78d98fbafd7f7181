"""sample: a video from a prompt and from files, the JSON that makes it again, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lightning_sora as ls
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import load_video_model
from lightning_sora.lab.request import Request

SIZE = ls.VideoSize(9, 32, 32)


def toy_model(folder: Path) -> Path:
    """A saved model of no training that knows all tasks, and in which prompts matter."""
    dit = {"patch_size": (4, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
    made = ls.LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit, sampling={"steps": 2})
    made.seen_sizes.add([SIZE], 8.0)
    made.tasks = tuple(ls.TASKS.list())
    with torch.no_grad():
        for name, parameter in made.dit.named_parameters():  # what starts at zero would hide the prompt
            if not parameter.any():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return made.save(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("models") / "toy")


def video(file: Path, frames: int = 9, height: int = 32, width: int = 32, seed: int = 0, fps: float = 8.0) -> Path:
    draw = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 256, (frames, 4, 4, 3), generator=draw, dtype=torch.uint8)
    clip = cells.repeat_interleave(height // 4, 1).repeat_interleave(width // 4, 2)
    return ls.save_video(file, clip if file.suffix != ".png" else clip[:1], fps)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    made = {
        "image": video(folder / "image.png"),
        "video": video(folder / "video.mp4"),
        "other": video(folder / "other.mp4", seed=1),
        "rate": video(folder / "rate.mp4", fps=12.0),
        "wide": video(folder / "wide.mp4", height=16, width=32),
        "short": video(folder / "short.mp4", frames=5),
    }
    mask = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    mask[:, :16] = 255
    made["mask"] = ls.save_video(folder / "mask.png", mask)
    (folder / "broken.png").write_bytes(b"no picture")
    return {name: str(file) for name, file in made.items()} | {"broken": str(folder / "broken.png")}


def test_a_video_is_made_again_bit_for_bit(
    model: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        *("sample", "--ckpt", str(model), "--prompt=a red cube", "--prompt=a cone", "--seed=3", "--seed=5"),
        *("--image", files["image"], "--negative-prompt=blurred", "--guidance=2", "--sampler=heun", "--device=cpu"),
    ]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    names = ("000_a-red-cube_seed3", "001_a-red-cube_seed5", "002_a-cone_seed3", "003_a-cone_seed5")
    told = [str(tmp_path / f"{name}{end}") for name in names for end in (".mp4", ".gif", ".json")]
    assert capsys.readouterr().out.splitlines() == [*told, str(tmp_path / "contact_sheet.png")]
    for name in names[1:3]:
        assert main(["sample", "--again", str(tmp_path / f"{name}.json"), "--device=cpu"]) == 0
        for end in (".mp4", ".gif"):
            again = tmp_path / "again" / f"{name}{end}"
            assert again.read_bytes() == (tmp_path / f"{name}{end}").read_bytes()
    digests = [json.loads((tmp_path / f"{name}.json").read_text())["pixels"] for name in names]
    assert len(set(digests)) == len(names)


def test_noise_depends_on_the_seed_alone(model: Path, tmp_path: Path) -> None:
    among = ls.sample(model, ["a cone", "a red cube"], seed=[1, 2], out=tmp_path / "a", device="cpu")
    alone = ls.sample(model, "a red cube", seed=2, out=tmp_path / "b", device="cpu")
    assert torch.equal(among.videos[3], alone.videos[0])
    whole = ls.load(model, "cpu")
    assert torch.equal(alone.videos[0], whole.sample("a red cube", seed=2))
    guided = ls.sample(model, "a red cube", seed=2, negative="a cone", out=tmp_path / "c", device="cpu")
    assert not torch.equal(guided.videos[0], alone.videos[0])
    # Led away from the prompt itself, guidance leads nowhere.
    none = ls.sample(model, "a red cube", seed=2, negative="a red cube", out=tmp_path / "d", device="cpu")
    unguided = ls.sample(model, "a red cube", seed=2, guidance=1.0, out=tmp_path / "e", device="cpu")
    assert int((none.videos[0].int() - unguided.videos[0].int()).abs().max()) <= 1


def test_what_changed_since_is_told(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    image = video(tmp_path / "image.png")
    made = ls.sample(model, "a", inputs={"image": str(image)}, out=tmp_path / "s", device="cpu")
    video(tmp_path / "image.png", seed=9)
    with pytest.raises(SoraError, match="the inputs of this sample changed since"):
        ls.sample_again(made.files[2], device="cpu")
    (tmp_path / "lacks.json").write_text('{"request": {"model": "toy"}}')
    (tmp_path / "odd.json").write_text('{"request": {"model": "toy", "prompts": 3, "seeds": [0], "plugins": []}}')
    for file in (model / "config.json", tmp_path / "lacks.json", tmp_path / "odd.json"):
        with pytest.raises(SoraError, match="is no sidecar of a sample"):
            ls.sample_again(file, device="cpu")


TASKS = [
    (["--image", "image"], "image_to_video", 9),
    (["--first", "image", "--last", "image"], "first_and_last", 9),
    (["--video", "video", "--extend", "11"], "extend_forward", 20),
    (["--video", "video", "--extend", "11", "--backward"], "extend_backward", 20),
    (["--extend", "6"], "windows", 15),
    (["--connect", "video", "other"], "connect", 22),
    (["--loop"], "loop", 13),
    (["--video", "video", "--times", "2"], "interpolate", 17),
    (["--video", "video", "--mask", "mask"], "inpaint", 9),
    (["--video", "video", "--strength", "0.5"], "edit", 9),
    (["--video", "wide", "--task", "outpaint"], "outpaint", 9),
    (["--task", "rollout"], "rollout", 9),
    (["--task", "text_to_image"], "text_to_image", 1),
]


@pytest.mark.parametrize(("flags", "task", "frames"), TASKS, ids=[task for _, task, _ in TASKS])
def test_flags_tell_the_task(
    model: Path, files: dict[str, str], tmp_path: Path, flags: list[str], task: str, frames: int
) -> None:
    given = [files.get(flag, flag) for flag in flags]
    common = ["sample", "--ckpt", str(model), "--prompt=a", "--device=cpu", "--out", str(tmp_path)]
    assert main([*common, *given]) == 0
    told = json.loads((tmp_path / "000_a_seed0.json").read_text())
    assert told["task"] == task
    made, fps = ls.read_video(tmp_path / "000_a_seed0.mp4")
    assert (tuple(made.shape), fps) == ((frames, 32, 32, 3), 8.0)
    assert main(["sample", "--again", str(tmp_path / "000_a_seed0.json"), "--device=cpu"]) == 0


def test_outpainting_keeps_the_video_in_the_middle(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    inputs = {"video": files["wide"]}
    made = ls.sample(model, "a", task="outpaint", inputs=inputs, out=tmp_path, device="cpu").videos[0]
    shown, _ = ls.read_video(files["wide"])
    assert torch.equal(made[:, 8:24], shown)
    assert not torch.equal(made[:, :8], torch.zeros_like(made[:, :8]))


BAD = [
    (["--image", "broken"], "broken.png: not an image in a known format"),
    (["--image", "none.png"], "no image at none.png"),
    (["--video", "video", "--mask", "short"], "the mask has 5 frames and the video 9"),
    (["--connect", "video", "rate"], "the clips have two rates"),
    (["--video", "video"], "video alone tells no task"),
    (["--video", "video", "--connect", "video", "other"], "--connect names the clips by itself"),
    (["--backward"], "--backward goes with --video and --extend"),
    (["--loop", "--task", "edit"], "one task at a time"),
    (["--video", "video", "--task", "outpaint"], "fills 32x32 pixels"),
    (["--height", "30"], "height=30 is not a multiple of 8 (nearest: 24 or 32)"),
    (["--frames", "8"], "frames=8 is not 1 + n*4 (nearest: 5 or 9)"),
    (["--prompt", "a" * 10_000], "a prompt has 10000 letters"),
    (["--rope", "yarn"], "rope='yarn' must be 'none', 'interpolate' or 'ntk'"),
    (["--sampler", "oiler"], "did you mean 'euler'"),
    (["--task", "image_to_video"], "needs image (a still, of one frame)"),
    (["--video", "short", "--strength", "0.5"], "the video has 5 frames and the clip 9"),
    (["--video", "video", "--strength", "2"], "strength=2 must lie in [0, 1]"),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_line(
    model: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    given = [files.get(flag, flag) for flag in flags]
    out = tmp_path / "out"
    assert main(["sample", "--ckpt", str(model), "--prompt=a", "--device=cpu", "--out", str(out), *given]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "Traceback" not in told.err
    assert not out.exists() or not list(out.iterdir())


def test_a_call_gives_files_and_sizes_that_can_be(model: Path, files: dict[str, str], tmp_path: Path) -> None:
    shown, _ = ls.read_video(files["image"])
    with pytest.raises(SoraError, match="image is a Tensor, by which nothing could be made again"):
        ls.sample(model, "a", inputs={"image": shown}, out=tmp_path, device="cpu")
    with pytest.raises(SoraError, match="frames=0 is not 1"):
        ls.sample(model, "a", frames=0, out=tmp_path, device="cpu")
    with pytest.raises(SoraError, match="fps=0 must be positive"):
        ls.sample(model, "a", fps=0, out=tmp_path, device="cpu")
    with pytest.raises(SoraError, match="steps=0 must be at least 1"):
        Request(str(model), ("a",), (0,), steps=0).check()  # before a model is read
    made = ls.sample(model, "a", inputs={"image": Path(files["image"])}, out=tmp_path, device="cpu")
    assert torch.equal(ls.sample_again(made.files[2], device="cpu").videos[0], made.videos[0])


def test_a_preview_shows_what_is_being_made(model: Path, tmp_path: Path) -> None:
    ls.sample(model, "a", out=tmp_path, preview=True, scale=2, device="cpu")
    shown, _ = ls.read_video(tmp_path / "preview.png")
    assert tuple(shown.shape) == (1, 64, 64, 3)


def test_a_model_is_loaded_once_for_many_samples(model: Path, tmp_path: Path) -> None:
    loaded, passes = load_video_model(model, "cpu"), []
    made = ls.sample(loaded, "a", seed=1, out=tmp_path / "a", progress=lambda steps: passes.append(len(steps)) or steps)
    assert passes == [2]
    assert torch.equal(made.videos[0], ls.sample(model, "a", seed=1, out=tmp_path / "b", device="cpu").videos[0])
    assert torch.equal(ls.sample_again(made.files[2], device="cpu").videos[0], made.videos[0])
    with pytest.raises(SoraError, match="is loaded on cpu"):
        ls.sample(loaded, "a", out=tmp_path, device="meta")


def test_a_larger_size_is_made_again_as_it_was_asked_for(model: Path, tmp_path: Path) -> None:
    """An image, too; and a JSON of before there was a choice still counts."""
    common = ["sample", "--ckpt", str(model), "--prompt=a", "--device=cpu", "--height=64"]
    for name, flags in {"ntk": ["--rope=ntk"], "shift": ["--shift-by-size"], "plain": []}.items():
        for task in ("text_to_video", "text_to_image"):
            assert main([*common, "--task", task, *flags, "--out", str(tmp_path / name / task)]) == 0
            file = tmp_path / name / task / "000_a_seed0.json"
            assert main(["sample", "--again", str(file), "--device=cpu"]) == 0
    read = {
        name: json.loads((tmp_path / name / task / "000_a_seed0.json").read_text())
        for name in ("ntk", "shift", "plain")
    }
    assert [(one["rope"], one["shift_by_size"]) for one in read.values()] == [
        ("ntk", False),
        ("none", True),
        ("none", False),
    ]
    assert len({one["pixels"] for one in read.values()}) == 3
    old = read["plain"]
    del old["request"]["rope"], old["request"]["shift_by_size"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert main(["sample", "--again", str(tmp_path / "old.json"), "--device=cpu"]) == 0
