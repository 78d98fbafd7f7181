"""score: two folders of videos, from any system, by named metrics under a recorded protocol."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sora.commands.arguments import positive, whole
from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.redaction import redacted
from lightning_sora.sealing import seal_json, verify, write_whole
from lightning_sora.writing import check_file, check_folder

if TYPE_CHECKING:
    from lightning_sora.commands.score_videos import Video
    from lightning_sora.metrics.scoring import Scorer, Scores

LEAST = 8  # clips, below which an interval cannot be made

ROWS = {
    "value": "value",
    "unbiased": "without the bias of few clips",
    "interval": "  95 % interval",
    "stderr": "  standard error",
    "infinity": "extrapolated to endless clips",
    "bias": "same-size floor: value if equal",
    "halves": "real against real, without bias",
    "halves_interval": "  95 % interval",
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("score", help="score folders of videos", description=__doc__)
    parser.add_argument("--real", type=Path, metavar="DIR", help="real videos, searched at any depth")
    parser.add_argument("--generated", type=Path, metavar="DIR", help="generated videos, searched at any depth")
    parser.add_argument(
        "--metrics", default="fvd", metavar="NAMES", help="comma-separated: fvd, fid, kvd, jedi, clip_score, "
        "temporal_flickering, motion_smoothness (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--extractor", metavar="SPEC", help="space of the distances: \"i3d(weights='PATH')\" for FVD proper, "
        "inception for FID; `lightning-sora list extractor` names all",
    )  # fmt: skip
    parser.add_argument("--clip-model", metavar="PATH", help="name or directory of a CLIP, for clip_score")
    parser.add_argument("--frames", type=whole, default=16, help="of each clip (default: %(default)s)")
    parser.add_argument(
        "--fps",
        type=positive,
        help="resample to this rate; default: frames as recorded, all at one rate",
    )
    parser.add_argument(
        "--offset", choices=("first", "center"), default="first", help="where clips begin (default: %(default)s)"
    )
    parser.add_argument(
        "--min-clips", type=whole, default=16, help="refuse distances of smaller folders (default: %(default)s)"
    )
    parser.add_argument("--reference", type=Path, metavar="FILE", help="statistics of the real side, instead of --real")
    parser.add_argument("--save-reference", type=Path, metavar="DIR", help="keep the statistics of the real side")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write scores and protocol as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="scores of an earlier run, to set beside these")
    parser.add_argument("--batch-size", type=whole, default=8, help="clips at once (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: cuda where there is one")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Scores the folders, prints a table, and writes what is asked.

    Raises:
        SoraError: bad input; but for files that change meanwhile, before any network runs.
    """
    from lightning_sora.commands.score_videos import common_rate, find_videos, note_sizes
    from lightning_sora.metrics.protocol import ClipProtocol
    from lightning_sora.metrics.reference import ReferenceStatistics
    from lightning_sora.metrics.scoring import METRICS, Scorer, check_metrics
    from lightning_sora.plugins import load_packages, load_plugins

    load_packages()
    load_plugins(args.plugins)
    metrics = check_metrics([name.strip() for name in args.metrics.split(",") if name.strip()])
    protocol = ClipProtocol(args.frames, args.fps, args.offset)
    _check_sides(args, metrics)
    _check_targets(args)
    earlier = _read_scores(args.compare) if args.compare is not None else None
    reference = ReferenceStatistics.load(args.reference) if args.reference is not None else None
    scorer = Scorer(metrics, protocol, args.extractor, args.clip_model, reference, str(usable_device(args.device)))
    # All files first: a network is not even loaded for a folder that will not do.
    captions = any(METRICS[name].captions for name in metrics)
    least = args.min_clips if scorer.distances else 1
    sides = {
        real: find_videos(folder, protocol, least, captions=captions and not real, images=metrics == ["fid"])
        for real, folder in ((True, args.real), (False, args.generated))
        if folder is not None
    }
    if protocol.fps is None:
        scorer.recorded_at(common_rate(sides))
    if scorer.distances:
        note_sizes(sides)
    scorer.load()
    if earlier is not None:
        _check_same(scorer, sides, earlier, args.compare)
    for real, videos in sides.items():
        _add(scorer, videos, args.batch_size, real)
    if args.save_reference is not None:
        print(f"reference statistics: {scorer.statistics().save(args.save_reference, 'reference')}")
    if args.generated is None:
        return 0
    scores = scorer.result()
    _print(scores)
    if earlier is not None:
        _print_difference(scores, earlier)
    if args.out is not None:
        write_whole(args.out, seal_json(redacted(_record(scores, args))))
        print(f"scores and protocol: {args.out}")
    return 0


