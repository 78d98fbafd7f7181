"""Data sets that a trainer's TOML lists: musubi-tuner and diffusion-pipe, and the files that these read beside it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lightning_sora.data.captions import read_sidecar
from lightning_sora.data.finding import find_media
from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct
from lightning_sora.data.manifest.tables import located
from lightning_sora.data.records import captions_of, file_of, header_of, records_of, require, text_of, texts
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown
from lightning_sora.texts import brief, parsed_json

CAPTIONS_FILE = "captions.json"


class _Configured(ManifestStyle):
    """A TOML of tables, each of which names a folder or a list.

    Sizes, buckets, batches and caches that it states are the trainer's: here they are the recipe's. What would change
    the clips or captions is refused.
    """

    tables: str
    refused: ClassVar[Mapping[str, Sequence[Any]]]  # key -> values that say nothing; any other is refused

    def _toml(self, place: Location) -> Mapping[str, Any] | None:
        if is_remote(place) or not str(place).lower().endswith(".toml") or not os.path.isfile(place):
            return None
        try:
            return tomllib.loads(text_of(place))
        except tomllib.TOMLDecodeError as problem:
            raise SoraError(f"{place}: not TOML ({problem})") from problem

    def _listed(self, place: Location) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each table with where it stands; keys of the whole file hold for all."""
        told = self._toml(place)
        many = None if told is None else told.get(self.tables)
        if told is None or not isinstance(many, list) or not all(isinstance(one, dict) for one in many):
            raise SoraError(f"{place}: {self.needs}")
        general = told.get("general", told)
        if not isinstance(general, dict):
            raise SoraError(f"{place}: general={brief(general)} must be a table, [general], of keys that hold for all")
        common = {name: value for name, value in general.items() if not isinstance(value, list | dict)}
        for count, one in enumerate(many, start=1):
            where, whole = f"{place}, [[{self.tables}]] {count}", {**common, **one}
            for key, nothing in self.refused.items():
                if key in whole and whole[key] not in nothing:
                    raise SoraError(
                        f"{where}: {key}={whole[key]!r} is not done here; remove it, or see `mixture` for the shares "
                        "of several folders"
                    )
            yield where, whole

    def _joined(self, place: Location, parts: Sequence[tuple[str, list[ClipRow]]]) -> list[ClipRow]:
        """The rows of all tables; those of several folders are told apart by the folder's name."""
        alone = len(parts) == 1
        return distinct(place, [r if alone else replace(r, id=f"{n}/{r.id}") for n, rows in parts for r in rows])


@MANIFESTS.register("musubi")
class Musubi(_Configured):
    """musubi-tuner's JSON Lines with ``video_path`` or ``image_path`` and ``caption``, or its ``dataset.toml``.

    The TOML's ``[[datasets]]`` name a ``video_directory`` or ``image_directory`` with texts of the same names, or a
    ``video_jsonl_file`` or ``image_jsonl_file``. One that several tables name is read once. Relative paths in JSON
    Lines are relative to that file, as musubi-tuner resolves them where the working folder has no such file.

    Raises:
        SoraError: repeats, control files, or texts that do not end in .txt.
    """

    needs = (
        "musubi needs JSON Lines with 'video_path' or 'image_path' and 'caption', or a TOML with [[datasets]] of "
        "'video_directory', 'image_directory', 'video_jsonl_file' or 'image_jsonl_file'"
    )
    tables = "datasets"
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {
        "num_repeats": (1,),
        "control_directory": ("",),
        "caption_extension": (".txt",),
    }
    file, caption = ("video_path", "image_path"), ("caption",)
    folders, lists = ("video_directory", "image_directory"), ("video_jsonl_file", "image_jsonl_file")

    def matches(self, place: Location) -> bool:
        if not is_remote(place) and os.path.isdir(place):
            return False
        if str(place).lower().endswith(".jsonl"):
            found = header_of(place)
            return any(name in found for name in self.file) and "caption" in found
        told = self._toml(place)
        keys = (*self.folders, *self.lists)
        many = (told or {}).get(self.tables)
        return isinstance(many, list) and any(isinstance(one, dict) and set(keys) & set(one) for one in many)

    def read(self, place: Location) -> list[ClipRow]:
        if str(place).lower().endswith(".jsonl"):
            return distinct(place, self._lines(place))
        here, parts, seen = str(Path(str(place)).parent), [], set()
        for where, one in self._listed(place):
            key = next((key for key in (*self.folders, *self.lists) if key in one), None)
            if key is None or not isinstance(one[key], str):
                raise SoraError(f"{where}: {self.needs}")
            _, found = located(here, one[key])
            self.reach.allow(found)
            if str(found) in seen:  # as for several lengths of the same films
                continue
            seen.add(str(found))
            rows = _beside(Path(str(found))) if key in self.folders else self._lines(found)
            parts.append((one[key], rows))
        return self._joined(place, parts)

    def _lines(self, place: Location) -> list[ClipRow]:
        here, rows = str(place).rpartition("/")[0] or ".", []
        for count, row in enumerate(records_of(place), start=1):
            where = f"{place}, line {count}"
            require(where, list(row), [self.file, self.caption], self.needs)
            if second := next((key for key in row if key.startswith("control_path")), None):
                raise SoraError(
                    f"{where}: {second!r} names a second file, which no task takes from a manifest; drop it"
                )
            name, file = located(here, file_of(row, self.file, where))
            if not is_remote(str(file)) and os.path.isdir(str(file)):
                raise SoraError(
                    f"{where}: {shown(name)} is a folder of frames; read such by frames(fps=...), or make it a video"
                )
            rows.append(ClipRow(shown(name), file, captions_of(row, self.caption, where)))
        return rows


