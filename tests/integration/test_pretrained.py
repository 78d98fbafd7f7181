"""Pretrained VAEs where a trained one stands: caches, tests, decoders trained on, transformers, checkpoints."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

import lightning_sora as ls
from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.errors import SoraError
from lightning_sora.jobs.engines import ENGINES
from lightning_sora.lit import LitDiT, LitVAE
from lightning_sora.lit.callbacks import ClipScores, Evaluate
from lightning_sora.lit.pretrained import load_vae
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.vae import on_demand
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenLayout
from tests.integration.conftest import make_data, make_dit
from tests.pretrained_toys import folder
from tests.toys import InThisProcess

pytestmark = pytest.mark.slow

Trainer = Callable[..., pl.Trainer]


def spec_of(path: Path) -> str:
    return f"diffusers(path={str(path)!r})"


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder("wan", tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with ENGINES.temporary():
        ENGINES.register("inline")(InThisProcess)
        yield


def recipe(
    at: Path, vae: str, patch: tuple[int, int, int] = (4, 8, 8), tokens: tuple[int, int, int] = (1, 1, 1)
) -> Path:
    data = {"source": "world(level='tiny', clips=6, heldout_clips=4)", "patch": list(patch), "frames": 9,
            "height": 16, "width": 16, "fps": 8.0, "batch_size": 3}  # fmt: skip
    model = {"vae": vae, "text": "bytes(dim=8, depth=1, num_heads=1)",
             "dit": {"patch_size": list(tokens), "dim": 16, "depth": 1, "num_heads": 2}}  # fmt: skip
    content = {
        "model": {"class_path": "LitDiT", "init_args": model},
        "data": {"class_path": "SpacetimeDataModule", "init_args": data},
    }
    (at / "recipe.yaml").write_text(yaml.safe_dump(content))
    return at / "recipe.yaml"


def test_its_latents_are_cached_and_trained_on_as_from_pixels(wan: Path, tmp_path: Path, make_trainer: Trainer) -> None:
    asked = recipe(tmp_path, "identity")
    arguments = [
        "data",
        "cache",
        "--config",
        str(asked),
        "--out",
        str(tmp_path / "latents"),
        "--vae",
        spec_of(wan),
        "--engine",
        "inline",
    ]
    assert main(arguments) == 0
    vae = load_vae(spec_of(wan), seed=0)[0]
    told = json.loads((tmp_path / "latents" / "cache.json").read_text())
    assert told["vae_hash"] == vae.fingerprint()
    assert (told["vae_stride"], told["channels"], told["vae_facts"]["first_frame_alone"]) == ([4, 8, 8], 16, True)
    options = ls.Recipe.load(asked).options("data")
    pixels = SpacetimeDataModule(**options)
    cached = SpacetimeDataModule(**{**options, "source": "latents", "root": str(tmp_path / "latents")})
    model = make_dit(spec_of(wan)).model
    for first, second in zip(pixels.train_dataloader(), cached.train_dataloader(), strict=True):
        torch.testing.assert_close(model.encode(first), model.encode(second), atol=1e-5, rtol=1e-5)
    module = make_dit(spec_of(wan))
    make_trainer(max_steps=2).fit(module, cached)
    other = make_dit(spec_of(folder("wan", tmp_path / "other", seed=9)))
    with pytest.raises(SoraError, match=f"latents of VAE {vae.fingerprint()} but this model's VAE is"):
        make_trainer(max_steps=2).fit(other, cached)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of networks on demand."""
    found: list[str] = []
    load = on_demand.load
    monkeypatch.setattr(on_demand, "load", lambda stored: found.append(stored.path) or load(stored))
    return found


