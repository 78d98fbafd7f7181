"""Models from disk: checkpoints of earlier versions, and folders that need no Lightning."""

import json
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_sora import load
from lightning_sora.errors import SoraError
from lightning_sora.lab.sampling import sample
from lightning_sora.lit import LitDiT, LitVAE
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.vae import ClipVAE
from tests.integration.conftest import make_data, make_dit, make_vae


@pytest.mark.slow
def test_a_checkpoint_without_groups_is_read_and_resumed(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_dit(objective="x", guidance=2.0, attention="spatial, full"), make_data())
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    stored = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["dit"]["attention"] == "spatial, full"
    for group in ("dit", "diffusion", "sampling"):
        stored["hyper_parameters"] |= stored["hyper_parameters"].pop(group)
    for tensors in (stored["state_dict"], stored["ema"]["shadow"]):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
    torch.save(stored, tmp_path / "old.ckpt")
    new, old = (LitDiT.load(tmp_path / f"{name}.ckpt") for name in ("new", "old"))
    assert (old.model.sampling, old.diffusion) == (new.model.sampling, new.diffusion)
    assert torch.equal(old.sample("a red cube"), new.sample("a red cube"))
    losses = []
    for name in ("new", "old"):
        again = make_trainer(max_steps=4)
        again.fit(
            make_dit(objective="x", attention="spatial, full"),
            make_data(),
            ckpt_path=tmp_path / f"{name}.ckpt",
            weights_only=True,
        )
        losses.append(float(again.callback_metrics["train/loss"]))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_what_was_trained_is_saved_with_its_average_and_opened_without_lightning(
    make_trainer: Callable[..., pl.Trainer], tmp_path: Path
) -> None:
    for name, made in (("vae", make_vae(ema_decay=0.5)), ("dit", make_dit(ema_decay=0.5))):
        trainer = make_trainer(max_steps=2)
        trainer.fit(made, make_data())
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    vae, dit = LitVAE.load(tmp_path / "vae.ckpt"), LitDiT.load(tmp_path / "dit.ckpt")
    saved_vae, saved_dit = (load(one.save(tmp_path / name), "cpu") for name, one in (("vae", vae), ("dit", dit)))
    assert (type(saved_vae), type(saved_dit)) == (ClipVAE, LatentDiffusion)
    assert torch.equal(saved_dit.sample("a red cube"), dit.sample("a red cube"))
    assert saved_dit.seen_sizes.state_dict() == dit.seen_sizes.state_dict()
    samples = [sample(tmp_path / name, ["a red cube"], guidance=0, device="cpu") for name in ("dit.ckpt", "dit")]
    assert torch.equal(samples[0].videos[0], samples[1].videos[0])
    assert torch.equal(samples[0].videos[0], dit.sample("a red cube", guidance=0))
    told = [json.loads(one.files[2].read_text()) for one in samples]
    assert [(one["guidance"], one["steps"], one["fps"]) for one in told] == [(0, dit.model.sampling.steps, 8.0)] * 2
    for name in ("vae.ckpt", "vae"):
        with pytest.raises(SoraError, match="VAE, which makes no videos"):
            sample(tmp_path / name, ["a red cube"], device="cpu")
    clip = dit.sample("a red cube")
    assert torch.equal(saved_vae.encode(clip), vae.encode(clip))
    # The one that trains saves what it would be judged by.
    assert torch.equal(load(made.save(tmp_path / "dit"), "cpu").sample("a red cube"), dit.sample("a red cube"))
    stored = torch.load(tmp_path / "vae.ckpt", weights_only=True)
    stored["hyper_parameters"] |= stored["hyper_parameters"].pop("loss")
    torch.save(stored, tmp_path / "old.ckpt")
    hashes = {make_dit(str(tmp_path / name)).model.vae_hash for name in ("vae", "vae.ckpt", "old.ckpt")}
    assert hashes == {saved_vae.vae.fingerprint()}


@pytest.mark.slow
def test_a_decoder_is_trained_for_latents_that_stay(make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    first = make_vae(ema_decay=0.5)
    trainer = make_trainer(max_steps=2)
    trainer.fit(first, make_data())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    old = LitVAE.load(tmp_path / "first.ckpt")
    new = make_vae(ema_decay=0.5, latents_of=str(tmp_path / "first.ckpt"), seed=1)
    assert new.vae.fingerprint() == old.vae.fingerprint()  # the decoder begins as the trained one
    trainer = make_trainer(max_steps=2)
    trainer.fit(new, make_data())
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    (tmp_path / "first.ckpt").rename(tmp_path / "moved.ckpt")
    trained = LitVAE.load(tmp_path / "second.ckpt")  # which needs the first no more
    clip = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latent = old.encode(clip)
    assert torch.equal(trained.encode(clip), latent)
    assert not torch.equal(trained.decode(latent), old.decode(latent))

    dit = make_dit(str(tmp_path / "moved.ckpt")).model
    rows = dit.encode_videos([clip])
    dit.replace_vae(trained.vae)
    assert dit.vae_hash == trained.vae.fingerprint() != old.vae.fingerprint()
    assert torch.equal(dit.encode_videos([clip]), rows)
    with pytest.raises(SoraError, match=r"are not those of .*, on which this model was trained: they differ in "):
        dit.replace_vae(make_vae(seed=5).vae)
    with pytest.raises(
        SoraError,
        match=r"their encoders differ in stride, dim, front_end_patch; .*only options of the decoder may change",
    ):
        make_vae(
            vae="causal_conv(stride=(2, 4, 4), latent_channels=4, dim=12)", latents_of=str(tmp_path / "moved.ckpt")
        )
