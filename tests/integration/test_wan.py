"""The native Wan in a training: clips of three sizes in each batch, adapters alone that learn, checkpoints, samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.lit import LitDiT
from lightning_sora.media import write_mp4
from lightning_sora.models.denoisers import WanDiT

pytestmark = pytest.mark.slow
diffusers = pytest.importorskip("diffusers")

SIZES = ((9, 32, 48), (5, 48, 32), (13, 32, 32))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i, size in enumerate(SIZES * 6):
        pixels = torch.rand(*size, 3, generator=torch.Generator().manual_seed(i))
        write_mp4(folder / f"{i:02}.mp4", (255 * pixels).to(torch.uint8), fps=8)
        (folder / f"{i:02}.txt").write_text(f"noise {i}")
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VAE and the transformer of a random Wan, as diffusers writes them."""
    folder = tmp_path_factory.mktemp("wan")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        vae.save_pretrained(folder / "vae")
        diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, ffn_dim=48, text_dim=8, num_layers=2
        ).save_pretrained(folder / "transformer")
    return folder


def test_adapters_learn_on_packed_clips_of_any_sizes(
    pipeline: Path, clips: Path, tmp_path: Path, make_trainer: Callable[..., pl.Trainer]
) -> None:
    module = LitDiT(
        f"diffusers(path='{pipeline / 'vae'}')",
        text="bytes(dim=8, depth=1, num_heads=1)",
        denoiser=f"wan(path='{pipeline / 'transformer'}')",
        attention="window(size=(2, 2, 2)), full",
        tuning="lora(rank=2)",
        ema_decay=None,
    )
    data = SpacetimeDataModule(
        "folder", root=str(clips), patch=(4, 16, 16), frames=13, height=32, width=48, fps=8.0, batch_size=3,
        sizes="packed",
    )  # fmt: skip
    data.setup("fit")
    layouts = [batch.layout for batch in data.train_dataloader()]
    assert all(layout.packed for layout in layouts)
    assert any(len(set(layout.grids)) > 1 for layout in layouts)
    before = {name: value.clone() for name, value in module.model.dit.state_dict().items()}
    trainer = make_trainer(max_steps=4)
    trainer.fit(module, data)
    after = module.model.dit.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = LitDiT.load(tmp_path / "last.ckpt")
    assert isinstance(again.model.dit, WanDiT)
    state = again.model.dit.state_dict()
    assert all(torch.equal(state[name], value) for name, value in after.items())
    assert again.sample("noise", 5, 32, 48, steps=1).shape == (5, 32, 48, 3)
