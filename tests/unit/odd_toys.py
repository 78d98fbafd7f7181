"""Files as they come, made: turned, cut off, mislabelled, of rare kinds."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.unit.test_decode import HEIGHT, WIDTH, counted, encode

COUNT = 20


def holding(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def changed(name: str, change: Callable[[bytes], bytes], **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = counted(folder / name, COUNT, **options)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def clip(name: str, **options: object) -> Callable[[Path], Path]:
    return lambda folder: counted(folder / name, COUNT, **options)


def flipped(content: bytes) -> bytes:
    draw, changed = random.Random(0), bytearray(content)
    begin = content.find(b"mdat") + 8
    for _ in range(200):
        changed[draw.randrange(begin, len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def sound(name: str, picture: bool) -> Callable[[Path], Path]:
    """Sound alone, or with a cover picture."""

    def make(folder: Path) -> Path:
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            cover = container.add_stream("mjpeg", rate=1) if picture else None
            if cover is not None:
                cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
                cover.disposition = av.stream.Disposition.attached_pic
            for _ in range(8):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
                frame.sample_rate = 44100
                container.mux(stream.encode(frame))
            if cover is not None:
                image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), dtype=np.uint8), format="rgb24")
                container.mux(cover.encode(image))
                container.mux(cover.encode())
            container.mux(stream.encode())
        return folder / name

    return make


def image(name: str, mode: str, size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Image.new(mode, size).save(folder / name, **options)
        return folder / name

    return make


def gif(folder: Path) -> Path:
    frames = [Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 255 if k % 2 else 0)) for k in range(4)]
    frames[0].save(folder / "alpha.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    return folder / "alpha.gif"


def link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "link.mp4").symlink_to(target)
        return folder / "link.mp4"

    return make


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def a_folder(folder: Path) -> Path:
    (folder / "folder.mp4").mkdir()
    return folder / "folder.mp4"


def bomb(folder: Path) -> Path:
    """A PNG of a few bytes that announces 60,000 x 60,000 pixels."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(body)
    return folder / "bomb.png"


def _box(kind: bytes, body: bytes, flags: int | None = None) -> bytes:
    body = body if flags is None else struct.pack(">I", flags) + body
    return struct.pack(">I4s", 8 + len(body), kind) + body


def heic(path: Path, levels: list[int], side: int = 64) -> Path:
    """A photo as telephones store it (ISO/IEC 23008-12): one HEVC picture, or a grid of several side by side."""
    coded, header = [], b""
    for level in levels:
        # Several of which one is taken: of a lone picture libx265 was seen to tell no time.
        film = encode(
            path.with_suffix(".mp4"), [np.full((side, side, 3), level, np.uint8)] * 3, codec="libx265",
            options={"x265-params": "log-level=none:bframes=0:keyint=1"},
        )  # fmt: skip
        with av.open(str(film)) as container:
            stream = container.streams.video[0]
            header = bytes(stream.codec_context.extradata or b"")
            coded.append(next(bytes(packet) for packet in container.demux(stream) if packet.size))
        film.unlink()
    items = list(range(1, len(levels) + 1))
    first = items[0] if len(items) == 1 else len(items) + 1  # the picture that is shown
    kinds = dict.fromkeys(items, b"hvc1") | ({first: b"grid"} if first not in items else {})
    grid = struct.pack(">BBBBHH", 0, 0, 0, len(items) - 1, side * len(items), side) if first not in items else b""
    sizes = [_box(b"ispe", struct.pack(">II", side * n, side), 0) for n in (1, len(items))]
    owned = b"".join(struct.pack(">HBBB", item, 2, 0x81, 2) for item in items)
    owned += struct.pack(">HBB", first, 1, 3) if grid else b""
    tiles = struct.pack(f">HH{len(items)}H", first, len(items), *items)
    entries = [
        _box(b"hdlr", struct.pack(">I4s12sB", 0, b"pict", b"", 0), 0),
        _box(b"pitm", struct.pack(">H", first), 0),
        _box(b"iinf", struct.pack(">H", len(kinds)) + b"".join(
            _box(b"infe", struct.pack(">HH4sB", item, 0, kind, 0), 2 << 24) for item, kind in kinds.items()), 0),
        _box(b"iref", _box(b"dimg", tiles), 0) if grid else b"",
        _box(b"iprp", _box(b"ipco", _box(b"hvcC", header) + b"".join(sizes))
             + _box(b"ipma", struct.pack(">I", len(kinds)) + owned, 0)),
    ]  # fmt: skip
    head, contents = _box(b"ftyp", b"heic\0\0\0\0mif1heic"), dict(zip(kinds, [*coded, grid], strict=False))

    def index(begin: int) -> bytes:
        places = b""
        for item, content in contents.items():
            places += struct.pack(">HHHII", item, 0, 1, begin, len(content))
            begin += len(content)
        return _box(
            b"meta", b"".join(entries) + _box(b"iloc", struct.pack(">BBH", 0x44, 0, len(contents)) + places, 0), 0
        )

    whole = head + index(len(head) + len(index(0)) + 8) + _box(b"mdat", b"".join(contents.values()))
    path.write_bytes(whole)
    return path


def turned(degrees: int) -> Callable[[Path], Path]:
    return lambda folder: counted(folder / "turned.mov", COUNT, rotation=degrees)
