"""The facts that are declared of pretrained VAEs: each proven or disproven on a random one, and told in the docs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.facts import OTHERWISE, VAEFacts
from lightning_sora.models.families import FAMILIES, facts_of, family_of_vae
from lightning_sora.models.vae import VAES, DiffusersVAE
from tests.pretrained_toys import TINY, folder

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "pretrained.md"
#: Of values of about 1: rounding stays far below, what differs lies far above.
SAME, OTHER = 1e-4, 1e-2


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, DiffusersVAE] = {}

    def of(family: str, further: str = "") -> DiffusersVAE:
        if family + further not in made:
            path = folder(family, tmp_path_factory.mktemp("vae"))
            vae = VAES.create(f"diffusers(path={str(path)!r}{further})")
            assert isinstance(vae, DiffusersVAE)
            made[family + further] = vae.eval().requires_grad_(False)
        return made[family + further]

    return of


def clip(vae: DiffusersVAE, latent_frames: int = 5) -> Tensor:
    s = vae.stride
    size = (1, 3, 1 + (latent_frames - 1) * s.frames, 2 * s.height, 2 * s.width)
    return torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latent_of(vae: DiffusersVAE, frames: int = 5) -> Tensor:
    return torch.randn((1, vae.latent_channels, frames, 2, 2), generator=torch.Generator().manual_seed(2))


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def prefixes(vae: DiffusersVAE, frames: int = 5) -> range:
    """Lengths of more than one latent frame at which a clip can be cut."""
    return range(1 + vae.latent_step, frames, vae.latent_step)


def first_frame_alone(vae: DiffusersVAE) -> float:
    video = clip(vae)
    return distance(vae.encode(video[:, :, :1]).mean, vae.encode(video).mean[:, :, :1])


def encoder_causal(vae: DiffusersVAE) -> float:
    video, step = clip(vae), vae.stride.frames
    whole = vae.encode(video).mean
    return max(distance(vae.encode(video[:, :, : 1 + (n - 1) * step]).mean, whole[:, :, :n]) for n in prefixes(vae))


def decoder_causal(vae: DiffusersVAE) -> float:
    latent, step = latent_of(vae), vae.stride.frames
    whole = vae.decode(latent)
    return max(distance(vae.decode(latent[:, :, :n]), whole[:, :, : 1 + (n - 1) * step]) for n in prefixes(vae))


def deterministic_posterior(vae: DiffusersVAE) -> float:
    return float(vae.encode(clip(vae)).std.max())


MEASURES = {one.__name__: one for one in (first_frame_alone, encoder_causal, decoder_causal, deterministic_posterior)}


@pytest.mark.parametrize("fact", MEASURES)
@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_a_declared_fact_is_so_and_one_that_is_not_is_not(vaes: Any, family: str, fact: str) -> None:
    vae = vaes(family)
    measured = MEASURES[fact](vae)
    assert measured < SAME if getattr(vae.facts, fact) else measured > OTHER


# Chunks: each family has a way of its own to pass them, or none.


def whole_resample(self: Any, x: Tensor, feat_cache: Any = None, feat_idx: Any = None) -> Tensor:
    """What WanResample does chunk by chunk, of a whole clip: the first frame alone, then pairs."""
    if self.mode == "upsample3d" and x.shape[2] > 1:
        pairs = rearrange(self.time_conv(x[:, :, 1:]), "b (two c) t h w -> b c (t two) h w", two=2)
        x = torch.cat([x[:, :, :1], pairs], dim=2)
    frames = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
    x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))
    if self.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
    return x


@pytest.mark.parametrize("family", ["wan", "wan22"])
@torch.no_grad()
def test_chunks_of_wan_are_exact(vaes: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.autoencoders import autoencoder_kl_wan as wan

    vae = vaes(family)
    assert vae.facts.chunk_exact is True
    video, latent, net = clip(vae), latent_of(vae), vae.network
    in_chunks, decoded = vae.encode(video).mean, vae.decode(latent)
    monkeypatch.setattr(wan.WanResample, "forward", whole_resample)
    patch = net.config.patch_size
    x = video if patch is None else wan.patchify(video, patch)
    moments = net.quant_conv(net.encoder(x))
    y = net.decoder(net.post_quant_conv(latent), first_chunk=True)
    y = (y if patch is None else wan.unpatchify(y, patch)).clamp(-1, 1)
    assert distance(in_chunks, moments.chunk(2, dim=1)[0]) < SAME
    assert distance(decoded, y) < SAME


@torch.no_grad()
def test_an_image_vae_passes_frames_which_is_exact(vaes: Any) -> None:
    vae = vaes("image")
    assert vae.facts.chunk_exact is True
    video, latent = clip(vae, 11), latent_of(vae, 11)
    parts = [vae.encode(video[:, :, i : i + 1]).mean for i in range(11)]
    assert distance(vae.encode(video).mean, torch.cat(parts, dim=2)) < SAME
    decoded = [vae.decode(latent[:, :, i : i + 1]) for i in range(11)]
    assert distance(vae.decode(latent), torch.cat(decoded, dim=2)) < SAME


@torch.no_grad()
def test_chunks_of_cogvideox_are_not_exact(vaes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = vaes("cogvideox")
    assert vae.facts.chunk_exact is False
    video, latent = clip(vae), latent_of(vae)
    in_chunks, decoded = vae.encode(video).mean, vae.decode(latent)
    monkeypatch.setattr(vae.network, "num_sample_frames_batch_size", 1000)
    monkeypatch.setattr(vae.network, "num_latent_frames_batch_size", 1000)
    assert distance(in_chunks, vae.encode(video).mean) > OTHER
    assert distance(decoded, vae.decode(latent)) > OTHER


@pytest.mark.parametrize("family", ["hunyuan_video", "ltx", "ltx2"])
@torch.no_grad()
def test_blended_chunks_are_not_exact(vaes: Any, family: str) -> None:
    whole, blended = vaes(family), vaes(family, ", framewise=True")
    assert whole.facts.chunk_exact is False
    assert blended.facts.chunk_exact is False
    frames = 1 + 32 // whole.stride.frames
    video, latent = clip(whole, frames), latent_of(whole, frames)
    assert distance(blended.encode(video).mean, whole.encode(video).mean) > OTHER
    assert distance(blended.decode(latent), whole.decode(latent)) > OTHER


@pytest.mark.parametrize("family", ["hunyuan_video_15", "cosmos", "mochi"])
def test_some_are_always_passed_whole(vaes: Any, family: str) -> None:
    assert vaes(family).facts.chunk_exact is None
    with pytest.raises(SoraError, match="framewise=True has no meaning"):
        vaes(family, ", framewise=True")


# What a configuration says goes before what its family does.


@pytest.mark.parametrize(("encoder", "decoder"), [(True, True), (False, False)])
@torch.no_grad()
def test_ltx_is_causal_where_its_configuration_says_so(tmp_path: Path, encoder: bool, decoder: bool) -> None:
    path = folder("ltx", tmp_path, encoder_causal=encoder, decoder_causal=decoder)
    vae: Any = VAES.create(f"diffusers(path={str(path)!r})").eval()
    assert (vae.facts.encoder_causal, vae.facts.first_frame_alone, vae.facts.decoder_causal) == (
        encoder,
        encoder,
        decoder,
    )
    for fact in ("encoder_causal", "first_frame_alone", "decoder_causal"):
        measured = MEASURES[fact](vae)
        assert measured < SAME if getattr(vae.facts, fact) else measured > OTHER


# In words


def test_every_fact_has_words_and_is_told_where_it_lacks() -> None:
    assert set(OTHERWISE) == {field.name for field in fields(VAEFacts)}
    facts = VAEFacts(first_frame_alone=False)
    assert facts.lacking("first_frame_alone", "encoder_causal", "chunk_exact") == ("first_frame_alone",)
    assert "is not that of an image" in facts.otherwise("first_frame_alone", "chunk_exact")
    assert facts.otherwise("encoder_causal") == ""


def test_every_family_has_a_miniature() -> None:
    assert {family.vae for family in FAMILIES} == {name for name, _ in TINY.values()}


def test_the_table_of_the_docs_is_that_of_the_families() -> None:
    names = [field.name for field in fields(VAEFacts)]
    heading, *rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if re.match(r"\| (VAE|`AutoencoderKL\w*`) \|", line)
    ]
    assert heading[1:6] == names
    assert [row[0] for row in rows] == [family.vae for family in FAMILIES]
    words = {True: "yes", False: "no", None: "–"}
    for row in rows:
        facts = facts_of(family_of_vae(row[0]), {}, framewise=False)
        assert row[1:6] == [words[getattr(facts, name)] for name in names], row[0]
