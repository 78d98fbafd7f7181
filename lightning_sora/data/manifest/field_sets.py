"""Data sets of the field as they are distributed: UCF-101, folders of frames, Kinetics, MSR-VTT.

Captions of UCF-101 and Kinetics are the names of classes. What an annotation lists and no file is there for is
counted in a warning, as videos vanish from the web; a data set of which nothing is there is an error.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_sora.data.endings import is_image
from lightning_sora.data.finding import find_media, refuse_unlisted
from lightning_sora.data.frame_folder import FrameFolder, frame_folders
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct
from lightning_sora.data.records import SPLIT_NAMES, Record, absent, records_of, require, text_of, texts
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.texts import brief, parsed_json

log = logging.getLogger(__name__)

SPLITS = {**SPLIT_NAMES, "validate": "val"}
UCF_NAME = re.compile(r"v_(\w+)_g\d+_c\d+\.\w+")
LISTS = "ucfTrainTestlist"
KINETICS = ("youtube_id", "time_start", "time_end")


@MANIFESTS.register("ucf101")
class UCF101(ManifestStyle):
    """UCF-101 (Soomro et al. 2012): a folder of each class, ``v_CLASS_gNN_cNN.avi``, and the lists of its three folds.

    Args:
        fold: 1, 2 or 3, whose ``trainlist0N.txt`` and ``testlist0N.txt`` are the splits train and test; None for no
            split, as where all 13,320 videos are trained on and evaluated against.
        lists: the folder of the lists; None for ``ucfTrainTestlist`` in the data set or beside it, or the data set.

    Raises:
        SoraError: another fold, a list that is missing, or lists and files that do not agree.
    """

    needs = "ucf101 needs a folder of folders, one for each class, of files named v_CLASS_gNN_cNN.avi"

    def __init__(self, fold: int | None = 1, lists: str | None = None) -> None:
        if fold not in (1, 2, 3, None):
            raise SoraError(f"fold={fold!r} of UCF-101 must be 1, 2, 3, or None for no split")
        self.fold, self.lists = fold, lists

    def matches(self, place: Location) -> bool:
        if is_remote(place) or not os.path.isdir(place):
            return False
        try:
            return next(_ucf_files(Path(str(place))), None) is not None
        except OSError:  # what reads the folder in the end says which it is
            return False

    def read(self, place: Location) -> list[ClipRow]:
        root = Path(str(place))
        try:
            files = {} if is_remote(place) or not os.path.isdir(root) else dict(sorted(_ucf_files(root)))
        except OSError as problem:
            refuse_unlisted(problem)
        if not files:
            raise SoraError(f"{shown(str(place))}: {self.needs}")
        splits = {} if self.fold is None else self._splits(root)
        if self.fold is not None and (apart := sorted(set(splits) ^ set(files))):
            what = "listed but not there" if apart[0] in splits else "there but not listed"
            raise SoraError(
                f"{shown(str(root))}: {len(apart):,} videos are in the lists of fold {self.fold} or in the folder, but "
                f"not in both, such as {shown(apart[0])}, which is {what}; complete them, or take fold=None"
            )
        return [
            ClipRow(shown(n), file, (class_in_words(n.split("/")[0]),), split=splits.get(n))
            for n, file in files.items()
        ]

    def _splits(self, root: Path) -> dict[str, str]:
        places = [Path(self.lists)] if self.lists else [root / LISTS, root.parent / LISTS, root]
        found: dict[str, str] = {}
        for split in ("train", "test"):
            name = f"{split}list0{self.fold}.txt"
            file = next((folder / name for folder in places if os.path.isfile(folder / name)), None)
            if file is None:
                raise SoraError(
                    f"{shown(str(places[0] / name))} is missing; unpack the lists of UCF-101's recognition task there, "
                    "or take fold=None"
                )
            # "CLASS/FILE 1" in lists of training, "CLASS/FILE" in those of the test.
            found |= {line.split()[0]: split for line in text_of(file).splitlines() if line.strip()}
        return found


def _ucf_files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in sorted(entry.path for entry in os.scandir(root) if entry.is_dir() and entry.name != LISTS):
        for file in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if UCF_NAME.fullmatch(file.name):
                yield f"{Path(folder).name}/{file.name}", Path(file.path)


def class_in_words(name: str) -> str:
    """Returns a class's name as words in lower case: "apply eye makeup" for "ApplyEyeMakeup"."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)).lower()


