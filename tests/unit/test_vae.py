"""The VAE: causal, the same in chunks as whole, an image as a video's first frame, and loud about misuse."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lightning_sora.errors import SoraError
from lightning_sora.models.vae import VAES, CausalConvVAE, LatentStatistics, Posterior, VideoVAE
from lightning_sora.models.vae.folding import FrontEnd, haar_matrix
from lightning_sora.models.vae.layers import Stream, VolumeConv
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import PatchSize

VARIANTS = {
    "default": "causal_conv(dim=8, latent_channels=4)",
    "full 3D": "causal_conv(dim=4, latent_channels=4, convolution='full')",
    "wavelet": "causal_conv(dim=8, latent_channels=4, front_end='wavelet', front_end_patch=(4, 4, 4))",
    "whole stride in front": "causal_conv(dim=8, latent_channels=4, front_end_patch=(4, 8, 8))",
    "no front end": "causal_conv(dim=4, latent_channels=4, front_end='none')",
    "time in one go": "causal_conv(stride=(8, 4, 4), dim=8, latent_channels=4, front_end_patch=(1, 4, 4))",
}


def build(spec: str, seed: int = 0) -> VideoVAE:
    vae = VAES.create(spec)
    initialize(vae, seed)
    return vae.eval()


def video_of(frames: int, height: int = 16, width: int = 24, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(params=list(VARIANTS), scope="module")
def vae(request: pytest.FixtureRequest) -> VideoVAE:
    return build(VARIANTS[request.param])


@torch.no_grad()
def test_a_changed_frame_changes_no_earlier_latent_and_does_change_its_own(vae: VideoVAE) -> None:
    step = vae.stride.frames
    video = video_of(1 + 3 * step)
    before = vae.encode(video)
    for row, frame in ((1, 1), (2, 1 + step), (3, 1 + 2 * step), (3, 3 * step)):
        changed = video.clone()
        changed[:, :, frame] += 0.5
        after = vae.encode(changed)
        assert torch.equal(after.mean[:, :, :row], before.mean[:, :, :row])
        assert torch.equal(after.logvar[:, :, :row], before.logvar[:, :, :row])
        assert not torch.equal(after.mean[:, :, row], before.mean[:, :, row])


def test_no_gradient_flows_from_an_early_latent_to_a_later_frame(vae: VideoVAE) -> None:
    step = vae.stride.frames
    video = video_of(1 + 2 * step).requires_grad_()
    posterior = vae.encode(video)
    (posterior.mean[:, :, 1].square().sum() + posterior.logvar[:, :, 1].square().sum()).backward()
    assert video.grad is not None
    assert video.grad[:, :, 1 + step :].abs().max() == 0
    assert video.grad[:, :, : 1 + step].abs().amax(dim=(0, 1, 3, 4)).min() > 0


@torch.no_grad()
def test_a_changed_latent_changes_no_earlier_frame(vae: VideoVAE) -> None:
    step = vae.stride.frames
    latent = torch.randn(2, vae.latent_channels, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    before = vae.decode(latent)
    for row in (1, 3):
        changed = latent.clone()
        changed[:, :, row] += 1.0
        after = vae.decode(changed)
        start = 1 + (row - 1) * step
        assert torch.equal(after[:, :, :start], before[:, :, :start])
        assert not torch.equal(after[:, :, start], before[:, :, start])


@torch.no_grad()
def test_an_image_is_encoded_as_the_first_frame_of_any_video_and_decoded_likewise(vae: VideoVAE) -> None:
    video = video_of(1 + 2 * vae.stride.frames)
    image, whole = vae.encode(video[:, :, :1]), vae.encode(video)
    torch.testing.assert_close(image.mean, whole.mean[:, :, :1], atol=1e-5, rtol=0)
    torch.testing.assert_close(image.logvar, whole.logvar[:, :, :1], atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(image.mean), vae.decode(whole.mean)[:, :, :1], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_chunks_of_any_length_give_what_one_pass_gives(vae: VideoVAE, steps: int) -> None:
    assert isinstance(vae, CausalConvVAE)
    video = video_of(1 + 5 * vae.stride.frames)
    posterior = vae.encode(video)
    decoded = vae.decode(posterior.mean)
    try:
        vae.chunk_frames = steps * vae.stride.frames
        chunked = vae.encode(video)
        torch.testing.assert_close(chunked.mean, posterior.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(chunked.logvar, posterior.logvar, atol=1e-5, rtol=0)
        torch.testing.assert_close(vae.decode(posterior.mean), decoded, atol=1e-5, rtol=0)
    finally:
        vae.chunk_frames = None


@torch.no_grad()
@pytest.mark.parametrize("stride", [(4, 8, 8), (2, 4, 4), (1, 8, 8), (8, 8, 4), (1, 1, 1), (4, 2, 16)])
@pytest.mark.parametrize("front_end", ["none", "patch", "wavelet"])
def test_shapes_follow_the_stride(stride: tuple[int, int, int], front_end: str) -> None:
    vae = build(f"causal_conv(stride={stride}, dim=4, latent_channels=5, front_end='{front_end}', decoder_blocks=1)")
    assert tuple(vae.stride) == stride
    for rows in (1, 2):
        video = video_of(1 + (rows - 1) * stride[0], 16, 32, batch=1)
        posterior = vae.encode(video)
        assert posterior.mean.shape == posterior.logvar.shape == (1, 5, rows, 16 // stride[1], 32 // stride[2])
        assert vae.decode(posterior.mean).shape == video.shape


@pytest.mark.parametrize("frames", [1, 4])
def test_a_full_convolution_of_one_clip_is_that_of_torch_in_3d_with_its_gradients(frames: int) -> None:
    torch.manual_seed(0)
    layer = VolumeConv(3, 5)
    x = torch.randn(1, frames, 6, 4, 3, requires_grad=True)
    made = layer(x, Stream())
    padded = torch.cat([x[:, :1], x[:, :1], x], dim=1).permute(0, 4, 1, 2, 3)
    expected = torch.nn.functional.conv3d(padded, layer.conv.weight, layer.conv.bias, padding=(0, 1, 1))
    expected = expected.permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(made, expected)
    inputs, weighting = (x, layer.conv.weight, layer.conv.bias), torch.randn_like(made)
    for own, theirs in zip(
        torch.autograd.grad((made * weighting).sum(), inputs),
        torch.autograd.grad((expected * weighting).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def test_the_haar_basis_is_orthonormal_and_begins_with_the_known_rows() -> None:
    for size in (1, 2, 4, 8):
        basis = haar_matrix(size)
        torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64))
        torch.testing.assert_close(basis[0], torch.full((size,), size**-0.5, dtype=torch.float64))
    half, root = 0.5, 0.5**0.5
    expected = [[half] * 4, [half, half, -half, -half], [root, -root, 0, 0], [0, 0, root, -root]]
    torch.testing.assert_close(haar_matrix(4), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("wavelet", [False, True])
def test_the_front_end_inverts_and_keeps_energy(wavelet: bool) -> None:
    front_end = FrontEnd(PatchSize(4, 2, 8), wavelet)
    video = video_of(9, 4, 16)
    blocks = front_end(video, first=True)
    torch.testing.assert_close(front_end.invert(blocks, first=True), video, atol=1e-6, rtol=0)
    energy = video[:, :, 1:].square().sum() + 4 * video[:, :, 0].square().sum()  # the first frame fills 4
    torch.testing.assert_close(blocks.square().sum(), energy)
    later = video[:, :, 1:]
    torch.testing.assert_close(front_end(later, first=False), blocks[:, 1:])
    if wavelet:  # the first frame's block is constant in time: only a quarter of its coefficients can differ from 0
        assert (blocks[:, 0].abs().amax(dim=(0, 1, 2)) > 1e-6).float().mean() == 0.25


def test_the_closed_form_of_the_kl_is_that_of_torch_distributions() -> None:
    mean, logvar = torch.randn(2, 2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    posterior = Posterior(mean, logvar)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), expected)
    torch.testing.assert_close(posterior.kl_per_channel()[1], expected[:, 1].mean())
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(posterior.sample(noise), Normal(mean, (logvar / 2).exp()).loc + posterior.std * noise)


def test_statistics_are_those_of_all_values_at_once_however_they_are_split() -> None:
    latents = [torch.randn(n, 3, 2, 4, 4, generator=torch.Generator().manual_seed(n)) * 3 + 100 for n in (1, 4, 2)]
    whole, first, second = (LatentStatistics(3) for _ in range(3))
    for latent in latents:
        whole.update(latent)
    first.update(latents[0])
    second.update(latents[1])
    second.update(latents[2])
    first.merge(second)
    assert first.count == whole.count == 7 * 32
    torch.testing.assert_close(first.sums, whole.sums, rtol=1e-12, atol=0)
    values = torch.cat(latents).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.mean, values.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(first.std, values.std(dim=1, correction=0), rtol=1e-9, atol=0)


@torch.no_grad()
def test_measured_statistics_bring_latents_to_unit_variance_and_back() -> None:
    vae = build(VARIANTS["default"])
    video = video_of(5, batch=8)
    raw = vae.encode(video)
    torch.testing.assert_close(vae.encode_latent(video), raw.mean)  # the identity until measured
    statistics = LatentStatistics(vae.latent_channels)
    statistics.update(raw.mean)
    vae.set_latent_statistics(statistics)
    latent = vae.encode_latent(video)
    assert latent.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-5
    torch.testing.assert_close(latent.std(dim=(0, 2, 3, 4), correction=0), torch.ones(4))
    torch.testing.assert_close(vae.unscale(latent), raw.mean, atol=1e-5, rtol=0)
    assert torch.equal(vae.decode_latent(latent), vae.decode(vae.unscale(latent)).clamp(-1, 1))
    noise = torch.randn(raw.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(vae.encode_latent(video, noise), vae.scale(raw.mean + raw.std * noise))


def test_the_fingerprint_changes_with_weights_statistics_and_options_and_with_nothing_else() -> None:
    vae, same = build(VARIANTS["default"]), build(VARIANTS["default"])
    assert isinstance(same, CausalConvVAE)
    same.chunk_frames = 8  # changes no value
    assert vae.fingerprint() == same.fingerprint()
    seen = {vae.fingerprint(), build(VARIANTS["default"], seed=1).fingerprint(), VAES.create("identity").fingerprint()}
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-6
        seen.add(vae.fingerprint())
        vae.latent_std[1] = 2.0
        seen.add(vae.fingerprint())
    assert len(seen) == 5
    patch, wavelet = (VAES.create(f"causal_conv(dim=8, front_end='{kind}')") for kind in ("patch", "wavelet"))
    wavelet.load_state_dict(patch.state_dict())
    assert patch.fingerprint() != wavelet.fingerprint()


def test_the_identity_gives_back_the_pixels_with_no_noise() -> None:
    vae = VAES.create("identity")
    video = video_of(3, 5, 7)
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.encode(video).mean, video)
    torch.testing.assert_close(vae.encode_latent(video, noise), video, atol=1e-5, rtol=0)
    assert torch.equal(vae.decode_latent(vae.encode_latent(video)), video)


def test_training_mode_and_batch_neighbours_change_nothing(vae: VideoVAE) -> None:
    video = video_of(1 + vae.stride.frames, batch=3)
    with torch.no_grad():
        mean = vae.encode(video).mean
        torch.testing.assert_close(vae.encode(video[1:2]).mean, mean[1:2], atol=1e-5, rtol=0)
        torch.testing.assert_close(vae.train().encode(video).mean, mean)
    vae.eval()


def test_a_few_steps_of_training_reconstruct_far_better_than_the_mean_colour() -> None:
    vae = build("causal_conv(dim=32, latent_channels=8, decoder_blocks=1, front_end_patch=(4, 8, 8))")
    ramp = torch.linspace(-1, 1, 16)
    signs = torch.tensor([1.0, -1.0])
    video = torch.stack([ramp * a + ramp[:, None] * b for a in signs for b in signs]) / 2
    video = video[:, None, None].expand(4, 3, 5, 16, 16) * torch.linspace(0.2, 1, 5)[:, None, None]
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-2)
    for _ in range(40):
        posterior = vae.encode(video)
        loss = (vae.decode(posterior.mean) - video).square().mean() + 1e-4 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * video.var().item()
    assert math.isfinite(posterior.kl().mean().item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("stride=(3, 8, 8)", "power of two"),
        ("stride=(8, 8)", "3 axes"),
        ("latent_channels=0", "latent_channels=0"),
        ("dim=1", "dim=1"),
        ("blocks=-1", "blocks=-1"),
        ("convolution='2d'", "known: factorised, full"),
        ("front_end='dct'", "known: none, patch, wavelet"),
        ("front_end_patch=(8, 8, 8)", "divide the stride"),
        ("front_end_patch=(3, 4, 4)", "divide the stride"),
        ("front_end='none', front_end_patch=(4, 4, 4)", "leave it out"),
        ("multipliers=[1]", "2 positive numbers"),
        ("multipliers=[1, 0]", "2 positive numbers"),
        ("chunk_frames=6", "temporal stride 4"),
        ("chunk_frames=0", "temporal stride 4"),
    ],
)
def test_impossible_options_say_what_would_work(options: str, message: str) -> None:
    with pytest.raises(SoraError, match=message):
        VAES.create(f"causal_conv({options})")


def test_sizes_that_do_not_divide_name_the_nearest_that_do(vae: VideoVAE) -> None:
    step = vae.stride.frames
    with pytest.raises(SoraError, match=rf"nearest: 1 or {1 + step}"):
        vae.encode(video_of(step))
    with pytest.raises(SoraError, match="width=25 is not a multiple"):
        vae.encode(video_of(1, 16, 25))
    with pytest.raises(SoraError, match="batch, 3, frames"):
        vae.encode(video_of(1).transpose(1, 2))
    with pytest.raises(SoraError, match=f"batch, {vae.latent_channels}, t, h, w"):
        vae.decode(torch.zeros(1, vae.latent_channels + 1, 1, 2, 2))


def test_statistics_refuse_what_they_cannot_describe() -> None:
    statistics = LatentStatistics(2)
    with pytest.raises(SoraError, match="at least 1"):
        _ = statistics.mean
    with pytest.raises(SoraError, match="not finite"):
        statistics.update(torch.full((1, 2, 1, 1, 1), float("nan")))
    assert statistics.count == 0
    with pytest.raises(SoraError, match="merge"):
        statistics.merge(LatentStatistics(3))
    vae = VAES.create("causal_conv(latent_channels=2, dim=4)")
    statistics.update(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1))
    with pytest.raises(SoraError, match=r"latent channels \[1\] do not vary"):
        vae.set_latent_statistics(statistics)
    with pytest.raises(SoraError, match="do not fit a VAE of 2"):
        vae.set_latent_statistics(LatentStatistics(3))
