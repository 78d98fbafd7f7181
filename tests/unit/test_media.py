from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from lightning_sora import media
from lightning_sora.errors import SoraError
from lightning_sora.sealing import is_whole


def ramp(frames: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth colours that change from frame to frame."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([t * 200 // max(1, frames - 1), y * 255 // height, x * 255 // width], dim=-1).to(torch.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize(("height", "width", "scale"), [(32, 32, 4), (33, 47, 1), (5, 7, 3), (32, 48, 1)])
def test_an_mp4_holds_the_frames_at_their_rate_enlarged_and_padded_to_even_sizes(
    tmp_path: Path, height: int, width: int, scale: int
) -> None:
    video = ramp(9, height, width)
    media.write_mp4(tmp_path / "new" / "a.mp4", video, 12.5, scale=scale)
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12.5
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    shown = np.kron(video.numpy(), np.ones((1, scale, scale, 1), dtype=np.uint8))
    assert pictures.shape[0] == 9
    assert all(side % 2 == 0 for side in pictures.shape[1:3])
    assert all(0 <= held - asked <= 1 for held, asked in zip(pictures.shape[1:3], shown.shape[1:3], strict=True))
    assert psnr(pictures[:, : shown.shape[1], : shown.shape[2]], shown) > 28


@pytest.mark.parametrize(("fps", "frames"), [(8, 17), (12, 25), (29.97, 40)])
def test_a_gif_lasts_as_long_as_the_video(tmp_path: Path, fps: float, frames: int) -> None:
    media.write_gif(tmp_path / "a.gif", ramp(frames), fps)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
        assert abs(sum(frame.info["duration"] for frame in ImageSequence.Iterator(image)) - 1000 * frames / fps) <= 10


def test_a_gif_of_few_colours_is_exact_and_enlarged_without_blur(tmp_path: Path) -> None:
    video = torch.randint(0, 4, (5, 8, 8, 3), generator=torch.Generator().manual_seed(0)).mul(85).to(torch.uint8)
    media.write_gif(tmp_path / "a.gif", video, 10, scale=3)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5
        shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    assert np.array_equal(shown, np.kron(video.numpy(), np.ones((1, 3, 3, 1), dtype=np.uint8)))


def test_a_gif_beyond_what_viewers_play_leaves_frames_out_and_keeps_its_length(tmp_path: Path) -> None:
    media.write_gif(tmp_path / "a.gif", ramp(60), 120)
    with Image.open(tmp_path / "a.gif") as image:
        delays = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert min(delays) >= 20
    assert sum(delays) == 500


def test_a_contact_sheet_shows_frames_from_first_to_last_beside_the_caption(tmp_path: Path) -> None:
    greys = torch.arange(17, dtype=torch.uint8)[:, None, None, None].mul(15).expand(-1, 16, 16, -1)
    video = torch.cat([greys, greys, torch.zeros_like(greys)], dim=-1)
    media.contact_sheet(tmp_path / "sheet.png", [video, video[:1]], ["a caption", ""], 5, scale=2)
    sheet = pixels(tmp_path / "sheet.png")
    frames_at = [int(np.argwhere((sheet == (15 * n, 15 * n, 0)).all(-1))[:, 1].min()) for n in (0, 4, 8, 12, 16)]
    assert frames_at == sorted(frames_at)
    assert all((sheet == (15 * n, 15 * n, 0)).all(-1).sum() == 32 * 32 * (1 + (n == 0)) for n in (0, 4, 8, 12, 16))
    margin = sheet[:, : frames_at[0]]
    assert (margin.sum(-1) < 300).sum() > 50  # ink
    media.contact_sheet(tmp_path / "bare.png", [video], [""], 5, scale=2)
    assert pixels(tmp_path / "bare.png").shape[1] < sheet.shape[1] - 200


def test_a_long_caption_is_wrapped_and_never_covers_a_frame(tmp_path: Path) -> None:
    video = torch.full((3, 16, 16, 3), 7, dtype=torch.uint8)
    caption = "a very long caption " * 20 + "w" * 200
    media.contact_sheet(tmp_path / "sheet.png", [video], [caption], scale=1)
    sheet = pixels(tmp_path / "sheet.png")
    assert (sheet == 7).all(-1).sum() == 3 * 16 * 16
    assert sheet.shape[0] > 300


def test_a_comparison_sheet_puts_the_versions_of_a_clip_under_one_another(tmp_path: Path) -> None:
    def one(level: int) -> torch.Tensor:
        return torch.full((2, 20, 20, 3), level, dtype=torch.uint8)

    media.comparison_sheet(
        tmp_path / "sheet.png", {"real": [one(10), one(30)], "reconstruction": [one(20), one(40)]}, ["a", "b"], scale=1
    )
    sheet = pixels(tmp_path / "sheet.png")[:, 250:]  # right of the captions
    tops = [int(np.argwhere((sheet == level).all(-1))[:, 0].min()) for level in (10, 20, 30, 40)]
    assert tops == sorted(tops)


def test_large_frames_are_shrunk_on_a_sheet(tmp_path: Path) -> None:
    media.contact_sheet(tmp_path / "sheet.png", [torch.zeros(4, 540, 960, 3, dtype=torch.uint8)], [""], 4)
    assert pixels(tmp_path / "sheet.png").shape[1] < 4 * 260 + 20


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    (tmp_path / "a.gif").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(SoraError, match="disk full"):
        media.write_gif(tmp_path / "a.gif", ramp(3), 8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    assert (tmp_path / "a.gif").read_text() == "old"


@pytest.mark.parametrize("write", [media.write_mp4, media.write_gif], ids=["mp4", "gif"])
@pytest.mark.parametrize("frames", [1, 5])
def test_a_film_tells_whether_its_bytes_are_those_that_were_written(
    tmp_path: Path, write: Callable[[Path, torch.Tensor, float], None], frames: int
) -> None:
    file, again = tmp_path / "one", tmp_path / "two"
    write(file, ramp(frames), 8)
    write(again, ramp(frames), 8)
    content = file.read_bytes()
    assert is_whole(content)
    assert is_whole(again.read_bytes())
    for damaged in (content[:-20], content[:40] + bytes([content[40] ^ 1]) + content[41:], content + b"\0"):
        assert not is_whole(damaged)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: media.write_mp4(p, ramp(3).float(), 8), "must be uint8"),
        (lambda p: media.write_mp4(p, ramp(3)[0], 8), r"\[frames height width 3\]"),
        (lambda p: media.write_mp4(p, ramp(3), 0), "fps=0 must be positive"),
        (lambda p: media.write_gif(p, ramp(3), float("nan")), "fps=nan"),
        (lambda p: media.write_gif(p, ramp(3), 8, scale=0), "scale=0"),
        (lambda p: media.contact_sheet(p, [], []), "no videos"),
        (lambda p: media.contact_sheet(p, [ramp(3)], ["a", "b"]), "1 videos .* 2 captions"),
        (lambda p: media.contact_sheet(p, [ramp(3)], ["a"], 0), "columns_of_frames=0"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path: Path, call: object, message: str) -> None:
    with pytest.raises(SoraError, match=message):
        call(tmp_path / "file")  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_images_are_read_back_exactly_whatever_their_depth(tmp_path: Path) -> None:
    image = ramp(1, 12, 20)[0]
    media.write_image(tmp_path / "a.png", image)
    assert torch.equal(media.read_image(tmp_path / "a.png"), image)
    assert media.image_size(tmp_path / "a.png") == (12, 20)
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(media.read_image(tmp_path / "deep.png")[..., 1].numpy(), np.arange(256).reshape(16, 16))
    clear = Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).convert("P")
    clear.save(tmp_path / "clear.gif", transparency=0)
    assert media.read_image(tmp_path / "clear.gif").unique().tolist() == [255]


def test_unreadable_images_are_told_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    for name, reason in (("text.png", "not an image"), ("missing.png", "no such file"), ("", "damaged|directory")):
        with pytest.raises(SoraError, match=reason):
            media.read_image(tmp_path / name)