@MANIFESTS.register("frames")
class Frames(ManifestStyle):
    """Folders of numbered images at any depth, each one video: SkyTimelapse, Taichi-HD, FaceForensics, StyleGAN-V.

    A folder right under the root whose name ends in train, val or test (``sky_train``) is that split. There are no
    captions.

    Args:
        fps: frames per second of the videos that the images were taken from, which images do not tell.

    Raises:
        SoraError: a rate that is none, no images, or a video among them.
    """

    needs = "frames needs folders of numbered images, each one video; it is read where it is asked for by this name"

    def __init__(self, fps: float = 25.0) -> None:
        if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < float("inf"):
            raise SoraError(f"fps={fps!r} of folders of frames must be a positive number")
        self.fps = float(fps)

    def matches(self, place: Location) -> bool:
        return False  # numbered images may as well be stills

    def read(self, place: Location) -> list[ClipRow]:
        if is_remote(place):
            raise SoraError(f"{place}: folders of frames are read from a disk alone; copy them there")
        root = Path(str(place))
        rows = [ClipRow(shown(n), FrameFolder(root / n, self.fps), split=_split_in(n)) for n in frame_folders(root)]
        if not rows:
            raise SoraError(f"{shown(str(place))}: {self.needs}")
        return distinct(root, rows)


def _split_in(name: str) -> str | None:
    return SPLITS.get(re.split(r"[_-]", name.split("/")[0].lower())[-1])


@MANIFESTS.register("kinetics")
class Kinetics(ManifestStyle):
    """Kinetics (Carreira et al. 2018): CSVs of ``label,youtube_id,time_start,time_end,split`` and the videos.

    A video is ``ID_START_END`` with six digits each, at any depth under the folder of the CSV (or under its parent,
    where that folder is called ``annotations``).

    Raises:
        SoraError: no such CSV, or none of its videos.
    """

    needs = f"kinetics needs CSVs with the columns {', '.join(KINETICS)} (and label, split), and the videos"

    def matches(self, place: Location) -> bool:
        return bool(_kinetics_tables(place))

    def read(self, place: Location) -> list[ClipRow]:
        tables = _kinetics_tables(place)
        if not tables:
            raise SoraError(f"{shown(str(place))}: {self.needs}")
        root = _over(tables[0])
        listed = {}
        for table in tables:
            for count, row in enumerate(records_of(table), start=1):
                require(table, list(row), [[name] for name in KINETICS], self.needs)
                listed[_kinetics_stem(row, f"{table}, row {count}")] = row
        rows = []
        for stem, name, file in _there(root, listed, str(place)):
            row = listed[stem]
            label, split = row.get("label"), row.get("split")
            told = SPLITS.get(str(split).strip().lower()) if not absent(split) else None
            rows.append(ClipRow(name, file, texts(label, stem, "label"), split=told))
        return distinct(root, rows)


def _kinetics_tables(place: Location) -> list[Path]:
    tables = _files_at(place, "*.csv", "annotations/*.csv")
    return [one for one in tables if one.suffix.lower() == ".csv" and set(KINETICS) <= _first_cells(one)]


def _files_at(place: Location, *patterns: str) -> list[Path]:
    """The file itself, or the files of a folder by patterns: no folders, and no pipes, which would be waited for."""
    if is_remote(place):
        return []
    root = Path(str(place))
    if os.path.isfile(root):
        return [root]
    # Unlike `os.path`, `Path.glob` and `Path.is_file` raise for names that are too long for a file.
    found = [sorted(root.glob(pattern)) for pattern in patterns] if os.path.isdir(root) else []
    return [file for files in found for file in files if os.path.isfile(file)]


def _first_cells(table: Path) -> set[str]:
    """The cells of the first line, as a table of another kind may be broken; none if it cannot be read."""
    try:
        with table.open("rb") as content:
            line = content.readline().decode(errors="replace")
    except OSError:
        return set()
    return {cell.strip(' "') for cell in line.strip("\ufeff\r\n").split(",")}


