"""Pretrained VAEs of diffusers against diffusers itself, on folders of random ones that it wrote."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.lit.pretrained import load_vae
from lightning_sora.models.families import FAMILIES
from lightning_sora.models.vae import VAES, ClipVAE, DiffusersVAE
from lightning_sora.models.vae.contract import CONTRACT
from lightning_sora.spacetime import PatchSize
from tests.pretrained_toys import TINY, folder, network

Folder = Callable[..., Path]
STRIDES = {
    "wan": (4, 8, 8), "wan22": (4, 16, 16), "cogvideox": (4, 8, 8), "hunyuan_video": (4, 8, 8),
    "hunyuan_video_15": (4, 16, 16), "ltx": (8, 32, 32), "ltx2": (8, 32, 32), "cosmos": (8, 8, 8), "mochi": (6, 8, 8),
    "image": (1, 8, 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders of random VAEs, each written once."""
    made: dict[str, Path] = {}

    def written(family: str, **options: Any) -> Path:
        key = f"{family} {sorted(options.items())}"
        if key not in made:
            made[key] = folder(family, tmp_path_factory.mktemp("vae"), **options)
        return made[key]

    return written


def make(path: Path, further: str = "") -> DiffusersVAE:
    vae = VAES.create(f"diffusers(path={str(path)!r}{further})")
    assert isinstance(vae, DiffusersVAE)
    return vae.eval().requires_grad_(False)


def clip(vae: DiffusersVAE, latent_frames: int = 3, batch: int = 1) -> Tensor:
    s = vae.stride
    size = (batch, 3, 1 + (latent_frames - 1) * s.frames, 2 * s.height, 2 * s.width)
    return torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def as_the_pipeline_has_it(theirs: Any, family: str, z: Tensor) -> Tensor:
    """Raw latents as the pipelines of each family give them to its transformer."""

    def spread(values: Any) -> Tensor:
        return torch.as_tensor(values).view(1, -1, 1, 1, 1)

    config = theirs.config
    if family in ("wan", "wan22"):
        return (z - spread(config.latents_mean)) / spread(config.latents_std)
    if family in ("ltx", "ltx2"):
        return (z - spread(theirs.latents_mean)) * config.scaling_factor / spread(theirs.latents_std)
    if family == "mochi":
        return (z - spread(config.latents_mean)) * config.scaling_factor / spread(config.latents_std)
    if family == "cosmos":
        mean, std = (
            torch.tensor(values).view(1, config.latent_channels, -1, 1, 1)[:, :, : z.shape[2]]
            for values in (config.latents_mean, config.latents_std)
        )
        return (z - mean) / std
    return (z - (config.get("shift_factor") or 0.0)) * config.scaling_factor


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_it_encodes_and_decodes_as_diffusers_does(of: Folder, family: str, frames: int) -> None:
    vae, theirs = make(of(family)), network(family)
    if family == "hunyuan_video":
        theirs.use_framewise_encoding = theirs.use_framewise_decoding = False
    assert vae.stride == PatchSize.of(STRIDES[family])
    video = clip(vae, frames)
    if family == "image":
        raw = torch.stack([theirs.encode(video[:, :, i]).latent_dist.mode() for i in range(frames)], dim=2)
        decoded = torch.stack([theirs.decode(raw[:, :, i]).sample for i in range(frames)], dim=2)
    else:
        raw = theirs.encode(video).latent_dist.mode()
        decoded = theirs.decode(raw).sample
    assert raw.std() > 0.05
    latent = vae.encode_latent(video)
    torch.testing.assert_close(vae.encode(video).mean, raw, atol=1e-5, rtol=0)
    torch.testing.assert_close(latent, as_the_pipeline_has_it(theirs, family, raw), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(raw), decoded, atol=1e-5, rtol=0)
    # Scaled and back, a latent is rounded twice.
    torch.testing.assert_close(vae.decode_latent(latent), decoded.clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["wan", "hunyuan_video_15", "mochi", "image"])
@torch.no_grad()
def test_the_spread_of_the_posterior_is_that_of_diffusers(of: Folder, family: str) -> None:
    vae, theirs = make(of(family)), network(family)
    video = clip(vae, 1)
    posterior = theirs.encode(video[:, :, 0] if family == "image" else video).latent_dist
    torch.testing.assert_close(vae.encode(video).std.reshape(posterior.std.shape), posterior.std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["hunyuan_video", "ltx", "ltx2"])
