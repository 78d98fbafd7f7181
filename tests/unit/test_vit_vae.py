"""The transformer VAE: shapes, what each latent frame sees, any size, and that it learns."""

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.lit import LitVAE
from lightning_sora.models.facts import VAEFacts
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.nn.attention import ATTENTION
from lightning_sora.nn.attention.full import FullAttention
from lightning_sora.randomness import initialize

SMALL = "stride=(2, 4, 4), latent_channels=3, dim=24, num_heads=2, encoder_depth=1, decoder_depth=2"


def make(further: str = "") -> VideoVAE:
    vae = VAES.create(f"vit({SMALL}{further})")
    initialize(vae, seed=0)
    return vae


def clip(frames: int = 5, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(5, 8, 12), (1, 8, 8), (9, 4, 16)])
def test_any_size_goes_in_and_comes_out(size: tuple[int, int, int]) -> None:
    vae, video = make(), clip(*size)
    posterior = vae.encode(video)
    assert posterior.mean.shape == (2, 3, 1 + (size[0] - 1) // 2, size[1] // 4, size[2] // 4)
    assert vae.decode(posterior.mean).shape == video.shape


def influence(vae: VideoVAE, frame: int) -> torch.Tensor:
    """How much each pixel frame moves a latent frame."""
    video = clip().double().requires_grad_()
    vae.double().encode(video).mean[:, :, frame].square().sum().backward()
    assert video.grad is not None
    return video.grad.abs().sum(dim=(0, 1, 3, 4))


def test_a_causal_pattern_looks_at_no_later_frame() -> None:
    vae = make()
    assert vae.facts == VAEFacts()
    assert (influence(vae, 0) > 0).tolist() == [True, False, False, False, False]
    assert (influence(vae, 1) > 0).tolist() == [True, True, True, False, False]
    assert (influence(make(", attention='spatial'"), 1) > 0).tolist() == [False, True, True, False, False]


def test_a_pattern_that_looks_ahead_says_so() -> None:
    vae = make(", attention='full'")
    assert vae.facts == VAEFacts(first_frame_alone=False, encoder_causal=False, decoder_causal=False)
    assert (influence(vae, 0) > 0).all()
    assert not make(", attention='temporal'").facts.encoder_causal
    assert not make(", attention='dilated(stride=(4, 1, 1))'").facts.encoder_causal


def test_decoding_is_causal_as_well() -> None:
    vae = make().double()
    latent = torch.randn(1, 3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    vae.decode(latent)[:, :, 0].square().sum().backward()
    assert latent.grad is not None
    assert (latent.grad.abs().sum(dim=(0, 1, 3, 4)) > 0).tolist() == [True, False, False]


def test_its_blocks_are_from_the_registry() -> None:
    with ATTENTION.temporary():
        ATTENTION.register("own")(type("Own", (FullAttention,), {}))
        assert make(", attention='own'").encode(clip()).mean.isfinite().all()
    with pytest.raises(SoraError, match="unknown attention block 'own'"):
        make(", attention='own'")


def test_state_and_initial_values_repeat() -> None:
    first, second = make(), make()
    assert first.fingerprint() == second.fingerprint()
    other = VAES.create(f"vit({SMALL})")
    other.load_state_dict(first.state_dict(), strict=True)
    assert other.fingerprint() == first.fingerprint()


def test_refinement_starts_at_zero() -> None:
    plain, refined = make(", refine=0"), make(", refine=8")
    refined.load_state_dict(plain.state_dict(), strict=False)
    latent = torch.randn(1, 3, 2, 2, 2)
    torch.testing.assert_close(refined.decode(latent), plain.decode(latent))


@pytest.mark.slow
def test_it_learns_a_clip_by_heart() -> None:
    vae, video = make(), clip()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    errors = []
    for _ in range(150):
        error = (vae.decode(vae.encode(video).mean) - video).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 8


def test_lightning_finds_its_two_ends() -> None:
    module = LitVAE(f"vit({SMALL})")
    names = [name for name, _ in module.named_parameters()]
    for pattern in LitVAE.boundary:
        assert any(name.startswith(pattern.removesuffix("*")) for name in names), pattern


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (", encoder_depth=0", "at least 1"),
        (", refine=-1", "at least 0"),
        (", num_heads=5", "does not divide"),
        (", num_heads=6", "at least 6"),
        (", attention='nothing'", "unknown attention block"),
    ],
)
def test_impossible_options_are_refused(further: str, said: str) -> None:
    options = SMALL
    for name in ("encoder_depth=1", "num_heads=2"):
        if name.split("=")[0] in further:
            options = options.replace(f", {name}", "")
    with pytest.raises(SoraError, match=said):
        VAES.create(f"vit({options}{further})")


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(SoraError):
        make().encode(clip(5, 9, 12))


def test_another_decoder_keeps_the_latents() -> None:
    """What refines decoded pixels is part of it; and heads shape no weight, but every latent."""
    vae, deeper, other = make(), make(", decoder_depth=3, refine=4"), make(", num_heads=1")
    deeper.adopt_latents(vae)
    video = clip()
    assert torch.equal(deeper.encode(video).mean, vae.encode(video).mean)
    assert not deeper.latents_differ(vae)
    assert {name.partition(".")[0] for name in deeper.state_dict() if deeper.decodes(name)} == {"decoder", "refine"}
    with pytest.raises(SoraError, match=r"their encoders differ in num_heads; .*\(decoder_depth, refine\)"):
        other.adopt_latents(vae)
