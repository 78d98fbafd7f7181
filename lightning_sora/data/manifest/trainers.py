"""Tables of the trainers: DiffSynth-Studio, VideoX-Fun, and any other whose columns a flag names."""

from __future__ import annotations

from lightning_sora.data.manifest.rows import MANIFESTS, ClipRow
from lightning_sora.data.manifest.tables import SUFFIXES, TableStyle
from lightning_sora.data.records import Record, absent
from lightning_sora.data.storage import Location
from lightning_sora.errors import SoraError

#: Columns by which DiffSynth-Studio gives a model a second file: left out, the training would be another.
CONDITIONS = (
    "input_image", "end_image", "control_video", "reference_image", "vace_video", "vace_video_mask",
    "vace_reference_image", "edit_image", "input_audio",
)  # fmt: skip


@MANIFESTS.register("diffsynth")
class DiffSynth(TableStyle):
    """DiffSynth-Studio's ``metadata.csv|json|jsonl`` with ``video,prompt`` or ``image,prompt``, beside the files.

    Raises:
        SoraError: a row that names a second file, such as ``control_video``, or that names none.
    """

    needs = "diffsynth needs 'video' or 'image', and 'prompt'"
    file, caption = ("video", "image"), ("prompt",)
    names = ("metadata.csv", "metadata.json", "metadata.jsonl")
    suffixes = (".csv", ".json", ".jsonl")

    def _row(self, root: str, row: Record, where: str) -> ClipRow:
        second = [name for name in CONDITIONS if not absent(row.get(name))]
        if second:
            raise SoraError(
                f"{where}: {second[0]!r} names a second file, which no task takes from a manifest; remove the column "
                "to train on videos and prompts alone"
            )
        return super()._row(root, row, where)


@MANIFESTS.register("videox_fun")
class VideoXFun(TableStyle):
    """VideoX-Fun's (CogVideoX-Fun's, EasyAnimate's) JSON or CSV: ``file_path``, ``text``, ``type``.

    Raises:
        SoraError: a ``type`` other than "video" or "image", or a row with a ``control_file_path``.
    """

    needs = "videox_fun needs 'file_path' and 'text'; 'type' (video, image), 'height' and 'width' may be there"
    file, caption = ("file_path",), ("text",)
    suffixes = (".json", ".csv")

    def _row(self, root: str, row: Record, where: str) -> ClipRow:
        kind = row.get("type")
        if not absent(kind) and kind not in ("video", "image"):
            raise SoraError(f"{where}: 'type' is {kind!r}; it must be 'video' or 'image'")
        if not absent(row.get("control_file_path")):
            raise SoraError(
                f"{where}: 'control_file_path' names a second file, which no task takes from a manifest; remove it to "
                "train on videos and texts alone"
            )
        return super()._row(root, row, where)


@MANIFESTS.register("table")
class AnyTable(TableStyle):
    """A table whose columns are named here, as trainers do by flags (finetrainers, LTX-Video-Trainer, SimpleTuner).

    Args:
        file: the column with the path of a video or image, relative to the table.
        caption: the column with the text, or a list of texts.

    Example:
        ``data.source="manifest(style='table(file=\\'video_file\\', caption=\\'short_prompt\\')')"``

    Raises:
        SoraError: a column is not named.
    """

    needs = "table needs its columns named: table(file='COLUMN', caption='COLUMN')"
    suffixes = SUFFIXES

    def __init__(self, file: str | None = None, caption: str | None = None) -> None:
        self._named = file is not None and caption is not None
        self.file, self.caption = (file or "",), (caption or "",)  # type: ignore[misc]
        if (file is None) != (caption is None):
            raise SoraError(f"table(file={file!r}, caption={caption!r}): name both columns")

    def matches(self, place: Location) -> bool:
        return self._named and super().matches(place)

    def read(self, place: Location) -> list[ClipRow]:
        if not self._named:
            raise SoraError(self.needs)
        return super().read(place)
