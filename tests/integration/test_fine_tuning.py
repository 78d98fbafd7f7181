"""Fine-tuning of a pretrained denoiser: fits of adapters and of fresh blocks, resumed, saved and read again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

import lightning_sora as ls
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import load_video_model
from lightning_sora.lit import LitDiT
from lightning_sora.models.denoisers import DENOISERS
from lightning_sora.models.vae import VAES
from lightning_sora.randomness import initialize
from lightning_sora.sealing import read_json
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.integration.conftest import VAE, make_data
from tests.tuning_toys import Kept, write_kept

pytest.importorskip("peft")
Make = Callable[..., pl.Trainer]
TEXT = "bytes(dim=8, depth=1, num_heads=1)"
LORA = "lora(rank=2)"
RECIPE = """
seed_everything: 0
model:
  class_path: LitDiT
  init_args:
    vae: diffusers(path='FOLDER/wan/vae')
    text: bytes(dim=16)
    denoiser: diffusers(path='FOLDER/wan/transformer')
    tuning: lora(rank=2)
    sampling: {steps: 2}
    optimizer: adamw(lr=1e-2)
    schedule: constant
data:
  class_path: SpacetimeDataModule
  init_args:
    source: world(level='tiny', clips=8, heldout_clips=2)
    patch: [4, 16, 16]
    frames: 5
    height: 32
    width: 32
    fps: 8
    batch_size: 2
trainer:
  accelerator: cpu
  max_steps: 2
  val_check_interval: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  default_root_dir: run
"""


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with DENOISERS.temporary():
        DENOISERS.register("kept")(Kept)
        yield


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_kept(tmp_path / "base")


def make(denoiser: str, tuning: str = LORA, **options: Any) -> LitDiT:
    usual = {"sampling": {"steps": 2}, "schedule": "constant", "optimizer": "adamw(lr=1e-2)", "ema_decay": 0.9}
    return LitDiT("identity", text=TEXT, denoiser=denoiser, tuning=tuning, **{**usual, **options})


def fitted(make_trainer: Make, module: LitDiT, steps: int, resumed: Path | None = None, **options: Any) -> pl.Trainer:
    trainer = make_trainer(max_steps=steps, **options)
    trainer.fit(module, make_data(), ckpt_path=resumed, weights_only=None if resumed is None else True)
    return trainer


def write_wan(folder: Path, seed: int) -> None:
    """A random Wan in miniature, as diffusers writes it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 16, "num_layers": 2}
    diffusers.WanTransformer3DModel(**shape).save_pretrained(folder / "transformer")
    small = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    diffusers.AutoencoderKLWan(**small).save_pretrained(folder / "vae")


def state(module: LitDiT) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "attention"), [(LORA, "full"), ("lora(rank=2, dropout=0.5)", "gated, full"), ("fresh", "gated, full")]
)
def test_a_resumed_fit_is_the_one_that_was_not_interrupted_to_the_bit(
    make_trainer: Make, tmp_path: Path, base: str, tuning: str, attention: str
) -> None:
    before = state(make(base, tuning, attention=attention))
    whole = make(base, tuning, attention=attention)
    fitted(make_trainer, whole, 4)
    first = make(base, tuning, attention=attention)
    fitted(make_trainer, first, 2).save_checkpoint(tmp_path / "two.ckpt")
    second = make(base, tuning, attention=attention)
    trainer = fitted(make_trainer, second, 4, tmp_path / "two.ckpt")
    assert equal(state(second), state(whole))
    assert whole.ema is not None
    assert second.ema is not None
    assert equal(second.ema.shadow, whole.ema.shadow)
    learnt = {name for name, p in whole.named_parameters() if p.requires_grad}
    moved = {name for name, value in state(whole).items() if not torch.equal(value, before[name])}
    assert moved == learnt
    (optimizer,) = trainer.optimizers
    assert len(optimizer.state) == len(learnt)