def _kinetics_stem(row: Record, where: str) -> str:
    try:
        return f"{row['youtube_id']}_{round(float(row['time_start'])):06d}_{round(float(row['time_end'])):06d}"
    except (TypeError, ValueError, OverflowError) as problem:
        raise SoraError(f"{where}: its times are no numbers ({problem})") from problem


@MANIFESTS.register("msrvtt")
class MSRVTT(ManifestStyle):
    """MSR-VTT (Xu et al. 2016): a JSON of ``videos`` and ``sentences``, and ``videoN.mp4`` at any depth.

    All sentences of a video are captions of equal standing. Read are the JSONs called ``*videodatainfo*`` or
    ``*msrvtt*`` in the folder or in its ``annotation``.

    Raises:
        SoraError: no such JSON, one of another shape, or none of its videos.
    """

    needs = "msrvtt needs a JSON (*videodatainfo*.json or *MSRVTT*.json) of 'videos' and 'sentences', and videoN.mp4"

    def matches(self, place: Location) -> bool:
        return bool(_msrvtt_files(place))

    def read(self, place: Location) -> list[ClipRow]:
        files = _msrvtt_files(place)
        if not files:
            raise SoraError(f"{shown(str(place))}: {self.needs}")
        videos: dict[str, Mapping[str, Any]] = {}
        sentences: dict[str, list[str]] = {}
        for file in files:
            told = parsed_json(text_of(file), file)
            many = [told.get(key) if isinstance(told, dict) else None for key in ("videos", "sentences")]
            if not all(isinstance(one, list) for one in many):
                raise SoraError(f"{file}: {self.needs}")
            for key, rows, wanted in zip(("videos", "sentences"), many, ("split", "caption"), strict=True):
                for count, row in enumerate(rows or (), start=1):
                    if not isinstance(row, dict) or not {"video_id", wanted} <= set(row):
                        raise SoraError(f"{file}, {key} {count}: {brief(row)} must have 'video_id' and {wanted!r}")
                    if not isinstance(row["video_id"], str):
                        raise SoraError(
                            f"{file}, {key} {count}: 'video_id' is {brief(row['video_id'])}; it must be text"
                        )
                    if key == "videos":
                        videos[row["video_id"]] = row
                    else:
                        sentences.setdefault(row["video_id"], []).extend(texts(row["caption"], f"{file}, {count}"))
        root = _over(files[0])
        return distinct(
            root,
            [
                ClipRow(name, file, tuple(sentences.get(v, ())), split=SPLITS.get(str(videos[v]["split"]).lower()))
                for v, name, file in _there(root, videos, str(place))
            ],
        )


def _msrvtt_files(place: Location) -> list[Path]:
    files = sorted(_files_at(place, "*.json", "annotation*/*.json"))
    return [f for f in files if f.suffix == ".json" and re.search("videodatainfo|msr-?vtt", f.name.lower())]


def _over(annotation: Path) -> Path:
    """The folder under which the videos of an annotation lie."""
    return annotation.parent.parent if annotation.parent.name.startswith("annotation") else annotation.parent


def _there(root: Path, listed: Mapping[str, Any], place: str) -> list[tuple[str, str, Path]]:
    """Of the stems that an annotation lists, those with a video: (stem, id, path). Images, as thumbnails, are none.

    Raises:
        SoraError: none has one, or one has two.
    """
    media = find_media(root)
    files: dict[str, str] = {}
    for name in media.names:
        if is_image(name):
            continue
        stem = Path(name).stem
        if stem in listed and stem in files:
            raise SoraError(
                f"{shown(place)}: {brief(stem)} has two files, {shown(files[stem])} and {shown(name)}; move one away"
            )
        files[stem] = name
    found = [(stem, files[stem], media.path(files[stem])) for stem in listed if stem in files]
    if not found:
        first = next(iter(listed), None)
        raise SoraError(
            f"{shown(place)}: none of the {len(listed):,} videos that it lists is under {shown(str(root))}, the first "
            f"being {brief(first)}; put them there"
        )
    if len(found) < len(listed):
        gone = next(stem for stem in listed if stem not in files)
        log.warning(
            "%d of the %d videos that %s lists are not there, such as %s", len(listed) - len(found), len(listed),
            shown(place), gone,
        )  # fmt: skip
    return found
