"""Pretrained VAEs whose weights stay in their files until something is encoded or decoded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lightning_sora as ls
from lightning_sora.errors import SoraError
from lightning_sora.models.vae import VAES, DiffusersVAE
from lightning_sora.models.vae import on_demand as module
from lightning_sora.models.vae.contract import CONTRACT
from lightning_sora.models.vae.on_demand import OnDemand
from tests.pretrained_toys import TINY, folder

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def written(family: str) -> Path:
        if family not in made:
            made[family] = folder(family, tmp_path_factory.mktemp("vae"))
        return made[family]

    return written


def spec(path: Path) -> str:
    return f"diffusers(path={str(path)!r}, on_demand=True)"


def make(path: Path, on_demand: bool = True) -> DiffusersVAE:
    vae = VAES.create(f"diffusers(path={str(path)!r}, on_demand={on_demand})")
    assert isinstance(vae, DiffusersVAE)
    return vae.eval().requires_grad_(False)


def loaded(vae: DiffusersVAE) -> bool:
    assert isinstance(vae.network, OnDemand)
    return vae.network.loaded


@pytest.mark.parametrize("family", TINY)
def test_it_is_the_loaded_one_and_reads_its_weights_when_it_is_run(of: Folder, family: str) -> None:
    late, now = make(of(family)), make(of(family), on_demand=False)
    assert late.fingerprint() == now.fingerprint()
    assert (late.stride, late.latent_channels, late.facts) == (now.stride, now.latent_channels, now.facts)
    assert torch.equal(late.latent_mean, now.latent_mean)
    assert torch.equal(late.latent_std, now.latent_std)
    assert sum(value.numel() for value in late.state_dict().values()) < 2000
    assert not list(late.parameters())
    assert not loaded(late)
    s = now.stride
    video = torch.rand((1, 3, 1 + 2 * s.frames, 2 * s.height, 2 * s.width), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latent = late.encode_latent(video)
        assert torch.equal(latent, now.encode_latent(video))
        assert torch.equal(late.decode_latent(latent), now.decode_latent(latent))
    assert loaded(late)
    assert late.fingerprint() == now.fingerprint()
    assert late.latents_differ(now) == now.latents_differ(late) == []
    assert not list(late.parameters())


@pytest.mark.parametrize("law", [law for law in CONTRACT.laws if law != "gradient_reaches_every_parameter"])
def test_it_keeps_the_contract(of: Folder, law: str) -> None:
    CONTRACT.laws[law](spec(of("wan")))


def test_it_has_the_precision_of_the_model_that_it_is_a_part_of(of: Folder) -> None:
    late, now = make(of("wan")).to(torch.bfloat16), make(of("wan"), on_demand=False).to(torch.bfloat16)
    assert late.fingerprint() == now.fingerprint()
    video = torch.zeros((1, 3, 5, 16, 16), dtype=torch.bfloat16)
    assert torch.equal(late.encode_latent(video), now.encode_latent(video))
    assert late.double().decode_latent(late.encode_latent(video.double())).dtype == torch.float64


def test_half_precision_files_are_read_as_float32(of: Folder, tmp_path: Path) -> None:
    path = Path(shutil.copytree(of("wan"), tmp_path / "half"))
    file = path / "diffusion_pytorch_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    assert make(path).fingerprint() == make(path, on_demand=False).fingerprint() != make(of("wan")).fingerprint()


def test_a_state_is_of_weights_that_are_not_in_it(of: Folder, tmp_path: Path) -> None:
    state = make(of("wan")).state_dict()
    make(Path(shutil.copytree(of("wan"), tmp_path / "copy"))).load_state_dict(state)
    other = make(folder("wan", tmp_path / "other", seed=3))
    with pytest.raises(SoraError, match="was trained on latents of a VAE of other weights"):
        other.load_state_dict(state)


def test_blending_holds_when_it_is_read(of: Folder) -> None:
    vaes = [VAES.create(f"diffusers(path={str(of('ltx'))!r}, tiling=True, on_demand={late})") for late in (True, False)]
    assert vaes[0].fingerprint() == vaes[1].fingerprint()
    network: Any = vaes[0].network.network()  # type: ignore[union-attr, operator]
    assert network.use_tiling
    assert not network.use_framewise_encoding


def test_a_saved_model_keeps_the_place_of_its_vae(of: Folder, tmp_path: Path) -> None:
    own = Path(shutil.copytree(of("wan"), tmp_path / "vae"))
    dit = {"patch_size": (1, 1, 1), "dim": 16, "depth": 1, "num_heads": 2}
    model = ls.LatentDiffusion.create(spec(own), text="bytes(dim=8, depth=1, num_heads=1)", dit=dit)
    place = model.save(tmp_path / "model")
    assert (place / "vae.safetensors").stat().st_size < 3000
    assert not loaded(model.vae)  # type: ignore[arg-type]
    read = ls.load(place, "cpu")
    assert read.vae_hash == read.vae.fingerprint() == model.vae_hash
    small = model.save(tmp_path / "small", stored="float16")
    assert ls.load(small, "cpu").vae_hash == ls.load(small, "cpu").vae.fingerprint()
    folder("wan", own, seed=5)
    with pytest.raises(SoraError, match="other weights"):
        ls.load(place, "cpu")
    shutil.rmtree(own)
    with pytest.raises(SoraError, match="no folder at"):
        ls.load(place, "cpu")


def test_files_that_are_not_those_of_the_configuration_are_refused_at_once(of: Folder, tmp_path: Path) -> None:
    path = Path(shutil.copytree(of("wan"), tmp_path / "wan"))
    file = path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    content = file.read_bytes()
    del weights["decoder.conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SoraError, match=r"describes: decoder\.conv_in\.weight; download it again"):
        make(path)
    file.write_bytes(content[:-100])
    for late in (True, False):
        with pytest.raises(SoraError, match=r"is cut short: [\d,]+ of [\d,]+ bytes are there"):
            make(path, late)


def test_what_it_cannot_be_is_refused(of: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SoraError, match="leave one of them out"):
        VAES.create("diffusers(path='x', on_demand=True, config={'_class_name': 'AutoencoderKLWan'})")
    with pytest.raises(SoraError, match="is a name on a hub; download it"):
        OnDemand(module.Stored("OWNER/NAME", "OWNER/NAME", "vae", None, {}))
    with pytest.raises(SoraError, match="has nothing to train"):
        ls.LitVAE(spec(of("wan")))
