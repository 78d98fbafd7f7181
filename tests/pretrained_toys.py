"""Random VAEs of diffusers in miniature, written as folders by its own ``save_pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

#: The class and the options of one of each family: everything as the published ones have it, but for widths and depths.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": ("AutoencoderKLWan", {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}),
    "wan22": (
        "AutoencoderKLWan",
        {
            "base_dim": 4, "decoder_base_dim": 6, "z_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
            "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
            "latents_mean": [0.1 * c for c in range(8)], "latents_std": [1.0 + 0.2 * c for c in range(8)],
        },
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": [4, 4, 4, 4], "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan_video": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": [4, 4, 4, 4], "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan_video_15": (
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": [4, 4, 8, 8, 8], "latent_channels": 4, "layers_per_block": 1},
    ),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {
            "block_out_channels": [4, 4, 4, 4], "decoder_block_out_channels": [4, 4, 4, 4], "latent_channels": 8,
            "layers_per_block": [1, 1, 1, 1, 1], "decoder_layers_per_block": [1, 1, 1, 1, 1],
        },
    ),
    "ltx2": (
        "AutoencoderKLLTX2Video",
        {
            "block_out_channels": [4, 8, 16, 32], "decoder_block_out_channels": [16, 32, 64], "latent_channels": 8,
            "layers_per_block": [1, 1, 1, 1, 1], "decoder_layers_per_block": [1, 1, 1, 1],
            "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
        },
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {
            "encoder_block_out_channels": [8, 8, 8, 8], "decode_block_out_channels": [8, 8, 8, 8], "latent_channels": 4,
            "num_layers": 1, "latents_mean": [0.01 * i for i in range(32)],
            "latents_std": [0.5 + 0.01 * i for i in range(32)],
        },
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": [32, 32, 32, 32], "decoder_block_out_channels": [32, 32, 32, 32],
            "layers_per_block": [1, 1, 1, 1, 1], "latent_channels": 12,
        },
    ),
    "image": (
        "AutoencoderKL",
        {
            "block_out_channels": [4, 4, 4, 4], "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4, "norm_num_groups": 2, "latent_channels": 4,
            "scaling_factor": 0.3611, "shift_factor": 0.1159,
        },
    ),
}  # fmt: skip


def network(family: str, seed: int = 0, **options: Any) -> Any:
    """A random VAE of diffusers."""
    import diffusers

    name, tiny = TINY[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = getattr(diffusers, name)(**{**tiny, **options}).eval()
        for name, value in made.named_buffers():
            if name == "latents_mean":  # of LTX, which a training filled
                value.normal_()
            elif name == "latents_std":
                value.uniform_(0.5, 2.0)
    return made


def folder(family: str, at: Path, seed: int = 0, **options: Any) -> Path:
    """A folder of such a VAE."""
    network(family, seed, **options).save_pretrained(at)
    return at
