"""What one clip shows over time: flicker, smoothness, motion and how well its frames agree.

Pure functions: of pixels, of flow, or of features of frames. Each gives a scalar in float64. Names and formulas
are VBench's (Huang et al. 2024) unless said otherwise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_large, raft_small

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.pretrained import device_of, exact_float32, is_published, read_state_dict

logger = logging.getLogger(__name__)

Score = Float[Tensor, ""]
Flow = Float[Tensor, "pairs 2 height width"]
"""Motion (right, down) in pixels: what frame t shows at p, frame t+1 shows at p + flow[t, :, p]."""
Frames = UInt8[Tensor, "middles height width 3"]
Interpolator = Callable[[Tensor, Tensor], Tensor]
"""Frames before and after, uint8 [middles height width 3], to display values of the frames between, of any dtype."""

FLOW_FPS = 8
"""Frames per second at which VBench looks at flow."""
RAFT_LARGE = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
RAFT_SMALL = "raft_small_C_T_V2-01064c6d.pth"
RAFT_SIDE = 128
"""Sides below leave RAFT's coarsest correlations empty."""
RAFT_PAIRS = 4
"""Pairs of frames of one forward."""


class NoValidPixel(SoraError):
    """Every pixel of a clip is masked out: it has no warping error."""


def temporal_flickering(clip: Clip) -> Score:
    """1 - mean |x_t - x_{t+1}| / 255, in [0, 1]; 1 is a still clip.

    VBench applies it to clips that ought to be still: motion counts as flicker.

    Raises:
        SoraError: fewer than two frames.
    """
    _needs(clip, 2, "temporal flickering")
    values = clip.to(torch.int16)
    return 1 - (values[1:] - values[:-1]).abs().double().mean() / 255


def mean_of_neighbours(before: Frames, after: Frames) -> Float[Tensor, "middles height width 3"]:
    """The average of two frames: right for brightness that changes steadily, wrong for anything that moves."""
    return (before.float() + after.float()) / 2


def motion_smoothness(clip: Clip, interpolate: Interpolator = mean_of_neighbours) -> Score:
    """1 - mean |x_t - interpolated x_t| / 255 over the odd frames t, each from its two neighbours; in [0, 1].

    VBench's number is this with the network AMT-S as ``interpolate``. The default, the mean of the neighbours, is
    *not* AMT: it counts steady motion as roughness, and its values compare with each other alone.

    Args:
        interpolate: gives display values, which are rounded as VBench's are.

    Raises:
        SoraError: fewer than three frames, or an interpolator that gives another shape.
    """
    _needs(clip, 3, "motion smoothness")
    ends = clip[::2]
    real = clip[1::2][: len(ends) - 1]
    made = interpolate(ends[:-1], ends[1:])
    if made.shape != real.shape:
        raise SoraError(f"the interpolator gives {tuple(made.shape)} for frames of {tuple(real.shape)}; keep the shape")
    made = made.double().round().clamp(0, 255)
    return 1 - (made - real.double()).abs().mean() / 255


def flow_stride(fps: float) -> int:
    """Every how many frames VBench takes one for its dynamic degree: to about 8 frames per second."""
    if not fps > 0:
        raise SoraError(f"fps={fps} must be positive; give the frame rate of the clip")
    return max(1, round(fps / FLOW_FPS))


