"""caption: rewrite the captions of every clip of a source."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError

if TYPE_CHECKING:
    from lightning_sora.data.sources import Source
    from lightning_sora.lit.captioners import ClipCaptioner

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VERSION = 1  # of the table's columns
COLUMNS = (
    "id", "split", "content", "caption", "original", "confidence", "frames", "height", "width", "fps", "captioner",
    "captioner_hash", "error",
)  # fmt: skip


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "caption",
        help="rewrite the captions of a source's clips",
        description="Writes a table with a new caption for every clip; data.captions=TABLE of a recipe trains on it. "
        "Interrupted, it goes on where it stopped when it is called again.",
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder or manifest of the clips")
    parser.add_argument("--source", help="spec of the source; default: folder, or manifest where PATH is a file")
    parser.add_argument(
        "--captioner", required=True, help="checkpoint or run of a LitCaptioner, hf:DIRECTORY, or a spec"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="TABLE.parquet")
    parser.add_argument("--split", default="all", choices=["all", *SPLITS], help="default: %(default)s")
    parser.add_argument("--frames", type=whole, help="of the window that is looked at; default: as trained")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained")
    parser.add_argument("--width", type=whole, help="pixels; default: as trained")
    parser.add_argument("--fps", type=positive, help="default: as trained")
    parser.add_argument("--seed", type=int, default=0, help="of the source (default: %(default)s)")
    parser.add_argument("--shard-clips", type=whole, default=256, help="clips per shard (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole, default=32, help="clips at once (default: %(default)s)")
    parser.add_argument("--engine", default="local(processes=1)", help="local(processes=N) or ray")
    parser.add_argument("--device", default="cpu", help="of the captioner (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Writes the table; returns 0.

    Raises:
        SoraError: no such source or captioner, or a table of other clips or another captioner is in the way.
    """
    from lightning_sora.commands.arguments import usable_device
    from lightning_sora.commands.shards import Shard, claim, run_shards
    from lightning_sora.lit.captioners import create_captioner
    from lightning_sora.plugins import load_packages, load_plugins

    if args.path is None and args.source is None:
        raise SoraError("nothing to caption; give PATH, or --source SPEC")
    if args.out.suffix != ".parquet":
        raise SoraError(f"--out {args.out} must end in .parquet")
    load_packages()
    load_plugins(args.plugins)
    captioner = create_captioner(args.captioner, str(usable_device(args.device)))
    spec = args.source or ("manifest" if Path(args.path).is_file() else "folder")
    size = _size(args, captioner)
    fps = args.fps or captioner.fps
    told = {"source": spec, "root": args.path, "seed": args.seed, "size": size, "fps": fps}
    told |= {"captioner": args.captioner, "device": args.device, "batch_size": args.batch_size}
    parts = args.out.with_name(args.out.name + ".parts")
    shards, fingerprints = [], {}
    for split in SPLITS if args.split == "all" else (args.split,):
        clips = _source(spec, args.path, split, args.seed)
        fingerprints[split] = clips.fingerprint() if clips.infos else "empty"
        for first in range(0, len(clips.infos), args.shard_clips):
            work = {**told, "split": split, "first": first, "last": min(first + args.shard_clips, len(clips.infos))}
            shards.append(Shard(parts / f"{split}-{first:08d}.parquet", work))
    if not shards:
        raise SoraError(f"source {spec!r} has no clips in split {args.split!r}")
    identity = {key: told[key] for key in ("source", "size", "fps", "seed")}
    identity |= {"captioner": captioner.fingerprint(), "data": fingerprints, "shard clips": args.shard_clips}
    claim(parts, identity, f"delete {parts} to begin anew, or give another --out")
    run_shards(
        shards, "lightning_sora.commands.caption:caption_shard", engine=args.engine, intact=_intact,
        label="captioning", logs=parts / "logs", plugins=args.plugins,
    )  # fmt: skip
    rows = _merge([shard.path for shard in shards], args.out)
    failed = sum(bool(row["error"]) for row in rows)
    done = [row["confidence"] for row in rows if not row["error"]]
    print(f"{args.out}: {len(done)} captions, mean confidence {sum(done) / max(1, len(done)):.3f}")
    if failed:
        print(f"{failed} clips could not be read; their rows have no caption and say why in the column 'error'")
    return 0