@pytest.mark.slow
def test_a_checkpoint_is_small_and_is_read_with_the_base_that_it_stands_on(
    make_trainer: Make, tmp_path: Path, base: str
) -> None:
    module = make(base)
    fitted(make_trainer, module, 2).save_checkpoint(tmp_path / "lora.ckpt")
    fitted(make_trainer, make(base, "full"), 2).save_checkpoint(tmp_path / "full.ckpt")
    small, large = ((tmp_path / name).stat().st_size for name in ("lora.ckpt", "full.ckpt"))
    weights = (tmp_path / "base" / "kept.safetensors").stat().st_size
    assert large > 3 * weights  # weights, average, and two moments
    assert small < large - 3 * weights
    stored = torch.load(tmp_path / "lora.ckpt", weights_only=True)
    of_network = [name for name in stored["state_dict"] if name.startswith("model.dit.")]
    assert of_network
    assert all(".lora_" in name for name in of_network)
    with module.averaged():
        made = module.model.sample("a red cube", 5, 16, 16)
    for loaded in (LitDiT.load(tmp_path / "lora.ckpt").model, ls.load(tmp_path / "lora.ckpt", "cpu")):
        assert torch.equal(loaded.sample("a red cube", 5, 16, 16), made)


@pytest.mark.slow
def test_a_saved_model_has_its_adapters_merged_and_needs_neither_peft_nor_the_base(
    make_trainer: Make, tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(base)
    fitted(make_trainer, module, 2)
    module.save(tmp_path / "saved")
    with module.averaged():
        text = module.model.text(["a red cube"])
        layout = TokenLayout.uniform(TokenGrid(2, 2, 2), 1)
        rows, t = torch.randn(1, 8, module.model.latent_dim), torch.tensor([0.5])
        predicted = module.model.dit(rows, t, text, layout)
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "base" / "kept.safetensors").unlink()
    again = ls.load(tmp_path / "saved", "cpu")
    assert not [name for name, _ in again.named_parameters() if "lora" in name or "base_layer" in name]
    torch.testing.assert_close(again.dit(rows, t, text, layout), predicted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_another_base_or_none_is_refused_in_one_line(make_trainer: Make, tmp_path: Path, base: str) -> None:
    fitted(make_trainer, make(base), 1).save_checkpoint(tmp_path / "lora.ckpt")
    other = write_kept(tmp_path / "other", seed=1)
    with pytest.raises(SoraError, match=r"trained upon frozen weights \w{16}.* give them as they were"):
        fitted(make_trainer, make(other), 2, tmp_path / "lora.ckpt")
    write_kept(tmp_path / "base", seed=1)
    with pytest.raises(SoraError, match=r"trained upon frozen weights \w{16}.* give them as they were"):
        LitDiT.load(tmp_path / "lora.ckpt")
    with pytest.raises(SoraError, match=r"trained by model.tuning=.*'full' is asked for"):
        fitted(make_trainer, make(base, "full"), 2, tmp_path / "lora.ckpt")


@pytest.mark.slow
def test_a_training_of_ones_own_is_tuned_and_stands_on_that_training(make_trainer: Make, tmp_path: Path) -> None:
    dit = {"patch_size": (4, 8, 8), "dim": 16, "depth": 1, "num_heads": 2}

    def own(**options: Any) -> LitDiT:
        usual = {"dit": dit, "sampling": {"steps": 2}, "schedule": "constant", "optimizer": "adamw(lr=1e-2)"}
        return LitDiT("identity", text=TEXT, **{**usual, **options})

    fitted(make_trainer, own(), 2).save_checkpoint(tmp_path / "first.ckpt")
    module = own(tuning=LORA, init_from=str(tmp_path / "first.ckpt"))
    fitted(make_trainer, module, 2).save_checkpoint(tmp_path / "second.ckpt")
    with module.averaged():
        made = module.model.sample("a red cube", 5, 16, 16)
    assert torch.equal(LitDiT.load(tmp_path / "second.ckpt").model.sample("a red cube", 5, 16, 16), made)
    assert {"init_from.hash", "base.hash"} <= set(module.lineage())
    third = own(init_from=str(tmp_path / "second.ckpt"))  # of the adapters merged
    assert {name for name, _ in third.model.dit.named_parameters()} == {
        name.replace(".base_layer.", ".") for name, _ in module.model.dit.named_parameters() if ".lora_" not in name
    }
    (tmp_path / "first.ckpt").unlink()
    with pytest.raises(SoraError, match=r"cannot be rebuilt: no checkpoint at .*first\.ckpt"):
        LitDiT.load(tmp_path / "second.ckpt")


@pytest.mark.slow
def test_what_a_training_of_ones_own_stands_on_has_a_trained_vae(make_trainer: Make, tmp_path: Path) -> None:
    """Whose weights are in each checkpoint, and come after those that the training began with."""
    vae = ls.ClipVAE(VAES.create(VAE), VAE)
    initialize(vae, seed=7)
    path = str(vae.save(tmp_path / "vae"))
    usual = {"text": TEXT, "sampling": {"steps": 2}, "schedule": "constant", "optimizer": "adamw(lr=1e-2)"}
    first = LitDiT(path, dit={"dim": 16, "depth": 1, "num_heads": 2}, **usual)  # type: ignore[arg-type]
    first.save(tmp_path / "first")
    second = LitDiT(
        path, dit={"dim": 16, "depth": 1, "num_heads": 2}, tuning=LORA, init_from=str(tmp_path / "first"),
        **usual,  # type: ignore[arg-type]
    )  # fmt: skip
    fitted(make_trainer, second, 2).save_checkpoint(tmp_path / "second.ckpt")
    (tmp_path / "vae").rename(tmp_path / "gone")
    read = LitDiT.load(tmp_path / "second.ckpt")
    assert read.model.vae_hash == second.model.vae_hash == read.model.vae.fingerprint()
    assert load_video_model(tmp_path / "second.ckpt", "cpu").init_from == str(tmp_path / "first")
    with second.averaged():
        made = second.model.sample("a red cube", 5, 16, 16)
    assert torch.equal(read.model.sample("a red cube", 5, 16, 16), made)


@pytest.mark.slow
def test_names_of_what_was_not_taken_over_are_kept(make_trainer: Make, tmp_path: Path) -> None:
    dit = {"patch_size": (4, 8, 8), "dim": 16, "depth": 1, "num_heads": 2}
    LitDiT("identity", text=TEXT, dit=dit).save(tmp_path / "first")
    asked = f"weights(path={str(tmp_path / 'first')!r}, strict=False)"
    module = LitDiT("identity", text=TEXT, dit={**dit, "depth": 2}, init_from=asked, schedule="constant")
    fitted(make_trainer, module, 1)
    found = read_json((tmp_path / "init_from.json").read_bytes(), "init_from.json", "")
    assert module.taken is not None
    assert found["missing"] == list(module.taken.missing)
    assert all(name.startswith("dit.blocks.1.") for name in found["missing"])
    assert found["unexpected"] == found["reshaped"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "attention"), [(LORA, "full"), ("fresh", "gated, full")])