@torch.no_grad()
def test_blended_chunks_are_those_of_diffusers(of: Folder, family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vae, theirs = make(of(family), ", framewise=True"), network(family)
    assert "passed in chunks has other latents" in caplog.text
    theirs.use_framewise_encoding = theirs.use_framewise_decoding = True
    video = clip(vae, 1 + 32 // vae.stride.frames)
    raw = theirs.encode(video).latent_dist.mode()
    torch.testing.assert_close(vae.encode(video).mean, raw, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(raw), theirs.decode(raw).sample, atol=1e-5, rtol=0)
    assert vae.facts.lacking("encoder_causal", "decoder_causal", "chunk_exact")[:2] == (
        "encoder_causal",
        "decoder_causal",
    )
    assert vae.fingerprint() != make(of(family)).fingerprint()


@torch.no_grad()
def test_tiles_are_those_of_diffusers(of: Folder) -> None:
    vae, theirs = make(of("image", sample_size=32), ", tiling=True"), network("image", sample_size=32)
    video = torch.rand((1, 3, 1, 64, 48), generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = theirs.encode(video[:, :, 0]).latent_dist.mode()
    theirs.enable_tiling()
    tiled = theirs.encode(video[:, :, 0]).latent_dist.mode()
    assert (tiled - whole).abs().max() > 1e-3
    torch.testing.assert_close(vae.encode(video).mean[:, :, 0], tiled, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(tiled[:, :, None])[:, :, 0], theirs.decode(tiled).sample, atol=1e-5, rtol=0)
    assert vae.fingerprint() != make(of("image", sample_size=32)).fingerprint()


@torch.no_grad()
def test_a_decoder_of_ltx_that_takes_a_time_and_adds_noise(of: Folder) -> None:
    options = {"timestep_conditioning": True, "decoder_inject_noise": [True] * 5}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        path, theirs = of("ltx", **options), network("ltx", **options)
    for parameter in (vae := make(path)).network.parameters():
        parameter.add_(0.1)  # gains of the noise are zero in fresh ones
    for parameter in theirs.parameters():
        parameter.add_(0.1)
    latent = torch.randn((2, 8, 2, 1, 1), generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    found = vae.decode(latent)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(vae.decode(latent), found)
    torch.manual_seed(0)
    torch.testing.assert_close(found, theirs.decode(latent, torch.zeros(2)).sample, atol=1e-5, rtol=1e-5)


#: Each is put to the contract; those of one class again, or larger, with what is slow.
CHECKED = ["wan", "cogvideox", "cosmos", "image"]
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in TINY if family not in CHECKED]


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("family", [*CHECKED, *SLOW])
def test_it_keeps_the_contract(of: Folder, family: str, law: str) -> None:
    CONTRACT.laws[law](f"diffusers(path={str(of(family))!r})")


# Sizes


@pytest.mark.parametrize(
    ("family", "frames", "near"), [("wan", 16, "4 .nearest: 13 or 17"), ("mochi", 6, "6 .nearest: 1 or 7")]
)
def test_frames_that_do_not_fit_are_refused_with_the_nearest(of: Folder, family: str, frames: int, near: str) -> None:
    vae = make(of(family))
    with pytest.raises(SoraError, match=rf"frames={frames} is not 1 \+ n\*{near}"):
        vae.encode(torch.zeros(1, 3, frames, 16, 16))


def test_cogvideox_takes_an_odd_number_of_latent_frames(of: Folder) -> None:
    vae = make(of("cogvideox"))
    theirs = network("cogvideox").decode(torch.zeros(1, 4, 2, 1, 1)).sample
    assert theirs.shape[2] == 8  # not 5, as they were encoded from
    with pytest.raises(SoraError, match=r"frames=5 is not 1 \+ n\*8 \(nearest: 1 or 9\)"):
        vae.encode(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(SoraError, match=r"1 \+ n\*2 frames, got 2"):
        vae.decode(torch.zeros(1, 4, 2, 1, 1))


def test_cosmos_takes_as_many_frames_as_it_has_statistics_of(of: Folder) -> None:
    vae = make(of("cosmos"))
    assert vae.latent_mean.shape == (4, 8)
    assert tuple(vae.grid(57, 8, 8)) == (8, 1, 1)
    with pytest.raises(SoraError, match=r"9 latent frames is too long: .* the longest clip is of 57 frames"):
        vae.grid(65, 8, 8)
    with pytest.raises(SoraError, match="too long"):
        vae.unscale(torch.zeros(1, 4, 9, 1, 1))


# How one is named, kept and told from others


def test_a_spec_stands_where_a_checkpoint_does(of: Folder) -> None:
    path = of("wan")
    vae, spec, run = load_vae(f"diffusers(path={str(path)!r})", seed=3)
    assert run is None
    assert vae.fingerprint() == load_vae(f"diffusers:{path}", seed=4)[0].fingerprint() == make(path).fingerprint()
    # What is kept beside the weights builds it anew without the folder.
    path.rename(moved := path.with_name("moved"))
    try:
        fresh, again, _ = load_vae(f"spec:{spec}", seed=0)
    finally:
        moved.rename(path)
    assert again == spec
    assert fresh.fingerprint() != vae.fingerprint()  # of weights that are drawn by the seed
    assert fresh.fingerprint() == load_vae(f"spec:{spec}", seed=0)[0].fingerprint()
    assert fresh.fingerprint() != load_vae(f"spec:{spec}", seed=1)[0].fingerprint()
    fresh.load_state_dict(vae.state_dict())
    assert fresh.fingerprint() == vae.fingerprint()
    with pytest.raises(SoraError, match="names a VAE without its weights"):
        load_vae(spec, seed=0)


@pytest.mark.parametrize("family", TINY)
def test_its_configuration_and_a_seed_build_one_of_fresh_weights(family: str) -> None:
    name, options = TINY[family]
    spec = f"spec:diffusers(path='nowhere', config={ ({'_class_name': name} | options)!r})"
    vae = load_vae(spec, seed=0)[0]
    assert vae.fingerprint() == load_vae(spec, seed=0)[0].fingerprint()
    assert pickle.loads(pickle.dumps(vae)).fingerprint() == vae.fingerprint()
    torch.testing.assert_close(vae.latent_mean, make_statistics(family))


def make_statistics(family: str) -> Tensor:
    made = network(family)
    if family in ("ltx", "ltx2"):
        return torch.zeros(made.config.latent_channels)  # buffers, which come with the weights
    zero = torch.zeros(STRIDES[family] == 0 or made.config.get("latent_channels") or made.config.z_dim, 8)
    raw = as_the_pipeline_has_it(made, family, zero[None, :, :, None, None])[0, :, :, 0, 0]
    one = as_the_pipeline_has_it(made, family, 1 + zero[None, :, :, None, None])[0, :, :, 0, 0]
    mean = -raw / (one - raw)
    return mean if family == "cosmos" else mean[:, 0]


def test_a_saved_one_needs_no_folder(of: Folder, tmp_path: Path) -> None:
    path = folder("wan", tmp_path / "written", seed=5)
    vae = make(path)
    saved = ClipVAE(vae, f"diffusers(path={str(path)!r})").save(tmp_path / "saved")
    for file in path.iterdir():
        file.unlink()
    read = ClipVAE.load(saved)
    assert read.vae.fingerprint() == vae.fingerprint()
    assert load_vae(str(saved), seed=0)[0].fingerprint() == vae.fingerprint()
    frames = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    assert read.encode(frames).shape == (16, 2, 2, 2)
    assert read.decode(read.encode(frames)).shape == frames.shape


def test_its_fingerprint_is_of_weights_and_configuration_not_of_the_place(of: Folder, tmp_path: Path) -> None:
    first = make(of("wan"))
    assert make(folder("wan", tmp_path / "copy")).fingerprint() == first.fingerprint()
    assert make(folder("wan", tmp_path / "other", seed=1)).fingerprint() != first.fingerprint()
    scaled = tmp_path / "copy" / "config.json"
    scaled.write_text(json.dumps(json.loads(scaled.read_text()) | {"latents_mean": [0.5] * 16}))
    assert make(tmp_path / "copy").fingerprint() != first.fingerprint()


def test_the_vae_of_a_pipeline_is_found(of: Folder, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    folder("wan", tmp_path / "vae")
    assert make(tmp_path).fingerprint() == make(of("wan")).fingerprint()
    assert make(tmp_path, ", subfolder='vae'").fingerprint() == make(of("wan")).fingerprint()


def test_shards_are_read(of: Folder, tmp_path: Path) -> None:
    network("wan").save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert make(tmp_path).fingerprint() == make(of("wan")).fingerprint()


# What is refused


def test_without_diffusers_it_says_what_to_install(of: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of("wan")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SoraError, match=r"needs diffusers, which is not installed: pip install 'lightning-sora"):
        make(path)


@pytest.mark.slow
def test_nothing_of_diffusers_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, lightning_sora.models.vae; print([name for name in sys.modules if name.startswith('diffusers')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def refusal(path: Path, further: str = "") -> str:
    with pytest.raises(SoraError) as caught:
        make(path, further)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "has no config.json; give the folder that `save_pretrained` of diffusers wrote" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "names no _class_name" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in refusal(tmp_path)
    assert "no folder at" in refusal(tmp_path / "none")


@pytest.mark.parametrize("name", ["WanTransformer3DModel", "AutoencoderKLWen", "AutoencoderKLAllegro"])
def test_a_class_of_no_known_family(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    said = refusal(tmp_path)
    assert f"{name!r} is no VAE of a family that is known" in said
    assert all(family.vae in said for family in FAMILIES)


def test_a_half_downloaded_model(tmp_path: Path) -> None:
    network("wan").save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*-00002-of-*.safetensors"))[0]
    shard.unlink()
    assert "was not downloaded whole: diffusion_pytorch_model.safetensors.index.json names" in refusal(tmp_path)
    assert f"and {shard.name} is not there; download the rest" in refusal(tmp_path)


def test_weights_that_are_cut_short_or_of_another_model(of: Folder, tmp_path: Path) -> None:
    folder("wan", tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    whole, loaded = file.read_bytes(), make(tmp_path)
    file.write_bytes(whole[:-100])
    assert loaded.fingerprint() == make(of("wan")).fingerprint()
    assert "is cut short" in refusal(tmp_path)
    file.unlink()
    assert "has no diffusion_pytorch_model.safetensors: it holds config.json" in refusal(tmp_path)
    file.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_res_blocks": 2}))
    assert "lacks weights of the AutoencoderKLWan" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_scales": [1.0]}))
    refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"base_dim": 8}))
    assert "cannot be loaded" in refusal(tmp_path)


def test_pickles_are_refused_with_the_way_to_safetensors(of: Folder, tmp_path: Path) -> None:
    original = tmp_path / "Wan2.1_VAE.pth"
    torch.save(network("wan").state_dict(), original)
    for path in (original, tmp_path):
        said = refusal(path)
        assert "a pickle can run code when it is read" in said
        assert f"from_single_file('{original}').save_pretrained('FOLDER')" in said
    bins = tmp_path / "bins"
    network("wan").save_pretrained(bins, safe_serialization=False)
    assert f"from_pretrained('{bins}', use_safetensors=False).save_pretrained('FOLDER')" in refusal(bins)


def test_a_folder_that_is_named_without_its_kind(of: Folder) -> None:
    with pytest.raises(SoraError, match=r"is a folder of diffusers; write it as \"diffusers\(path='.*'\)\""):
        load_vae(str(of("wan")), seed=0)


def test_a_name_that_no_hub_answers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refusal(Path("nobody/no-such-model"))
    assert said.startswith("no folder at 'nobody/no-such-model', and no model of that name on a hub")
    assert "(it cannot be reached); download it where there is a network, and give its folder" in said


def test_options_that_a_family_does_not_have(of: Folder) -> None:
    assert "framewise=True has no meaning for a AutoencoderKLWan; leave it out" in refusal(
        of("wan"), ", framewise=True"
    )
    assert "tiling=True has no meaning for a AutoencoderKLCosmos" in refusal(of("cosmos"), ", tiling=True")


def test_a_configuration_that_is_none() -> None:
    for config, words in (("{}", "of a family that is known"), ("3", "must be a mapping")):
        with pytest.raises(SoraError, match=words):
            VAES.create(f"diffusers(path='nowhere', config={config})")
    with pytest.raises(SoraError, match="no AutoencoderKLWan can be made with these options"):
        VAES.create("diffusers(path='nowhere', config={'_class_name': 'AutoencoderKLWan', 'dim_mult': 'a'})")


def test_statistics_that_do_not_fit(of: Folder, tmp_path: Path) -> None:
    folder("wan", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"latents_mean": [0.0] * 15}))
    assert "latents_mean has 15 values for 16 latent channels" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"latents_std": [0.0] * 16}))
    assert "must be positive" in refusal(tmp_path)


def test_a_stride_that_is_not_that_of_the_weights(tmp_path: Path) -> None:
    folder("wan", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scale_factor_spatial": 16}))
    vae = make(tmp_path)
    with pytest.raises(SoraError, match=r"makes latents of \(16, 1, 2, 2\) where its config.json says"):
        vae.encode(torch.zeros(1, 3, 1, 16, 16))
