"""Wan's two sets of names, against the converters that diffusers brings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers.wan_keys import to_diffusers, to_original

SMALL: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 16, "num_layers": 2,
}  # fmt: skip
IMAGES: dict[str, Any] = {"in_channels": 36, "image_dim": 20, "added_kv_proj_dim": 24, "pos_embed_seq_len": 6}


def _network(**options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.WanTransformer3DModel(**SMALL, **options)


@pytest.mark.parametrize("options", [{}, {"cross_attn_norm": False}, IMAGES], ids=["text", "plain_norm", "image"])
def test_every_parameter_has_a_name_of_its_own_there_and_back(options: dict[str, Any]) -> None:
    names = list(_network(**options).state_dict())
    originals = [to_original(name) for name in names]
    assert len(set(originals)) == len(names)
    assert [to_diffusers(original) for original in originals] == names


@pytest.mark.parametrize("options", [{}, IMAGES], ids=["text", "image"])
def test_the_names_are_those_that_diffusers_reads_of_an_original_file(options: dict[str, Any]) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = _network(**options).state_dict()
    converted = convert_wan_transformer_to_diffusers({to_original(name): value for name, value in state.items()})
    # Which has no name for the positions of a first and a last frame: those it leaves as they are.
    left = {"img_emb.emb_pos"} if options else set()
    assert set(state) ^ set(converted) == left | ({to_diffusers(name) for name in left})
    assert all(converted[name] is state[name] for name in set(state) & set(converted))


@pytest.mark.parametrize("options", [{}, IMAGES], ids=["text", "image"])
def test_the_names_of_adapters_are_those_that_diffusers_reads(options: dict[str, Any]) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers

    linear = [name for name, module in _network(**options).named_modules() if isinstance(module, torch.nn.Linear)]
    wanted = {f"transformer.{name}.lora_{side}.weight" for name in linear for side in "AB"}
    for down, up in (("lora_A", "lora_B"), ("lora_down", "lora_up")):
        written = {
            f"diffusion_model.{to_original(name)}.{side}.weight": torch.zeros(4, 4)
            for name in linear
            for side in (down, up)
        }
        assert set(_convert_non_diffusers_wan_lora_to_diffusers(written)) == wanted


def test_modules_and_what_hangs_on_them_are_renamed_too() -> None:
    modules = [name for name, _ in _network(**IMAGES).named_modules()]
    shared = [name for name in modules if name.startswith("blocks") and "ffn.net" not in name and "to_out" not in name]
    for name in shared:
        assert to_diffusers(to_original(name)) == name
    assert to_original("blocks.11.attn1") == "blocks.11.self_attn"
    assert (
        to_original("blocks.11.attn1.to_out.0.lora_B.default.weight") == "blocks.11.self_attn.o.lora_B.default.weight"
    )
    assert to_diffusers("blocks.11.norm2") == "blocks.11.norm3"
    assert to_diffusers("blocks.11.norm3.bias") == "blocks.11.norm2.bias"
    assert to_original("condition_embedder.time_embedder") == "time_embedding"


@pytest.mark.parametrize(
    "name",
    [
        "", "head", "blocks.x.attn1.to_q", "blocks.0.attn1.to_qkv.weight", "blocks.0.self_attn.q.weight",
        "blocks.0.attn1.add_k_proj.weight", "diffusion_model.blocks.0.norm2", "rope.freqs_cos",
    ],
)  # fmt: skip
def test_a_name_of_no_part_is_refused(name: str) -> None:
    with pytest.raises(SoraError, match="names no part of diffusers'"):
        to_original(name)


@pytest.mark.parametrize("name", ["blocks.0.attn1.to_q", "modulation", "vace_blocks.0.self_attn.q", "head"])
def test_an_original_name_of_no_part_is_refused(name: str) -> None:
    with pytest.raises(SoraError, match="names no part of Wan's own"):
        to_diffusers(name)
