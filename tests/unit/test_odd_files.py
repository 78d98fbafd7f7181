"""Files as they come: each kind loads right or is told with its reason, and none crashes, hangs or leaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sora.data import decode
from lightning_sora.data.checking import check_files
from lightning_sora.data.finding import find_media
from lightning_sora.data.places import DecodeError
from tests.unit.odd_toys import (
    COUNT,
    a_folder,
    bomb,
    changed,
    clip,
    flipped,
    gif,
    heic,
    holding,
    image,
    link,
    pipe,
    sound,
    turned,
)
from tests.unit.test_decode import HEIGHT, WIDTH, counted, encode, numbers

PAGE = Path(__file__).parents[2] / "docs" / "odd_files.md"
LOADS = "loads"


@dataclass(frozen=True)
class Odd:
    """A kind of file.

    Attributes:
        make: writes it into a folder and returns its path.
        outcome: "loads", or words of the reason for which it is refused.
        size: (frames, height, width) as shown.
        fps: frames per second as shown; None where it is not looked at.
        read: whether the frames carry their numbers as bars.
    """

    make: Callable[[Path], Path]
    outcome: str = LOADS
    size: tuple[int, int, int] = (COUNT, HEIGHT, WIDTH)
    fps: float | None = 30
    read: bool = True


FAST = {"g": "10", "deadline": "realtime", "cpu-used": "8"}
STAMPS = [40 * k + (15 if k % 3 else 0) for k in range(COUNT)]
SIDEWAYS = (COUNT, WIDTH, HEIGHT)
KINDS: dict[str, Odd] = {
    "turned by 90 degrees": Odd(turned(90), size=SIDEWAYS, read=False),
    "turned by 180 degrees": Odd(turned(180), read=False),
    "turned by 270 degrees": Odd(turned(-90), size=SIDEWAYS, read=False),
    "variable frame rate": Odd(clip("vfr.mp4", stamps=STAMPS), fps=None),
    "raw H.264 without times": Odd(clip("raw.h264", format="h264"), fps=None, read=False),
    "one frame": Odd(lambda f: counted(f / "one.mp4", 1), size=(1, HEIGHT, WIDTH), fps=None),
    "1 x 1 GIF": Odd(image("dot.gif", "P", (1, 1)), size=(1, 1, 1), fps=None, read=False),
    "odd size, 37 x 53": Odd(
        lambda f: encode(f / "odd.mkv", [np.zeros((37, 53, 3), np.uint8)] * 6, codec="ffv1", pix_fmt="bgr0"),
        size=(6, 37, 53), read=False,
    ),
    "pixels that are not square": Odd(
        clip("wide.mp4", aspect=Fraction(2, 1)), size=(COUNT, HEIGHT, 2 * WIDTH), read=False
    ),
    "10-bit HEVC": Odd(
        clip("ten.mov", codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"})
    ),
    "HEVC": Odd(clip("hevc.mp4", codec="libx265", options={"x265-params": "log-level=none"})),
    "VP8": Odd(clip("vp8.webm", codec="libvpx", options=FAST)),
    "VP9": Odd(clip("vp9.webm", codec="libvpx-vp9", options=FAST)),
    "AV1": Odd(
        lambda f: encode(f / "av1.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 8, codec="libsvtav1",
                         options={"preset": "12", "svtav1-params": "lp=1"}),
        size=(8, 64, 64), read=False,
    ),
    "MPEG-4 in AVI": Odd(clip("mpeg4.avi", codec="mpeg4")),
    "MPEG-2": Odd(clip("mpeg2.mpg", codec="mpeg2video")),
    "motion JPEG": Odd(clip("mjpeg.mkv", codec="mjpeg", pix_fmt="yuvj420p")),
    "ProRes": Odd(clip("prores.mov", codec="prores_ks", pix_fmt="yuv422p10le")),
    "WMV": Odd(clip("film.wmv", codec="wmv2"), fps=None),
    "MXF": Odd(clip("film.mxf", codec="mpeg2video")),
    "DVD's VOB": Odd(clip("film.vob", codec="mpeg2video")),
    "camcorder's M2TS": Odd(clip("film.m2ts", format="mpegts")),
    "camcorder's MTS, in capitals": Odd(clip("FILM.MTS", format="mpegts")),
    "ASF": Odd(clip("film.asf", codec="wmv2"), fps=None),
    "F4V": Odd(clip("film.f4v")),
    "3G2": Odd(clip("film.3g2", codec="mpeg4")),
    "YUV4MPEG": Odd(clip("film.y4m", codec="wrapped_avframe")),
    "animated PNG": Odd(clip("film.apng", codec="apng", pix_fmt="rgb24")),
    "B-frames in AVI, without shown times": Odd(clip("bframes.avi")),
    "GIF with transparent parts": Odd(gif, size=(4, HEIGHT, WIDTH), fps=10, read=False),
    "PNG with transparent parts": Odd(image("alpha.png", "RGBA"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "PNG of a palette": Odd(image("palette.png", "P"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "JPEG in CMYK": Odd(image("cmyk.jpg", "CMYK"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "TIFF": Odd(image("still.tiff", "RGB"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "TIFF of 16 bits": Odd(image("deep.tif", "I;16"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "AVIF": Odd(image("still.avif", "RGB"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "JFIF": Odd(image("still.jfif", "RGB", format="JPEG"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "JPEG 2000": Odd(image("still.jp2", "RGB"), size=(1, HEIGHT, WIDTH), fps=None, read=False),
    "HEIC": Odd(lambda f: heic(f / "photo.heic", [90]), size=(1, 64, 64), fps=None, read=False),
    "HEIC of tiles": Odd(lambda f: heic(f / "tiles.heic", [90, 180]), "made of 2 tiles; convert it"),
    "name that is no UTF-8": Odd(lambda f: counted(f / os.fsdecode(b"caf\xe9.mp4"), COUNT)),
    "unicode name": Odd(clip("视频 é ☃.mp4")),
    "very long name": Odd(clip("n" * 251 + ".mp4")),
    "name with colon, brackets and a line break": Odd(clip("a: [b]\nc.mp4")),
    "name that begins with a dash": Odd(clip("-i.mp4")),
    "link to a file": Odd(lambda f: link(counted(f / "real.mp4", COUNT).name)(f)),
    "dangling link": Odd(link("nowhere.mp4"), "no such file"),
    "link to itself": Odd(link("link.mp4"), "symbolic links"),
    "zero bytes": Odd(holding("empty.mp4", b""), "the file is empty"),
    "zeros": Odd(holding("zeros.mp4", bytes(5000)), "damaged, incomplete or no video"),
    "text named as video": Odd(holding("text.mp4", b"this is no video\n" * 50), "damaged, incomplete or no video"),
    "text named as image": Odd(holding("text.png", b"this is no image\n"), "not an image"),
    "head cut off": Odd(changed("head.mp4", lambda c: c[len(c) // 2 :]), "damaged, incomplete or no video"),
    "tail cut off, index at the end": Odd(changed("tail.mp4", lambda c: c[: len(c) // 2]), "damaged, incomplete"),
    "tail cut off, index at the front": Odd(
        changed("fast.mp4", lambda c: c[: len(c) * 3 // 4], mux={"movflags": "faststart"}), "cut short"
    ),
    "200 flipped bits": Odd(changed("flips.mp4", flipped), "decoding fails|damaged"),
    "JPEG cut short": Odd(
        lambda f: holding("cut.jpg", image("whole.jpg", "RGB", (200, 200))(f).read_bytes()[:-400])(f), "damaged"
    ),
    "sound alone": Odd(sound("sound.mp4", False), "no video, only audio"),
    "pipe": Odd(pipe, "no regular file"),
    "folder named as video": Odd(a_folder, "folder"),
    "decompression bomb": Odd(bomb, "too large an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_it_loads_right_or_is_told_with_its_reason(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    path = kind.make(tmp_path)
    reason = decode.check(path)
    if kind.outcome != LOADS:
        assert reason is not None
        assert any(words in reason for words in kind.outcome.split("|")), reason
        assert str(path) not in reason
        with pytest.raises(DecodeError):
            decode.read_clip(path, 0.0, 15)
        return
    assert reason is None
    info = decode.probe(path)
    assert (info.frames, info.height, info.width) == kind.size
    if kind.fps is not None:
        assert info.fps == pytest.approx(kind.fps, rel=2e-3)
    video = decode.read_clip(path, 0.0, min(4, info.frames))
    assert tuple(video.shape[1:]) == (*kind.size[1:], 3)
    if kind.read:
        assert numbers(video) == list(range(min(4, info.frames)))


def test_the_table_in_the_docs_is_this_one() -> None:
    rows = [f"| {name} | {'loads' if kind.outcome == LOADS else 'refused: ' + kind.outcome.replace('|', ' or ')} |"
            for name, kind in KINDS.items()]  # fmt: skip
    assert "\n".join(rows) in PAGE.read_text()
    assert len(rows) >= 40


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    counted(tmp_path / "a.mp4", 2)
    (tmp_path / "again").symlink_to(tmp_path)
    assert list(find_media(tmp_path).names) == ["a.mp4"]


CRASHING = """
import os, signal, sys, time
from pathlib import Path
from lightning_sora.data import checking, decode

