"""Reading: windows of films beside other decoders, and cached latents beside a bare safetensors file.

    python -m benchmarks.data [--quick] [--out FILE.md]

The films are made here: H.264 of 854 x 480 pixels, 300 frames, textures that move under weak grain or strong, with a
keyframe every 24 frames and every 250. A window is 17 frames from a random one on. Every reader opens the file, seeks,
and returns RGB of the same frames, on one thread; the seconds are of this process. Latents are read in random order, in
float32, each in memory of its own. Whatever of torchcodec and decord is not installed, or finds no FFmpeg, is named as
absent.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import interleaved, markdown_table, page, write_page
from lightning_sora.data.decode import read_clip
from lightning_sora.data.latents import CachedClip, LatentReader, shard_bytes, shard_rows

FPS = 30
Reader = Callable[[Path, int, int, tuple[int, int] | None], Any]
"""``(path, first, frames, size) -> uint8 [frames height width 3]``; ``size`` is (height, width) to scale to."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        height, width, frames: of the films.
        window: frames of a window.
        windows: random windows, over which a turn goes.
        repeats: turns of each reader.
        films: of each how strong its grain is, in levels, and every how many frames it has a keyframe.
        small: (height, width) for windows that are scaled, of the first film.
        latents, shapes: how many latents, in four shards, and of which shapes.
    """

    height: int
    width: int
    frames: int
    window: int
    windows: int
    repeats: int
    films: tuple[tuple[int, int], ...]
    small: tuple[int, int]
    latents: int
    shapes: tuple[tuple[int, int, int, int], ...]


FILMS = ((4, 24), (4, 250), (12, 24), (12, 250))
FULL = Scale(480, 854, 300, 17, 8, 5, FILMS, (144, 256), 128, ((5, 16, 16, 16), (5, 32, 56, 16)))
QUICK = Scale(48, 64, 12, 3, 2, 1, ((4, 4),), (24, 32), 8, ((2, 2, 2, 3),))


def pictures(scale: Scale, grain: int) -> Iterator[np.ndarray]:
    """Waves and a blocky texture that move, under grain of so many levels."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[: scale.height, : scale.width]
    blocks = draw.standard_normal((scale.height // 8 + 1, scale.width // 8 + 1, 3)) * 25
    texture = blocks.repeat(8, 0).repeat(8, 1)[: scale.height, : scale.width]
    for t in range(scale.frames):
        waves = np.sin(x / 50 + t / 10), np.cos(y / 40 - t / 15), np.sin((x + y) / 60 + t / 20)
        picture = 128 + 60 * np.stack(waves, -1) + np.roll(texture, (t, 2 * t), (0, 1))
        picture += grain * draw.standard_normal((scale.height, scale.width, 1))
        yield picture.clip(0, 255).astype(np.uint8)


def film(path: Path, scale: Scale, grain: int, keyframes: int) -> Path:
    """Writes a film with x264's usual settings and a keyframe every so many frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt, stream.thread_type = scale.height, scale.width, "yuv420p", "NONE"
        every = str(keyframes)
        stream.options = {"crf": "23", "preset": "medium", "g": every, "keyint_min": every, "sc_threshold": "0"}
        for picture in pictures(scale, grain):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def ours(path: Path, first: int, frames: int, size: tuple[int, int] | None) -> Tensor:
    return read_clip(path, first / FPS, frames, FPS, size=size)


def quick(path: Path, first: int, frames: int, size: tuple[int, int] | None) -> Tensor:
    return read_clip(path, first / FPS, frames, FPS, size=size, colours="fast")


def plain(path: Path, first: int, frames: int, size: tuple[int, int] | None) -> np.ndarray:
    """The loop that one writes with PyAV: seek, decode on, convert by its default what is kept."""
    height, width = size or (None, None)
    found: list[np.ndarray] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        container.seek(int(first / FPS / float(stream.time_base or 1)), stream=stream)
        for frame in container.decode(stream):
            if (frame.time or 0.0) >= (first - 0.5) / FPS:
                found.append(frame.to_ndarray(format="rgb24", width=width, height=height))
                if len(found) == frames:
                    break
    return np.stack(found)


def torchcodec() -> Reader:
    from torchcodec.decoders import VideoDecoder

    def read(path: Path, first: int, frames: int, size: tuple[int, int] | None) -> Tensor:
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC")
        return decoder[first : first + frames]

    return read


def decord() -> Reader:
    from decord import VideoReader

    def read(path: Path, first: int, frames: int, size: tuple[int, int] | None) -> np.ndarray:
        height, width = size or (-1, -1)
        reader = VideoReader(str(path), num_threads=1, width=width, height=height)
        return reader.get_batch(range(first, first + frames)).asnumpy()

    return read


def readers(probe: Path) -> tuple[dict[str, Reader], list[str]]:
    """Every reader that reads the film here, and why the others do not."""
    found: dict[str, Reader] = {"ours": ours, "ours, fast colours": quick, "PyAV loop": plain}
    absent = []
    for make in (torchcodec, decord):
        try:
            reader = make()
            reader(probe, 0, 1, None)
            found[make.__name__] = reader
        except ImportError as problem:
            absent.append(f"{make.__name__} ({str(problem).splitlines()[0]})")
        except (RuntimeError, OSError) as problem:  # installed, but without an FFmpeg that it can load
            absent.append(f"{make.__name__} ({type(problem).__name__}: {str(problem).splitlines()[0]})")
    return found, absent


def difference(one: Any, other: Any) -> tuple[int, float]:
    """The largest and the mean absolute difference of pixels."""
    gap = np.abs(np.asarray(one).astype(np.int16) - np.asarray(other))
    return int(gap.max()), float(gap.mean())


def decoding(folder: Path, scale: Scale) -> list[str]:
    """A table per film, and one of a film that is scaled."""
    sections = []
    for number, (grain, keyframes) in enumerate(scale.films):
        path = film(folder / f"{number}.mp4", scale, grain, keyframes)
        found, absent = readers(path)
        rate = 8 * path.stat().st_size * FPS / scale.frames / 1e6
        starts = np.random.default_rng(1).integers(0, scale.frames - scale.window + 1, scale.windows).tolist()
        for size in (None, scale.small) if number == 0 else (None,):
            able = {name: read for name, read in found.items() if size is None or name != "torchcodec"}
            calls = {name: _turn(read, path, starts, scale.window, size) for name, read in able.items()}
            seconds = interleaved(calls, repeats=scale.repeats)
            best = min(value for name, value in seconds.items() if not name.startswith("ours"))
            exact = ours(path, starts[0], scale.window, size)
            rows = []
            for name, value in seconds.items():
                most, mean = difference(exact, able[name](path, starts[0], scale.window, size))
                per_window = 1e3 * value / scale.windows
                rows.append((name, f"{per_window:.1f}", f"{value / best:.2f}", str(most), f"{mean:.2f}"))
            shown = f"{scale.width} x {scale.height}" if size is None else f"scaled to {size[1]} x {size[0]}"
            header = ("", "CPU ms a window", "of the fastest peer", "largest difference", "mean difference")
            title = f"## {rate:.1f} Mbit/s, a keyframe every {keyframes} frames, {shown}"
            about = f"{scale.windows} random windows of {scale.window} of {scale.frames} frames."
            missing = f" Absent: {'; '.join(absent)}." if absent else ""
            sections.append(f"{title}\n\n{about}{missing}\n\n{markdown_table(header, rows)}")
    return sections


def _turn(
    read: Reader, path: Path, starts: Sequence[int], frames: int, size: tuple[int, int] | None
) -> Callable[[], None]:
    def turn() -> None:
        for first in starts:
            read(path, first, frames, size)

    return turn


def reading_latents(folder: Path, scale: Scale) -> str:
    """A table of read rates."""
    from safetensors import safe_open

    rows = []
    for shape in scale.shapes:
        for dtype in ("float32", "bfloat16"):
            root = folder / f"{dtype}-{shape[1]}"
            (root / "shards").mkdir(parents=True)
            table: list[dict[str, Any]] = []
            for shard in range(4):
                path = root / "shards" / f"{shard}.safetensors"
                numbers = torch.Generator().manual_seed(shard)
                latents = [torch.randn(shape, generator=numbers) for _ in range(scale.latents // 4)]
                clips = [CachedClip(f"{shard}-{i}", "", [], 1, 8, 8, 8.0, 1, 8, 8, 8.0, i) for i in range(len(latents))]
                path.write_bytes(shard_bytes(clips, latents, "", dtype))
                table += shard_rows(path, "")
            order = np.random.default_rng(0).permutation(len(table)).tolist()
            bare = [safe_open(root / "shards" / f"{shard}.safetensors", framework="pt") for shard in range(4)]
            places = [(bare[i // (scale.latents // 4)], f"{i % (scale.latents // 4):06d}.latent") for i in order]
            warm = LatentReader(root)

            def first(root: Path = root, table: list[dict[str, Any]] = table, order: list[int] = order) -> None:
                fresh = LatentReader(root)
                for i in order:
                    fresh.read(table[i])

            def again(warm: LatentReader = warm, table: Any = table, order: list[int] = order) -> None:
                for i in order:
                    warm.read(table[i])

            def safetensors(places: Any = places) -> None:
                for shard, name in places:
                    shard.get_tensor(name).to(torch.float32, copy=True)

            seconds = interleaved(
                {"first": first, "again": again, "bare": safetensors},
                repeats=scale.repeats,
                least=0.1 if scale.repeats > 1 else 0.0,
            )
            size = sum(row["size"] for row in table)
            rates = [f"{size / seconds[name] / 1e9:.2f}" for name in ("first", "again", "bare")]
            kilobytes = f"{table[0]['size'] / 1024:,.0f} KiB"
            rows.append((f"{dtype}, {kilobytes}", *rates, f"{seconds['bare'] / seconds['again']:.2f}"))
    header = ("a latent", "ours, first time (GB/s)", "ours, again (GB/s)", "safetensors (GB/s)", "again : safetensors")
    about = (
        f"{scale.latents} latents in 4 shards that the page cache holds. Ours verifies the digest of a latent when a "
        "process first reads it. The bare files stay open, and what they give is copied, as a batch would."
    )
    return f"## Cached latents\n\n{about}\n\n{markdown_table(header, rows)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny films and latents, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the page here too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scale = QUICK if args.quick else FULL
    intro = (
        "CPU milliseconds are medians of interleaved turns over the same random windows, one thread. Ours converts "
        "colours by swscale's most exact setting, with bicubic chroma, and with fast colours by its default where "
        "nothing is scaled; the others by theirs. Differences are from our exact pixels, in levels of 255, over one "
        "window. Scaling is anti-aliased bicubic in ours and each reader's default in the others. FFmpeg's "
        "hand-written kernels choose by the processor, whatever limits torch."
    )
    with tempfile.TemporaryDirectory() as folder:
        sections = [intro, *decoding(Path(folder), scale), reading_latents(Path(folder), scale)]
    command = "python -m benchmarks.data" + (" --quick" if args.quick else "")
    write_page(args.out, page("Reading films and cached latents", command, sections))


if __name__ == "__main__":
    main()
