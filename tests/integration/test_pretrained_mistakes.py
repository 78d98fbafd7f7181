"""Pretrained parts that do not belong together, or are no parts: one clear line, before anything is trained."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.lit import LitDiT
from lightning_sora.models.denoisers import DENOISERS
from tests.host_toys import TEXT, host_folder, transformer
from tests.integration.conftest import make_data
from tests.pretrained_toys import folder

pytestmark = pytest.mark.slow

WEIGHTS = "diffusion_pytorch_model.safetensors"
#: The miniature of the transformer has four channels.
OF_FOUR = {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    made = {name: folder(name, root / name) for name in ("image", "cogvideox")}
    return {**made, "vae": folder("wan", root / "wan", **OF_FOUR), "host": host_folder("wan", root / "host")}


def spec(path: Path, name: str = "diffusers") -> str:
    return f"{name}(path={str(path)!r})"


def module(vae: Path, denoiser: str, text: str = f"bytes(dim={TEXT}, depth=1)") -> LitDiT:
    return LitDiT(spec(vae), text=text, denoiser=denoiser, diffusion={"val_timesteps": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["diffusers", "wan"])
@pytest.mark.parametrize(("vae", "words"), [("image", "AutoencoderKL, a VAE of images:"), ("cogvideox", "CogVideoX:")])
def test_latents_that_a_pretrained_denoiser_does_not_know_are_told_of(
    parts: dict[str, Path], name: str, vae: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        module(parts["vae"], spec(parts["host"], name))
    assert "trained on latents" not in caplog.text
    with caplog.at_level(logging.WARNING):
        module(parts[vae], spec(parts["host"], name))
    assert "this pretrained denoiser was trained on latents of AutoencoderKLWan, and model.vae is" in caplog.text
    assert words in caplog.text


def test_pixels_of_another_patch_are_refused(parts: dict[str, Path], make_trainer: Callable[..., pl.Trainer]) -> None:
    made = module(parts["vae"], spec(parts["host"]))
    with pytest.raises(SoraError, match=r"data\.patch=\[4, 8, 8\] but this model's tokens cover \[4, 16, 16\]"):
        make_trainer().fit(made, make_data())
    images = module(parts["image"], spec(parts["host"]))
    with pytest.raises(SoraError, match=r"model\.vae is a VAE of images, .* to \[1, 16, 16\]"):
        make_trainer().fit(images, make_data())


@pytest.mark.parametrize("name", ["diffusers", "wan"])
def test_what_is_no_folder_of_a_transformer(parts: dict[str, Path], name: str, tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(SoraError) as refused:
            DENOISERS.create(spec(path, name), 4, TEXT)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    bare = Path(shutil.copytree(parts["host"], tmp_path / "bare"))
    (bare / "config.json").unlink()
    assert f"{bare} has no config.json" in refusal(bare)
    cut = Path(shutil.copytree(parts["host"], tmp_path / "cut"))
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-50])
    assert "is cut short" in refusal(cut)
    transformer("wan").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = sorted((tmp_path / "shards").glob("*-0000*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[: len(content) // 2])
    assert f"{shards[1]} is cut short" in refusal(tmp_path / "shards")
    shards[1].unlink()
    assert f"{shards[1].name} is not there; download the rest" in refusal(tmp_path / "shards")
    torch.save({}, tmp_path / "original.pth")
    assert "a pickle can run code when it is read" in refusal(tmp_path / "original.pth")
    assert "'AutoencoderKLWan' is no " in refusal(parts["vae"])
