"""The trained evaluator: from clips of any size and rate to what they show."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.digests import file_sha256
from lightning_sora.sealing import read_json, seal_json, write_whole
from lightning_sora.testbench.evaluator.network import Perception, WorldEvaluator
from lightning_sora.testbench.evaluator.vocabulary import FPS, FRAMES, MIN_FRAMES, OF_OBJECTS, SIDE, VOCABULARY

SHIPPED = Path(__file__).parent / "weights" / "world_evaluator.safetensors"
AT_ONCE = 32  # clips of one forward
NEIGHBOURS = 5  # frames that tell a frame's shape
SEEN = 0.25  # of an object's median coverage; frames below it do not show the object


@dataclass(frozen=True)
class ObjectReading:
    """One object as the evaluator sees it.

    Attributes:
        spots: centroid per frame, right and down, in halves of the frame's shorter side.
        places: centre per frame, in units of the world's stage.
        depths: distance along the optical axis per frame, in units of the stage.
        seen: whether a frame shows it.
        frame_shapes: the shape as each frame and its neighbours show it, apart from the rest, as a code.
        coverage: mean share of the frame.
    """

    color: str
    shape: str
    size: str
    motion: str
    spots: Float[Tensor, "frames 2"]
    places: Float[Tensor, "frames 3"]
    depths: Float[Tensor, " frames"]
    seen: Tensor
    frame_shapes: Int[Tensor, " frames"]
    coverage: float


@dataclass(frozen=True)
class Reading:
    """One clip as the evaluator sees it; objects in the order of coverage, the largest first."""

    objects: tuple[ObjectReading, ...]
    camera: str
    features: Float[Tensor, " width"]
    embedding: Float[Tensor, " embedding"]


class TrainedEvaluator:
    """A network with its weights' record.

    Attributes:
        record: recipe, digest and measured accuracies, as ``test`` of a LitEvaluator wrote them.
    """

    def __init__(self, network: WorldEvaluator, record: Mapping[str, Any]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.record = record

    @property
    def digest(self) -> str:
        return str(self.record["sha256"])

    @property
    def width(self) -> int:
        return self.network.embedding

    def to(self, device: torch.device | str) -> TrainedEvaluator:
        """Moves the network."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def perceive(self, clips: Sequence[Tensor], fps: Sequence[float]) -> list[tuple[Perception, Int[Tensor, "o 2"]]]:
        """What the network makes of clips, in micro-batches, each with its slots; see :meth:`read`."""
        device = next(self.network.parameters()).device
        prepared = [prepare(clip.to(device), rate) for clip, rate in zip(clips, fps, strict=True)]
        found, start = [], 0
        with torch.autocast(device.type, enabled=False):
            while start < len(prepared):
                stop = start + 1
                while stop < min(len(prepared), start + AT_ONCE) and prepared[stop].shape == prepared[start].shape:
                    stop += 1
                video = torch.stack(prepared[start:stop])
                seen = self.network(video)
                found.append((seen, self.network.found(seen.present).cpu()))
                start = stop
        return found

    def read(self, clips: Sequence[Tensor], fps: Sequence[float]) -> list[Reading]:
        """Reads clips (uint8 [frames height width 3]); each reading is independent of the other clips.

        Raises:
            SoraError: a clip shorter than ``MIN_FRAMES`` frames at ``FPS`` frames per second, or no uint8 clip.
        """
        return [
            _reading(seen, slots, clip)
            for seen, slots in self.perceive(clips, fps)
            for clip in range(len(seen.present))
        ]

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Float[Tensor, "captions embedding"]:
        """Captions in the space of the clips' embeddings, of unit length; each independent of the others."""
        return torch.cat([self.network.embed_texts([caption]) for caption in captions]).cpu()


def frames_read(frames: int, fps: float) -> int:
    """How many frames of a clip the evaluator looks at; it needs ``MIN_FRAMES``."""
    return min(FRAMES, int((frames - 1) * FPS / fps + 1e-6) + 1)


def frames_at(frames: int, fps: float) -> Int[Tensor, " read"]:
    """Which frames of a clip of ``fps`` frames per second the evaluator reads: the nearest to each of its moments."""
    moments = torch.arange(frames_read(frames, fps)) * fps / FPS
    return moments.round().long().clamp(max=frames - 1)


