"""Wan natively, against diffusers' own network on random folders; packed, saved, trained and refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.models.denoisers import DENOISERS, Condition, WanDiT
from lightning_sora.models.denoisers.contract import CONTRACT
from lightning_sora.models.denoisers.wan_keys import to_original
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.lora import add_lora, merged
from lightning_sora.models.lora_files import write_lora
from lightning_sora.models.text import TextContext
from lightning_sora.nn.attention import list_attention
from lightning_sora.nn.rope import Stretch
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout, patchify, unpatchify

diffusers = pytest.importorskip("diffusers")

TEXT_DIM, IMAGE_DIM = 8, 10
PATCH = PatchSize(1, 2, 2)
TINY: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "text_dim": TEXT_DIM, "num_layers": 2,
}  # fmt: skip
#: As the published ones have it, but for widths and depths.
KINDS: dict[str, dict[str, Any]] = {
    "text_2.1": {},
    "text_2.2_5b": {"in_channels": 48, "out_channels": 48, "attention_head_dim": 16, "num_attention_heads": 3},
    "image_2.1": {"in_channels": 36, "image_dim": IMAGE_DIM, "added_kv_proj_dim": 24},
    "image_2.2": {"in_channels": 36, "attention_head_dim": 20},
    "first_and_last": {"in_channels": 36, "image_dim": IMAGE_DIM, "added_kv_proj_dim": 24, "pos_embed_seq_len": 6},
    "plain_norm": {"cross_attn_norm": False, "eps": 1e-5, "freq_dim": 32},
}
MIXED = (TokenGrid(3, 2, 5), TokenGrid(1, 4, 3), TokenGrid(2, 3, 4), TokenGrid(1, 4, 3))
Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders of random transformers by diffusers, each written once."""
    made: dict[str, Path] = {}

    def written(kind: str = "text_2.1", **options: Any) -> Path:
        key = f"{kind} {sorted(options.items())}"
        if key not in made:
            with torch.random.fork_rng():
                torch.manual_seed(len(made))
                network = diffusers.WanTransformer3DModel(**{**TINY, **KINDS[kind], **options})
                for name, value in network.named_parameters():
                    if "norm" in name or name.endswith("pos_embed"):  # those of 1 and 0, which a training moves
                        value.data.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
            made[key] = tmp_path_factory.mktemp("wan") / "transformer"
            network.save_pretrained(made[key])
        return made[key]

    return written


def theirs(folder: Path) -> Any:
    return diffusers.WanTransformer3DModel.from_pretrained(folder)


def ours(folder: Path, **options: Any) -> WanDiT:
    channels = json.loads((folder / "config.json").read_text()).get("out_channels", 16)
    return WanDiT(channels, TEXT_DIM, path=str(folder), **options).eval()


