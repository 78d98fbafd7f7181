"""score: two folders of videos, from any system, by named metrics under a recorded protocol."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_sora.metrics.protocol import ClipProtocol
    from lightning_sora.metrics.scoring import Scorer, Scores

LISTED = 5  # files named in a refusal
LEAST = 8  # clips, below which an interval cannot be made


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("score", help="score folders of videos", description=__doc__)
    parser.add_argument("--real", type=Path, metavar="DIR", help="real videos, searched at any depth")
    parser.add_argument("--generated", type=Path, metavar="DIR", help="generated videos")
    parser.add_argument(
        "--metrics", default="fvd", help="comma-separated: fvd, kvd, jedi, clip_score, temporal_flickering, "
        "motion_smoothness (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--extractor", help="space of the distances, such as \"i3d(weights='PATH')\"")
    parser.add_argument("--clip-model", metavar="PATH", help="name or directory of a CLIP, for clip_score")
    parser.add_argument("--frames", type=int, default=16, help="of each clip (default: %(default)s)")
    parser.add_argument("--fps", type=float, help="resample to this rate; default: frames as they are recorded")
    parser.add_argument("--offset", default="first", help="where clips begin: first or center (default: %(default)s)")
    parser.add_argument("--min-clips", type=int, default=16, help="refuse smaller folders (default: %(default)s)")
    parser.add_argument("--reference", metavar="FILE", help="statistics of the real side, instead of --real")
    parser.add_argument("--save-reference", type=Path, metavar="DIR", help="keep the statistics of the real side")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write scores and protocol as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="scores of an earlier run, to set beside these")
    parser.add_argument("--batch-size", type=int, default=8, help="clips at once (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


@dataclass(frozen=True)
class Video:
    """One file, and where its clip begins."""

    path: Path
    id: str
    start: float
    caption: str


def run(args: argparse.Namespace) -> int:
    """Scores the folders, prints a table, and writes what is asked.

    Raises:
        SoraError: bad input, before any network runs.
    """
    from lightning_sora.metrics.protocol import ClipProtocol
    from lightning_sora.metrics.reference import ReferenceStatistics
    from lightning_sora.metrics.scoring import DISTANCES, Scorer, check_metrics
    from lightning_sora.plugins import load_packages, load_plugins

    load_packages()
    load_plugins(args.plugins)
    metrics = check_metrics([name.strip() for name in args.metrics.split(",") if name.strip()])
    protocol = ClipProtocol(args.frames, args.fps, args.offset)
    wants_distance = any(name in DISTANCES for name in metrics)
    _check_sides(args, wants_distance)
    earlier = _read_scores(args.compare) if args.compare is not None else None
    reference = ReferenceStatistics.load(args.reference) if args.reference is not None else None
    # All files first: a network is not even loaded for a folder that will not do.
    sides = {
        real: find_videos(folder, protocol, args.min_clips, captions="clip_score" in metrics and not real)
        for real, folder in ((True, args.real if wants_distance else None), (False, args.generated))
        if folder is not None
    }
    scorer = Scorer(metrics, protocol, args.extractor, args.clip_model, reference, _device(args.device))
    if earlier is not None:
        _check_same(scorer, {**earlier["protocol"], "clips": {}}, {}, args.compare)
    for real, videos in sides.items():
        _add(scorer, videos, protocol, max(1, args.batch_size), real)
    if args.save_reference is not None:
        path = scorer.statistics().save(args.save_reference, "reference")
        print(f"reference statistics: {path}")
    if args.generated is None:
        return 0
    scores = scorer.result()
    record = _record(scores, args)
    _print(scores, scorer)
    if earlier is not None:
        _check_same(scorer, earlier["protocol"], scores.card.fields["clips"], args.compare)
        _print_difference(scores, earlier)
    if args.out is not None:
        _write(args.out, record)
        print(f"scores and protocol: {args.out}")
    return 0


def _check_sides(args: argparse.Namespace, distance: bool) -> None:
    if args.min_clips < LEAST:
        raise SoraError(f"--min-clips {args.min_clips} must be at least {LEAST}: an interval needs groups of clips")
    if args.generated is None and args.save_reference is None:
        raise SoraError("nothing to score; give --generated DIR, or --save-reference DIR to keep statistics of --real")
    if args.real is not None and args.reference is not None:
        raise SoraError("--real and --reference are both the real side; give one of them")
    if distance and args.real is None and args.reference is None:
        raise SoraError("a distance needs a real side; give --real DIR or --reference FILE")
    if args.save_reference is not None and (args.real is None or not distance):
        raise SoraError("--save-reference keeps what fvd sums over --real; give --real and that metric")


def find_videos(folder: Path, protocol: ClipProtocol, least: int, captions: bool) -> list[Video]:
    """The videos of a folder, every one of which yields a clip of the protocol.

    Raises:
        SoraError: no or too few videos, damaged or short ones, or captions missing where they are needed.
    """
    from lightning_sora.data.decode import VIDEO_SUFFIXES
    from lightning_sora.data.sources.captions import read_sidecar, read_tables
    from lightning_sora.data.sources.folder import find_media

    files, tables = find_media(folder)
    names = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    if len(names) < least:
        raise SoraError(
            f"{folder} holds {len(names)} videos; at least {least} are needed, since a distance between a handful of "
            "clips is nearly all bias; add videos, or lower --min-clips knowing that"
        )
    texts: dict[str, str | None] = {}
    if captions:
        notes = read_tables(folder, tables, set(files))
        texts = {n: notes[n].caption if n in notes else read_sidecar(folder / n) for n in names}
        bare = [name for name, text in texts.items() if not text]
        if bare:
            raise SoraError(
                f"clip_score needs a caption for every generated video, and {len(bare)} have none ({_some(bare)}); add "
                "metadata.csv with the columns file_name and text, or a .txt beside each"
            )
    found, damaged, short = [], {}, {}
    for name, answer in _look_at_all(folder, names, protocol):
        if isinstance(answer, float):
            found.append(Video(folder / name, name, answer, texts.get(name) or ""))
        elif isinstance(answer, _Short):
            short[name] = str(answer)
        else:
            damaged[name] = str(answer)
    if damaged:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(damaged.items())[:LISTED])
        raise SoraError(
            f"{len(damaged)} of {len(names)} videos of {folder} cannot be read ({told}); repair or remove them; "
            f"`lightning-sora data check {folder}` looks at all"
        )
    if short:
        told = ", ".join(f"{name} ({length})" for name, length in list(short.items())[:LISTED])
        raise SoraError(
            f"{len(short)} of {len(names)} videos of {folder} are shorter than {protocol.frames} frames"
            f"{f' at {protocol.fps:g} fps' if protocol.fps else ''}: {told}; lower --frames, or remove them"
        )
    return found


class _Short(str):
    """How long a video is that is too short."""


def _look_at_all(folder: Path, names: Sequence[str], protocol: ClipProtocol) -> Iterator[tuple[str, Any]]:
    """Where each file's clip begins, in seconds; or why it has none."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from lightning_sora.data import decode

    def look(name: str) -> float | str:
        try:
            info = decode.probe(folder / name)
            rate = protocol.fps or info.fps
            # What is shown in the last moment lasts until the end of the video.
            if int(info.duration * rate + 1e-6) < protocol.frames:
                return _Short(f"{info.frames} frames" if protocol.fps is None else f"{info.duration:.2f} s")
            start = max(0.0, (info.duration - protocol.frames / rate) / 2) if protocol.offset == "center" else 0.0
        except decode.DecodeError as problem:
            return str(problem).removeprefix(f"{folder / name}: ")
        # All of it: what is damaged after the clip says that the file is not what its maker wrote.
        return decode.check(folder / name) or start

    # Threads will do: decoding runs outside the interpreter's lock.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        answers = pool.map(look, names)
        yield from zip(names, tqdm(answers, total=len(names), desc=f"reading {folder}", leave=False), strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _add(scorer: Scorer, videos: Sequence[Video], protocol: ClipProtocol, batch: int, real: bool) -> None:
    from tqdm import tqdm

    from lightning_sora.data import decode

    with tqdm(total=len(videos), desc="real" if real else "generated", unit="clip", leave=False) as bar:
        for first in range(0, len(videos), batch):
            some = videos[first : first + batch]
            clips: list[Tensor] = [decode.read_clip(v.path, v.start, protocol.frames, protocol.fps) for v in some]
            scorer.add(clips, [v.id for v in some], [v.caption for v in some], real=real)
            bar.update(len(some))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (" ..." if len(names) > LISTED else "")


def _device(asked: str | None) -> str:
    import torch

    if asked in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as problem:
        raise SoraError(
            f"--device {asked} cannot be used ({str(problem).splitlines()[0]}); give cpu or cuda"
        ) from problem
    return str(asked)


def _record(scores: Scores, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torchvision

    from lightning_sora import __version__

    return {
        "protocol_id": scores.card.id,
        "protocol": dict(scores.card.fields),
        "scores": {name: dict(values) for name, values in scores.values.items()},
        "clips": {name: dict(values) for name, values in scores.clips.items()},
        "folders": {"real": str(args.real or args.reference or ""), "generated": str(args.generated)},
        "environment": {
            "lightning_sora": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def _print(scores: Scores, scorer: Scorer) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "unbiased, 95 % interval", "same-size floor", "real halves", "clips")
    for name, values in scores.values.items():
        counts = scores.card.fields["clips"]
        interval = f"{values['unbiased']:.4g} " if "unbiased" in values else ""
        interval += f"[{values['low']:.4g}, {values['high']:.4g}]" if "low" in values else ""
        if "se" in values:
            interval = f"± {values['se']:.2g} (SE)"
        halves = (
            f"{values['halves']:.4g} [{values['halves_low']:.4g}, {values['halves_high']:.4g}]"
            if "halves" in values else ""
        )  # fmt: skip
        sides = ("generated",) if "se" in values else ("real", "generated")
        clips = " : ".join(str(counts[side]) for side in sides)
        floor = f"{values['bias']:.4g}" if "bias" in values else ""
        table.add_row(scores.titles[name], f"{values['value']:.5g}", interval, floor, halves, clips)
    console = Console()
    console.print(table)
    console.print(
        f"protocol {scores.card.id}: {json.dumps(scores.card.fields, default=str, ensure_ascii=False)}",
        style="dim",
        highlight=False,
    )
    if scorer.network is not None and not scorer.network.describe().get("verified"):
        console.print(
            f"[yellow]warning[/]: the weights of {scorer.network.title} are not verified as the published ones; "
            "these distances compare with each other only"
        )


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise SoraError(
            f"{path} cannot be read as scores ({problem}); give a file that `score --out` wrote"
        ) from problem
    if not isinstance(earlier, dict) or not {"protocol", "scores"} <= set(earlier):
        raise SoraError(f"{path} holds no scores; give a file that `score --out` wrote")
    return earlier


def _check_same(scorer: Scorer, earlier: dict[str, Any], counts: dict[str, int], path: Path) -> None:
    from lightning_sora.metrics.protocol import ProtocolCard

    # A round trip through JSON, as the earlier ones made.
    now = ProtocolCard(json.loads(json.dumps(scorer.fields(counts), default=str)))
    ProtocolCard(earlier).check_same(now, f"{path} and these scores")


def _print_difference(scores: Scores, earlier: dict[str, Any]) -> None:
    for name, values in scores.values.items():
        before = earlier["scores"][name]["value"]
        print(f"{scores.titles[name]}: {values['value']:.5g} against {before:.5g} ({values['value'] - before:+.4g})")


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True, default=str) + "\n")
    partial.replace(path)
