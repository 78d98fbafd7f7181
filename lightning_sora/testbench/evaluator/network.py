"""The world evaluator: a small network that reads the facts of a clip, with a text tower aligned to it.

No two objects of a world share a colour, so objects are found by colour: per-pixel colour maps say where each is,
a window follows it, and everything else about it is read from brightness and saturation alone. What an object is
cannot be guessed from its colour then, and combinations that training never showed are read like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sora.testbench.evaluator.ego_motion import EgoMotion, carried
from lightning_sora.testbench.evaluator.text import CaptionTower
from lightning_sora.testbench.evaluator.vocabulary import OF_OBJECTS, VOCABULARY
from lightning_sora.world import COLORS

WINDOW, CROP = 0.6, 32  # side of the window that follows an object, of the frame's; and its pixels


@dataclass(frozen=True)
class Perception:
    """What the network makes of a batch: logits, except where said.

    Attributes:
        present: of an object of each colour.
        camera: of each camera motion.
        objects: per fact, of the objects asked for.
        shapes: of each frame alone.
        places, depths: as in :class:`Answers`, values.
        spots: where each colour is, right and down, in halves of the frame, values.
        mass: share of the frame that shows each colour, values.
        features: of the whole clip; the space of the Fréchet distance.
        embedding: of the whole clip, unit length, comparable with captions'.
    """

    present: Float[Tensor, "clips colors"]
    camera: Float[Tensor, "clips cameras"]
    objects: dict[str, Float[Tensor, "objects values"]]
    shapes: Float[Tensor, "objects frames shapes"]
    places: Float[Tensor, "objects frames 3"]
    depths: Float[Tensor, "objects frames"]
    spots: Float[Tensor, "clips frames colors 2"]
    mass: Float[Tensor, "clips frames colors"]
    features: Float[Tensor, "clips width"]
    embedding: Float[Tensor, "clips embedding"]


class ColorMaps(nn.Module):
    """How much of each colour every pixel shows: chroma against a learned palette, which begins as the world's."""

    def __init__(self) -> None:
        super().__init__()
        palette = torch.tensor(list(COLORS.values()))
        self.register_buffer("start", palette - palette.mean(dim=1, keepdim=True), persistent=False)
        self.start: Tensor
        self.palette = nn.Parameter(self.start.clone())
        self.sharpness = nn.Parameter(torch.tensor(14.0))
        self.grey = nn.Parameter(torch.tensor(0.14))

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.palette.copy_(self.start)
            self.sharpness.fill_(14.0)
            self.grey.fill_(0.14)

    def forward(self, video: Float[Tensor, "clips 3 frames h w"]) -> Float[Tensor, "clips colors frames h w"]:
        chroma = video - video.mean(dim=1, keepdim=True)
        strength = chroma.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        toward = torch.einsum("bcthw,kc->bkthw", chroma / strength, F.normalize(self.palette, dim=1))
        share = (self.sharpness * 2 * toward).softmax(dim=1)
        return share * torch.sigmoid((strength - self.grey) * 4 * self.sharpness)


def _conv2d(inward: int, outward: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, 3, stride, 1, bias=False), nn.GroupNorm(outward // 8, outward), nn.SiLU()
    )