@MANIFESTS.register("diffusion_pipe")
class DiffusionPipe(_Configured):
    """diffusion-pipe's ``dataset.toml`` of ``[[directory]]`` with ``path``, or one such folder with ``captions.json``.

    Texts are those of the same names, or, where there is a ``captions.json`` (file name -> list of texts), those
    alone. ``caption_prefix`` is put before each.

    Raises:
        SoraError: repeats, masks, control files, shuffled tags, or a ``captions.json`` that names absent files.
    """

    needs = (
        "diffusion_pipe needs a TOML with [[directory]] tables that have 'path', or a folder with captions.json, an "
        "object of lists of texts by file name"
    )
    tables = "directory"
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {
        "num_repeats": (1,), "mask_path": ("",), "control_path": ("",), "default_mask_file": ("",),
        "shuffle_tags": (False,), "cache_shuffle_num": (0,),
    }  # fmt: skip

    def matches(self, place: Location) -> bool:
        if not is_remote(place) and os.path.isdir(place):
            return _is_captioned(Path(str(place)))
        told = self._toml(place)
        many = (told or {}).get(self.tables)
        return isinstance(many, list) and any(isinstance(one, dict) and "path" in one for one in many)

    def read(self, place: Location) -> list[ClipRow]:
        if not is_remote(place) and os.path.isdir(place):
            if _captions_of(Path(str(place))) is None:
                raise SoraError(f"{place}: {self.needs}")
            return distinct(place, _beside(Path(str(place))))
        parts = []
        for where, one in self._listed(place):
            if not isinstance(one.get("path"), str):
                raise SoraError(f"{where}: {self.needs}")
            _, found = located(str(Path(str(place)).parent), one["path"])
            self.reach.allow(found)
            rows, prefix = _beside(Path(str(found))), str(one.get("caption_prefix", ""))
            parts.append((one["path"], [replace(r, captions=tuple(prefix + c for c in r.captions)) for r in rows]))
        return self._joined(place, parts)


def _is_captioned(folder: Path) -> bool:
    """Whether ``captions.json`` is of this style: any other tool may write a file of that name."""
    try:
        told = _captions_of(folder)
    except SoraError:  # no JSON; asked for by name, it is refused
        return False
    return any(os.path.basename(name) == name and os.path.isfile(folder / name) for name in told or ())


def _captions_of(folder: Path) -> Mapping[str, Any] | None:
    """What ``captions.json`` says of the files of a folder; None where there is none, or another kind of it."""
    file = folder / CAPTIONS_FILE
    if not os.path.isfile(file):
        return None
    told = parsed_json(text_of(file), file)
    return told if isinstance(told, dict) and all(isinstance(one, list) for one in told.values()) else None


def _beside(folder: Path) -> list[ClipRow]:
    """The files right in a folder, with the texts beside them or those of its ``captions.json``."""
    media, told = find_media(folder), _captions_of(folder)
    names = [name for name in media.names if "/" not in name]
    if not names:
        raise SoraError(
            f"no video or image of a known kind right in {shown(str(folder))}; name the folder that has them"
        )
    if told is None:
        return [ClipRow(name, media.path(name), read_sidecar(media.sidecars.get(name))) for name in names]
    if absent := sorted(set(told) - set(names)):
        file = shown(str(folder / CAPTIONS_FILE))
        raise SoraError(f"{file}: {brief(absent[0])} is not among the files beside it; add it, or remove the entry")
    where = str(folder / CAPTIONS_FILE)
    return [ClipRow(name, media.path(name), texts(told.get(name, []), where)) for name in names]