def caption_shard(work: Mapping[str, Any], path: Path) -> None:
    """Captions the clips of one shard, and writes its table."""
    import torch

    from lightning_sora.data.plan import BatchPlan, PlannedBatch
    from lightning_sora.data.sizes import SIZES, Limits
    from lightning_sora.data.sources import DecodeError
    from lightning_sora.randomness import generator
    from lightning_sora.spacetime import SpacetimeBatch, TokenLayout, patchify

    captioner = _captioner(work["captioner"], work["device"])
    source = _source(work["source"], work["root"], work["split"], work["seed"])
    indices = range(work["first"], work["last"])
    frames, height, width = work["size"]
    limits = Limits(frames, height, width, captioner.patch, work["batch_size"])
    plan = BatchPlan([source.infos[i] for i in indices], SIZES.create("fixed", limits), fps=work["fps"], seed=0)
    spec, digest = work["captioner"], captioner.fingerprint()
    rows: dict[int, dict[str, Any]] = {}

    def row(index: int, size: Sequence[int], **told: Any) -> dict[str, Any]:
        info = source.infos[index]
        known = {"id": info.id, "split": work["split"], "content": info.content, "original": info.caption}
        known |= dict(zip(("frames", "height", "width"), size, strict=True))
        known |= {"fps": work["fps"] or info.fps, "captioner": spec, "captioner_hash": digest}
        return {**known, "caption": "", "confidence": 0.0, "error": "", **told}

    def read(planned: PlannedBatch) -> None:
        clips, members = [], []
        for place, grid in zip(planned.clips, planned.grids, strict=True):
            index = indices[place]
            key = generator(0, "caption_window", source.infos[index].id)
            try:
                clips.append(source.load(index, *grid.size(captioner.patch), generator=key, fps=work["fps"]))
            except DecodeError as problem:
                rows[index] = row(index, grid.size(captioner.patch), error=str(problem))
            else:
                members.append(index)
        if not clips:
            return
        facts = tuple(clip.facts for clip in clips if clip.facts is not None)
        batch = SpacetimeBatch(
            patches=torch.stack([patchify(clip.video, captioner.patch) for clip in clips]),
            layout=TokenLayout.uniform(planned.grids[0], len(clips)),
            patch=captioner.patch,
            captions=tuple(clip.caption for clip in clips),
            ids=tuple(source.infos[index].id for index in members),
            visits=(0,) * len(clips),
            fps=tuple(clip.fps for clip in clips),
            facts=facts if len(facts) == len(clips) else None,
        )
        for index, clip, (text, confidence) in zip(members, clips, captioner.caption(batch), strict=True):
            size = clip.video.shape[:3]
            rows[index] = row(index, size, caption=text, confidence=confidence, original=clip.caption)

    for planned in plan.epoch(0):
        read(planned)
    _write(path, [rows[index] for index in sorted(rows)])


@lru_cache(maxsize=1)
def _captioner(text: str, device: str) -> ClipCaptioner:
    from lightning_sora.commands.arguments import usable_device
    from lightning_sora.lit.captioners import create_captioner

    return create_captioner(text, str(usable_device(device)))


@lru_cache(maxsize=4)
def _source(spec: str, root: str | None, split: str, seed: int) -> Source:
    from lightning_sora.data.sources import SOURCES

    source = SOURCES.create(spec, root=root, split=split, seed=seed)
    if source.space != "pixel":
        raise SoraError(
            f"source {spec!r} yields latents, and a captioner looks at pixels; give the source of the clips"
        )
    return source


def _size(args: argparse.Namespace, captioner: ClipCaptioner) -> list[int]:
    """Frames, height and width of the window."""
    trained = captioner.size or (None, None, None)
    asked = zip(("frames", "height", "width"), trained, strict=True)
    found: dict[str, Any] = {name: getattr(args, name) or own for name, own in asked}
    unknown = [f"--{name}" for name, value in found.items() if value is None]
    if unknown:
        raise SoraError(f"the captioner {args.captioner!r} takes clips of any size; give {', '.join(unknown)}")
    return list(found.values())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import io

    import pyarrow
    import pyarrow.parquet

    from lightning_sora.commands.shards import write_whole

    kinds = dict.fromkeys(COLUMNS, pyarrow.string())
    kinds |= dict.fromkeys(("confidence", "fps"), pyarrow.float64())
    kinds |= dict.fromkeys(("frames", "height", "width"), pyarrow.int64())
    schema = pyarrow.schema(list(kinds.items()), metadata={"lightning_sora.captions": str(VERSION)})
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _intact(path: Path) -> bool:
    import pyarrow
    import pyarrow.parquet

    try:
        return set(COLUMNS) <= set(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowInvalid, OSError):
        return False


def _merge(parts: list[Path], out: Path) -> list[dict[str, Any]]:
    """One table of all shards; of a clip that several splits hold, the first row."""
    import pyarrow.parquet

    rows: dict[str, dict[str, Any]] = {}
    for part in parts:
        for row in pyarrow.parquet.read_table(part).to_pylist():
            rows.setdefault(row["id"], row)
    _write(out, list(rows.values()))
    return list(rows.values())
