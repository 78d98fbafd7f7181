"""Manifests of lines and of pairs of folders: CogVideoX and what follows it."""

from __future__ import annotations

from pathlib import Path

from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow, ManifestStyle, distinct, text_of
from lightning_sora.data.manifest.tables import located
from lightning_sora.data.storage import Location, is_remote
from lightning_sora.errors import SoraError

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
        return folder is not None and any((folder / name).is_file() for name in PROMPTS)

    def read(self, place: Location) -> list[ClipRow]:
        folder = _folder(place, FILES)
        prompts = None if folder is None else next((folder / n for n in PROMPTS if (folder / n).is_file()), None)
        if folder is None or prompts is None:
            raise SoraError(f"{place}: {self.needs}")
        captions = text_of(prompts).split("\n")
        rows: list[ClipRow] = []
        # Films where both are there: images.txt then lists their first frames, for image-to-video.
        listed = next(folder / name for name in FILES if (folder / name).is_file())
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
            rows.append(ClipRow(file, located(str(folder), file), tuple(filter(None, [" ".join(caption.split())]))))
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
        return next(((f, w) for f, w in pairs if f.is_dir() and w.is_dir()), None)

    def read(self, place: Location) -> list[ClipRow]:
        from lightning_sora.data.sources.folder import find_media

        found = self._found(place)
        if found is None:
            raise SoraError(f"{place}: {self.needs}")
        files, words = found
        rows = []
        for name in find_media(files)[0]:
            label = words / Path(name).with_suffix(".txt")
            if not label.is_file():
                raise SoraError(f"{files / name} has no {label}; add the text, or remove the file")
            caption = " ".join(text_of(label).split())
            rows.append(ClipRow(f"{files.name}/{name}", files / name, (caption,) if caption else ()))
        return distinct(place, rows)


def _folder(place: Location, names: tuple[str, ...]) -> Path | None:
    """The folder of a list: itself, or that of a list file."""
    if is_remote(place):
        return None
    path = Path(place)
    if path.name in names and path.is_file():
        return path.parent
    return path if any((path / name).is_file() for name in names) else None
