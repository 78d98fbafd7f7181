"""What a file is by the ending of its name."""

from __future__ import annotations

from pathlib import Path

from lightning_sora.data.places import MediaPath


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Stills that are frames of a video codec: FFmpeg reads them.
FILMED_STILLS = _set(".heic .heif .hif")
#: The others are Pillow's.
IMAGE_SUFFIXES = FILMED_STILLS | _set(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .avif .jp2 .j2k .j2c .jpf .jpx .ppm .pgm .pbm .pnm .tga "
    ".qoi .pcx .sgi .psd .dds .ico"
)
VIDEO_SUFFIXES = _set(
    ".mp4 .m4v .mp4v .f4v .mov .qt .webm .mkv .mk3d .avi .divx .gif .apng .mpg .mpeg .mpe .vob .ts .mts "
    ".m2t .m2ts .mxf .wmv .asf .flv .ogv .ogm .3gp .3g2 .rm .rmvb .dv .nut .y4m .mjpg .mjpeg .h264 .264 .avc .h265 "
    ".265 .hevc .ivf .obu .wtv .trp .mj2 .insv .lrv"
)
#: What lies beside videos and is not taken for one.
COMPANIONS = _set(
    ".txt .text .caption .cap .prompt .csv .tsv .json .jsonl .parquet .yaml .yml .toml .xml .html .md .rst .log .nfo "
    ".srt .vtt .ass .pdf .py .sh .cfg .ini .sha256 .md5"
)


def suffix_of(path: MediaPath) -> str:
    """The ending, in lower case."""
    return Path(str(path)).suffix.lower()


def is_image(path: MediaPath) -> bool:
    """Whether the name is that of a still image."""
    return suffix_of(path) in IMAGE_SUFFIXES


def is_media(path: MediaPath) -> bool:
    """Whether the name is that of a video or an image."""
    return suffix_of(path) in IMAGE_SUFFIXES | VIDEO_SUFFIXES
