"""New captions for every clip of a source, by a captioner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.data.plan import BatchPlan
from lightning_sora.data.reading import Read, batch_of, read_clip
from lightning_sora.data.recaptions import is_table, merge_captions, write_captions
from lightning_sora.data.records import SPLITS
from lightning_sora.data.sizes import SIZES, Limits
from lightning_sora.data.sources import DecodeError, Source, create_source
from lightning_sora.errors import SoraError
from lightning_sora.jobs.engines import ENGINES
from lightning_sora.jobs.shards import Shard, check_unchanged, claim, run_shards
from lightning_sora.lab.devices import usable_device
from lightning_sora.lab.inspect import source_of
from lightning_sora.lit.captioners import ClipCaptioner, create_captioner
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.shown import Shown
from lightning_sora.spacetime import Crop, VideoSize
from lightning_sora.writing import check_file, check_folder

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True)
class CaptionTable(Shown):
    """A table of new captions, as a file; ``data.captions`` of a recipe trains on it.

    Attributes:
        path: of the table.
        captions: how many there are.
        confidence: their mean, in [0, 1].
        failed: how many clips could not be read; their rows say why.
        cut: how many captions were cut at their last whole sentence.
    """

    path: Path
    captions: int
    confidence: float
    failed: int
    cut: int

    def tables(self) -> Iterator[Text]:
        from rich.text import Text

        yield Text(str(self))

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.captions} captions, mean confidence {self.confidence:.3f}"]
        if self.failed:
            lines.append(
                f"{self.failed} clips could not be read; their rows have no caption and say why in the column 'error'. "
                "Called again with --retry-failed, they are looked at once more"
            )
        if self.cut:
            lines.append(
                f"{self.cut} captions did not come to their end and were cut at their last whole sentence (column "
                "'whole')"
            )
        return "\n".join(lines)


def caption(
    path: str | Path | None = None,
    *,
    captioner: str,
    out: str | Path,
    source: str | None = None,
    split: str = "all",
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    seed: int = 0,
    shard_clips: int = 256,
    batch_size: int = 32,
    retry_failed: bool = False,
    engine: str = "local(processes=1)",
    device: str = "cpu",
    plugins: Sequence[str | Path] = (),
) -> CaptionTable:
    """Writes a table with a new caption for every clip; called again after an interruption, it goes on.

    A trained captioner looks at one window of a clip: at the recipe's size, rate and seed that of its first visit,
    which is what :func:`cache_latents` keeps.

    Args:
        path: folder, file, manifest, tar or URL of the clips; None for a source that needs none.
        captioner: checkpoint or run of a LitCaptioner, "hf:DIRECTORY", or a spec.
        out: the table, a .parquet file.
        source: spec of the source; None for that which reads ``path``.
        split: "train", "val", "test", or "all".
        frames, height, width: pixels that are looked at; None as trained, or 8 x 336 x 336 for hf.
        fps: None as trained; hf sees frames from first to last.
        seed: of source and windows.
        shard_clips: clips per shard of the work.
        batch_size: clips at once.
        retry_failed: look once more at clips that could not be read.
        engine: spec of what runs the shards: "local(processes=N)" or "ray".
        device: of the captioner.
        plugins: files that register parts.

    Raises:
        SoraError: no such source or captioner, or a table of other clips or another captioner is in the way.

    Example:
        >>> import lightning_sora as ls
        >>> world = "world(level='tiny', clips=4, heldout_clips=2)"
        >>> table = ls.caption(source=world, captioner="facts(style='dense')", out="dense.parquet")  # doctest: +SKIP
        >>> print(table)  # doctest: +SKIP
        dense.parquet: 8 captions, mean confidence 1.000
    """
    load_packages()
    load_plugins(plugins)
    spec, root, out = source_of(path, source, "caption"), None if path is None else str(path), Path(out)
    if shard_clips < 1:
        raise SoraError(f"shard_clips={shard_clips} must be 1 or more")
    if out.suffix != ".parquet":
        raise SoraError(f"--out {out} must end in .parquet")
    parts = out.with_name(out.name + ".parts")
    check_file("--out", out)
    check_folder("--out", parts)
    asked = create_captioner(captioner, str(usable_device(device)))
    ENGINES.create(engine)  # refused before anything is claimed
    size = VideoSize(*(mine or own for mine, own in zip((frames, height, width), asked.size, strict=True)))
    Limits(*size, asked.patch, batch_size)
    rate, identified = fps or asked.fps, asked.fingerprint()
    del asked  # those who write have their own
    told: dict[str, Any] = {"source": spec, "root": root, "seed": seed, "size": list(size), "fps": rate}
    told |= {"captioner": captioner, "device": device, "batch_size": batch_size}
    shards, fingerprints = [], {}
    for name in SPLITS if split == "all" else (split,):
        clips = _made_source(spec, root, name, seed)
        fingerprints[name] = clips.fingerprint() if clips.infos else "empty"
        for first in range(0, len(clips.infos), shard_clips):
            work = {**told, "split": name, "first": first, "last": min(first + shard_clips, len(clips.infos))}
            work["identity"] = [fingerprints[name], identified]
            shards.append(Shard(parts / f"{name}-{first:08d}.parquet", work))
    if not shards:
        raise SoraError(f"source {spec!r} has no clips in split {split!r}")
    identity: dict[str, Any] = {key: told[key] for key in ("source", "size", "fps", "seed")}
    identity |= {"captioner": identified, "data": fingerprints, "shard clips": shard_clips}
    claim(parts, identity, f"delete {parts} to begin anew, or give another --out")
    run_shards(
        shards, caption_shard, engine=engine, intact=partial(is_table, without_errors=retry_failed),
        label="captioning", logs=parts / "logs", plugins=plugins,
    )  # fmt: skip
    rows = merge_captions([shard.path for shard in shards], out)
    done = [row["confidence"] for row in rows if not row["error"]]
    cut = sum(not row["whole"] for row in rows if not row["error"])
    return CaptionTable(out, len(done), sum(done) / max(1, len(done)), len(rows) - len(done), cut)


def caption_shard(work: Mapping[str, Any], path: Path) -> None:
    """Captions the clips of one shard, and writes its table."""
    of_source, of_captioner = work["identity"]
    captioner = _captioner(work["captioner"], work["device"], of_captioner)
    source = _source(work["source"], work["root"], work["split"], work["seed"], of_source)
    indices = range(work["first"], work["last"])
    frames, height, width = work["size"]
    limits = Limits(frames, height, width, captioner.patch, work["batch_size"])
    # A whole picture says more than a square out of its middle, to those who take any.
    policy = SIZES.create("packed" if captioner.any_size else "fixed", limits)
    plan = BatchPlan([source.infos[i] for i in indices], policy, fps=work["fps"], seed=0)
    digest = captioner.fingerprint()
    rows: dict[int, dict[str, Any]] = {}

    def rate(index: int, frames: int) -> float:
        """Frames per second to look at; that which reaches from the first to the last where none is asked for."""
        info = source.infos[index]
        if captioner.any_size and work["fps"] is None and 1 < frames <= info.frames:
            return (frames - 1) / (info.frames - 1) * info.fps
        return work["fps"] or info.fps

    def row(index: int, size: VideoSize, **told: Any) -> dict[str, Any]:
        info = source.infos[index]
        known = {"id": info.id, "split": work["split"], "content": info.content, "original": info.caption}
        known |= {**size._asdict(), "fps": rate(index, size.frames)}
        known |= {"captioner": work["captioner"], "captioner_hash": digest}
        return {**known, "caption": "", "confidence": 0.0, "whole": True, "error": "", **told}

    for planned in plan.epoch(0):
        read = []
        for place, grid in zip(planned.clips, planned.grids, strict=True):
            index, size = indices[place], grid.size(captioner.patch)
            fps = rate(index, size.frames) if captioner.any_size else work["fps"]
            try:
                read.append(Read(index, grid, 0, read_clip(source, index, Crop(size, fps), seed=work["seed"])))
            except DecodeError as problem:
                rows[index] = row(index, size, error=str(problem))
        if not read:
            continue
        written = captioner.caption(batch_of(source, read, planned, captioner.patch))
        for one, new in zip(read, written, strict=True):
            rows[one.index] = row(
                one.index, one.grid.size(captioner.patch), caption=new.text, confidence=new.confidence,
                whole=new.whole, original=one.clip.caption,
            )  # fmt: skip
    write_captions(path, [rows[index] for index in sorted(rows)])


# One process may serve several calls: what it keeps is that of the fingerprint that the call has seen.


@lru_cache(maxsize=1)
def _captioner(text: str, device: str, fingerprint: str) -> ClipCaptioner:
    captioner = create_captioner(text, str(usable_device(device)))
    check_unchanged(f"the captioner {text}", captioner.fingerprint(), fingerprint)
    return captioner


@lru_cache(maxsize=4)
def _source(spec: str, root: str | None, split: str, seed: int, fingerprint: str) -> Source:
    source = _made_source(spec, root, split, seed)
    check_unchanged(f"the source {spec!r}", source.fingerprint(), fingerprint)
    return source


def _made_source(spec: str, root: str | None, split: str, seed: int) -> Source:
    source = create_source(spec, split, seed, root)
    if source.space != "pixel":
        raise SoraError(
            f"source {spec!r} yields latents, and a captioner looks at pixels; give the source of the clips"
        )
    return source
