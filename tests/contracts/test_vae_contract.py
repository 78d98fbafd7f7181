"""What every VAE must do, over the registry; and that its laws catch what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_sora.contracts import ContractViolation
from lightning_sora.models.facts import VAEFacts
from lightning_sora.models.vae import VAES, Posterior, VideoVAE
from lightning_sora.models.vae.contract import CONTRACT
from lightning_sora.spacetime import PatchSize

#: Small ones; a VAE that is not named here is put to the contract as its defaults have it.
SPECS = {
    "causal_conv": [
        "causal_conv(dim=8, latent_channels=4)",
        "causal_conv(dim=8, stride=(2, 4, 4), convolution='full', front_end='wavelet', chunk_frames=2)",
    ],
    "vit": [
        "vit(dim=24, num_heads=2, encoder_depth=1, decoder_depth=1)",
        "vit(dim=24, num_heads=2, encoder_depth=1, decoder_depth=1, attention='full', stride=(2, 4, 4), refine=0)",
    ],
    # Needs a folder, and seconds for its import: tests/unit/test_pretrained_vae.py puts it to the contract.
    "diffusers": [],
}


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", [spec for name in VAES.list() for spec in SPECS.get(name, [name])])
def test_contract(spec: str, law: str) -> None:
    CONTRACT.laws[law](spec)


class Pooled(VideoVAE):
    """A sound one of two weights: each latent position is the mean of its pixels, per colour."""

    def __init__(self) -> None:
        super().__init__(PatchSize(2, 2, 2), 3, {})
        self.gain, self.spread = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.spread)

    def pooled(self, video: Tensor) -> Tensor:
        self._check_video(video)
        first, rest = video[:, :, :1], video[:, :, 1:].unflatten(2, (-1, 2)).mean(3)
        return torch.cat([first, rest], dim=2).unflatten(3, (-1, 2)).mean(4).unflatten(4, (-1, 2)).mean(5)

    def encode(self, video: Tensor) -> Posterior:
        mean = self.pooled(video) * self.gain[:, None, None, None]
        return Posterior(mean, self.spread[:, None, None, None].expand_as(mean))

    def decode(self, latent: Tensor) -> Tensor:
        self._check_latent(latent)
        latent = latent / self.gain[:, None, None, None]
        frames = torch.cat([latent[:, :, :1], latent[:, :, 1:].repeat_interleave(2, 2)], dim=2)
        return frames.repeat_interleave(2, 3).repeat_interleave(2, 4)


def test_a_sound_one_keeps_every_law(scratch: None) -> None:
    VAES.register("pooled")(Pooled)
    assert not [found for found in CONTRACT.findings("pooled") if found.problem]


class OfAnotherStride(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.stride = PatchSize(2, 2, 1)

    def pooled(self, video: Tensor) -> Tensor:
        return super().pooled(video.repeat_interleave(2, 4)[..., : video.shape[4] // 2 * 2])


class SeesAhead(Pooled):
    def pooled(self, video: Tensor) -> Tensor:
        return super().pooled(video) + video.mean((2, 3, 4), keepdim=True)


class SeesOneAhead(Pooled):
    def pooled(self, video: Tensor) -> Tensor:
        latent = super().pooled(video)
        return torch.cat([latent[:, :, :1], latent[:, :, 1:] + latent[:, :, -1:]], dim=2)


class DecodesAhead(Pooled):
    def decode(self, latent: Tensor) -> Tensor:
        return super().decode(latent) + latent.mean((1, 2, 3, 4), keepdim=True)


class NoPoint(Pooled):
    facts = VAEFacts(deterministic_posterior=True)


class MixesClips(Pooled):
    def pooled(self, video: Tensor) -> Tensor:
        return super().pooled(video - video.mean(0, keepdim=True))


class DecodesTogether(Pooled):
    def decode(self, latent: Tensor) -> Tensor:
        return super().decode(latent) - latent.mean()


class Draws(Pooled):
    def pooled(self, video: Tensor) -> Tensor:
        return super().pooled(video + 0.01 * torch.randn_like(video))


class Counts(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def pooled(self, video: Tensor) -> Tensor:
        self.seen += 1
        return super().pooled(video)


class Idle(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)


class Overflows(Pooled):
    def decode(self, latent: Tensor) -> Tensor:
        large = torch.full((4, 4), 1e30) @ torch.full((4, 4), 1e30)
        return super().decode(latent) + large.mean() * 0


class ScalesTwice(Pooled):
    def scale(self, latent: Tensor) -> Tensor:
        return super().scale(super().scale(latent))


class Forgets(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.start = float(torch.rand(()))

    def pooled(self, video: Tensor) -> Tensor:
        return super().pooled(video) + self.start


class OfOneName(Pooled):
    def fingerprint(self) -> str:
        return "mine"


class TakesAnything(Pooled):
    def _check_video(self, video: Tensor) -> Any:
        return None


class FailsByAssertion(Pooled):
    def _check_latent(self, latent: Tensor) -> None:
        assert latent.shape[1] == 3


MUTANTS = {
    OfAnotherStride: "has_the_sizes_that_it_declares",
    SeesAhead: "the_first_frame_stands_alone",
    SeesOneAhead: "does_not_see_ahead",
    DecodesAhead: "does_not_see_ahead",
    NoPoint: "a_point_is_a_point",
    MixesClips: "clips_do_not_mix",
    DecodesTogether: "clips_do_not_mix",
    Draws: "encodes_the_same_every_time",
    Counts: "encodes_the_same_every_time",
    Idle: "gradient_reaches_every_parameter",
    Overflows: "bfloat16_is_finite_and_close",
    ScalesTwice: "scales_its_latents",
    Forgets: "state_loads_strictly",
    OfOneName: "its_fingerprint_tells_it_from_others",
    TakesAnything: "refuses_what_it_cannot_take",
    FailsByAssertion: "refuses_what_it_cannot_take",
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with VAES.temporary():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_laws_catch_a_vae_that_breaks_them(mutant: Any, scratch: None) -> None:
    VAES.register("mutant")(mutant)
    with pytest.raises(ContractViolation):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")


def test_every_law_has_its_mutant() -> None:
    assert set(MUTANTS.values()) == set(CONTRACT.laws)