def _check_sides(args: argparse.Namespace, metrics: Sequence[str]) -> None:
    from lightning_sora.metrics.scoring import METRICS

    distances = [name for name in metrics if METRICS[name].distance]
    if distances and args.min_clips < LEAST:
        raise SoraError(
            f"--min-clips {args.min_clips} must be at least {LEAST}: with fewer clips a distance has no interval; "
            f"raise it, or leave {', '.join(distances)} out"
        )
    if args.generated is None and args.save_reference is None:
        raise SoraError("nothing to score; give --generated DIR, or --save-reference DIR to keep statistics of --real")
    if args.real is not None and args.reference is not None:
        raise SoraError("--real and --reference are both the real side; give one of them")
    if distances and args.real is None and args.reference is None:
        raise SoraError(f"{distances[0]} needs a real side; give --real DIR or --reference FILE")
    if args.real is not None and all(METRICS[name].captions for name in metrics):
        raise SoraError(
            f"{', '.join(metrics)} looks at generated clips alone; drop --real, or add a metric such as fvd"
        )
    if args.save_reference is not None and (args.real is None or not any(METRICS[n].sums for n in distances)):
        raise SoraError(
            "--save-reference keeps what fvd or jedi sums over --real; give --real and one of these metrics"
        )
    if args.compare is not None and args.generated is None:
        raise SoraError("--compare sets scores beside earlier ones; give --generated DIR")


def _check_targets(args: argparse.Namespace) -> None:
    """Refuses now what could not be written after hours."""
    if args.save_reference is not None:
        check_folder("--save-reference", args.save_reference, f"reference-{'0' * 16}.safetensors")
    if args.out is not None:
        check_file("--out", args.out)


def _add(scorer: Scorer, videos: Sequence[Video], batch: int, real: bool) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    with (
        tqdm(total=len(videos), desc="real" if real else "generated", unit="clip", leave=False) as bar,
        ThreadPoolExecutor(min(batch, os.cpu_count() or 1)) as pool,
    ):
        for first in range(0, len(videos), batch):
            some = videos[first : first + batch]
            scorer.add(
                list(pool.map(lambda video: video.read(), some)),
                [video.id for video in some],
                real=real,
                contents=[video.content for video in some],
                captions=[video.caption for video in some],
            )
            bar.update(len(some))


