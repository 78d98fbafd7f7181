"""Scores of two folders of videos, from any system, by named metrics under a recorded protocol."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.lab.devices import usable_device
from lightning_sora.lab.protocols import Protocol, check_asked, check_generated, load_protocol, real_clips
from lightning_sora.lab.score_videos import Video, common_rate, find_videos, note, note_sizes
from lightning_sora.metrics.asked import SHARED
from lightning_sora.metrics.base import METRICS
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.protocol import ClipProtocol, ProtocolCard
from lightning_sora.metrics.reference import ReferenceStatistics
from lightning_sora.metrics.results import Results
from lightning_sora.metrics.set_metrics import SetDistance
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.redaction import redacted
from lightning_sora.sealing import seal_json, verify, write_whole
from lightning_sora.writing import check_file, check_folder

LEAST = 8  # clips, below which an interval cannot be made


@dataclass(frozen=True)
class Asked:
    """What is to be scored, and how; see :func:`score`."""

    generated: str | Path | None = None
    real: str | Path | None = None
    metrics: Sequence[str] = ("fvd",)
    extractor: str | None = None
    clip_model: str | None = None
    frames: int = 16
    fps: float | None = None
    offset: str = "first"
    min_clips: int = 16
    reference: str | Path | None = None
    save_reference: str | Path | None = None
    out: str | Path | None = None
    compare: str | Path | None = None
    batch_size: int = 8
    device: str | None = None
    protocol: str | Path | None = None


def score(
    generated: str | Path | None = None, real: str | Path | None = None, *, metrics: Sequence[str] = ("fvd",),
    extractor: str | None = None, clip_model: str | None = None, frames: int = 16, fps: float | None = None,
    offset: str = "first", min_clips: int = 16, reference: str | Path | None = None,
    save_reference: str | Path | None = None, out: str | Path | None = None, compare: str | Path | None = None,
    batch_size: int = 8, device: str | None = None, protocol: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
) -> Results | None:  # fmt: skip
    """Scores a folder of generated videos, by itself and against one of real videos.

    Args:
        generated, real: folders of videos, searched at any depth.
        metrics: specs, as ``lightning-sora list metric`` shows them; one of your own is known once its file is
            imported, or given by ``plugins``.
        extractor: spec of the network of the distances that name none, such as "world" or "i3d(weights='PATH')".
        clip_model: name or directory of a CLIP, for ``clip_score``.
        frames, fps, offset: of each video, ``frames`` are taken, at ``fps`` per second or as they were recorded, from
            its "first" or about its "center".
        min_clips: distances of smaller folders are refused.
        reference: statistics of the real side, in the place of ``real``.
        save_reference: a folder, to keep the statistics of the real side in.
        out: a file, for scores and protocol as JSON.
        compare: a file that an earlier ``out`` wrote; scores under another protocol are refused.
        batch_size: clips at once.
        device: "cpu", "cuda" ...; None for a GPU where there is one.
        protocol: the name of a published one, such as "ucf101", or the path of one; then ``real`` is the data set as it
            is distributed, its clips are cut as the protocol says, and the generated videos must be as it has them
            (:func:`~lightning_sora.lab.protocols.load_protocol`).
        plugins: files that register parts, such as a metric of one's own.

    Returns:
        what was found, by metric; None where only a reference was to be kept.

    Raises:
        SoraError: bad input; but for files that change meanwhile, before any video is scored.

    Example:
        >>> import lightning_sora as ls
        >>> ls.score("made", metrics=["temporal_flickering"])  # doctest: +SKIP
        >>> ls.score("made", "real", metrics=["fvd(extractor='world')"], frames=17)  # doctest: +SKIP
    """
    load_packages("metric")
    load_plugins(plugins)
    return _scored(
        Asked(
            generated, real, metrics=metrics, extractor=extractor, clip_model=clip_model, frames=frames, fps=fps,
            offset=offset, min_clips=min_clips, reference=reference, save_reference=save_reference, out=out,
            compare=compare, batch_size=batch_size, device=device, protocol=protocol,
        )
    )  # fmt: skip


def _scored(asked: Asked) -> Results | None:
    check(asked)
    preset = None if asked.protocol is None else load_protocol(asked.protocol)
    if preset is not None:
        check_asked(preset, asked.frames, asked.fps, asked.offset)
    protocol = ClipProtocol(asked.frames, asked.fps, asked.offset)
    earlier = read_scores(asked.compare) if asked.compare is not None else None
    reference = ReferenceStatistics.load(asked.reference) if asked.reference is not None else None
    evaluation = Evaluation(
        asked.metrics, extractor=asked.extractor, clip_model=asked.clip_model, device=usable_device(asked.device),
        reference=reference,
    )  # fmt: skip
    if reference is not None:
        _check_clips(reference, protocol, preset)
    _check_metrics(asked, evaluation)
    evaluation.check_length(asked.frames, asked.fps)
    evaluation.load()  # weights that are missing are told before files are looked at
    sides = _find(asked, evaluation, protocol, preset)
    if protocol.fps is None and preset is None:
        protocol = replace(protocol, recorded=common_rate(sides))
    if reference is not None:
        _check_clips(reference, protocol, preset)
    evaluation.check_length(asked.frames, protocol.rate)
    if evaluation.distances and preset is None:
        note_sizes(sides)
    # How real clips are cut, their pixels tell; of generated ones it moves the scores, but where all of them is taken.
    if preset is not None or not all(video.whole for video in sides.get(False, ())):
        evaluation.protocol["clip"] = _clip_fields(protocol, preset)
    counts = {"real" if real else "generated": len(videos) for real, videos in sides.items()}
    if reference is not None:
        counts["real"] = len(reference.ids)
    if earlier is not None:
        _check_same(earlier, evaluation, asked.compare, counts, without=("sizes", "real"))
    for real, videos in sides.items():
        _add(evaluation, videos, real, protocol.rate, asked.batch_size, sides)
        if real and earlier is not None and not _paired(evaluation):  # else they come with the generated ones
            _check_same(earlier, evaluation, asked.compare, counts, without=("sizes",))
    if asked.save_reference is not None:
        kept = evaluation.statistics({"clip": _clip_fields(protocol, preset)}).save(asked.save_reference, "reference")
        note(f"reference statistics: {kept}")
    if asked.generated is None:
        return None
    results = evaluation.compute()
    if earlier is not None:
        _check_same(earlier, evaluation, asked.compare, counts)
        results.before = {name: values["value"] for name, values in earlier["scores"].items()}
    if asked.out is not None:
        write_whole(Path(asked.out), seal_json(redacted(_record(results, protocol, asked))))
    return results


def check(asked: Asked) -> None:
    """Refuses what cannot be scored, all of it in one message.

    Raises:
        SoraError: so.
    """
    kinds: dict[str, Any] = {spec: METRICS.builder(METRICS.resolve(spec).name) for spec in asked.metrics}
    sets = [METRICS.resolve(spec).name for spec, kind in kinds.items() if _is_set(kind)]
    if sets and asked.min_clips < LEAST:
        raise SoraError(
            f"--min-clips {asked.min_clips} must be at least {LEAST}: with fewer clips a distance has no "
            "interval; raise "
            f"it, or leave {', '.join(sets)} out"
        )
    if asked.real is not None and asked.reference is not None:
        raise SoraError("--real and --reference are both the real side; give one of them")
    if asked.save_reference is not None and (
        asked.real is None or not any(getattr(kind, "sums", False) for kind in kinds.values())
    ):
        raise SoraError(
            "--save-reference keeps what fvd or jedi sums over --real; give --real and one of these metrics"
        )
    lacking = []
    if asked.generated is None and asked.save_reference is None:
        lacking.append("--generated DIR, or --save-reference DIR to keep statistics of --real")
    if sets and asked.real is None and asked.reference is None:
        lacking.append(f"--real DIR or --reference FILE, which {sets[0]} compares with")
    need = [spec for spec in kinds if "extractor" in _open(spec)]
    if need and asked.extractor is None:
        lacking.append(
            f"--extractor, such as \"i3d(weights='PATH')\" for FVD (`lightning-sora list extractor` names them), for "
            f"{need[0]}"
        )
    need = [spec for spec in kinds if "model" in _open(spec)]
    if need and asked.clip_model is None:
        lacking.append(f"--clip-model, the name or the directory of a CLIP, for {need[0]}")
    if lacking:
        raise SoraError(f"`score` needs {'; '.join(lacking)}")
    if asked.compare is not None and asked.generated is None:
        raise SoraError("--compare sets scores beside earlier ones; give --generated DIR")
    if asked.save_reference is not None:
        check_folder("--save-reference", Path(asked.save_reference), f"reference-{'0' * 16}.safetensors")
    if asked.out is not None:
        check_file("--out", Path(asked.out))


def _is_set(kind: Any) -> bool:
    """Whether a class of metrics compares with a set of real clips."""
    return issubclass(kind, SetDistance) or kind.needs.real


def _open(spec: str) -> set[str]:
    """The options that are to be given for all metrics at once, as this one leaves them out."""
    asked = METRICS.resolve(spec)
    accepted = METRICS.options(asked.name)
    return {option for option in SHARED if option in accepted and accepted[option].default is None} - set(asked.options)


def _clip_fields(protocol: ClipProtocol, preset: Protocol | None) -> dict[str, Any]:
    """How clips are cut, for a card."""
    return protocol.as_fields() | ({} if preset is None else {"protocol": preset.fields()})


def _check_clips(reference: ReferenceStatistics, protocol: ClipProtocol, preset: Protocol | None) -> None:
    mine, theirs = _clip_fields(protocol, preset), dict(reference.fields.get("clip", {}))
    if protocol.rate is None and not theirs.get("resampled"):  # to be told by the files
        mine["fps"] = theirs.get("fps")
    ProtocolCard({"clip": theirs}).check_same(ProtocolCard({"clip": mine}), "the reference and these clips")


def _check_metrics(asked: Asked, evaluation: Evaluation) -> None:
    """Refuses metrics that folders of videos cannot serve, or that they are not needed for."""
    metrics = evaluation.metrics
    for name, metric in metrics.items():
        if metric.needs.facts or metric.of != "generated":
            what = "facts of the world's clips" if metric.needs.facts else "reconstructions by a VAE"
            raise SoraError(f"{name} is about {what}, which files do not tell; `lightning-sora test` scores it")
    if asked.real is not None and not any("real" in m.sides or m.needs.pairs for m in metrics.values()):
        raise SoraError(
            f"{', '.join(metrics)} looks at generated clips alone; drop --real, or add a metric such as fvd"
        )


def _find(
    asked: Asked, evaluation: Evaluation, protocol: ClipProtocol, preset: Protocol | None
) -> dict[bool, list[Video]]:
    """The videos of the folders, real ones first; of a data set, the clips that a protocol takes."""
    metrics = evaluation.metrics
    captions = any(metric.needs.captions for metric in metrics.values())
    frames = all(metric.needs.per == "frame" and metric.needs.real for metric in metrics.values())
    least = asked.min_clips if evaluation.distances else 1
    sides: dict[bool, list[Video]] = {}
    if preset is not None and asked.real is not None:
        sides[True] = list(real_clips(preset, asked.real))
    elif asked.real is not None:
        sides[True] = find_videos(Path(asked.real), protocol, least, captions=False, images=frames)
    if asked.generated is not None:
        sides[False] = find_videos(Path(asked.generated), protocol, least, captions=captions, images=frames)
        if preset is not None:
            check_generated(preset, {video.id: video.size for video in sides[False]})
    if paired := [name for name, metric in metrics.items() if metric.needs.pairs]:
        _check_pairs(paired[0], sides)
    return sides


def _check_pairs(name: str, sides: Mapping[bool, Sequence[Video]]) -> None:
    if True not in sides:
        raise SoraError(f"{name} compares each video with the real one of the same name; give --real DIR")
    real, made = ({video.id for video in sides[side]} for side in (True, False))
    if real != made:
        alone = sorted(real ^ made)
        raise SoraError(
            f"{name} compares videos of equal names, and {len(alone)} have no partner, such as {alone[0]}; "
            "give folders "
            "of equal names"
        )


def _paired(evaluation: Evaluation) -> bool:
    return any(metric.needs.pairs for metric in evaluation.metrics.values())


def _add(
    evaluation: Evaluation,
    videos: Sequence[Video],
    real: bool,
    rate: float | None,
    batch: int,
    sides: Mapping[bool, Sequence[Video]],
) -> None:
    paired = _paired(evaluation)
    if real and paired:
        return  # read with their partners
    partners = {video.id: video for video in sides[True]} if paired else {}
    for some, clips in _read(videos, batch, "real" if real else "generated"):
        ids = [video.id for video in some]
        if real:
            evaluation.update(ids, real=clips, fps=rate)
            continue
        captions = [video.caption for video in some]
        with_real = [partners[name].read() for name in ids] if paired else None
        evaluation.update(ids, generated=clips, real=with_real, captions=captions, fps=rate)


def _read(videos: Sequence[Video], batch: int, what: str) -> Iterator[tuple[Sequence[Video], list[Any]]]:
    from tqdm import tqdm

    with (
        tqdm(total=len(videos), desc=what, unit="clip", leave=False) as bar,
        ThreadPoolExecutor(min(batch, os.cpu_count() or 1)) as pool,
    ):
        for first in range(0, len(videos), batch):
            some = videos[first : first + batch]
            yield some, list(pool.map(lambda video: video.read(), some))
            bar.update(len(some))


def _record(results: Results, cut: ClipProtocol, asked: Asked) -> dict[str, Any]:
    import torch
    import torchvision

    from lightning_sora import __version__

    folders = {"real": asked.real, "reference": asked.reference, "generated": asked.generated}
    versions = {"lightning_sora": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    told = {side: str(path) for side, path in folders.items() if path is not None}
    return {**results.record(), "clip": cut.as_fields(), "folders": told, "environment": versions}


def read_scores(path: str | Path) -> dict[str, Any]:
    """Scores that ``score --out`` or a test wrote.

    Raises:
        SoraError: no such file, or another.
    """
    path = Path(path)
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


def _check_same(
    earlier: Mapping[str, Any],
    evaluation: Evaluation,
    path: object,
    counts: Mapping[str, int],
    without: Sequence[str] = (),
) -> None:
    # Through JSON, as the earlier ones went.
    fields = {**evaluation.card().fields, "clips": counts}
    now = json.loads(json.dumps(redacted(fields), default=str))
    then, now = ({k: v for k, v in fields.items() if k not in without} for fields in (earlier["protocol"], now))
    ProtocolCard(then).check_same(ProtocolCard(now), f"{path} and these scores")


def unverified(results: Results) -> list[str]:
    """What a reader must know of the networks, in sentences."""
    told = [
        f"warning: the weights of {card['title']} are not verified as published ones; its values compare among "
        "themselves "
        "alone"
        for card in results.card.fields.get("extractors", {}).values()
        if not card.get("verified", True)
    ]
    for score_ in results.values():
        if cut := score_.figures.get("truncated"):
            told.append(f"warning: {cut:.0f} captions are longer than CLIP reads, and their ends were not scored")
    return told


def metric_specs(text: str) -> list[str]:
    """Specs that are separated by commas, those within brackets aside; each once.

    Raises:
        SoraError: none.
    """
    found, depth, begun = [], 0, 0
    for place, letter in enumerate(text + ","):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            found.append(text[begun:place].strip())
            begun = place + 1
    specs = list(dict.fromkeys(spec for spec in found if spec))
    if not specs:
        raise SoraError(f"no metric is named; known: {', '.join(METRICS.list())}")
    return specs
