"""caption: rewrite the captions of every clip of a source."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError
from lightning_sora.jobs.shards import check_unchanged

if TYPE_CHECKING:
    from lightning_sora.data.sources import Source
    from lightning_sora.lit.captioners import ClipCaptioner

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SIZE = ("frames", "height", "width")
VERSION = 1  # of the table's columns
COLUMNS = (
    "id", "split", "content", "caption", "original", "confidence", "frames", "height", "width", "fps", "captioner",
    "captioner_hash", "whole", "error",
)  # fmt: skip


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "caption",
        help="rewrite the captions of a source's clips",
        description="Writes a table with a new caption for every clip; data.captions=TABLE of a recipe trains on it. "
        "A trained captioner looks at one window of a clip: at the recipe's size, rate and seed that of its first "
        "visit, which is what `data cache` keeps. "
        "Interrupted, it goes on where it stopped when it is called again.",
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder, manifest, tar or URL of the clips")
    parser.add_argument("--source", help="spec of the source; default: that which reads PATH")
    parser.add_argument(
        "--captioner", required=True, help="checkpoint or run of a LitCaptioner, hf:DIRECTORY, or a spec"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="TABLE.parquet")
    parser.add_argument("--split", default="all", choices=["all", *SPLITS], help="default: %(default)s")
    parser.add_argument("--frames", type=whole, help="that are looked at; default: as trained, or 8 for hf")
    parser.add_argument("--height", type=whole, help="pixels; default: as trained, or 336 for hf")
    parser.add_argument("--width", type=whole, help="pixels; hf sees clips at their own aspect, of this area at most")
    parser.add_argument("--fps", type=positive, help="default: as trained; hf sees frames from first to last")
    parser.add_argument("--seed", type=int, default=0, help="of source and windows (default: %(default)s)")
    parser.add_argument("--shard-clips", type=whole, default=256, help="clips per shard (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole, default=32, help="clips at once (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="look once more at clips that could not be read")
    parser.add_argument("--engine", default="local(processes=1)", help="local(processes=N) or ray")
    parser.add_argument("--device", default="cpu", help="of the captioner (default: %(default)s)")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Writes the table; returns 0.

    Raises:
        SoraError: no such source or captioner, or a table of other clips or another captioner is in the way.
    """
    from lightning_sora.data.collection import open_collection
    from lightning_sora.data.sizes import Limits
    from lightning_sora.jobs.engines import ENGINES
    from lightning_sora.jobs.shards import Shard, claim, run_shards
    from lightning_sora.lab.devices import usable_device
    from lightning_sora.lit.captioners import create_captioner
    from lightning_sora.plugins import load_packages, load_plugins
    from lightning_sora.writing import check_file, check_folder

    if args.path is None and args.source is None:
        raise SoraError("nothing to caption; give PATH, or --source SPEC")
    if args.out.suffix != ".parquet":
        raise SoraError(f"--out {args.out} must end in .parquet")
    parts = args.out.with_name(args.out.name + ".parts")
    check_file("--out", args.out)
    check_folder("--out", parts)
    load_packages()
    load_plugins(args.plugins)
    captioner = create_captioner(args.captioner, str(usable_device(args.device)))
    spec = args.source or open_collection(args.path).source
    ENGINES.create(args.engine)  # refused before anything is claimed
    frames, height, width = (getattr(args, name) or own for name, own in zip(SIZE, captioner.size, strict=True))
    Limits(frames, height, width, captioner.patch, args.batch_size)
    size = [frames, height, width]
    fps, identified = args.fps or captioner.fps, captioner.fingerprint()
    del captioner  # those who write have their own
    told = {"source": spec, "root": args.path, "seed": args.seed, "size": size, "fps": fps}
    told |= {"captioner": args.captioner, "device": args.device, "batch_size": args.batch_size}
    shards, fingerprints = [], {}
    for split in SPLITS if args.split == "all" else (args.split,):
        clips = _made_source(spec, args.path, split, args.seed)
        fingerprints[split] = clips.fingerprint() if clips.infos else "empty"
        for first in range(0, len(clips.infos), args.shard_clips):
            work = {**told, "split": split, "first": first, "last": min(first + args.shard_clips, len(clips.infos))}
            work["identity"] = [fingerprints[split], identified]
            shards.append(Shard(parts / f"{split}-{first:08d}.parquet", work))
    if not shards:
        raise SoraError(f"source {spec!r} has no clips in split {args.split!r}")
    identity = {key: told[key] for key in ("source", "size", "fps", "seed")}
    identity |= {"captioner": identified, "data": fingerprints, "shard clips": args.shard_clips}
    claim(parts, identity, f"delete {parts} to begin anew, or give another --out")
    run_shards(
        shards, caption_shard, engine=args.engine,
        intact=partial(_intact, without_errors=args.retry_failed),
        label="captioning", logs=parts / "logs", plugins=args.plugins,
    )  # fmt: skip
    rows = _merge([shard.path for shard in shards], args.out)
    failed = sum(bool(row["error"]) for row in rows)
    done = [row["confidence"] for row in rows if not row["error"]]
    print(f"{args.out}: {len(done)} captions, mean confidence {sum(done) / max(1, len(done)):.3f}")
    if failed:
        print(
            f"{failed} clips could not be read; their rows have no caption and say why in the column 'error'. Called "
            "again with --retry-failed, they are looked at once more"
        )
    if cut := sum(not row["whole"] for row in rows if not row["error"]):
        print(f"{cut} captions did not come to their end and were cut at their last whole sentence (column 'whole')")
    return 0