real = decode.check

def check(path):
    if "kills" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hangs" in path.name:
        time.sleep(600)
    return real(path)

def serve(pipe):
    decode.check = check
    real_serve(pipe)

real_serve = checking._serve
checking._serve = serve
if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).iterdir())
    for place, answer in sorted(checking.check_files(paths, 2, 3), key=lambda one: one[0]):
        print(paths[place].name, "|", answer if isinstance(answer, str) else "fine")
"""


@pytest.mark.slow
def test_a_file_that_kills_or_hangs_its_decoder_costs_no_other_file_its_check(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a", "kills", "x hangs", "z"):
        counted(tmp_path / "clips" / f"{name}.mp4", 2)
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    run = subprocess.run([sys.executable, script, tmp_path / "clips"], capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines() == [
        "a.mp4 | fine",
        "kills.mp4 | its decoder died (SIGSEGV)",
        "x hangs.mp4 | its decoder did not end within 3 s",
        "z.mp4 | fine",
    ], run.stderr


@pytest.mark.slow
def test_checks_side_by_side_agree_with_checks_one_by_one(tmp_path: Path) -> None:
    paths = [KINDS[name].make(tmp_path) for name in ("VP9", "zeros", "one frame", "pipe")]
    answers = dict(check_files(paths, 2, 60))
    assert {place: answer if isinstance(answer, str) else None for place, answer in answers.items()} == {
        place: decode.check(path) for place, path in enumerate(paths)
    }


LEAKING = """
import sys
from pathlib import Path
from lightning_sora.data import decode
from lightning_sora.data.places import DecodeError

