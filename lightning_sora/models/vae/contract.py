"""The contract of a video VAE: sizes as it declares them, one clip at a time, and the same latent every time.

It is put to a VAE with keyed initial values, or with its own weights where it brings some.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.contracts import Contract, ContractViolation, no_global_draws, require, require_close
from lightning_sora.errors import SoraError
from lightning_sora.models.vae.base import VAES, Posterior, VideoVAE
from lightning_sora.models.vae.statistics import LatentStatistics
from lightning_sora.randomness import coarse_generator, initialize
from lightning_sora.spacetime import TokenGrid

Video = Float[Tensor, "batch 3 frames height width"]
#: Latent positions of the clips that it is put to.
GRID = TokenGrid(3, 2, 3)
#: Of float32 sums in another order.
TOLERANCE = 2e-5


def make(spec: str, *, spread: bool = True) -> VideoVAE:
    """A VAE for evaluation.

    Args:
        spread: move every parameter a little, so that none is at a zero that hides what is behind it.
    """
    vae = VAES.create(spec)
    if not vae.pretrained:
        initialize(vae, 1, "vae.")
        if spread:
            with torch.no_grad():
                for name, parameter in vae.named_parameters():
                    drawn = torch.randn(parameter.shape, generator=coarse_generator(2, "contract", name))
                    parameter.add_(drawn.to(parameter), alpha=0.02)
    return vae.eval()


CONTRACT = Contract(make)


def video_of(vae: VideoVAE, batch: int = 2, frames: int = GRID.frames) -> Video:
    """Clips in [-1, 1] of ``frames`` latent frames."""
    s = vae.stride
    size = (3, 1 + (frames - 1) * s.frames, GRID.height * s.height, GRID.width * s.width)
    drawn = [torch.rand(size, generator=coarse_generator(3, "contract", clip)) * 2 - 1 for clip in range(batch)]
    return torch.stack(drawn)


def _told(size: Tensor | torch.Size) -> str:
    return "x".join(map(str, size))


@CONTRACT.law
@torch.no_grad()
def has_the_sizes_that_it_declares(spec: str) -> None:
    """Clips and single frames: latents of ``grid`` and ``latent_channels``, and videos of the size that went in."""
    vae = make(spec)
    for frames in (GRID.frames, 1):
        video = video_of(vae, frames=frames)
        posterior, grid = vae.encode(video), vae.grid(*video.shape[2:])
        require(grid == TokenGrid(frames, GRID.height, GRID.width), f"grid({_told(video.shape[2:])}) is {tuple(grid)}")
        expected = (2, vae.latent_channels, *grid)
        for name in ("mean", "logvar"):
            found = getattr(posterior, name)
            told = f"{name} of {_told(video.shape)} is {_told(found.shape)}"
            require(found.shape == expected, f"{told}; stride and latent_channels say {_told(torch.Size(expected))}")
            require(found.dtype == video.dtype, f"{name} is {found.dtype}, the video {video.dtype}")
            require(found.isfinite().all(), f"{name} is not finite")
        decoded = vae.decode(posterior.mean)
        require(decoded.shape == video.shape, f"{_told(video.shape)} comes back as {_told(decoded.shape)}")


@CONTRACT.law
@torch.no_grad()
def the_first_frame_stands_alone(spec: str) -> None:
    """An image is a clip of one frame: where it says so, the first frame of a clip has the latent of its image."""
    vae = make(spec)
    if not vae.facts.first_frame_alone:
        return
    video = video_of(vae)
    alone, within = vae.encode(video[:, :, :1]), vae.encode(video)
    for name in ("mean", "logvar"):
        message = (
            f"{name} of the first latent frame depends on later frames (VAEFacts(first_frame_alone=False) if meant)"
        )
        require_close(getattr(within, name)[:, :, :1], getattr(alone, name), message, TOLERANCE)


@CONTRACT.law
@torch.no_grad()
def does_not_see_ahead(spec: str) -> None:
    """Where it says that it is causal, a clip that is cut short keeps its latents, and a latent its video."""
    vae = make(spec)
    kept, whole = 1 + vae.latent_step, 1 + 2 * vae.latent_step
    frames = 1 + vae.latent_step * vae.stride.frames
    video = video_of(vae, frames=whole)
    latent = vae.encode(video).mean
    if vae.facts.encoder_causal:
        message = "latents depend on later frames (VAEFacts(encoder_causal=False) if meant)"
        require_close(vae.encode(video[:, :, :frames]).mean, latent[:, :, :kept], message, TOLERANCE)
    if vae.facts.decoder_causal:
        message = "decoded frames depend on later latents (VAEFacts(decoder_causal=False) if meant)"
        require_close(vae.decode(latent[:, :, :kept]), vae.decode(latent)[:, :, :frames], message, TOLERANCE)


@CONTRACT.law
@torch.no_grad()
def a_point_is_a_point(spec: str) -> None:
    """Where it says that the latent of a clip is a point, drawing from the posterior adds nothing."""
    vae = make(spec)
    if not vae.facts.deterministic_posterior:
        return
    posterior = vae.encode(video_of(vae))
    message = "the posterior has a spread (VAEFacts(deterministic_posterior=False) if meant)"
    require_close(posterior.sample(torch.ones_like(posterior.mean)), posterior.mean, message, TOLERANCE)


@CONTRACT.law
@torch.no_grad()
def clips_do_not_mix(spec: str) -> None:
    """Encoded and decoded, a clip is the same whatever else is in its batch."""
    vae = make(spec)
    video = video_of(vae, batch=3)
    together = vae.encode(video)
    decoded = vae.decode(together.mean)
    for i in range(len(video)):
        alone = vae.encode(video[i : i + 1])
        require_close(together.mean[i : i + 1], alone.mean, f"the latent of clip {i} depends on its batch", TOLERANCE)
        found = vae.decode(together.mean[i : i + 1])
        require_close(decoded[i : i + 1], found, f"the video of clip {i} depends on its batch", TOLERANCE)


@CONTRACT.law
@torch.no_grad()
def encodes_the_same_every_time(spec: str) -> None:
    """Caches of latents rest on it: nothing is drawn, nothing remembered, no weight moved."""
    vae = make(spec)
    video, before = video_of(vae), vae.fingerprint()
    with no_global_draws("encoding and decoding"):
        first = vae.encode(video)
        decoded = vae.decode(first.mean)
    vae.encode(-video)
    again = vae.encode(video)
    same = torch.equal(first.mean, again.mean) and torch.equal(first.logvar, again.logvar)
    require(same, "encoding a clip a second time gives another latent")
    require(torch.equal(decoded, vae.decode(first.mean)), "decoding a latent a second time gives another video")
    require(vae.fingerprint() == before, "encoding changes weights or buffers, and with them the fingerprint")


@CONTRACT.law
def gradient_reaches_every_parameter(spec: str) -> None:
    """By a loss of reconstruction and the KL; no parameter is idle."""
    vae = make(spec)
    if vae.pretrained:
        return
    video = video_of(vae)
    posterior = vae.encode(video)
    noise = torch.randn(posterior.mean.shape, generator=coarse_generator(4, "contract"))
    loss = (vae.decode(posterior.sample(noise)) - video).square().mean() + 1e-3 * posterior.kl().mean()
    if any(parameter.requires_grad for parameter in vae.parameters()):
        loss.backward()
    for name, parameter in vae.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"no gradient reaches {name}; it is not used")
            assert parameter.grad is not None
            require(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
            require(parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero")


@CONTRACT.law
def bfloat16_is_finite_and_close(spec: str) -> None:
    """Under autocast, forward and backward."""
    vae = make(spec)
    video = video_of(vae)
    with torch.no_grad():
        expected = vae.encode(video).mean
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(video)
        decoded = vae.decode(posterior.mean)
    require(decoded.isfinite().all() and posterior.logvar.isfinite().all(), "not finite under bfloat16")
    scale = float(expected.abs().max())
    require_close(posterior.mean, expected, "latents under bfloat16 are far from those in float32", 0.1 * (1 + scale))
    if decoded.requires_grad:
        decoded.float().square().mean().backward()
        grads = [parameter.grad for parameter in vae.parameters() if parameter.grad is not None]
        require(all(grad.isfinite().all() for grad in grads), "gradients are not finite under bfloat16")


@CONTRACT.law
@torch.no_grad()
def scales_its_latents(spec: str) -> None:
    """``encode_latent`` takes out the mean and deviation of ``set_latent_statistics``; ``decode_latent`` undoes it."""
    vae = make(spec)
    video = video_of(vae)
    raw = vae.encode(video).mean
    mean = torch.linspace(-0.5, 0.5, vae.latent_channels)
    std = torch.linspace(0.5, 2.0, vae.latent_channels)
    vae.set_latent_statistics(_statistics(mean, std))
    shape = (1, -1, 1, 1, 1)
    expected = (raw - mean.reshape(shape)) / std.reshape(shape)
    latent = vae.encode_latent(video)
    require_close(latent, expected, "encode_latent is not (latent - mean) / std of the statistics", TOLERANCE)
    back = vae.decode_latent(latent)
    require_close(back, vae.decode(raw).clamp(-1, 1), "decode_latent is not decode of the raw latent in [-1, 1]", 1e-3)


def _statistics(mean: Tensor, std: Tensor) -> LatentStatistics:
    """Of latents with this mean and standard deviation in each channel."""
    statistics = LatentStatistics(len(mean))
    statistics.update((mean + torch.tensor([[-1.0], [1.0]]) * std)[:, :, None, None, None])
    return statistics


@CONTRACT.law
@torch.no_grad()
def state_loads_strictly(spec: str) -> None:
    """Saved state, a deep copy and a pickle give the same VAE and fingerprint; keyed initial values repeat."""
    first = make(spec)
    video = video_of(first)
    expected: Posterior = first.encode(video)
    second = VAES.create(spec).eval()
    second.load_state_dict(first.state_dict(), strict=True)
    copies = {"its state": second, "a deep copy": copy.deepcopy(first), "a pickle": pickle.loads(pickle.dumps(first))}
    for words, other in {**copies, "keyed initialisation": make(spec)}.items():
        require(torch.equal(other.encode(video).mean, expected.mean), f"{words} gives another VAE")
        require(other.fingerprint() == first.fingerprint(), f"{words} gives another fingerprint")


@CONTRACT.law
@torch.no_grad()
def its_fingerprint_tells_it_from_others(spec: str) -> None:
    """Caches of latents are matched by it: another weight or another scaling is another fingerprint."""
    vae = make(spec)
    known = {vae.fingerprint()}
    for name, parameter in list(vae.named_parameters())[:: max(1, len(list(vae.parameters())) // 8)]:
        parameter[(0,) * parameter.ndim] += 1.0
        require(vae.fingerprint() not in known, f"the fingerprint does not tell a change of {name}")
        known.add(vae.fingerprint())
    vae.latent_std += 1.0
    require(vae.fingerprint() not in known, "the fingerprint does not tell a change of the latent scaling")


@CONTRACT.law
@torch.no_grad()
def refuses_what_it_cannot_take(spec: str) -> None:
    """Sizes that the stride does not divide, other axes, and latents of other channels: each a SoraError."""
    vae = make(spec)
    video = video_of(vae, batch=1)
    wrong = {"a video without a batch": video[0], "a video of four colours": torch.cat([video, video[:, :1]], dim=1)}
    for axis, stride in zip((2, 3, 4), vae.stride, strict=True):
        if stride > 1:
            size = _told(video.narrow(axis, 0, video.shape[axis] - 1).shape[2:])
            wrong[f"a video of {size}"] = video.narrow(axis, 0, video.shape[axis] - 1)
    for words, given in wrong.items():
        _require_refusal(vae.encode, given, f"encode takes {words}")
    latent = torch.zeros(1, vae.latent_channels + 1, *GRID)
    _require_refusal(vae.decode, latent, f"decode takes latents of {latent.shape[1]} channels")


def _require_refusal(call: Callable[[Tensor], object], given: Tensor, message: str) -> None:
    try:
        call(given)
    except SoraError:
        return
    except Exception as problem:
        raise ContractViolation(
            f"{message}, and fails by {type(problem).__name__}; begin with self._check_video(video) and "
            "self._check_latent(latent)"
        ) from problem
    raise ContractViolation(f"{message}; begin with self._check_video(video) and self._check_latent(latent)")