def _print(scores: Scores) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from lightning_sora.commands.score_videos import note
    from lightning_sora.metrics.scoring import METRICS

    console = Console(width=None if sys.stdout.isatty() else 120)
    fields = scores.card.fields
    distances = {name: _cells(values) for name, values in scores.values.items() if METRICS[name].distance}
    if distances:
        said = "distances of {generated} generated from {real} real clips; less is closer".format(**fields["clips"])
        table = Table("", *(escape(scores.titles[name]) for name in distances))
        for row, meaning in ROWS.items():
            if any(cells.get(row) for cells in distances.values()):
                table.add_row(meaning, *(cells.get(row, "") for cells in distances.values()))
        console.print(said, table, sep="\n", highlight=False)
    means = {name: values for name, values in scores.values.items() if name not in distances}
    if means:
        said = f"means over {fields['clips']['generated']} generated clips, ± standard error; more is better"
        still = " and ".join(scores.titles[name] for name in means if name != "clip_score")
        table = Table("", "generated", "real")
        for name, values in means.items():
            of_real = _with_error(values["real"], values.get("real_stderr")) if "real" in values else ""
            table.add_row(scores.titles[name], _with_error(values["value"], values.get("stderr")), of_real)
        console.print(
            said, *([f"a clip that stands still has 1 in {still}"] if still else []), sep="\n", highlight=False
        )
        console.print(table)
    console.print(f"protocol {scores.card.id}: scores of equal ids compare", highlight=False)
    grid = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        told = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        grid.add_row(f"  {name}", Text(told, overflow="fold"), style="dim")
    console.print(grid, highlight=False)
    for name in ("extractor", "clip_score"):
        if not fields.get(name, {"verified": True}).get("verified"):
            what = scores.titles[name] if name in scores.titles else fields[name]["title"]
            note(f"warning: the weights of {what} are not verified as published ones; its values compare among "
                  "themselves alone")  # fmt: skip
    truncated = scores.values.get("clip_score", {}).get("truncated_captions")
    if truncated:
        note(f"warning: {truncated:.0f} captions are longer than CLIP reads, and their ends were not scored")


def _cells(values: Mapping[str, float]) -> dict[str, str]:
    cells = {name: f"{values[name]:.4g}" for name in ROWS if name in values}
    if "low" in values:
        cells["interval"] = f"{values['low']:.4g} to {values['high']:.4g}"
    if "halves" in values:
        cells["halves_interval"] = f"{values['halves_low']:.4g} to {values['halves_high']:.4g}"
    return cells


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" + (f" ± {error:.2g}" if error is not None else "")


def _record(scores: Scores, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torchvision

    from lightning_sora import __version__

    return {
        "protocol_id": scores.card.id,
        "protocol": dict(scores.card.fields),
        "scores": {name: {"title": scores.titles[name], **values} for name, values in scores.values.items()},
        "clips": {name: dict(values) for name, values in scores.clips.items()},
        "folders": {
            side: str(path)
            for side, path in (("real", args.real), ("reference", args.reference), ("generated", args.generated))
            if path is not None
        },
        "environment": {
            "lightning_sora": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def _read_scores(path: Path) -> dict[str, Any]:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise SoraError(f"{path} is no regular file; give a file that `score --out` wrote")
    try:
        content = verify(path.read_bytes(), path, "score again, or copy the file again")
        earlier = json.loads(content)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise SoraError(
            f"{path} cannot be read as scores ({problem}); give a file that `score --out` wrote"
        ) from problem
    if not isinstance(earlier, dict) or not {"protocol", "scores"} <= set(earlier):
        raise SoraError(f"{path} holds no scores; give a file that `score --out` wrote")
    return earlier


def _check_same(scorer: Scorer, sides: Mapping[bool, Sequence[Video]], earlier: Mapping[str, Any], path: Path) -> None:
    from lightning_sora.metrics.protocol import ProtocolCard

    counts = {"real" if real else "generated": len(videos) for real, videos in sides.items()}
    if scorer.reference is not None:
        counts["real"] = len(scorer.reference.ids)
    fields = scorer.fields(counts, [video.content for video in sides.get(True, ())])
    # Through JSON, as the earlier ones went.
    now = ProtocolCard(json.loads(json.dumps(redacted(fields), default=str)))
    ProtocolCard(earlier["protocol"]).check_same(now, f"{path} and these scores")


def _print_difference(scores: Scores, earlier: Mapping[str, Any]) -> None:
    for name, values in scores.values.items():
        before = earlier["scores"][name]["value"]
        print(f"{scores.titles[name]}: {values['value']:.5g}, was {before:.5g} ({values['value'] - before:+.4g})")
