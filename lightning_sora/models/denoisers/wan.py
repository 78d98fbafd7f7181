"""WanDiT: the transformer of Wan on our layouts, so that clips of any sizes are one batch, with any attention."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sora.errors import SoraError, some
from lightning_sora.models.denoisers.base import DENOISERS, Condition, Denoiser, DenoiserFacts
from lightning_sora.models.denoisers.float32 import KeptFloat32
from lightning_sora.models.denoisers.wan_config import TEXT_TOKENS, WanConfig, check_class
from lightning_sora.models.denoisers.wan_files import SHARD, Weights, put_on_cpu, write_folder
from lightning_sora.models.denoisers.wan_keys import to_original
from lightning_sora.models.denoisers.wan_layers import (
    ConditionEmbedding,
    PatchEmbedding,
    WanBlock,
    draw_table,
    filled_up,
)
from lightning_sora.models.diffusers_folder import Stored, find
from lightning_sora.models.memory_estimate import check_weights_fit
from lightning_sora.models.saved import stored_weights
from lightning_sora.models.text_base import TextContext
from lightning_sora.nn.attention import AttentionBlock, create_operator, layer_specs
from lightning_sora.nn.attention.kernels import kernel_for
from lightning_sora.nn.layers import modulate
from lightning_sora.nn.rope import Stretch, rotary
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import PatchSize, TokenLayout
from lightning_sora.specs import Spec

log = logging.getLogger(__name__)

THETA = 10_000.0
#: Where the parts of a layer's own attention block hang, which no folder of Wan has.
OPERATOR = ".attn1.operator"


@DENOISERS.register("wan")
class WanDiT(KeptFloat32, Denoiser):
    """Wan's transformer (2025, arXiv:2503.20314) on packed clips: weights of diffusers' ``WanTransformer3DModel`` or of
    Wan's own ``WanModel``, of 2.1 and 2.2, for text and for images.

    Parts are named as diffusers names them. Texts are filled up with zeros to 512 tokens, which are attended to, as Wan
    was trained.

    Args:
        channels: of a latent position, in and out: those of Wan's VAE.
        text_dim: width of the text encoder.
        path: a folder that diffusers' ``save_pretrained`` wrote, or of a pipeline that has a ``transformer``, or with
            the files of Wan's own; or a name on diffusers' hub.
        attention: spec of the self-attention, or a pattern over layers (see :func:`layer_specs`). What parameters a
            block has of its own are drawn.
        kernel: how attention is computed (see :mod:`lightning_sora.nn.attention.kernels`).
        checkpoint: recompute each layer in the backward pass, to save memory.
        config: what its config.json says, with the ``_class_name``: its weights are then fresh, and nothing is read. A
            saved model says so, as it has the weights itself.
        subfolder: of the folder or the name that holds it, where that is not to be found out, as ``transformer_2``.
        revision: of a name on a hub: a branch, tag or commit.

    Attributes:
        config: its options.

    Raises:
        SoraError: nothing can be read there, it is another network, weights that do not belong to it, or a width that
            does not fit.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.models.denoisers import DENOISERS
        >>> small = {"_class_name": "WanTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 12,
        ...          "ffn_dim": 32, "text_dim": 8, "num_layers": 2}
        >>> wan = DENOISERS.create(f"wan(config={small})", channels=16, text_dim=8)
        >>> wan.facts.packs, wan.in_dim, wan.diffusers_key("blocks.0.attn1.to_q.weight")
        (True, 64, 'blocks.0.attn1.to_q.weight')
    """

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    trained_with = "AutoencoderKLWan"
    facts = DenoiserFacts(objective="velocity")
    padded_text = False

    def __init__(
        self,
        channels: int,
        text_dim: int,
        *,
        path: str | None = None,
        attention: str | Sequence[str] = "full",
        kernel: str = "sdpa",
        checkpoint: bool = False,
        config: Mapping[str, Any] | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> None:
        told, stored = _described(path, config, subfolder, revision)
        weights = None if stored is None else Weights.of(stored)
        options = WanConfig.of(told, None if weights is None else weights.shapes)
        for name, given, needed, whose in (
            ("channels", channels, options.out_channels, "VAE"),
            ("text_dim", text_dim, options.text_dim, "text encoder"),
        ):
            if given != needed:
                raise SoraError(f"this Wan is of {name}={needed}, and the {whose} of {given}; give the {whose} of Wan")
        layer = 8 * options.dim**2 + 2 * options.dim * options.ffn_dim  # of its products, which are nearly all
        check_weights_fit(str(told["_class_name"]), options.num_layers * layer)
        super().__init__(channels, text_dim, PatchSize.of(options.patch_size))
        self.config, self.checkpoint, self.pretrained = options, checkpoint, weights is not None
        self.attention = tuple(map(str, layer_specs(attention, options.num_layers)))
        self.condition_channels = options.in_channels - options.out_channels
        self.image_dim = options.image_dim
        if options.pos_embed_seq_len is not None:
            self.image_tokens, self.image_frames = options.pos_embed_seq_len, 2
        of_text = kernel_for(kernel, ("sdpa", "matmul", "flex", "varlen"), "cross-attention")
        operators = _operators(attention, options, kernel)
        with torch.device("meta"):  # nothing is drawn that is read or drawn by name thereafter
            self.patch_embedding = PatchEmbedding(options.in_channels, options.dim, self.patch_size)
            self.condition_embedder = ConditionEmbedding(options)
            self.blocks = nn.ModuleList(WanBlock(options, one, of_text) for one in operators)
            self.proj_out = nn.Linear(options.dim, self.in_dim)
            self.scale_shift_table = nn.Parameter(torch.empty(1, 2, options.dim))
        put_on_cpu(self)
        names = frozenset(name for name, _ in self.named_parameters())
        self._own = frozenset(name for name in names if OPERATOR in name)
        self._names = names - self._own  # those that a folder has
        if weights is None:
            self.draw(seed=0)
        else:
            kept = self._kept()
            weights.check(kept, str(told["_class_name"]))
            weights.fill(kept)

    @classmethod
    def widths(
        cls, path: str | None = None, config: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[int, int]:
        """The channels and the text's width of the one that these options make; no weights are read."""
        told = _described(path, config, options.get("subfolder"), options.get("revision"))[0]
        of = WanConfig.of(told)
        return of.out_channels, of.text_dim

    def reset_parameters(self) -> None:
        draw_table(self.scale_shift_table)

    def forward(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        t: Float[Tensor, " clips"] | Float[Tensor, "batch tokens"],
        text: TextContext,
        layout: TokenLayout,
        stretch: Stretch | None = None,
        condition: Condition | None = None,
    ) -> Float[Tensor, "batch tokens in_dim"]:
        self.check(x, t, text, layout, condition)
        image = None if condition is None else condition.image
        self._check_image(image, layout)
        per_token, embed = t.dim() == 2, self.condition_embedder
        context = embed.text_embedder(filled_up(text.embeddings, text.mask, TEXT_TOKENS))
        shown = None if image is None else embed.image_embedder(image)  # type: ignore[misc]
        of_time, shared = embed.time(t)
        one = layout.coordinates(x.device)[: layout.shape[1], 1:]  # the clips of a uniform batch are alike
        if stretch is not None:
            stretch = stretch._replace(factors=layout.per_token(stretch.factors.to(x.device))[0])
        rope = rotary(one, self.config.attention_head_dim, THETA, stretch)
        x = self.patch_embedding(self._beside(x, condition))
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if self.checkpoint and self.training else block
            x = run(x, shared, context, shown, layout, rope, per_token)
        final = self.scale_shift_table + of_time[..., None, :]
        shift, scale = (final if per_token else layout.per_token(final)).unbind(dim=-2)
        return self.proj_out(modulate(x.float(), shift, scale, self.config.eps).type_as(x))

    def _beside(self, x: Tensor, condition: Condition | None) -> Tensor:
        """The channels of what it is shown behind the noised ones, at each latent position of a row."""
        if condition is None:
            return x
        positions = (one.unflatten(-1, (self.patch_size.volume, -1)) for one in (x, condition.rows.to(x.dtype)))
        return torch.cat(list(positions), dim=-1).flatten(-2)

    def _check_image(self, image: Tensor | None, layout: TokenLayout) -> None:
        places = self.config.pos_embed_seq_len
        fits = image is not None and image.dim() == 3 and (image.shape[0], image.shape[2]) == (
            layout.clips, self.image_dim,
        )  # fmt: skip
        if fits and image is not None and places is not None and image.shape[1] != places:
            fits = False
        if (image is not None or self.image_dim is not None) and not fits:
            wanted = None if self.image_dim is None else (layout.clips, places or "tokens", self.image_dim)
            raise SoraError(
                f"this Wan attends to {'no image embeddings' if wanted is None else f'image embeddings of {wanted}'}, "
                f"and is given {'none' if image is None else tuple(image.shape)}; condition.image holds them"
            )

    def flops(self, layout: TokenLayout, text_tokens: int, per_token: bool = False) -> int:
        timesteps, clips = layout.total if per_token else layout.clips, layout.clips
        image = 0 if self.image_dim is None else self.image_tokens
        rows = self.patch_embedding.flops(layout.total) + 2 * layout.total * self.in_dim * self.config.dim
        condition = self.condition_embedder.flops(timesteps, clips * TEXT_TOKENS, clips * image)
        blocks = sum(block.flops(layout, TEXT_TOKENS, image) for block in self.blocks)  # type: ignore[operator]
        return rows + condition + blocks

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype  # some others stay in float32

    def fresh(self) -> frozenset[str]:
        return self._own if self.pretrained else super().fresh()

    def draw(self, seed: int) -> None:
        if not self.pretrained:
            super().draw(seed)
            return
        for name, module in self.named_modules():
            if name.endswith(OPERATOR):
                initialize(module, seed, f"dit.{name}.")

    def spec_of_its_own(self, spec: str) -> str:
        asked = DENOISERS.resolve(spec)
        kept = {name: value for name, value in asked.options.items() if name not in ("subfolder", "revision")}
        return str(Spec(asked.name, {**kept, "config": self.config.diffusers()}))

    def diffusers_key(self, name: str) -> str:
        if OPERATOR in name:
            raise SoraError(
                f"{name} is of an attention block that diffusers does not have, and has no name there; save it by "
                "`lightning-sora export RUN --to pretrained`"
            )
        return name

    # Folders.
    def save_diffusers(self, folder: str | Path, *, stored: str | None = None, shard: int = SHARD) -> Path:
        """Writes a folder that diffusers' ``WanTransformer3DModel.from_pretrained`` reads.

        Args:
            stored: precision of the weights in the files, such as "bfloat16"; None for their own.
            shard: bytes of a file at most.

        Returns:
            the folder.

        Raises:
            SoraError: it has parameters that such a folder cannot hold, or nothing can be written there.
        """
        return write_folder(folder, self.config.diffusers(), self._stored(stored), shard=shard)

    def save_original(self, folder: str | Path, *, stored: str | None = None, shard: int = SHARD) -> Path:
        """Writes a folder with the files and names of Wan's own code; otherwise as :meth:`save_diffusers`."""
        return write_folder(folder, self.config.original(), self._stored(stored), to_original, shard)

    def _kept(self) -> dict[str, Tensor]:
        """The weights that a folder holds."""
        return {name: value for name, value in self.state_dict().items() if name in self._names}

    def _stored(self, precision: str | None) -> dict[str, Tensor]:
        strange = sorted(self.state_dict().keys() - self._names)
        if strange:
            raise SoraError(
                f"a folder of Wan cannot hold {some(strange)}, of an attention block or an adapter; "
                "save it by `lightning-sora export RUN --to pretrained`"
            )
        swapped = sorted(set(self.attention) - {"full"})
        if swapped:
            log.warning("Wan's own code and diffusers will run these weights with full attention, not %s", swapped)
        return stored_weights(self, precision)


def _described(
    path: str | None, config: Mapping[str, Any] | None, subfolder: str | None, revision: str | None
) -> tuple[Mapping[str, Any], Stored | None]:
    """What a config.json says, and where the weights lie; None for fresh ones."""
    if path is None and config is None:
        raise SoraError("denoiser 'wan' needs a folder: write 'wan(path=...)', or config=... for fresh weights")
    stored = None if config is not None else find(str(path), "transformer", subfolder, revision)
    told = config if stored is None else stored.config
    if not isinstance(told, Mapping):
        raise SoraError(f"config={config!r} must be a mapping, of what a config.json says")
    check_class(told)
    return told, stored


def _operators(pattern: str | Sequence[str], config: WanConfig, kernel: str) -> list[AttentionBlock]:
    """The attention of each layer; building it moves no global generator."""
    dim, heads, depth = config.dim, config.num_attention_heads, config.num_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            create_operator(spec, dim, heads, layer=layer, depth=depth, kernel=kernel)
            for layer, spec in enumerate(layer_specs(pattern, depth))
        ]
