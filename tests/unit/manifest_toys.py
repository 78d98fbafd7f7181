"""Manifests as the field writes them, made by each style's own conventions."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from lightning_sora import media
from lightning_sora.data.sources import SOURCES, Source

FRAMES, HEIGHT, WIDTH, FPS = 6, 32, 48, 8.0
CAPTIONS = {"a.mp4": "a red clip", "sub/b.mp4": "a green clip, with a comma", "c.png": "a blue picture"}
SHADES = {"a.mp4": 40, "sub/b.mp4": 120, "c.png": 200}


def write_files(folder: Path) -> Path:
    """Two videos and an image, each of one grey, that tells them apart."""
    for name, shade in SHADES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        frames = 1 if name.endswith("png") else FRAMES
        video = torch.full((frames, HEIGHT, WIDTH, 3), shade, dtype=torch.uint8)
        if frames == 1:
            media.write_image(path, video[0])
        else:
            media.write_mp4(path, video, FPS)
    return folder


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def videofolder(root: Path, suffix: str = ".csv") -> Path:
    table(root / f"metadata{suffix}", [{"file_name": n, "text": t} for n, t in CAPTIONS.items()])
    return root / f"metadata{suffix}"


def open_sora(root: Path, suffix: str = ".csv") -> Path:
    rows = [
        {"path": n, "text": t, "num_frames": 1 if n == "c.png" else FRAMES, "height": HEIGHT, "width": WIDTH,
         "aspect_ratio": HEIGHT / WIDTH, "resolution": HEIGHT * WIDTH, "fps": FPS, "aes": 5.1}
        for n, t in CAPTIONS.items()
    ]  # fmt: skip
    return table(root / f"meta{suffix}", rows)


def open_sora_plan(root: Path) -> Path:
    rows = [
        {"path": n, "cap": [t, f"{t}, again"], "resolution": {"height": HEIGHT, "width": WIDTH}, "fps": FPS,
         "num_frames": 1 if n == "c.png" else FRAMES, "aesthetic": 5}
        for n, t in CAPTIONS.items()
    ]  # fmt: skip
    (root / "lists").mkdir()
    table(root / "lists" / "anno.json", rows)
    (root / "data.txt").write_text(f"{root},{root / 'lists' / 'anno.json'}\n")
    return root / "data.txt"


def fastvideo(root: Path) -> Path:
    return table(root / "videos2caption.json", [{"path": n, "cap": t} for n, t in CAPTIONS.items()])


def cogvideox(root: Path) -> Path:
    (root / "videos.txt").write_text("".join(f"{n}\n" for n in CAPTIONS))
    (root / "prompts.txt").write_text("".join(f"{t}\n" for t in CAPTIONS.values()))
    return root


def sat(root: Path) -> Path:
    (root / "videos").mkdir()
    (root / "labels").mkdir()
    for name, text in CAPTIONS.items():
        flat = Path(name).name
        (root / name).rename(root / "videos" / flat)
        (root / "labels" / flat).with_suffix(".txt").write_text(text)
    return root


def webdataset(root: Path) -> Path:
    with tarfile.open(root / "shard-000.tar", "w") as tar:
        for number, (name, text) in enumerate(CAPTIONS.items()):
            key = f"{number:06d}"
            tar.add(root / name, f"{key}{Path(name).suffix}")
            for ending, content in ((".txt", text), (".json", json.dumps({"fps": FPS, "caption": f"{text}, long"}))):
                info = tarfile.TarInfo(key + ending)
                info.size = len(content.encode())
                tar.addfile(info, io.BytesIO(content.encode()))
    return root / "shard-000.tar"


def openvid(root: Path) -> Path:
    rows = [{"video": n, "caption": t, "aesthetic score": 4.2, "fps": FPS, "seconds": 1.0} for n, t in CAPTIONS.items()]
    return table(root / "OpenVid.csv", rows)


def ltx(root: Path) -> Path:
    return table(root / "dataset.json", [{"media_path": n, "caption": t} for n, t in CAPTIONS.items()])


def diffsynth(root: Path, suffix: str = ".csv") -> Path:
    """A column for each kind, of which one says nothing, as where videos and images stand in one table."""
    rows = [
        {"video": "" if n == "c.png" else n, "image": n if n == "c.png" else "", "prompt": t}
        for n, t in CAPTIONS.items()
    ]
    table(root / f"metadata{suffix}", rows)
    return root


def videox_fun(root: Path) -> Path:
    rows = [
        {"file_path": n, "text": t, "type": "image" if n == "c.png" else "video", "width": WIDTH, "height": HEIGHT}
        for n, t in CAPTIONS.items()
    ]
    return table(root / "json_of_internal_datasets.json", rows)


def musubi(root: Path) -> Path:
    rows = [{"image_path" if n == "c.png" else "video_path": n, "caption": t} for n, t in CAPTIONS.items()]
    return table(root / "metadata_musubi.jsonl", rows)


def _flat(root: Path) -> tuple[Path, Path]:
    """Videos in one folder and images in another, with a text beside each."""
    folders = root / "films", root / "stills"
    for folder in folders:
        folder.mkdir()
    for name, text in CAPTIONS.items():
        folder = folders[name == "c.png"]
        (root / name).rename(folder / Path(name).name)
        (folder / Path(name).name).with_suffix(".txt").write_text(text)
    return folders


def musubi_toml(root: Path) -> Path:
    films, stills = _flat(root)
    (root / "dataset.toml").write_text(
        f"""[general]