def test_a_training_on_cached_latents_reads_no_weights_of_its_vae_and_a_gallery_does(
    wan: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    late = f"diffusers(path={str(wan)!r}, on_demand=True)"
    ls.cache_latents(ls.Recipe.load(recipe(tmp_path, spec_of(wan))), tmp_path / "latents", engine="inline")
    assert not reads
    asked = [
        "fit", "--config", str(recipe(tmp_path, late)), "--data.source=latents", f"--data.root={tmp_path / 'latents'}",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1",
        "--trainer.num_sanity_val_steps=0", "--trainer.val_check_interval=1", "--model.sampling.steps=1",
        f"--trainer.default_root_dir={tmp_path / 'out'}",
    ]  # fmt: skip
    assert main(asked) == 0
    assert not reads
    (checkpoint,) = list((tmp_path / "out").rglob("last.ckpt"))
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert [name for name in names if ".vae." in name] == [
        "model.vae.latent_mean", "model.vae.latent_std", "model.vae.network._extra_state"
    ]  # fmt: skip
    gallery = LitDiT.load(checkpoint)
    assert not reads
    assert gallery.sample("a cube", 5, 16, 16, steps=1).shape == (5, 16, 16, 3)
    assert reads == [str(wan)]
    assert main([*asked, '--model.prompts=["a cube"]', "--ckpt_path=null"]) == 0
    assert len(reads) == 2


@pytest.mark.parametrize(("patch", "tokens", "words"), [
    ((4, 12, 12), (1, 1, 1), r"data.patch=\[4, 12, 12\] is no multiple of the stride \[4, 8, 8\]"),
    ((4, 16, 16), (1, 1, 1), r"is not the stride \[4, 8, 8\] of the VAE .* times model.dit.patch_size=\[1, 1, 1\]"),
])  # fmt: skip
def test_a_cache_of_a_stride_that_the_patch_does_not_fit_is_refused(
    wan: Path, tmp_path: Path, patch: tuple[int, int, int], tokens: tuple[int, int, int], words: str
) -> None:
    asked = ls.Recipe.load(recipe(tmp_path, spec_of(wan), patch, tokens))
    with pytest.raises(SoraError, match=words):
        ls.cache_latents(asked, tmp_path / "latents")
    with pytest.raises(SoraError, match="write it as"):
        ls.cache_latents(asked, tmp_path / "latents", vae=str(wan))


def test_a_transformer_refuses_pixels_of_another_patch(tmp_path: Path, make_trainer: Trainer) -> None:
    images = make_dit(spec_of(folder("image", tmp_path / "image")))
    with pytest.raises(SoraError, match=r"joins 4 frames, but model.vae is a VAE of images, .* to \[1, 8, 8\]"):
        make_trainer().fit(images, make_data())
    mochi = make_dit(spec_of(folder("mochi", tmp_path / "mochi")))
    with pytest.raises(SoraError, match=r"data.patch=\[4, 8, 8\] but this model's tokens cover \[6, 8, 8\]"):
        make_trainer().fit(mochi, make_data())


def test_a_checkpoint_and_a_saved_model_need_no_folder(wan: Path, tmp_path: Path, make_trainer: Trainer) -> None:
    own = Path(shutil.copytree(wan, tmp_path / "vae"))
    module = make_dit(spec_of(own))
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "dit.ckpt")
    saved = module.save(tmp_path / "saved")
    shutil.rmtree(own)
    read, loaded = LitDiT.load(tmp_path / "dit.ckpt"), LatentDiffusion.load(saved)
    assert read.model.vae.fingerprint() == loaded.vae.fingerprint() == loaded.vae_hash == module.model.vae_hash
    assert read.lineage()["vae.hash"] == module.model.vae_hash
    clip = module.sample("a cube", 5, 16, 16)
    assert torch.equal(read.sample("a cube", 5, 16, 16), clip)
    assert torch.equal(loaded.sample("a cube", 5, 16, 16), clip)


@pytest.mark.parametrize("family", ["wan", "cosmos", "image"])
def test_a_vae_is_tested_with_the_fvd_of_its_reconstructions(
    family: str, tmp_path: Path, make_trainer: Trainer
) -> None:
    module = LitVAE(spec_of(folder(family, tmp_path / "vae")))
    evaluate = Evaluate(["rfvd"], extractor="random(width=4, side=16)")
    trainer = make_trainer(callbacks=[evaluate, ClipScores()])
    data = SpacetimeDataModule(
        "world(level='tiny', clips=2, heldout_clips=24)", patch=tuple(module.patch), frames=9, height=16, width=16,
        batch_size=8,
    )  # fmt: skip
    (found,) = trainer.test(module, data, verbose=False)
    assert evaluate.results is not None
    assert "rfvd" in evaluate.results.as_dict()
    assert {"test/psnr", "test/ssim"} <= set(found)
    # A point has no divergence from a distribution, and a mean of it would be a number of no meaning.
    assert any(name.startswith("kl/") for name in found) == (family != "cosmos")
    assert found["test/active_channels"] >= 0
    # What the transformer sees, measured another way.
    latents = [
        module.vae.encode_latent(clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1).flatten()
        for batch in data.test_dataloader() for clip in batch.videos()
    ]  # fmt: skip
    scaled = torch.cat(latents).reshape(len(latents), module.vae.latent_channels, -1)
    by_channel = scaled.mean(dim=(0, 2)).square() + scaled.var(dim=(0, 2), correction=0)
    expected = (by_channel.mean() - scaled.mean().square()).sqrt()
    assert found["test/latent_std"] == pytest.approx(float(expected), rel=1e-3)