def caption_shard(work: Mapping[str, Any], path: Path) -> None:
    """Captions the clips of one shard, and writes its table."""
    from lightning_sora.data.plan import BatchPlan, PlannedBatch
    from lightning_sora.data.sizes import SIZES, Limits
    from lightning_sora.data.sources import DecodeError
    from lightning_sora.randomness import generator
    from lightning_sora.spacetime import Crop, SpacetimeBatch, TokenLayout, patchify

    of_source, of_captioner = work["identity"]
    captioner = _captioner(work["captioner"], work["device"], of_captioner)
    source = _source(work["source"], work["root"], work["split"], work["seed"], of_source)
    indices = range(work["first"], work["last"])
    frames, height, width = work["size"]
    limits = Limits(frames, height, width, captioner.patch, work["batch_size"])
    # A whole picture says more than a square out of its middle, to those who take any.
    policy = SIZES.create("packed" if captioner.any_size else "fixed", limits)
    plan = BatchPlan([source.infos[i] for i in indices], policy, fps=work["fps"], seed=0)
    spec, digest = work["captioner"], captioner.fingerprint()
    rows: dict[int, dict[str, Any]] = {}

    def row(index: int, size: Sequence[int], **told: Any) -> dict[str, Any]:
        info = source.infos[index]
        known = {"id": info.id, "split": work["split"], "content": info.content, "original": info.caption}
        known |= dict(zip(("frames", "height", "width"), size, strict=True))
        known |= {"fps": rate(index, size[0]), "captioner": spec, "captioner_hash": digest}
        return {**known, "caption": "", "confidence": 0.0, "whole": True, "error": "", **told}

    def rate(index: int, frames: int) -> float:
        """Frames per second to look at; that which reaches from the first to the last where none is asked for."""
        info = source.infos[index]
        if captioner.any_size and work["fps"] is None and 1 < frames <= info.frames:
            return (frames - 1) / (info.frames - 1) * info.fps
        return work["fps"] or info.fps

    def read(planned: PlannedBatch) -> None:
        clips, members, grids = [], [], []
        for place, grid in zip(planned.clips, planned.grids, strict=True):
            index = indices[place]
            # That of the first visit in a training of this seed, rate and size, which is what a cache holds.
            key = generator(work["seed"], "crop", source.infos[index].id, 0)
            size = grid.size(captioner.patch)
            fps = rate(index, size[0]) if captioner.any_size else work["fps"]
            try:
                clips.append(source.load(index, Crop(size, fps), generator=key))
            except DecodeError as problem:
                rows[index] = row(index, grid.size(captioner.patch), error=str(problem))
            else:
                members.append(index)
                grids.append(grid)
        if not clips:
            return
        facts = tuple(clip.facts for clip in clips if clip.facts is not None)
        layout = TokenLayout.pack(grids) if planned.packed else TokenLayout(tuple(grids))
        batch = SpacetimeBatch(
            patches=layout.join([patchify(clip.video, captioner.patch) for clip in clips]),
            layout=layout,
            patch=captioner.patch,
            captions=tuple(clip.caption for clip in clips),
            ids=tuple(source.infos[index].id for index in members),
            visits=(0,) * len(clips),
            fps=tuple(clip.fps for clip in clips),
            facts=facts if len(facts) == len(clips) else None,
        )
        for index, clip, told in zip(members, clips, captioner.caption(batch), strict=True):
            rows[index] = row(
                index, clip.video.shape[:3], caption=told.text, confidence=told.confidence, whole=told.whole,
                original=clip.caption,
            )  # fmt: skip

    for planned in plan.epoch(0):
        read(planned)
    _write(path, [rows[index] for index in sorted(rows)])


# One process may serve several calls: what it keeps is that of the fingerprint that the call has seen.


@lru_cache(maxsize=1)
def _captioner(text: str, device: str, fingerprint: str) -> ClipCaptioner:
    from lightning_sora.lab.devices import usable_device
    from lightning_sora.lit.captioners import create_captioner

    captioner = create_captioner(text, str(usable_device(device)))
    check_unchanged(f"the captioner {text}", captioner.fingerprint(), fingerprint)
    return captioner


@lru_cache(maxsize=4)
def _source(spec: str, root: str | None, split: str, seed: int, fingerprint: str) -> Source:
    source = _made_source(spec, root, split, seed)
    check_unchanged(f"the source {spec!r}", source.fingerprint(), fingerprint)
    return source


def _made_source(spec: str, root: str | None, split: str, seed: int) -> Source:
    from lightning_sora.data.sources import SOURCES

    source = SOURCES.create(spec, root=root, split=split, seed=seed)
    if source.space != "pixel":
        raise SoraError(
            f"source {spec!r} yields latents, and a captioner looks at pixels; give the source of the clips"
        )
    return source


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow

    from lightning_sora.sealing import parquet_bytes, write_whole

    kinds = dict.fromkeys(COLUMNS, pyarrow.string())
    kinds |= dict.fromkeys(("confidence", "fps"), pyarrow.float64())
    kinds |= dict.fromkeys(SIZE, pyarrow.int64()) | {"whole": pyarrow.bool_()}
    schema = pyarrow.schema(list(kinds.items()), metadata={"lightning_sora.captions": str(VERSION)})
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    write_whole(path, parquet_bytes(table))


def _intact(path: Path, *, without_errors: bool = False) -> bool:
    import pyarrow
    import pyarrow.parquet

    from lightning_sora.sealing import is_whole

    try:
        if is_whole(path.read_bytes()) is False:
            log.warning("%s is damaged: its bytes are not those that were written: its clips are captioned again", path)
            return False
        if not set(COLUMNS) <= set(pyarrow.parquet.read_schema(path).names):
            return False
        return not without_errors or not any(pyarrow.parquet.read_table(path, columns=["error"])["error"].to_pylist())
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