def prepare(clip: Tensor, fps: float) -> Float[Tensor, "3 frames side side"]:
    """The first two seconds at the evaluator's rate, the middle square at its size, in [0, 1].

    Raises:
        SoraError: not uint8 [frames height width 3], or too short.
    """
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise SoraError(
            f"the evaluator cannot read a clip of {clip.dtype} {tuple(clip.shape)}; give uint8 [frames height width 3]"
        )
    count = frames_read(len(clip), fps)
    if count < MIN_FRAMES:
        raise SoraError(
            f"a clip of {len(clip)} frames at {fps:g} frames per second is too short for the evaluator, which needs "
            f"{(MIN_FRAMES - 1) / FPS:g} seconds; give longer clips"
        )
    video = rearrange(clip[frames_at(len(clip), fps).to(clip.device)], "t h w c -> t c h w").float() / 255
    height, width = video.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    video = video[..., top : top + side, left : left + side]
    if side != SIDE:
        video = F.interpolate(video, size=(SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)
    return rearrange(video, "t c h w -> c t h w")


def _reading(seen: Perception, slots: Int[Tensor, "o 2"], clip: int) -> Reading:
    objects = []
    for number in (slots[:, 0] == clip).nonzero().flatten().tolist():
        color = int(slots[number, 1])
        mass = seen.mass[clip, :, color].cpu()
        said = {name: VOCABULARY[name][int(seen.objects[name][number].argmax())] for name in OF_OBJECTS}
        objects.append(
            ObjectReading(
                VOCABULARY["color"][color],
                said["shape"],
                said["size"],
                said["motion"],
                seen.spots[clip, :, color].cpu(),
                seen.places[number].cpu(),
                seen.depths[number].exp().cpu(),
                mass > SEEN * mass.median().clamp(min=1e-5),
                _over_neighbours(seen.shapes[number]).argmax(-1).cpu(),
                float(mass.mean()),
            )
        )
    objects.sort(key=lambda thing: -thing.coverage)
    camera = VOCABULARY["camera"][int(seen.camera[clip].argmax())]
    return Reading(tuple(objects), camera, seen.features[clip].cpu(), seen.embedding[clip].cpu())


def _over_neighbours(logits: Float[Tensor, "frames values"]) -> Float[Tensor, "frames values"]:
    """Log-probabilities averaged over a few frames: from some sides, one shape looks like another."""
    kept = F.avg_pool1d(logits.log_softmax(-1).T[None], NEIGHBOURS, 1, NEIGHBOURS // 2, count_include_pad=False)
    return kept[0].T


def save_evaluator(network: WorldEvaluator, path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes the weights, and beside them their record with the digest of what was written."""
    path = Path(path)
    write_whole(path, safetensors.torch.save({k: v.contiguous().cpu() for k, v in network.state_dict().items()}))
    full = {**record, "dim": network.dim, "embedding": network.embedding, "sha256": file_sha256(path)}
    write_whole(path.with_suffix(".json"), seal_json(full))


def load_evaluator(path: str | None = None) -> TrainedEvaluator:
    """The evaluator that the package ships, or one of a path, verified against its record.

    Raises:
        SoraError: no such file, or weights that are not those of the record.
    """
    file = Path(path) if path is not None else SHIPPED
    if not (os.path.isfile(file) and os.path.isfile(file.with_suffix(".json"))):
        raise WeightsMissing(
            f"no evaluator at {file} (with its .json beside it); train one with recipes/world_evaluator.yaml and test "
            "it, or leave the path out to use the shipped one"
        )
    state = file.stat()
    return _loaded(file, (state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=4)
def _loaded(file: Path, state: tuple[int, int]) -> TrainedEvaluator:
    told = file.with_suffix(".json")
    record = read_json(told.read_bytes(), told, "copy both files again")
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != record["sha256"]:
        raise SoraError(
            f"{file} has the digest {digest[:16]}, its record says {record['sha256'][:16]}: it is damaged or of "
            "another training; copy both files again"
        )
    network = WorldEvaluator(record["dim"], record["embedding"])
    try:
        network.load_state_dict(safetensors.torch.load(data))
    except (RuntimeError, SafetensorError) as problem:
        raise SoraError(
            f"{file} does not fit this version's evaluator ({' '.join(str(problem).split())[:160]}); train it anew"
        ) from problem
    return TrainedEvaluator(network, record)