def draw(*size: int, seed: int = 2) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def text_of(lengths: list[int]) -> TextContext:
    """Embeddings whose padding is not zero, as encoders leave it."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TextContext(draw(len(lengths), max(lengths), TEXT_DIM, seed=7), mask)


def shown(wan: WanDiT, layout: TokenLayout) -> Condition | None:
    if not wan.condition_channels:
        return None
    tokens = wan.config.pos_embed_seq_len or 5
    image = None if wan.image_dim is None else draw(layout.clips, tokens, IMAGE_DIM, seed=4)
    return Condition(draw(*layout.shape, 4 * wan.condition_channels, seed=3), image)


def by_diffusers(
    network: Any, x: Tensor, t: Tensor, text: TextContext, grid: TokenGrid, condition: Condition | None
) -> Tensor:
    """What the network of diffusers makes of our rows, in rows."""

    def video(rows: Tensor) -> Tensor:
        return unpatchify(rows, grid, PATCH).movedim(-1, 1)

    noised = video(x) if condition is None else torch.cat([video(x), video(condition.rows)], dim=1)
    words = pad(text.embeddings * text.mask[..., None], (0, 0, 0, 512 - text.mask.shape[1]))
    image = None if condition is None else condition.image
    if image is not None and network.config.pos_embed_seq_len:
        image = image.reshape(-1, image.shape[1] // 2, IMAGE_DIM)  # a first and a last frame as two images
    made = network(noised, 1000.0 * t, words, image).sample
    return patchify(made.movedim(1, -1), PATCH)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_token", [False, True], ids=["per_clip", "per_token"])
@torch.no_grad()
def test_it_is_the_network_of_diffusers(of: Folder, kind: str, per_token: bool) -> None:
    wan, grid = ours(of(kind)), TokenGrid(3, 2, 4)
    layout = TokenLayout.uniform(grid, 2)
    x, text = draw(*layout.shape, wan.in_dim), text_of([7, 3])
    t = torch.rand(layout.shape) if per_token else torch.tensor([0.13, 0.8])
    if per_token:
        t[:, : grid.height * grid.width] = 0.0  # the first frame is known, as Wan 2.2 5B has it
    condition = shown(wan, layout)
    made = wan(x, t, text, layout, condition=condition)
    assert made.abs().mean() > 0.1
    torch.testing.assert_close(made, by_diffusers(theirs(of(kind)), x, t, text, grid, condition), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["text_2.1", "image_2.1"])
def test_a_gradient_step_is_that_of_diffusers(of: Folder, kind: str) -> None:
    wan, network, grid = ours(of(kind)), theirs(of(kind)), TokenGrid(2, 2, 4)
    layout = TokenLayout.uniform(grid, 2)
    x, text, t, target = draw(2, 16, wan.in_dim), text_of([7, 3]), torch.tensor([0.1, 0.8]), draw(2, 16, wan.in_dim)
    condition = shown(wan, layout)
    for made in (wan(x, t, text, layout, condition=condition), by_diffusers(network, x, t, text, grid, condition)):
        (made - target).square().mean().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    mine = {wan.diffusers_key(name): value.grad for name, value in wan.named_parameters()}
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(mine[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["text_2.1", "image_2.1", "first_and_last"])
@pytest.mark.parametrize("per_token", [False, True], ids=["per_clip", "per_token"])
@torch.no_grad()
def test_clips_of_any_sizes_in_one_batch_are_as_one_by_one(of: Folder, kind: str, per_token: bool) -> None:
    wan, layout = ours(of(kind), attention="window(size=(2,2,2)), full"), TokenLayout.pack(MIXED)
    x, text = draw(*layout.shape, wan.in_dim), text_of([7, 1, 4, 9])
    t = torch.rand(layout.shape) if per_token else torch.tensor([0.1, 0.9, 0.5, 0.3])
    condition = shown(wan, layout)
    rows = [None] * 4 if condition is None else layout.split(condition.rows)
    together = layout.split(wan(x, t, text, layout, condition=condition))
    times = layout.split(t) if per_token else list(t)
    for i, part in enumerate(layout.split(x)):
        words = TextContext(text.embeddings[i, None], text.mask[i, None])
        image = None if condition is None or condition.image is None else condition.image[i, None]
        beside = None if rows[i] is None else Condition(rows[i][None], image)  # type: ignore[index]
        alone = wan(part[None], times[i][None], words, layout.clip(i), condition=beside)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_packed_batch_is_the_network_of_diffusers_too(of: Folder) -> None:
    wan, network, layout = ours(of()), theirs(of()), TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, wan.in_dim), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9])
    together = layout.split(wan(x, t, text, layout))
    for i, (part, grid) in enumerate(zip(layout.split(x), layout.grids, strict=True)):
        words = TextContext(text.embeddings[i, None], text.mask[i, None])
        alone = by_diffusers(network, part[None], t[i, None], words, grid, None)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", list_attention())
@torch.no_grad()
def test_every_block_runs_in_it_and_packs(of: Folder, block: str) -> None:
    wan = ours(of(), attention=block)
    wan.draw(seed=3)
    layout = TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, wan.in_dim), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9])
    together = layout.split(wan(x, t, text, layout))
    for i, part in enumerate(layout.split(x)):
        words = TextContext(text.embeddings[i, None], text.mask[i, None])
        alone = wan(part[None], t[i, None], words, layout.clip(i))[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)


def test_what_a_block_brings_is_drawn_by_name_and_nothing_else_moves(of: Folder) -> None:
    before = torch.random.get_rng_state()
    gated, plain = ours(of(), attention="gated"), ours(of())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert gated.fresh() == {f"blocks.{n}.attn1.operator.gate.weight" for n in range(2)}
    assert not plain.fresh()
    values = []
    for seed in (1, 2, 1):
        gated.draw(seed)
        values.append(gated.state_dict()["blocks.1.attn1.operator.gate.weight"].clone())
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[1])
    kept = plain.state_dict()
    assert all(torch.equal(gated.state_dict()[name], value) for name, value in kept.items())


LAYOUTS = {
    "uniform": TokenLayout.uniform(TokenGrid(2, 3, 4), 3),
    "packed": TokenLayout.pack(MIXED),
    "one": TokenLayout.pack(MIXED[:1]),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ["text_2.1", "image_2.1", "first_and_last"])
@pytest.mark.parametrize("per_token", [False, True], ids=["per_clip", "per_token"])
@torch.no_grad()
def test_declared_flops_are_the_counted_ones(of: Folder, layout: TokenLayout, kind: str, per_token: bool) -> None:
    wan = ours(of(kind), attention="window(size=(2,2,2)), full")
    condition = shown(wan, layout)
    if condition is not None and wan.config.pos_embed_seq_len is None and wan.image_dim is not None:
        condition = condition._replace(image=draw(layout.clips, 257, IMAGE_DIM))
    t = torch.rand(layout.shape) if per_token else torch.rand(layout.clips)
    with FlopCounterMode(display=False) as counter:
        wan(draw(*layout.shape, wan.in_dim), t, text_of([5] * layout.clips), layout, condition=condition)
    assert wan.flops(layout, text_tokens=5, per_token=per_token) == counter.get_total_flops()


def test_checkpointing_changes_no_gradient(of: Folder) -> None:
    layout, gradients = TokenLayout.pack(MIXED), []
    x, t, text = draw(*layout.shape, 64), torch.rand(4), text_of([7, 1, 4, 9])
    for checkpoint in (False, True):
        wan = ours(of(), checkpoint=checkpoint).train()
        wan(x, t, text, layout).square().mean().backward()
        gradients.append([value.grad for value in wan.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_each_clip_is_stretched_by_itself(of: Folder) -> None:
    wan, layout = ours(of()), TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, wan.in_dim), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9])
    factors = torch.tensor([[2.0, 1.0, 1.5], [1.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 2.0, 2.0]])
    plain = layout.split(wan(x, t, text, layout))
    stretched = layout.split(wan(x, t, text, layout, Stretch("ntk", factors)))
    for one, other, of_clip in zip(stretched, plain, factors, strict=True):
        assert torch.equal(one, other) == bool((of_clip == 1).all())


@torch.no_grad()
def test_cast_to_half_it_keeps_in_float32_what_diffusers_keeps(of: Folder) -> None:
    network = diffusers.WanTransformer3DModel.from_pretrained(of("image_2.1"), torch_dtype=torch.bfloat16)
    wan, grid = ours(of("image_2.1")).to(torch.bfloat16), TokenGrid(2, 2, 4)
    assert {name: value.dtype for name, value in wan.named_parameters()} == {
        name: value.dtype for name, value in network.named_parameters()
    }
    assert wan.dtype == torch.bfloat16
    layout = TokenLayout.uniform(grid, 2)
    x, text = draw(*layout.shape, wan.in_dim).bfloat16(), text_of([7, 3])
    text = TextContext(text.embeddings.bfloat16(), text.mask)
    condition = shown(wan, layout)
    assert condition is not None
    assert condition.image is not None
    condition = Condition(condition.rows.bfloat16(), condition.image.bfloat16())
    t = torch.tensor([0.13, 0.8])
    made = wan(x, t, text, layout, condition=condition)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made, by_diffusers(network, x, t, text, grid, condition), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("kind", ["text_2.1", "image_2.1", "first_and_last"])
def test_it_keeps_the_contract(of: Folder, kind: str, law: str) -> None:
    CONTRACT.laws[law](f"wan(path='{of(kind)}', attention='window(size=(2, 2, 2)), gated')")


@pytest.mark.parametrize("kind", ["text_2.1", "image_2.1"])
def test_under_autocast_it_is_the_same_up_to_bfloat16(of: Folder, kind: str) -> None:
    wan, layout = ours(of(kind), attention="window(size=(2,2,2)), gated"), TokenLayout.pack(MIXED)
    x, t, text = draw(*layout.shape, wan.in_dim), torch.tensor([0.1, 0.9, 0.5, 0.3]), text_of([7, 1, 4, 9])
    condition = shown(wan, layout)
    exact = wan(x, t, text, layout, condition=condition)
    with torch.autocast("cpu", torch.bfloat16):
        made = wan(x, t, text, layout, condition=condition)
        made.float().square().mean().backward()
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), exact, atol=0.1, rtol=0.1)
    assert all(value.grad is not None and value.grad.isfinite().all() for value in wan.parameters())


# Folders.
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_diffusers_reads(of: Folder, kind: str, tmp_path: Path) -> None:
    folder = ours(of(kind)).save_diffusers(tmp_path / "saved")
    network, before = theirs(folder), theirs(of(kind))
    assert {k: v for k, v in network.config.items() if k[0] != "_"} == {
        k: v for k, v in before.config.items() if k[0] != "_"
    }
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_wans_own_code_go_there_and_back_exactly(of: Folder, kind: str, tmp_path: Path) -> None:
    wan = ours(of(kind))
    folder = wan.save_original(tmp_path / "own")
    content = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert content.keys() == {to_original(name) for name in theirs(of(kind)).state_dict()}
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "WanModel"
    assert config["model_type"] == {"te": "t2v", "im": "i2v", "fi": "flf2v", "pl": "t2v"}[kind[:2]].replace(
        "t2v", "ti2v" if wan.channels == 48 else "t2v"
    )
    again = WanDiT(wan.channels, TEXT_DIM, path=str(folder))
    assert again.config == wan.config
    assert all(torch.equal(again.state_dict()[name], value) for name, value in wan.state_dict().items())
    second = again.save_original(tmp_path / "again")
    assert all(one.read_bytes() == (second / one.name).read_bytes() for one in folder.iterdir())


def test_a_config_as_wan_publishes_it() -> None:
    """What is in the config.json of Wan2.1-T2V-1.3B and of Wan2.2-I2V-A14B, by Wan's own code."""
    from lightning_sora.models.denoisers.wan_config import WanConfig

    small = WanConfig.of({
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 1536, "eps": 1e-06, "ffn_dim": 8960,
        "freq_dim": 256, "in_dim": 16, "model_type": "t2v", "num_heads": 12, "num_layers": 30, "out_dim": 16,
        "text_len": 512,
    })  # fmt: skip
    known = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    assert small == WanConfig.of({"_class_name": "WanTransformer3DModel", **known})
    large = WanConfig.of({
        "_class_name": "WanModel", "dim": 5120, "eps": 1e-06, "ffn_dim": 13824, "freq_dim": 256, "in_dim": 36,
        "model_type": "i2v", "num_heads": 40, "num_layers": 40, "out_dim": 16, "text_len": 512,
    })  # fmt: skip
    assert (large.attention_head_dim, large.image_dim, large.in_channels) == (128, None, 36)


