"""Manifests of lines and of pairs of folders: CogVideoX and what follows it."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct
from lightning_sora.data.manifest.tables import located
from lightning_sora.data.records import single_spaced, text_of
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError
from lightning_sora.names import shown

FILES = ("videos.txt", "video.txt", "images.txt", "image.txt")
PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
#: Folders of SAT's layout and of Cosmos-Predict2's: files, and texts of the same stems.
PAIRS = (("videos", "labels"), ("videos", "metas"))


@MANIFESTS.register("cogvideox")
class CogVideoX(ManifestStyle):
    """``videos.txt`` (or ``images.txt``) and ``prompts.txt`` in one folder, line by line (diffusers, finetrainers)."""

    needs = (
        f"cogvideox needs one of {', '.join(FILES)} and one of {', '.join(PROMPTS)} in one folder, with as many lines, "
        "files relative to it"
    )

    def matches(self, place: Location) -> bool:
        folder = _folder(place, FILES)
        return folder is not None and any(os.path.isfile(folder / name) for name in PROMPTS)

    def read(self, place: Location) -> list[ClipRow]:
        folder = _folder(place, FILES)
        prompts = None if folder is None else next((folder / n for n in PROMPTS if os.path.isfile(folder / n)), None)
        if folder is None or prompts is None:
            raise SoraError(f"{place}: {self.needs}")
        captions = text_of(prompts).split("\n")
        rows: list[ClipRow] = []
        # Films where both are there: images.txt then lists their first frames, for image-to-video.
        listed = next(folder / name for name in FILES if os.path.isfile(folder / name))
        files = [line.strip() for line in text_of(listed).split("\n")]
        while files and not files[-1]:
            files.pop()
        while captions and not captions[-1].strip():
            captions.pop()
        if len(files) != len(captions):
            raise SoraError(
                f"{listed} has {len(files)} lines but {prompts} has {len(captions)}; line n of "
                "one belongs to line n of the other"
            )
        for file, caption in zip(files, captions, strict=True):
            if not file:
                raise SoraError(f"{listed}: an empty line among the files; remove it, and its caption")
            name, place = located(str(folder), file)
            rows.append(ClipRow(shown(name), place, tuple(filter(None, [single_spaced(caption)]))))
        return distinct(folder, rows)


@MANIFESTS.register("sat")
class PairedFolders(ManifestStyle):
    """``videos/a.mp4`` with ``labels/a.txt`` (CogVideoX's SAT) or ``metas/a.txt`` (Cosmos-Predict2)."""

    needs = "sat needs the folders videos/ and labels/ (or metas/), with files of the same names but for the ending"

    def matches(self, place: Location) -> bool:
        return self._found(place) is not None

    def _found(self, place: Location) -> tuple[Path, Path] | None:
        if is_remote(place):
            return None
        pairs = ((Path(place) / files, Path(place) / words) for files, words in PAIRS)
        return next(((f, w) for f, w in pairs if os.path.isdir(f) and os.path.isdir(w)), None)

    def read(self, place: Location) -> list[ClipRow]:
        from lightning_sora.data.finding import find_media

        found = self._found(place)
        if found is None:
            raise SoraError(f"{place}: {self.needs}")
        files, words = found
        labels = {name.lower(): name for name in _texts_under(words)}
        media = find_media(files)
        rows = []
        for clip_id, name in media.names.items():
            label = Path(name).with_suffix(".txt").as_posix()
            label = label if os.path.isfile(words / label) else labels.get(label.lower(), label)
            if not os.path.isfile(words / label):
                file, text = shown(str(files / name)), shown(str(words / label))
                raise SoraError(f"{file} has no {text}; add the text, or remove the file")
            caption = single_spaced(text_of(words / label))
            rows.append(ClipRow(f"{files.name}/{clip_id}", files / name, (caption,) if caption else ()))
        return distinct(place, rows)


def _texts_under(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() == ".txt"]


def _folder(place: Location, names: tuple[str, ...]) -> Path | None:
    """The folder of a list: itself, or that of a list file."""
    if is_remote(place):
        return None
    path = Path(place)
    if path.name in names and os.path.isfile(path):
        return path.parent
    return path if any(os.path.isfile(path / name) for name in names) else None