def test_its_decoder_is_trained_on_and_a_transformer_takes_it(wan: Path, tmp_path: Path, make_trainer: Trainer) -> None:
    before = load_vae(spec_of(wan), seed=0)[0]
    module = LitVAE(spec_of(wan), optimizer="adamw(lr=1e-2)", schedule="constant", ema_decay=None)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "vae.ckpt")
    for source in (str(tmp_path / "vae.ckpt"), str(module.save(tmp_path / "saved"))):
        tuned = load_vae(source, seed=0)[0]
        assert tuned.fingerprint() == module.vae.fingerprint() != before.fingerprint()
        assert before.latents_differ(tuned) == []
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert moved
    assert all(name.startswith(("network.decoder.", "network.post_quant_conv.")) for name in moved)
    model = make_dit(spec_of(wan)).model
    model.replace_vae(tuned)
    assert model.vae_hash == tuned.fingerprint()
    read = LatentDiffusion.load(model.save(tmp_path / "model"))
    assert read.vae.fingerprint() == tuned.fingerprint()


# What rests on a fact asks for it.


def batch_of(model: LatentDiffusion, frames: int) -> SpacetimeBatch:
    clip = torch.zeros((frames, 16, 16, 3), dtype=torch.uint8)
    layout = TokenLayout.uniform(ls.TokenGrid.of(frames, 16, 16, model.patch), 1)
    return SpacetimeBatch(clip.flatten(), layout, model.patch, ("",), ("a",), (0,), (8.0,))


def test_images_beside_clips_are_told_of_once_where_they_are_not_clips_of_one_frame(
    wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path, told in ((wan, 0), (folder("hunyuan_video", tmp_path / "hunyuan"), 1)):
        model = make_dit(spec_of(path)).model
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for frames in (5, 5, 1, 5, 1):
                model.encode(batch_of(model, frames))
        assert sum("images and clips are mixed" in record.message for record in caplog.records) == told


def test_tasks_that_rest_on_a_fact_are_refused_where_it_does_not_hold(wan: Path, tmp_path: Path) -> None:
    hunyuan, cogvideox = (spec_of(folder(name, tmp_path / name)) for name in ("hunyuan_video", "cogvideox"))
    for task in (
        "image_to_video",
        "text_to_image",
        "extend_forward",
        "first_and_last",
        "connect",
        "windows",
        "rollout",
    ):
        assert make_dit(spec_of(wan), tasks={task: 1.0}).tasks
        for vae in (hunyuan, cogvideox):
            with pytest.raises(SoraError, match=f"the task {task} cannot be trained on the latents of this VAE"):
                make_dit(vae, tasks={task: 1.0})
    assert make_dit(hunyuan, tasks={"text_to_video": 1.0, "inpaint": 1.0}).tasks


def test_sampling_from_an_image_is_told_of_where_the_vae_looks_ahead(
    wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = torch.zeros(5, 16, 16, 3, dtype=torch.uint8)
    strength = torch.ones(5, 16, 16)
    strength[0] = 0.0
    for path, told in ((wan, 0), (folder("hunyuan_video", tmp_path / "hunyuan"), 1)):
        model = make_dit(spec_of(path)).model
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                model.sample("a cube", 5, 16, 16, given=ls.Given(still, strength))
        assert sum("what is given is seen together" in record.message for record in caplog.records) == told


def test_a_length_that_the_vae_does_not_take_is_refused_before_it_is_sampled(tmp_path: Path) -> None:
    model = make_dit(spec_of(folder("cogvideox", tmp_path / "vae"))).model
    assert model.patch == PatchSize(4, 8, 8)
    with pytest.raises(SoraError, match=r"frames=5 is not 1 \+ n\*8"):
        model.sample("a cube", 5, 16, 16)
    assert model.sample("a cube", 9, 16, 16).shape == (9, 16, 16, 3)


def test_a_cache_with_images_beside_clips_says_so(wan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    draw = torch.Generator().manual_seed(0)
    for index in range(20):
        clip = torch.randint(0, 256, (9, 16, 16, 3), generator=draw, dtype=torch.uint8)
        if index % 2:
            media.write_image(videos / f"{index}.png", clip[0])
        else:
            ls.save_video(videos / f"{index}.mp4", clip, fps=8)
    asked = ls.Recipe.load(recipe(tmp_path, "identity"), {"data.source": "folder", "data.root": str(videos)})
    for path, told in ((wan, 0), (folder("hunyuan_video", tmp_path / "hunyuan"), 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = ls.cache_latents(
                asked, tmp_path / f"latents{told}", vae=spec_of(path), splits=["train"], engine="inline"
            )
        assert made.clips["train"] > 8
        assert sum("has images beside clips" in record.message for record in caplog.records) == told