def test_a_validation_says_how_far_the_model_has_come_from_its_base(
    make_trainer: Make, base: str, tuning: str, attention: str
) -> None:
    module = make(base, tuning, attention=attention, prompts=["a red cube moves left"], optimizer="adamw(lr=0.1)")
    trainer = make_trainer(limit_val_batches=1.0)
    (before,) = trainer.validate(module, make_data(), verbose=False)
    assert before["val/prediction_distance_from_base"] == 0.0
    trainer = fitted(make_trainer, module, 3, limit_val_batches=1.0, val_check_interval=1)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["val/prediction_distance_from_base"] > 1e-5
    versions, _ = module.gallery()
    assert list(versions) == ["base", "generated"]
    assert found["val/distance_from_base"] > 0
    full = make(base, "full", prompts=["a red cube moves left"])
    trainer = fitted(make_trainer, full, 1, limit_val_batches=1.0, val_check_interval=1)
    assert not [name for name in trainer.callback_metrics if "from_base" in name]


@pytest.mark.slow
def test_a_recipe_tunes_a_folder_of_wan_resumes_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wan(tmp_path / "wan", seed=0)
    write_wan(tmp_path / "other", seed=1)
    (tmp_path / "tune.yaml").write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    assert main(["fit", "--config", "tune.yaml", "--trainer.max_steps=2"]) == 0
    last = "run/checkpoints/last.ckpt"
    stored = torch.load(tmp_path / last, weights_only=True)
    kept = [name for name in stored["state_dict"] if name.startswith(("model.dit.", "model.vae."))]
    assert kept
    assert all(".lora_" in name for name in kept)
    assert main(["fit", "--config", "tune.yaml", "--ckpt_path=last", "--trainer.max_steps=4"]) == 0
    whole = "--trainer.default_root_dir=whole"
    assert main(["fit", "--config", "tune.yaml", whole, "--trainer.max_steps=4"]) == 0
    resumed, straight = (LitDiT.load(tmp_path / one / "checkpoints" / "last.ckpt") for one in ("run", "whole"))
    assert equal(state(resumed), state(straight))
    video = ls.load(last, "cpu").sample("a red cube", 5, 32, 32, steps=2)
    assert video.shape == (5, 32, 32, 3)
    for part, told in (("transformer", "trained upon frozen weights"), ("vae", "trained on latents of VAE")):
        (tmp_path / "wan" / part).rename(tmp_path / "kept")
        capsys.readouterr()
        assert main(["fit", "--config", "tune.yaml", "--ckpt_path=last", "--trainer.max_steps=5"]) == 2
        assert f"wan/{part}" in capsys.readouterr().err
        (tmp_path / "other" / part).rename(tmp_path / "wan" / part)
        assert main(["fit", "--config", "tune.yaml", "--ckpt_path=last", "--trainer.max_steps=5"]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if told in line]
        assert len(error) == 1
        with pytest.raises(SoraError, match=told):
            ls.load(last, "cpu")
        (tmp_path / "wan" / part).rename(tmp_path / "other" / part)
        (tmp_path / "kept").rename(tmp_path / "wan" / part)