def dynamic_degree(
    flow: Flow, fps: float, height: int, width: int, compat: str | None = None, recorded: float | None = None
) -> Score:
    """1 if the clip moves, else 0.

    A pair of frames moves if the mean of its largest 5% of |flow| exceeds 6 * min(height, width) / 256 pixels; the
    clip does if at least round(4n / 16) of its pairs move, n frames. For two frames that rounds to 0, so that in
    VBench any such clip is dynamic; here at least one pair must move.

    Args:
        flow: between frames taken every ``flow_stride(fps)`` of the clip.
        fps: of the frames that the flow is between, which is about 8.
        height, width: of the frames in whose pixels the flow is.
        compat: "vbench" keeps the rule for two frames as it is.
        recorded: the rate of the clip itself. Below 8 frames per second the threshold grows as VBench's does, by 8 over
            it, since each pair of frames is then further apart; None for one that is not below.

    Raises:
        SoraError: no flow, flow of frames that stand too close, or an unknown ``compat``.
    """
    if compat not in (None, "vbench"):
        raise SoraError(f"compat={compat!r} of the dynamic degree is unknown; leave it out or choose 'vbench'")
    if not len(flow) or min(height, width) < 1:
        raise SoraError(f"flow of {len(flow)} pairs at {height}x{width} has no dynamic degree; give two frames or more")
    if (stride := flow_stride(fps)) > 1:
        raise SoraError(
            f"flow between frames at {fps:g} fps is too short for the dynamic degree's threshold, which is for "
            f"{FLOW_FPS} fps; take one of every {stride} frames first (clip[::flow_stride(fps)])"
        )
    speed = flow.double().norm(dim=1).flatten(1)
    fastest = speed.topk(max(1, int(speed.shape[1] * 0.05)), dim=1).values.mean(dim=1)
    slower = 1.0 if recorded is None else max(1.0, FLOW_FPS / recorded)
    moving = int((fastest > slower * 6 * min(height, width) / 256).sum())
    needed = round(4 * (len(flow) + 1) / 16)
    if compat is None:
        needed = max(1, needed)
    return torch.tensor(float(moving >= needed), dtype=torch.float64, device=flow.device)


def warping_error(
    clip: Clip, flow: Flow, backward: Flow | None = None, visible: Bool[Tensor, "pairs height width"] | None = None
) -> Score:
    """The squared error of frame t+1, warped back by the flow, against frame t; pixels in [0, 1].

    Per pair the mean over channels and valid pixels, then the mean over pairs (Lai et al. 2018,
    ``fast_blind_video_consistency:evaluate_WarpError.py``). Not valid are motion boundaries; with ``backward``,
    pixels where the two flows disagree; and pixels that leave the frame, which the reference keeps. Pairs without
    a valid pixel are left out, where the reference divides by the number of pixels.

    Args:
        flow: from each frame to the next; exact flow will do.
        backward: from each frame to the one before it: ``backward[t]`` leads from t+1 to t.
        visible: pixels whose point the next frame shows, where that is known; the others are not valid.

    Raises:
        SoraError: flow that does not fit the clip.
        NoValidPixel: no pixel of any pair is valid.
    """
    _needs(clip, 2, "the warping error")
    wanted = (len(clip) - 1, 2, *clip.shape[1:3])
    for name, given in (("flow", flow), ("backward", backward)):
        if given is not None and given.shape != wanted:
            raise SoraError(f"{name} of {tuple(given.shape)} does not fit the clip; it must be {wanted}")
    errors = []
    for t in range(len(flow)):
        now, then = (clip[i].permute(2, 0, 1).double() / 255 for i in (t, t + 1))
        ahead = flow[t].double()
        back = None if backward is None else backward[t].double()
        valid = _valid(ahead, back)
        if visible is not None:
            valid &= visible[t].to(valid.device)
        if valid.any():
            error = (_warp(then, ahead) - now).square().mean(dim=0)
            errors.append(error[valid].mean())
    if not errors:
        raise NoValidPixel(
            f"none of the pixels of {len(flow)} pairs of frames can be followed by the flow (it leaves the frame, "
            "breaks off or disagrees with the flow back), so the clip has no warping error; leave it out and say so"
        )
    return torch.stack(errors).mean()


def _valid(
    ahead: Float[Tensor, "2 height width"], back: Float[Tensor, "2 height width"] | None
) -> Bool[Tensor, "height width"]:
    height, width = ahead.shape[1:]
    across, down = _landing(ahead)
    valid = (across >= 0) & (across <= width - 1) & (down >= 0) & (down <= height - 1)
    size = ahead.square().sum(dim=0)
    slope = torch.zeros_like(size)
    slope[:, :-1] += ahead.diff(dim=2).square().sum(dim=0)
    slope[:-1] += ahead.diff(dim=1).square().sum(dim=0)
    valid &= slope <= 0.01 * size + 0.002
    if back is not None:
        returned = _warp(back, ahead)
        apart = (returned + ahead).square().sum(dim=0)
        valid &= apart <= 0.01 * (returned.square().sum(dim=0) + size) + 0.5
    return valid


def _landing(flow: Float[Tensor, "2 height width"]) -> tuple[Tensor, Tensor]:
    height, width = flow.shape[1:]
    across = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[0]
    down = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[1]
    return across, down


