"""The terms of the VAE's loss against closed forms, and the adversarial game's guard rails."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from lightning_sora.errors import SoraError
from lightning_sora.models.vae import VAES, CausalConvVAE, Posterior
from lightning_sora.models.vae.discriminator import PatchDiscriminator
from lightning_sora.models.vae.losses import (
    VAELoss,
    active_channels,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    reconstruction_loss,
)
from lightning_sora.models.vae.perceptual import MEAN, STD, PerceptualDistance
from lightning_sora.randomness import initialize


def video_of(frames: int = 5, size: int = 16, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_reconstruction_losses_are_means_over_all_values() -> None:
    a, b = video_of(seed=0), video_of(seed=1)
    torch.testing.assert_close(reconstruction_loss(a, b, "l1"), (a - b).abs().sum() / a.numel())
    torch.testing.assert_close(reconstruction_loss(a, b, "l2"), (a - b).square().sum() / a.numel())
    with pytest.raises(SoraError, match="known: l1, l2"):
        reconstruction_loss(a, b, "l3")


def test_a_channel_is_active_by_its_mean_or_by_its_kl_and_collapsed_otherwise() -> None:
    mean = torch.zeros(4, 3, 1, 2, 2)
    mean[:2, 0] = 0.3  # variance 0.0225, KL 0.0225
    logvar = torch.zeros(4, 3, 1, 2, 2)
    logvar[:, 1] = -1.0  # KL 0.18
    assert active_channels(Posterior(mean, logvar)).tolist() == [True, True, False]


def test_hinge_losses_have_their_closed_form() -> None:
    real, fake = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(((3 + 0.5 + 0) / 3 + (0 + 1 + 2) / 3) / 2)
    assert hinge_generator_loss(fake).item() == pytest.approx(2 / 3)


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer() -> None:
    layer = nn.Parameter(torch.tensor([3.0, 4.0]))
    reconstruction = layer.square().sum()  # gradient (6, 8), norm 10
    adversarial = 2 * layer[0]  # norm 2
    assert adaptive_weight(reconstruction, adversarial, layer).item() == pytest.approx(5.0, rel=1e-5)
    assert adaptive_weight(reconstruction, 1e-9 * adversarial, layer).item() == 1e4  # bounded
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert not weight.requires_grad
    # The training says at which step, and leaves it out or stops.
    assert adaptive_weight(reconstruction, adversarial * float("inf"), layer).isnan()
    assert adaptive_weight(reconstruction * float("nan"), adversarial, layer).isnan()


@pytest.mark.parametrize("temporal", [True, False])
def test_the_discriminator_judges_neighbourhoods_of_videos_and_images(temporal: bool) -> None:
    discriminator = PatchDiscriminator(dim=4, levels=2, temporal=temporal)
    initialize(discriminator, 0)
    assert discriminator(video_of(9, 16)).shape == (2, 3 if temporal else 9, 4, 4)
    assert discriminator(video_of(1, 16)).shape == (2, 1, 4, 4)
    video = video_of(9, 16)
    changed = video.clone()
    changed[:, :, 4] += 0.5
    moved = (discriminator(changed) - discriminator(video)).abs().amax(dim=(0, 2, 3)) > 0
    if temporal:  # it looks both ways: the frame reaches the first logits too
        assert moved.all()
    else:
        assert moved.tolist() == [frame == 4 for frame in range(9)]
    torch.testing.assert_close(discriminator(video[:1]), discriminator(video)[:1], atol=1e-6, rtol=0)


def synthetic_vgg() -> tuple[nn.Sequential, Mapping[str, Tensor]]:
    """torchvision's VGG-16 features with random weights, and its state dict with their names."""
    features = make_layers(cfgs["D"])[:30]  # without the last pooling
    initialize(features, 0)
    return features, {f"features.{name}": value for name, value in features.state_dict().items()}