def test_folders_of_several_files_are_read_and_written(of: Folder, tmp_path: Path) -> None:
    wan = ours(of("image_2.1"))
    theirs(of("image_2.1")).save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    folder = wan.save_diffusers(tmp_path / "ours", shard=20_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert len(list(folder.glob("*.safetensors"))) > 2
    for one in (tmp_path / "theirs", folder):
        for state in (theirs(one).state_dict(), ours(one).state_dict()):
            assert all(torch.equal(state[name], value) for name, value in wan.state_dict().items())
    wan.save_diffusers(folder)  # in one file, of which those of before do not stay
    assert sorted(one.name for one in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_weights_in_half_are_read_as_float32(of: Folder, tmp_path: Path) -> None:
    wan = ours(of())
    half = ours(wan.save_diffusers(tmp_path / "half", stored="bfloat16"))
    assert half.dtype == torch.float32
    for name, value in wan.state_dict().items():
        assert torch.equal(half.state_dict()[name], value.bfloat16().float())


def test_what_a_folder_cannot_hold_is_named_and_other_attention_is_told(
    of: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SoraError, match=r"cannot hold blocks\.0\.attn1\.operator\.gate\.weight, blocks\.1"):
        ours(of(), attention="gated").save_original(tmp_path / "gated")
    with pytest.raises(SoraError, match="has no name there"):
        ours(of(), attention="gated").diffusers_key("blocks.0.attn1.operator.gate.weight")
    assert not (tmp_path / "gated").exists()
    with caplog.at_level(logging.WARNING):
        ours(of()).save_diffusers(tmp_path / "full")
        assert not caplog.text
        ours(of(), attention="window, full").save_diffusers(tmp_path / "window")
    assert "will run these weights with full attention, not ['window']" in caplog.text


def test_adapters_of_it_are_those_of_diffusers_and_merge_into_a_folder(of: Folder, tmp_path: Path) -> None:
    wan, network, layout = ours(of()), theirs(of()), TokenLayout.uniform(TokenGrid(2, 2, 4), 2)
    names = add_lora(wan, rank=3)
    assert set(names) == {f"blocks.{n}.attn{m}.{end}" for n in (0, 1) for m in (1, 2) for end in wan.lora_targets}
    assert {name for name, value in wan.named_parameters() if value.requires_grad} == {
        f"{name}.lora_{side}.default.weight" for name in names for side in "AB"
    }
    with torch.no_grad():
        for name, value in wan.named_parameters():
            if "lora_B" in name:
                value.copy_(draw(*value.shape, seed=len(name)))
    with pytest.raises(SoraError, match=r"cannot hold blocks\.0\.attn1\.to_k\.base_layer"):
        wan.save_diffusers(tmp_path / "refused")
    plain = merged(wan)
    network.load_lora_adapter(str(write_lora(wan, tmp_path / "lora.safetensors")))
    x, t, text = draw(2, 16, wan.in_dim), torch.tensor([0.1, 0.8]), text_of([7, 3])
    with torch.no_grad():
        adapted = wan(x, t, text, layout)
        assert not torch.allclose(adapted, ours(of())(x, t, text, layout), atol=1e-3)
        expected = by_diffusers(network, x, t, text, layout.grids[0], None)
        torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=1e-5)
        folder = plain.save_diffusers(tmp_path / "merged")
        tuned = by_diffusers(theirs(folder), x, t, text, layout.grids[0], None)
        torch.testing.assert_close(tuned, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shard", ["10GB", "20KB"], ids=["one_file", "several"])
def test_a_name_is_read_from_what_its_hub_left_here(
    of: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    of_name = tmp_path / "models--nobody--wan"
    (of_name / "refs").mkdir(parents=True)
    (of_name / "refs" / "main").write_text("a" * 40)
    folder = of_name / "snapshots" / ("a" * 40) / "transformer"
    theirs(of()).save_pretrained(folder, max_shard_size=shard)
    state = ours_of(Path("nobody/wan")).state_dict()
    assert all(torch.equal(state[name], value) for name, value in ours(of()).state_dict().items())
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(WeightsMissing, match="the weights of 'nobody/wan' cannot be had from its hub"):
        ours_of(Path("nobody/wan"))


def test_a_pipeline_and_its_subfolders_are_looked_into(of: Folder, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    ours(of()).save_diffusers(tmp_path / "transformer")
    ours(of("plain_norm")).save_diffusers(tmp_path / "transformer_2")
    assert ours_of(tmp_path).config.cross_attn_norm
    assert not ours_of(tmp_path, subfolder="transformer_2").config.cross_attn_norm


def ours_of(path: Path, **options: Any) -> WanDiT:
    return WanDiT(16, TEXT_DIM, path=str(path), **options)


def test_a_model_with_it_is_made_saved_loaded_and_sampled(of: Folder, tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.save_pretrained(tmp_path / "vae")
    model = LatentDiffusion.create(
        f"diffusers(path='{tmp_path / 'vae'}')",
        f"bytes(dim={TEXT_DIM})",
        denoiser=f"wan(path='{of()}', attention='gated, full')",
        sampling={"steps": 2},
    )
    made = model.sample("a red cube", 5, 32, 48)
    saved = model.save(tmp_path / "model")
    (tmp_path / "vae").rename(tmp_path / "gone")
    (moved := of().with_name("moved")).exists() or of().rename(moved)  # which it does not need any more
    try:
        again = LatentDiffusion.load(saved)
    finally:
        moved.rename(of())
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(again.sample("a red cube", 5, 32, 48), made)
    assert made.shape == (5, 32, 48, 3)


def test_fresh_ones_are_the_same_every_time_and_drawn_by_the_seed() -> None:
    spec = f"wan(config={ {'_class_name': 'WanTransformer3DModel', **TINY} })"
    one, same = (DENOISERS.create(spec, 16, TEXT_DIM) for _ in range(2))
    assert isinstance(one, WanDiT)
    assert not one.pretrained
    assert one.fresh() == dict(one.named_parameters()).keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    same.draw(seed=5)
    assert not torch.equal(one.proj_out.weight, same.proj_out.weight)  # type: ignore[arg-type]
    own = one.spec_of_its_own("wan(path='there', attention='window', subfolder='x')")
    assert DENOISERS.resolve(own).options.keys() == {"path", "attention", "config"}
    assert isinstance(DENOISERS.create(own, 16, TEXT_DIM), WanDiT)


# What does not fit.
def _config(folder: Path, at: Path, **changed: Any) -> Path:
    at.mkdir()
    config = {**json.loads((folder / "config.json").read_text()), **changed}
    (at / "config.json").write_text(json.dumps(config))
    (at / "diffusion_pytorch_model.safetensors").symlink_to(folder / "diffusion_pytorch_model.safetensors")
    return at


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"_class_name": "WanVACETransformer3DModel"},
            "'WanVACETransformer3DModel' is no Wan transformer of this kind",
        ),
        ({"_class_name": "CogVideoXTransformer3DModel"}, "is no Wan transformer of this kind"),
        ({"vace_layers": [0]}, "vace_layers: no option of a WanTransformer3DModel"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is none of this network's"),
        ({"num_layers": 3}, "lacks weights of the WanTransformer3DModel that its config.json describes: blocks.2."),
        ({"num_layers": 1}, "has in excess weights"),
        ({"ffn_dim": 48}, r"ffn.net.0.proj.weight of shape \(40, 24\), and its config.json describes \(48, 24\)"),
        ({"num_layers": "2"}, "num_layers='2' must be int"),
        ({"num_layers": True}, "num_layers=True must be int"),
        ({"num_layers": 0}, "num_layers=0 must be positive"),
        ({"patch_size": [1, 2]}, r"patch_size=\[1, 2\] must be tuple"),
        ({"patch_size": [1, 0, 2]}, "patch_size=.* must be positive"),
        ({"in_channels": 8}, "in_channels=8 must be at least out_channels=16"),
        ({"image_dim": 5}, "image_dim=5 and added_kv_proj_dim=None must both"),
        ({"image_dim": 5, "added_kv_proj_dim": 5}, "added_kv_proj_dim=5 must be the model's width, 24"),
        ({"pos_embed_seq_len": 5}, "has no meaning without image_dim"),
        ({"attention_head_dim": 5}, "cannot be rotated"),
        ({"freq_dim": 7}, "freq_dim=7 must be even"),
        ({"eps": 0}, "eps=0 must be positive"),
        ({"cross_attn_norm": None}, "cross_attn_norm=None must be bool"),
        ({"out_channels": 12}, "channels=12, and the VAE of 16"),
        ({"text_dim": 12}, "text_dim=12, and the text encoder of 8"),
        ({"_class_name": "WanModel", "model_type": "vace"}, "model_type='vace' is no Wan transformer of this kind"),
        ({"_class_name": "WanModel"}, "no option of a WanModel"),
        ({"quantization_config": {}}, "quantization_config: no option"),
    ],
)
def test_a_configuration_that_it_has_not_is_refused(
    of: Folder, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(SoraError, match=words):
        ours_of(_config(of(), tmp_path / "changed", **changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text_len": 77}, "text_len=77 is not what this network has, which is 512"),
        ({"qk_norm": False}, "qk_norm=False is not what this network has"),
        ({"window_size": [4, 4]}, "window_size="),
        ({"num_heads": 5}, "dim=24 does not divide into num_heads=5"),
        ({"vace_layers": 4}, "vace_layers: no option of a WanModel"),
        ({"model_type": "s2v"}, "model_type='s2v'"),
    ],
)
def test_a_configuration_of_wans_own_that_it_has_not_is_refused(
    of: Folder, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    folder = ours(of()).save_original(tmp_path / "own")
    with pytest.raises(SoraError, match=words):
        ours_of(_config(folder, tmp_path / "changed", **changed))


def test_weights_that_are_not_there_or_damaged_are_refused(of: Folder, tmp_path: Path) -> None:
    folder = ours(of()).save_diffusers(tmp_path / "sharded", shard=20_000)
    second = sorted(folder.glob("*.safetensors"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SoraError, match=f"{second.name} is cut short: .* download or copy it again"):
        ours_of(folder)
    second.unlink()
    with pytest.raises(WeightsMissing, match=f"was not downloaded whole: .*{second.name} is not there"):
        ours_of(folder)
    own = ours(of()).save_original(tmp_path / "own")
    weights = load_file(own / "diffusion_pytorch_model.safetensors")
    save_file({**weights, "vace_blocks.0.norm3.bias": torch.zeros(1)}, own / "diffusion_pytorch_model.safetensors")
    with pytest.raises(SoraError, match=r"in excess weights of the WanModel .*: vace_blocks\.0\.norm3\.bias;"):
        ours_of(own)
    (own / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, own / "model.pth")
    with pytest.raises(WeightsMissing, match=r"model\.pth is no safetensors; a pickle can run code"):
        ours_of(own)
    with pytest.raises(SoraError, match=r"model\.pth' is a file, and not the folder"):
        ours_of(own / "model.pth")
    with pytest.raises(WeightsMissing, match="no folder at"):
        ours_of(tmp_path / "nowhere")
    with pytest.raises(SoraError, match=r"write 'wan\(path=...\)'"):
        WanDiT(16, TEXT_DIM)
    with pytest.raises(SoraError, match="None is no Wan transformer of this kind"):
        DENOISERS.create("wan(config={})", 16, TEXT_DIM)


@torch.no_grad()
def test_what_it_is_given_must_fit(of: Folder) -> None:
    wan, layout = ours(of("image_2.1")), TokenLayout.uniform(TokenGrid(1, 2, 2), 2)
    x, t, text, condition = draw(2, 4, wan.in_dim), torch.rand(2), text_of([3, 2]), shown(wan, layout)
    assert condition is not None
    wan(x, t, text, layout, condition=condition)
    for wrong, words in (
        (None, "is to be shown rows of shape"),
        (Condition(condition.rows), r"attends to image embeddings of \(2, 'tokens', 10\), and is given none"),
        (Condition(condition.rows, draw(1, 5, IMAGE_DIM)), r"and is given \(1, 5, 10\)"),
        (Condition(condition.rows[..., :4], condition.image), "is to be shown rows of shape"),
    ):
        with pytest.raises(SoraError, match=words):
            wan(x, t, text, layout, condition=wrong)
    plain, rows = ours(of("image_2.2")), Condition(condition.rows, condition.image)
    with pytest.raises(SoraError, match="attends to no image embeddings, and is given"):
        plain(x, t, text, layout, condition=rows)
    both = ours(of("first_and_last"))
    with pytest.raises(SoraError, match=r"image embeddings of \(2, 6, 10\), and is given \(2, 5, 10\)"):
        both(x, t, text, layout, condition=rows)
    with pytest.raises(SoraError, match="captions of 513 tokens do not fit the 512"):
        ours(of())(draw(2, 4, 64), t, text_of([513, 2]), layout)
