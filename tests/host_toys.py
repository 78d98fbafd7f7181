"""Random video transformers of diffusers in miniature, written as folders by its own ``save_pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXT = 16  # width of their text
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2}
_WAN: dict[str, Any] = {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": TEXT, "freq_dim": 16, "ffn_dim": 32}
_COG: dict[str, Any] = {
    **_HEADS, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_embed_dim": TEXT,
    "time_embed_dim": 8, "sample_width": 16, "sample_height": 8, "sample_frames": 9, "max_text_seq_length": 12,
}  # fmt: skip
_ROTARY = {**_COG, "use_rotary_positional_embeddings": True}

#: The class and the options of one of each family and variant: as the published ones, but for widths and depths.
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": ("WanTransformer3DModel", _WAN),
    "wan_i2v": ("WanTransformer3DModel", {**_WAN, "in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 24}),
    "cogvideox": ("CogVideoXTransformer3DModel", _ROTARY),
    "cogvideox_2b": ("CogVideoXTransformer3DModel", _COG),
    "cogvideox_15_i2v": (
        "CogVideoXTransformer3DModel",
        {**_ROTARY, "in_channels": 8, "patch_size_t": 2, "ofs_embed_dim": 8, "patch_bias": False},
    ),
    "hunyuan_video": (
        "HunyuanVideoTransformer3DModel",
        {
            **_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
            "num_refiner_layers": 1, "text_embed_dim": TEXT, "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 4),
        },
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        {**_HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 24, "caption_channels": TEXT},
    ),
    "mochi": (
        "MochiTransformer3DModel",
        {**_HEADS, "in_channels": 4, "pooled_projection_dim": 16, "text_embed_dim": TEXT, "time_embed_dim": 8},
    ),
}  # fmt: skip
FAMILIES = ("wan", "cogvideox", "hunyuan_video", "ltx", "mochi")


def transformer(family: str, seed: int = 0, **options: Any) -> Any:
    """A random transformer of diffusers, in which no parameter is at a zero that hides what is behind it."""
    import diffusers

    name, tiny = HOSTS[family]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = getattr(diffusers, name)(**{**tiny, **options}).eval()
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return made


def host_folder(family: str, at: Path, seed: int = 0, **options: Any) -> Path:
    """A folder of such a transformer."""
    transformer(family, seed, **options).save_pretrained(at)
    return at


def channels_of(family: str) -> int:
    return HOSTS[family][1].get("out_channels") or HOSTS[family][1]["in_channels"]