class WorldEvaluator(nn.Module):
    """Reads clips and captions of the world.

    Args:
        dim: width of what is known of an object, and of the camera.
        embedding: width of the space that clips share with captions.
    """

    def __init__(self, dim: int = 96, embedding: int = 64) -> None:
        super().__init__()
        self.colors = ColorMaps()
        self.presence = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))
        self.view = EgoMotion(dim)
        # The object: a window that follows it.
        self.look = nn.Sequential(_conv2d(3, 24), _conv2d(24, 32, 2), _conv2d(32, 48, 2), _conv2d(48, 64, 2))
        self.appearance = nn.Linear(64 * 16, dim)
        self.place = nn.Linear(10, dim)
        self.from_view = nn.Linear(dim, dim)
        self.over_time = nn.Sequential(*(_Temporal(dim) for _ in range(3)))
        self.summary = nn.Sequential(nn.Linear(3 * dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(dim, len(VOCABULARY[name])) for name in OF_OBJECTS})
        self.camera = nn.Linear(dim, len(VOCABULARY["camera"]))
        self.frame_shape = nn.Linear(dim, len(VOCABULARY["shape"]))
        self.geometry = nn.Linear(dim, 4)
        # The clip as a whole.
        self.named = nn.Embedding(len(COLORS), dim)
        self.token = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.whole = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, embedding))
        self.text = CaptionTower(embedding)
        self.temperature = nn.Parameter(torch.tensor(2.5))
        self.dim, self.embedding = dim, embedding

    def reset_parameters(self) -> None:
        """Of what it owns itself: the logarithm of the contrastive scale."""
        nn.init.constant_(self.temperature, 2.5)

    def forward(
        self, video: Float[Tensor, "clips 3 frames h w"], slots: Int[Tensor, "objects 2"] | None = None
    ) -> Perception:
        """Reads clips with values in [0, 1], square, 64 pixels a side.

        Args:
            slots: (clip, colour) of the objects to read; those that are found, if None.
        """
        maps = self.colors(video)
        mass, spots, spread = moments(maps)
        present = self.presence_of(mass)
        if slots is None:
            slots = self.found(present)
        grey = video.mean(dim=1, keepdim=True)
        saturation = (video - grey).square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        view, flow = self.view(grey[:, 0], saturation[:, 0])

        clip, color = slots.unbind(1)
        at = spots[clip, :, color]
        own = maps[clip, color]
        crops = follow(torch.stack([own, own * grey[clip, 0], saturation[clip, 0]], dim=1), at)
        look = self.look(rearrange(crops, "s c t h w -> (s t) c h w"))
        appearance = rearrange(self.appearance(look.flatten(1)), "(s t) d -> s t d", t=video.shape[2])
        time = torch.linspace(-1, 1, video.shape[2]).to(video)
        ground = carried(flow[clip], at)
        moved = at - at[:, :1] - ground
        when = repeat(time, "t -> s t 1", s=len(slots))
        known = torch.cat(
            [at, spread[clip, :, color], 20 * mass[clip, :, color, None], when, 2 * ground, 2 * moved], dim=-1
        )
        state = appearance + self.place(known) + self.from_view(view)[clip, None]
        state = self.over_time(state)
        about = self.summary(torch.cat([state.mean(1), state.amax(1), state[:, -1] - state[:, 0]], dim=1))
        geometry = self.geometry(state)

        token = self.token(torch.cat([about, self.named(color)], dim=1))
        together = torch.zeros_like(view).index_add(0, clip, token)
        features = self.whole(torch.cat([together, view], dim=1))
        return Perception(
            present,
            self.camera(F.silu(view)),
            {name: head(about) for name, head in self.heads.items()},
            self.frame_shape(F.silu(appearance)),
            geometry[..., :3],
            geometry[..., 3],
            spots,
            mass,
            features,
            F.normalize(features, dim=1),
        )

    def presence_of(self, mass: Float[Tensor, "clips frames colors"]) -> Float[Tensor, "clips colors"]:
        """Whether a colour is there, from how much of it the frames show."""
        amount = torch.stack([mass.mean(1), mass.amax(1), mass.median(dim=1).values], dim=-1)
        return self.presence((amount + 1e-5).log())[..., 0]

    def found(self, present: Float[Tensor, "clips colors"]) -> Int[Tensor, "objects 2"]:
        """(clip, colour) of the objects that are there."""
        return (present > 0).nonzero()

    def embed_texts(self, captions: Sequence[str]) -> Float[Tensor, "captions embedding"]:
        """Captions in the space of the clips' embeddings, of unit length."""
        return F.normalize(self.text(captions), dim=1)


class _Temporal(nn.Module):
    """A residual convolution over time."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Conv1d(dim, dim, 5, padding=2)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "objects frames dim"]) -> Float[Tensor, "objects frames dim"]:
        mixed = self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.out(F.silu(mixed))


def moments(
    maps: Float[Tensor, "clips colors frames h w"],
) -> tuple[
    Float[Tensor, "clips frames colors"], Float[Tensor, "clips frames colors 2"], Float[Tensor, "clips frames colors 2"]
]:
    """Per colour and frame: the share of the frame that shows it, its centroid and its spread.

    Centroids are right and down, in halves of the frame; that of a colour that is nowhere is the frame's centre.
    """
    _, _, _, height, width = maps.shape
    weight = maps.square()  # faint everywhere is nowhere
    total = weight.sum((-2, -1)) + 1e-3
    x = ((torch.arange(width) + 0.5) * 2 / width - 1).to(maps)
    y = ((torch.arange(height) + 0.5) * 2 / height - 1).to(maps)
    across, down = weight.sum(-2) / total[..., None], weight.sum(-1) / total[..., None]
    center = torch.stack([across @ x, down @ y], dim=-1)
    second = torch.stack([across @ x.square(), down @ y.square()], dim=-1)
    spread = (second - center.square()).clamp(min=1e-6).sqrt()
    share = weight.sum((-2, -1)) / (height * width)
    return (
        rearrange(share, "b k t -> b t k"),
        rearrange(center, "b k t i -> b t k i"),
        rearrange(spread, "b k t i -> b t k i"),
    )


def follow(
    channels: Float[Tensor, "objects channels frames h w"], spots: Float[Tensor, "objects frames 2"]
) -> Float[Tensor, "objects channels frames crop crop"]:
    """A window of each frame around the object's centroid; beyond the frame all is zero."""
    frames = channels.shape[2]
    steps = (((torch.arange(CROP) + 0.5) / CROP * 2 - 1) * WINDOW).to(spots)
    x = spots[..., 0, None] + steps
    y = spots[..., 1, None] + steps
    grid = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), dim=-1)
    cut = F.grid_sample(
        rearrange(channels, "s c t h w -> (s t) c h w"), rearrange(grid, "s t y x i -> (s t) y x i"),
        padding_mode="zeros", align_corners=False,
    )  # fmt: skip
    return rearrange(cut, "(s t) c h w -> s c t h w", t=frames)
