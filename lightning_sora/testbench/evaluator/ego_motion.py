"""How the picture of the ground moves: what tells one camera motion from another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

SCALES = (1, 2)  # the frames are looked at as they are, and at half their size, where fast motion is slow
CELLS = 7
MEASURED = 4  # right, down, energy of the picture, energy of its change
GREY = 0.12  # chroma above which a pixel is an object's
FASTEST = 8.0  # hundredths of the frame from one frame to the next
FLOW_SCALE = 0.08  # halves of the frame, the unit of places in it, per unit of flow
REGULAR = 1e-5  # of the squared brightness gradient; where there is less, motion is told to be none


class EgoMotion(nn.Module):
    """Flow of the colourless part of the frame, per cell (Lucas and Kanade 1981), and a network over it.

    Args:
        dim: width of the result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(MEASURED * len(SCALES), 32, 1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU()
        )
        self.pair = nn.Sequential(nn.Linear(32 * CELLS**2, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(
        self, grey: Float[Tensor, "clips frames h w"], saturation: Float[Tensor, "clips frames h w"]
    ) -> tuple[Float[Tensor, "clips dim"], Float[Tensor, "clips pairs 2 cells cells"]]:
        """What the camera does, and the flow from each frame to the next in halves of the frame, right and down."""
        with torch.no_grad():
            exact = torch.promote_types(grey.dtype, torch.float32)  # differences of frames are small
            scales = [flow_of_cells(grey.to(exact), saturation.to(exact), scale).to(grey) for scale in SCALES]
            measured = torch.cat(scales, dim=2)
            flow = FLOW_SCALE * scales[0][:, :, :2]  # the finer is the more exact one
        cells = self.cells(rearrange(measured, "b t c y x -> (b t) c y x"))
        pairs = self.pair(cells.flatten(1))
        return rearrange(pairs, "(b t) d -> b t d", b=len(grey)).mean(1), flow


def flow_of_cells(
    grey: Float[Tensor, "clips frames h w"], saturation: Float[Tensor, "clips frames h w"], scale: int
) -> Float[Tensor, "clips pairs measured cells cells"]:
    """Least-squares flow between neighbouring frames in overlapping cells, in hundredths of the frame.

    Brightness is smoothed first, so that a derivative is one; pixels of coloured objects do not count.
    """
    if scale > 1:
        grey, saturation = (F.avg_pool2d(images, scale) for images in (grey, saturation))
    size = grey.shape[-1]
    grey = smooth(grey)
    plain = 1 - F.max_pool2d((saturation > GREY).to(grey), 3, stride=1, padding=1)
    plain = plain[:, 1:] * plain[:, :-1]
    mean = (grey[:, 1:] + grey[:, :-1]) / 2
    across, down = (mean.roll(-1, axis) - mean.roll(1, axis) for axis in (3, 2))
    across, down, later = across[..., 1:-1, 1:-1] / 2, down[..., 1:-1, 1:-1] / 2, (grey[:, 1:] - grey[:, :-1])
    later, plain = later[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1]
    products = [across * across, across * down, down * down, across * later, down * later, later * later]
    xx, xy, yy, xt, yt, tt = (_cells(product * plain) for product in products)
    a, c = xx + REGULAR, yy + REGULAR
    determinant = a * c - xy * xy
    right, below = (xy * yt - c * xt) / determinant, (xy * xt - a * yt) / determinant
    flow = [(part * 100 / size).clamp(-FASTEST, FASTEST) / 4 for part in (right, below)]
    energies = [(energy + REGULAR / 10).log() / 4 + 2 for energy in (xx + yy, tt)]
    return torch.stack([*flow, *energies], dim=2)


def _cells(values: Float[Tensor, "clips pairs h w"]) -> Float[Tensor, "clips pairs cells cells"]:
    # Halves of the window, averaged two by two: overlapping cells at the cost of disjoint ones.
    halves = F.adaptive_avg_pool2d(values, CELLS + 1)
    return F.avg_pool2d(halves, 2, stride=1)


def smooth(images: Float[Tensor, "clips frames h w"]) -> Float[Tensor, "clips frames h w"]:
    """A binomial blur of about 1.2 pixels."""
    kernel = torch.tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0], device=images.device, dtype=images.dtype) / 64
    flat = F.pad(rearrange(images, "b t h w -> (b t) 1 h w"), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return rearrange(flat, "(b t) 1 h w -> b t h w", b=len(images))


def carried(
    flow: Float[Tensor, "objects pairs 2 cells cells"], spots: Float[Tensor, "objects frames 2"]
) -> Float[Tensor, "objects frames 2"]:
    """How far the picture of the ground has moved, where an object is, since the first frame."""
    at = rearrange(spots[:, :-1], "s t i -> (s t) 1 1 i") * (CELLS + 1) / CELLS  # cells' centres do not reach the edge
    here = F.grid_sample(flow.flatten(0, 1), at, padding_mode="border", align_corners=False)
    steps = rearrange(here, "(s t) i 1 1 -> s t i", t=flow.shape[1])  # there may be no object
    return F.pad(steps.cumsum(1), (0, 0, 1, 0))