def _warp(
    image: Float[Tensor, "channels height width"], flow: Float[Tensor, "2 height width"]
) -> Float[Tensor, "channels height width"]:
    """The image read at p + flow[p], bilinearly; beyond its edge, its edge."""
    height, width = flow.shape[1:]
    across, down = _landing(flow)
    # An image one pixel wide has one place to read from.
    where = torch.stack((2 * across / max(1, width - 1) - 1, 2 * down / max(1, height - 1) - 1), dim=-1)
    return F.grid_sample(image[None], where[None], padding_mode="border", align_corners=True)[0]


def frame_consistency(features: Float[Tensor, "frames dim"]) -> Score:
    """The mean over frames t from 1 of [max(0, cos(f_{t-1}, f_t)) + max(0, cos(f_0, f_t))] / 2, in [0, 1].

    With DINO features it is VBench's subject consistency, with CLIP's its background consistency.

    Raises:
        SoraError: fewer than two frames.
    """
    _needs(features, 2, "frame consistency")
    values = features.double()
    previous = F.cosine_similarity(values[:-1], values[1:])
    first = F.cosine_similarity(values[:1], values[1:])
    return (previous.clamp(min=0) + first.clamp(min=0)).mean() / 2


def temporal_cosine(features: Float[Tensor, "frames dim"]) -> Score:
    """The mean of cos(f_t, f_{t+1}), in [-1, 1].

    Raises:
        SoraError: fewer than two frames.
    """
    _needs(features, 2, "the temporal cosine")
    values = features.double()
    return F.cosine_similarity(values[:-1], values[1:]).mean()


def _needs(frames: Tensor, least: int, score: str) -> None:
    if len(frames) < least:
        raise SoraError(f"a clip of {len(frames)} frames has no {score.removeprefix('the ')}; give at least {least}")


@torch.no_grad()
def raft_flow(clip: Clip, network: nn.Module, updates: int = 20) -> Flow:
    """Flow from each frame to the next by a RAFT of torchvision, in pixels, in float32.

    Values go to [-1, 1]; sides are padded with their edges, to a multiple of 8 and at least to 128.

    Args:
        updates: of the flow; VBench makes 20.

    Raises:
        SoraError: fewer than two frames.
    """
    _needs(clip, 2, "flow")
    network.eval()
    device = device_of(network)
    frames = 2 * clip.to(device).permute(0, 3, 1, 2).float() / 255 - 1
    height, width = frames.shape[2:]
    down, across = (max(RAFT_SIDE, -(-side // 8) * 8) - side for side in (height, width))
    top, left = down // 2, across // 2
    frames = F.pad(frames, (left, across - left, top, down - top), mode="replicate")
    with exact_float32(device):
        flows = [
            network(before, after, num_flow_updates=updates)[-1]
            for before, after in zip(frames[:-1].split(RAFT_PAIRS), frames[1:].split(RAFT_PAIRS), strict=True)
        ]
    return torch.cat(flows)[:, :, top : top + height, left : left + width]


def load_raft(weights: str | Path) -> nn.Module:
    """Torchvision's RAFT, large or small as its file is, in evaluation mode; warns where the file is not published.

    Raises:
        WeightsMissing: no such file.
        SoraError: a damaged one, or weights of another network.
    """
    path, part = Path(weights), "RAFT"
    if not os.path.isfile(path):
        raise WeightsMissing(
            f"there is no file {str(path)!r}, where the weights of RAFT are looked for; download torchvision's "
            f"raft_large_C_T_SKHT_V2 ({RAFT_LARGE}) or, smaller, raft_small_C_T_V2 ({RAFT_SMALL}) to it"
        )
    state = read_state_dict(path, part)
    # Only the large one learns how to enlarge its flow.
    large = any(name.startswith("mask_predictor.") for name in state)
    published = RAFT_LARGE if large else RAFT_SMALL
    if not is_published(path, published, part):
        logger.warning("%s is not torchvision's %s: flow by it is your own", path.name, published)
    network = (raft_large if large else raft_small)(weights=None)
    try:
        network.load_state_dict(state)
    except RuntimeError as problem:
        raise SoraError(
            f"the parameters in {str(path)!r} are not those of torchvision's RAFT; give {RAFT_LARGE} or {RAFT_SMALL}"
        ) from problem
    return network.eval().requires_grad_(False)