@pytest.mark.slow
def test_a_run_is_read_from_another_directory_and_where_its_base_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wan(tmp_path / "wan", seed=0)
    (tmp_path / "tune.yaml").write_text(RECIPE.replace("FOLDER/", ""))
    assert main(["fit", "--config", "tune.yaml"]) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    here = LitDiT.load(last)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert equal(state(LitDiT.load(last)), state(here))
    (tmp_path / "wan").rename(tmp_path / "moved")
    with pytest.raises(SoraError, match=r"no folder at 'wan/vae'.*say where to: ls\.load\(\.\.\., base='DIR'\)"):
        ls.load(last, "cpu")
    moved = ls.load(last, "cpu", base=tmp_path / "moved")
    assert equal(state(moved), state(here))
    with pytest.raises(SoraError, match="holds all of its weights; leave it out"):
        ls.load(moved.save(tmp_path / "saved"), "cpu", base=tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "wan")
    with pytest.raises(SoraError, match="is found where it was; leave it out"):
        ls.load(last, "cpu", base=tmp_path / "wan")


def test_a_recipe_that_says_start_is_told_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text(RECIPE.replace("tuning: lora(rank=2)", "start: a.ckpt"))
    assert main(["fit", "--config", "old.yaml"]) == 2
    assert "model.start is now model.init_from; write that" in capsys.readouterr().err