paths = sorted(Path(sys.argv[1]).iterdir())

def opened(count):
    for number in range(count):
        path = paths[number % len(paths)]
        try:
            decode.read_clip(path, 0.0, 2)
        except DecodeError:
            pass

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

opened(1200)
sizes = [resident()]
for _ in range(4):
    opened(500)
    sizes.append(resident())
print(min(after - before for before, after in zip(sizes, sizes[1:])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_is_flat_over_2000_opens_of_good_and_bad_files(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("VP9", "MPEG-4 in AVI", "zeros", "200 flipped bits", "tail cut off, index at the front", "sound alone",
                 "GIF with transparent parts", "PNG of a palette", "text named as image", "10-bit HEVC"):  # fmt: skip
        KINDS[name].make(tmp_path / "clips")
    script = tmp_path / "leaking.py"
    script.write_text(LEAKING)
    run = subprocess.run([sys.executable, script, tmp_path / "clips"], capture_output=True, text=True, timeout=300)
    # A leak grows all the time, by 4.5 MiB for 500 frames of the smallest of these; what an allocator keeps does not.
    assert int(run.stdout) < 2 << 20, run.stdout + run.stderr


def test_clips_out_of_archives_and_stores_are_the_clips_themselves(tmp_path: Path) -> None:
    import tarfile

    from lightning_sora.data.storage import ArchiveMember

    for name in ("HEVC", "MPEG-4 in AVI", "GIF with transparent parts", "PNG of a palette"):
        path = KINDS[name].make(tmp_path)
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            tar.add(path, path.name)
        with tarfile.open(tmp_path / "all.tar") as tar:
            (info,) = tar.getmembers()
        member = ArchiveMember(tmp_path / "all.tar", info.offset_data, info.size, path.name)
        assert decode.probe(member) == decode.probe(path)
        frames = decode.probe(path).frames
        assert torch.equal(decode.read_clip(member, 0.0, frames), decode.read_clip(path, 0.0, frames))
        assert decode.check(member) is None