def test_the_perceptual_distance_is_that_of_torchvisions_vgg_taken_apart_by_hand(tmp_path: Path) -> None:
    features, state = synthetic_vgg()
    torch.save(state, tmp_path / "vgg.pth")
    distance = PerceptualDistance(tmp_path / "vgg.pth")
    a, b = video_of(2, batch=1, seed=0), video_of(2, batch=1, seed=1).requires_grad_()
    expected = torch.zeros(())
    for frame in range(2):
        x, y = (
            ((v[0, :, frame].detach() + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            for v in (a, b)
        )
        for index, layer in enumerate(features):
            x, y = layer(x), layer(y)
            if index in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                difference = x / x.norm(dim=0, keepdim=True) - y / y.norm(dim=0, keepdim=True)
                expected = expected + difference.square().sum(dim=0).mean() / 2
    measured = distance(a, b)
    torch.testing.assert_close(measured, expected.detach(), rtol=1e-4, atol=1e-6)
    assert distance(a, a).item() == 0.0
    measured.backward()
    assert b.grad is not None
    assert b.grad.abs().sum() > 0
    assert not list(distance.parameters())
    assert not distance.state_dict()
    with pytest.raises(SoraError, match="16x16"):
        distance(video_of(1, 8), video_of(1, 8))


def test_missing_or_foreign_perceptual_weights_name_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=r"download https://.*vgg16"):
        PerceptualDistance(tmp_path / "absent.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(SoraError, match=r"features\.0\.bias.*download"):
        PerceptualDistance(tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(SoraError, match="not a state dict"):
        PerceptualDistance(tmp_path / "list.pth")
    with pytest.raises(SoraError, match="needs perceptual_weights"):
        VAELoss(perceptual_weight=1.0)


def small_vae() -> CausalConvVAE:
    vae = VAES.create("causal_conv(dim=8, latent_channels=4, decoder_blocks=1)")
    assert isinstance(vae, CausalConvVAE)
    initialize(vae, 0)
    return vae


@pytest.mark.parametrize("autocast", [False, True])
def test_the_discriminators_gradient_in_half_precision_is_that_in_single(autocast: bool) -> None:
    """Two frames are left under a kernel of three."""
    single, half = PatchDiscriminator(8), PatchDiscriminator(8)
    initialize(single, 0)
    half.load_state_dict(single.state_dict())
    video = video_of()
    hinge_discriminator_loss(single(video), single(-video)).backward()
    if not autocast:
        half, video = half.bfloat16(), video.bfloat16()
    for _ in range(3):
        freed = [torch.full((n,), torch.inf, dtype=torch.bfloat16) for n in (216, 432, 864) for _ in range(20)]
        half.zero_grad()
        del freed  # where it may be allocated again
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hinge_discriminator_loss(half(video), half(-video)).backward()
        for one, other in zip(half.parameters(), single.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert torch.allclose(one.grad.float(), other.grad, atol=0.02 * float(other.grad.abs().max()) + 1e-3)


def test_the_loss_is_the_weighted_sum_of_its_terms_and_the_discriminator_joins_at_its_step() -> None:
    vae, video = small_vae(), video_of()
    loss = VAELoss("l1", kl_weight=0.5, adversarial_weight=0.1, adversarial_start=10, discriminator_dim=4)
    initialize(loss, 0)
    posterior = vae.encode(video)
    decoded = vae.decode(posterior.mean)
    before = loss(video, decoded, posterior, step=9, last_layer=vae.last_layer)
    assert set(before) == {"loss", "reconstruction", "kl"}
    torch.testing.assert_close(before["loss"], (video - decoded).abs().mean() + 0.5 * posterior.kl().mean())
    after = loss(video, decoded, posterior, step=10, last_layer=vae.last_layer)
    pull = after["adaptive_weight"] * after["adversarial"]
    torch.testing.assert_close(after["loss"], before["loss"] + 0.1 * pull)
    norms = [
        torch.autograd.grad(t, vae.last_layer, retain_graph=True)[0].norm() for t in (pull, after["reconstruction"])
    ]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-3, atol=0)
    with pytest.raises(SoraError, match="last_layer"):
        loss(video, decoded, posterior, step=10)
    with torch.no_grad():  # validation needs no gradients
        assert loss(video, decoded, posterior, step=10)["adaptive_weight"] == 1.0


def test_the_discriminators_loss_trains_the_discriminator_and_not_the_vae() -> None:
    vae, video = small_vae(), video_of()
    loss = VAELoss(adversarial_weight=0.1, discriminator_dim=4)
    initialize(loss, 0)
    assert loss.discriminator is not None
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=1e-2)
    reconstruction = vae.decode(vae.encode(video).mean)
    first = loss.discriminator_loss(video, reconstruction)
    for _ in range(10):
        terms = loss.discriminator_loss(video, reconstruction)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert all(p.grad is None for p in vae.parameters())
    assert terms["loss"] < 0.8 * first["loss"]
    assert terms["logits_real"] > terms["logits_reconstructed"]
    with pytest.raises(SoraError, match="adversarial_weight above 0"):
        VAELoss().discriminator_loss(video, video)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_weight": -1.0}, "kl_weight=-1"),
        ({"adversarial_weight": float("nan")}, "adversarial_weight=nan"),
        ({"reconstruction": "huber"}, "known: l1, l2"),
        ({"adversarial_start": -1}, "adversarial_start=-1"),
        ({"adversarial_weight": 1.0, "discriminator_levels": 0}, "levels"),
    ],
)
def test_impossible_options_raise(options: dict[str, object], message: str) -> None:
    with pytest.raises(SoraError, match=message):
        VAELoss(**options)  # type: ignore[arg-type]


def test_frames_too_small_for_the_discriminator_raise() -> None:
    with pytest.raises(SoraError, match="fewer levels"):
        PatchDiscriminator(dim=4, levels=5)(video_of(1, 16))