resolution = [48, 32]
caption_extension = ".txt"
batch_size = 1
[[datasets]]
video_directory = "{films}"
target_frames = [1, 5]
[[datasets]]
video_directory = "{films}"
target_frames = [5]
[[datasets]]
image_directory = "{stills.name}"
"""
    )
    return root / "dataset.toml"


def diffusion_pipe(root: Path) -> Path:
    films, stills = _flat(root)
    for text in films.glob("*.txt"):
        text.unlink()
    told = {Path(n).name: [t, f"{t}, again"] for n, t in CAPTIONS.items() if n != "c.png"}
    (films / "captions.json").write_text(json.dumps(told))
    (root / "dataset.toml").write_text(
        f'resolutions = [512]\nframe_buckets = [1, 33]\n[[directory]]\npath = "{films}"\nnum_repeats = 1\n'
        f'[[directory]]\npath = "{stills}"\n'
    )
    return root / "dataset.toml"


STYLES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "videofolder csv": ("videofolder", videofolder),
    "videofolder jsonl": ("videofolder", lambda root: videofolder(root, ".jsonl")),
    "videofolder parquet": ("videofolder", lambda root: videofolder(root, ".parquet")),
    "open_sora csv": ("open_sora", open_sora),
    "open_sora parquet": ("open_sora", lambda root: open_sora(root, ".parquet")),
    "open_sora_plan": ("open_sora_plan", open_sora_plan),
    "fastvideo": ("open_sora_plan", fastvideo),
    "cogvideox": ("cogvideox", cogvideox),
    "sat": ("sat", sat),
    "webdataset": ("webdataset", webdataset),
    "openvid": ("openvid", openvid),
    "ltx": ("ltx", ltx),
    "diffsynth csv": ("diffsynth", diffsynth),
    "diffsynth json": ("diffsynth", lambda root: diffsynth(root, ".json")),
    "diffsynth jsonl": ("diffsynth", lambda root: diffsynth(root, ".jsonl")),
    "videox_fun": ("videox_fun", videox_fun),
    "musubi jsonl": ("musubi", musubi),
    "musubi toml": ("musubi", musubi_toml),
    "diffusion_pipe": ("diffusion_pipe", diffusion_pipe),
}


def sources(place: Path, **options: Any) -> list[Source]:
    spec = f"manifest({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else "manifest"
    return [SOURCES.create(spec, root=str(place), split=split, seed=0) for split in ("train", "val", "test")]
