from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_sora.data import decode
from lightning_sora.data import frames as reading
from lightning_sora.data.endings import VIDEO_SUFFIXES
from lightning_sora.data.frames import Unseen
from lightning_sora.data.picture import SCALER, Picture
from lightning_sora.data.places import DecodeError
from lightning_sora.errors import SoraError

HEIGHT, WIDTH, BITS = 48, 64, 8


def barcode(number: int) -> np.ndarray:
    """A picture that shows a number as eight black or white bars: a truth that no timestamp can alter."""
    bars = np.array([255 * (number >> bit & 1) for bit in range(BITS)], dtype=np.uint8)
    return np.broadcast_to(bars.repeat(WIDTH // BITS)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def numbers(video: torch.Tensor) -> list[int]:
    bars = video.float().mean(dim=(1, 3)).unflatten(1, (BITS, -1)).mean(-1) > 128
    return (bars * 2 ** torch.arange(BITS)).sum(1).tolist()


def encode(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    fps: int = 30,
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
    format: str | None = None,
) -> Path:
    """Writes pictures; ``stamps`` are presentation times in milliseconds."""
    with av.open(str(path), "w", options=mux or {}, format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options, stream.thread_type = pix_fmt, options or {}, "NONE"
        if codec == "libx264":
            stream.options = {"g": "10", "bf": "2", "preset": "ultrafast", "crf": "10"} | stream.options
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def counted(path: Path, count: int = 40, **options: object) -> Path:
    return encode(path, [barcode(number) for number in range(count)], **options)


KINDS = {
    "h264.mp4": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "ten bits.mov": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "options": {"x265-params": "log-level=none:keyint=9"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "10", "deadline": "realtime", "cpu-used": "8"}},
    "h264.mkv": {},
    "mpeg4.avi": {"codec": "mpeg4"},
    "no presentation times.avi": {},
    "program stream.mpg": {"codec": "mpeg2video"},
    "colon: name.mp4": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_window_shows_the_frames_of_its_time_in_every_container(tmp_path: Path, name: str) -> None:
    path = counted(tmp_path / name, **KINDS[name])
    info = decode.probe(path)
    assert (info.frames, info.height, info.width, info.rotation) == (40, HEIGHT, WIDTH, 0)
    assert info.fps == pytest.approx(30, rel=1e-3)
    assert decode.check(path) is None
    for start, frames, fps, expected in (
        (0.0, 40, None, list(range(40))),
        (17 / 30, 5, 30, [17, 18, 19, 20, 21]),
        (31 / 30, 3, 10, [31, 34, 37]),
        (25 / 30, 4, 60, [25, 25, 26, 26]),
        (38 / 30, 2, 30, [38, 39]),
        (0.0, 4, 8, [0, 4, 7, 11]),  # nearest to 0, 3.75, 7.5 (the earlier of two), 11.25
    ):
        video = decode.read_clip(path, start, frames, fps)
        assert video.dtype == torch.uint8
        assert video.shape == (frames, HEIGHT, WIDTH, 3)
        assert numbers(video) == expected


def noisy(path: Path, count: int = 40, **options: object) -> Path:
    """A film whose every frame differs from the next all over, with B-frames to which no other frame refers."""
    draw = np.random.default_rng(0)
    options = {"options": {"bf": "3", "b_strategy": "0", "g": "13"}} | options
    return encode(path, [draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(count)], **options)


def flipped(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(len(content) // 4, len(content) * 3 // 4, 3):
        content[place] ^= 1
    path.write_bytes(content)
    return path


H264: dict[str, Callable[[Path], Path]] = {
    "mp4": lambda folder: noisy(folder / "a.mp4"),
    "transport stream": lambda folder: noisy(folder / "a.ts"),
    "variable rate": lambda folder: noisy(folder / "a.mkv", stamps=[20 * k + k * k for k in range(40)]),
    "open groups, references among B-frames": lambda folder: noisy(
        folder / "a.mp4", options={"bf": "5", "x264-params": "open-gop=1:keyint=11:b-pyramid=normal:b-adapt=0"}
    ),
    "no times": lambda folder: noisy(folder / "a.h264"),
    "damaged": lambda folder: flipped(noisy(folder / "a.mp4")),
}


@pytest.mark.parametrize("kind", H264)
def test_the_frames_that_are_left_out_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = H264[kind](tmp_path)

    def windows() -> list[torch.Tensor | str]:
        found: list[torch.Tensor | str] = []
        for start, count, fps in ((0.0, 5, 7.0), (0.31, 4, None), (0.5, 3, 11.0), (0.97, 2, 60.0), (0.8, 9, 30.0)):
            try:
                found.append(decode.read_clip(path, start, count, fps))
            except DecodeError as problem:
                found.append(str(problem))
        return found

    thinned = windows()
    monkeypatch.setattr(reading, "SKIPPING_DECODERS", frozenset())
    for one, other in zip(thinned, windows(), strict=True):
        assert one == other if isinstance(other, str) else torch.equal(torch.as_tensor(one), other)


def test_frames_are_left_out(tmp_path: Path) -> None:
    with av.open(str(noisy(tmp_path / "a.mp4"))) as container:
        stream = container.streams.video[0]
        unseen = Unseen([0.5, 1.0])
        out = [time for time, _ in reading.timed_frames(container, stream, 0.0, unseen)]
    assert out[-1] == float("inf")
    assert 10 <= len(out) <= 24  # of the 32 until the last moment
    assert {15, 30} <= {round(time * 30) for time in out[:-1]}


def test_no_frame_is_hidden_that_is_seen() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        times = draw.permutation(12)  # in the order of the file
        moments = np.sort(draw.uniform(0, 14, draw.integers(1, 5)))
        seen = {max(times[times <= moment], default=None) for moment in moments}
        unseen = Unseen(moments.tolist())
        assert not seen & {time for time in times if unseen.hidden(time)}
        assert unseen.over(15)
        assert not any(unseen.over(time) for time in times if time in seen)


FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gray", "yuyv422", "rgb24", "gbrp")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [None, (21, 40), (70, 99)])
def test_a_picture_is_swscale_s_most_exact_conversion(tmp_path: Path, name: str, size: tuple[int, int] | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=name)
    with av.open(str(counted(tmp_path / "a.mp4", 1))) as container:
        picture = Picture(container.streams.video[0], size)
        into = np.zeros(picture.shape(frame), dtype=np.uint8)
        picture.draw(frame, into)
    height, width = size or (37, 53)
    at_once = frame.reformat(width=width, height=height, format="rgb24", interpolation=SCALER, threads=1)
    assert np.array_equal(into, at_once.to_ndarray())


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    pictures = [Image.fromarray(barcode(number)) for number in range(12)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=40)
    info = decode.probe(tmp_path / "a.gif")
    assert (info.frames, info.fps) == (12, 25)
    assert numbers(decode.read_clip(tmp_path / "a.gif", 7 / 25, 3, 25)) == [7, 8, 9]


def test_a_variable_rate_is_resampled_by_the_stored_times(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).choice([20, 35, 120, 300], size=39)
    stamps = np.concatenate([[0], np.cumsum(steps)])
    for name in ("a.mp4", "a.mkv"):
        path = counted(tmp_path / name, stamps=stamps.tolist())
        rate = decode.probe(path).fps
        assert rate == pytest.approx(40 / (stamps[-1] + np.diff(stamps).mean()) * 1000, rel=0.06)
        for start, fps in ((0.0, 10), (1.3, 25), (2.0, 4)):
            times = (start + np.arange(9) / fps) * 1000
            # What is due, leniently by just under half of the average frame, without any decoder.
            lenience = 490 / (av.open(str(path)).streams.video[0].average_rate or rate)
            expected = np.searchsorted(stamps, times + float(lenience), side="right") - 1
            assert numbers(decode.read_clip(path, start, 9, fps)) == expected.tolist()


def test_frames_without_any_times_are_counted(tmp_path: Path) -> None:
    path = counted(tmp_path / "raw.h264", fps=25)
    assert decode.probe(path).frames == 40
    assert numbers(decode.read_clip(path, 20 / 25, 3, 25)) == [20, 21, 22]


def test_time_starts_at_the_first_picture(tmp_path: Path) -> None:
    path = counted(tmp_path / "late.mkv", stamps=[5000 + 40 * number for number in range(40)])
    assert numbers(decode.read_clip(path, 0.0, 2, 25)) == [0, 1]
    assert numbers(decode.read_clip(path, 30 / 25, 2, 25)) == [30, 31]


@pytest.mark.skipif(not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="this PyAV cannot turn")
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_turned_picture_is_shown_upright(tmp_path: Path, degrees: int) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[:16, :16] = 255
    path = encode(tmp_path / "turned.mp4", [picture] * 3, rotation=degrees)
    shown = np.rot90(picture, degrees // 90)
    info = decode.probe(path)
    assert (info.height, info.width) == shown.shape[:2]
    video = decode.read_clip(path, 0, 3, size=shown.shape[:2])
    assert np.abs(video[1].numpy().astype(int) - shown).mean() < 4
    assert video.shape == decode.read_clip(path, 0, 3).shape


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = counted(tmp_path / "a.mp4", 3, aspect=Fraction(3, 2))
    info = decode.probe(path)
    assert (info.height, info.width) == (HEIGHT, WIDTH * 3 // 2)
    assert decode.read_clip(path, 0, 2).shape == (2, HEIGHT, WIDTH * 3 // 2, 3)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libvpx-vp9", "webm")])
def test_odd_sizes_keep_size_and_colour(tmp_path: Path, codec: str, suffix: str) -> None:
    colour = np.array([200, 40, 90])
    picture = np.broadcast_to(colour.astype(np.uint8), (33, 47, 3)).copy()
    path = encode(tmp_path / f"odd.{suffix}", [picture] * 4, codec=codec, pix_fmt="yuv444p")
    video = decode.read_clip(path, 0, 4)
    assert video.shape == (4, 33, 47, 3)
    assert np.abs(video.numpy().astype(int) - colour).max() <= 6


def test_shrinking_averages_instead_of_picking_pixels(tmp_path: Path) -> None:
    fine = np.indices((HEIGHT * 4, WIDTH * 4)).sum(0) % 2 * 255
    picture = np.repeat(fine[..., None], 3, axis=2).astype(np.uint8)
    path = encode(tmp_path / "fine.mp4", [picture] * 2, options={"crf": "0"}, pix_fmt="yuv444p")
    Image.fromarray(picture).save(tmp_path / "fine.png")
    for video in (
        decode.read_clip(path, 0, 2, size=(HEIGHT, WIDTH)),
        decode.read_clip(tmp_path / "fine.png", 0, 1, size=(HEIGHT, WIDTH)),
    ):
        assert (video.float() - 127.5).abs().max() < 12


def test_a_still_is_a_clip_of_one_frame_turned_and_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 4), dtype=np.uint8)
    pixels[:10, :, 0], pixels[:10, :, 3] = 250, 255
    for name in ("a.png", "a.webp"):
        Image.fromarray(pixels).save(tmp_path / name, lossless=True)
        video = decode.read_clip(tmp_path / name, 0, 1)
        assert decode.probe(tmp_path / name) == decode.VideoInfo(1, 20, 30, decode.STILL_FPS)
        assert video[0, 0, 0].tolist() == [250, 0, 0]
        assert video[0, -1, 0].tolist() == [255, 255, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.bmp")
    info = decode.probe(tmp_path / "a.jpg")
    assert (info.height, info.width) == (30, 20)
    assert decode.read_clip(tmp_path / "a.jpg", 0, 1).shape == (1, 30, 20, 3)
    assert decode.read_clip(tmp_path / "a.bmp", 0, 1).shape == (1, 20, 30, 3)
    with pytest.raises(DecodeError, match="1 frame, 2 were asked"):
        decode.read_clip(tmp_path / "a.bmp", 0, 2)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Kind of damage -> file and what the reason must say."""
    whole = counted(folder / "whole.mp4", mux={"movflags": "faststart"}).read_bytes()
    index_last = counted(folder / "index_last.mp4").read_bytes()
    webm = counted(folder / "whole.webm", 120, codec="libvpx-vp9", options={"deadline": "realtime"}).read_bytes()
    contents = {
        "empty.mp4": (b"", "empty"),
        "zeros.mp4": (bytes(5000), "damaged"),
        "text.mp4": (b"this is no video\n" * 40, "damaged"),
        "cut.mp4": (whole[: len(whole) * 6 // 10], "cut short"),
        "index_lost.mp4": (index_last[: len(index_last) * 6 // 10], "damaged, incomplete"),
        "cut.webm": (webm[: len(webm) // 2], "cut short"),
        "text.png": (b"no image", "not an image"),
        "empty.jpg": (b"", "not an image"),
    }
    found = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        found[name] = (folder / name, reason)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:6000])
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return found | {
        "cut.png": (folder / "cut.png", "damaged"),
        "sound.mp4": (folder / "sound.mp4", "no video, only audio"),
        "missing.mp4": (folder / "missing.mp4", "no such file"),
        "folder.mp4": (folder, "folder"),
    }


def test_every_bad_file_is_told_with_its_name_and_a_reason(tmp_path: Path) -> None:
    for name, (path, reason) in bad_files(tmp_path).items():
        told = decode.check(path)
        assert told is not None, name
        assert reason in told, (name, told)
        assert str(path) not in told
        if name not in ("cut.webm", "cut.png"):  # their heads are fine: only reading them through shows it
            with pytest.raises(DecodeError, match=reason) as caught:
                decode.probe(path)
            assert str(caught.value).startswith(f"{path}: ")
        with pytest.raises(DecodeError, match="ends at" if name == "cut.webm" else None):
            decode.read_clip(path, 0, 110, 30)


def test_a_window_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = counted(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match=r"ends at 1\.33 s, but frames up to 1\.50 s"):
        decode.read_clip(path, 36 / 30, 10, 30)
    with pytest.raises(DecodeError, match="ends at"):
        decode.read_clip(path, 100.0, 1, 30)


@pytest.mark.parametrize(("start", "frames", "fps"), [(-1.0, 4, 8.0), (0.0, 0, 8.0), (0.0, 4, 0.0)])
def test_an_impossible_request_is_a_mistake_of_the_caller(start: float, frames: int, fps: float) -> None:
    with pytest.raises(SoraError, match="must be positive"):
        decode.read_clip("any.mp4", start, frames, fps)


def real_files() -> list[Path]:
    root = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_SORA_TEST_DATA does not name the folder of real clips")
    return sorted(p for p in (Path(root) / "clips").iterdir() if p.suffix in VIDEO_SUFFIXES)


@pytest.mark.slow
def test_real_clips_read_the_same_by_seeking_and_from_the_start() -> None:
    for path in real_files():
        info = decode.probe(path)
        reason = decode.check(path)
        assert (reason is not None) == (path.name == "corrupted.mp4"), (path, reason)
        until = min(info.frames, 28)
        whole = decode.read_clip(path, 0, until, info.fps, size=(24, 32))
        for at in (1, until // 2, until - 2):
            window = decode.read_clip(path, at / info.fps, 2, info.fps, size=(24, 32))
            assert torch.equal(window, whole[at : at + 2]), (path, at)


def test_real_turned_clips_are_upright_in_size() -> None:
    sizes = {p.stem: decode.probe(p) for p in real_files() if p.stem.startswith("rotated")}
    assert {n: (i.height > i.width) for n, i in sizes.items()} == {
        "rotated_0": False,
        "rotated_90": True,
        "rotated_180": False,
        "rotated_270": True,
    }
