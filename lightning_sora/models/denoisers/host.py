"""Pretrained transformers of diffusers, as denoisers of ours."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError, some
from lightning_sora.models.adapted import without_adapters
from lightning_sora.models.denoisers.base import DENOISERS, Condition, Denoiser, DenoiserFacts
from lightning_sora.models.denoisers.float32 import kept_by_diffusers, uncast
from lightning_sora.models.denoisers.host_attention import CountedScores, Whereabouts, block_flops, swap
from lightning_sora.models.denoisers.host_families import Feed, HostFamily, HostOptions, family_of_transformer
from lightning_sora.models.denoisers.host_steps import scheduler_beside
from lightning_sora.models.diffusers_folder import Stored, build, diffusers_class, find, keep_fresh, load, quiet_on_cpu
from lightning_sora.models.families import vae_of_transformer
from lightning_sora.models.text_base import TextContext
from lightning_sora.nn.attention import AttentionBlock, create_operator, layer_specs
from lightning_sora.nn.rope import Stretch
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import TokenLayout
from lightning_sora.specs import Spec

log = logging.getLogger(__name__)

NETWORK = "network."


@DENOISERS.register("diffusers")
class DiffusersDenoiser(Denoiser):
    """A pretrained video transformer of diffusers: Wan, CogVideoX, HunyuanVideo, LTX or Mochi, with its own attention
    or with blocks of ours inside.

    It takes rows and ``t`` in [0, 1] as every denoiser does, and is fed as its family's pipeline in diffusers feeds it
    (:mod:`lightning_sora.models.denoisers.host_families`). Its weights are in float32; cast to another precision, those
    stay in it that diffusers keeps in it.

    Args:
        channels: of a latent position, which are the VAE's.
        text_dim: width of the text encoder.
        path: a folder that ``save_pretrained`` wrote, or of a pipeline that has a ``transformer``; or a name on
            diffusers' hub.
        subfolder: of the folder or the name that holds it, where that is not to be found out, such as
            ``"transformer_2"`` of Wan 2.2.
        revision: of a name on a hub: a branch, tag or commit.
        attention: spec of the self-attention, or a pattern over layers (see :func:`layer_specs`), which takes the place
            of diffusers' own; None leaves that. Projections, norms and rotary positions stay. Where text is in the
            sequence, tokens see their own field and all text, and text sees everything.
        kernel: how that attention is computed; None for each block's own choice.
        checkpoint: recompute each layer in the backward pass, to save memory.
        guidance: of HunyuanVideo: the scale of guidance that it is told, 6 by default.
        fps: of LTX: frames per second of the videos, 25 by default.
        stride: of LTX: frames, height and width in pixels of a latent position, (8, 32, 32) by default.
        scheduler: of CogVideoX: betas, as a scheduler_config.json names them; by default those of the ``scheduler``
            beside it, and without one those of the published model.
        config: what its config.json says, with the ``_class_name``: its weights are then fresh, and nothing is read. A
            saved model says so, as it has the weights itself.

    Attributes:
        network: the module of diffusers.
        attention: the blocks of ours, a list of modules with the parameters that they have.
        family: how it is fed.

    Raises:
        SoraError: diffusers is not installed, nothing can be read there, it is of no family that is known, it is of
            other channels or text, an option that it does not have, or a block that cannot be carried.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.models.denoisers import DENOISERS
        >>> spec = "diffusers(path='models/wan', attention='window*3, full')"
        >>> DENOISERS.create(spec, 16, 4096).facts.objective  # doctest: +SKIP
        'velocity'
    """

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(
        self,
        channels: int,
        text_dim: int,
        path: str,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        attention: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
        kernel: str | None = None,
        checkpoint: bool = False,
        guidance: float | None = None,
        fps: float | None = None,
        stride: Sequence[int] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        stored, told = _described(path, subfolder, revision, config)
        if kernel is not None and attention is None:
            raise SoraError(
                f"kernel={kernel!r} is of attention=..., which is not named; name it, or leave the kernel out"
            )
        kind = family_of_transformer(told.get("_class_name"))
        if scheduler is None and stored is not None and "scheduler" in kind.options:
            scheduler = scheduler_beside(stored)
        family = kind(_filled_in(kind.transformer, told), HostOptions(guidance, fps, stride, scheduler))
        _check_fits(family, channels, text_dim)
        super().__init__(channels, text_dim, family.patch)
        self.family, self.scheduler = family, scheduler
        # Of the configuration as it is written: what diffusers fills in moves with its version.
        plain = {name: value for name, value in json.loads(json.dumps(dict(told))).items() if name[0] != "_"}
        self.config = {"_class_name": kind.transformer, **plain}
        self.condition_channels, self.image_dim = family.condition_channels, family.image_dim
        if (places := family.config.get("pos_embed_seq_len")) is not None:  # of a Wan of first and last frames
            self.image_tokens, self.image_frames = int(places), 2
        self.pooled_dim = family.pooled_dim
        self.padded_text, self.padded_to = family.padded_text, family.padded_to
        self.facts = DenoiserFacts(family.objective, packs=False, token_times=family.token_times, stretches=False)
        self.pretrained, self.trained_with = stored is not None, vae_of_transformer(kind.transformer)
        self.network = _network(stored, self.config)
        self.attention = nn.ModuleList()
        self._here, self._counted = Whereabouts(), dict[Any, int]()
        if attention is not None:
            self._swap(attention, kernel)
        self.checkpoint = checkpoint
        if checkpoint:
            self.network.enable_gradient_checkpointing(self._here.checkpointed)  # type: ignore[operator]
        self.train()

    def _swap(self, attention: Any, kernel: str | None) -> None:
        layers = self.family.layers(self.network)
        for layer, spec in enumerate(layer_specs(attention, len(layers))):
            heads, dim = layers[layer].heads, layers[layer].to_q.out_features
            self.attention.append(create_operator(spec, dim, heads, layer=layer, depth=len(layers), kernel=kernel))
        swap(layers, self._blocks, self._here, self.family.text)

    @classmethod
    def widths(
        cls,
        path: str,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        config: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[int, int]:
        """The channels and the width of text that a spec of these options is for; no weights are read.

        Raises:
            SoraError: as of the class itself.
        """
        told = _described(path, subfolder, revision, config)[1]
        kind = family_of_transformer(told.get("_class_name"))
        family = kind(_filled_in(kind.transformer, told), HostOptions())
        return family.channels, family.text_dim

    @property
    def _blocks(self) -> list[AttentionBlock]:
        return list(self.attention)  # type: ignore[arg-type]

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
        if stretch is not None:
            raise SoraError(
                f"rotary positions of a {self.family.transformer} are its own, and are not stretched by "
                f"{stretch.scaling!r}; set sampling.rope=none"
            )
        self._check_image(condition)
        given = self.family.inputs(Feed(x, t, text, layout, condition))
        quiet = quiet_on_cpu() if x.device.type == "cpu" else contextlib.nullcontext()
        with self._here.at(layout, self._here.counting), quiet:
            made: Tensor = self.network(**given, return_dict=False)[0]
        return self.family.rows(made, layout)

    def _check_image(self, condition: Condition | None) -> None:
        image = None if condition is None else condition.image
        width = None if image is None else image.shape[-1]
        if width != self.image_dim:
            raise SoraError(
                f"a {self.family.transformer} of image_dim={self.image_dim} is to be shown embeddings of an image of "
                f"that width, or none where it is None, and is shown {'none' if width is None else f'some of {width}'}"
            )
        if image is not None and self.image_frames > 1 and image.shape[1] != self.image_tokens:
            raise SoraError(
                f"a {self.family.transformer} of pos_embed_seq_len={self.image_tokens} is to be shown as many "
                f"embeddings of the first and the last frame together, and is shown {image.shape[1]}"
            )

    # Costs.
    def flops(self, layout: TokenLayout, text_tokens: int, per_token: bool = False) -> int:
        key = layout.grids[0], layout.clips, text_tokens, per_token
        if layout.packed:
            raise SoraError(f"a {type(self).__name__} takes clips of one size in a batch, and this layout is packed")
        if key not in self._counted:
            self._counted[key] = self._count(layout, text_tokens, per_token)
        return self._counted[key]

    def _count(self, layout: TokenLayout, text_tokens: int, per_token: bool) -> int:
        """Of a pass over tensors without values, without adapters; of blocks inside it is declared."""
        from torch._subclasses.fake_tensor import FakeTensorMode  # it takes a while to be imported

        seen = self.family.text_tokens(text_tokens)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        counter, scores = FlopCounterMode(display=False), CountedScores()
        here = self._here.at(layout, counting=True)
        with without_adapters(self), torch.no_grad(), fake, here, counter, scores:
            self(*self._made_up(layout, seen, per_token))
        joint = 0 if self.family.text is None else seen
        blocks = sum(block_flops(block, layout, joint) for block in self._blocks)
        return int(counter.get_total_flops()) + scores.total + blocks

    def _made_up(self, layout: TokenLayout, text_tokens: int, per_token: bool) -> tuple[Any, ...]:
        made: dict[str, Any] = {"device": next(self.parameters()).device, "dtype": self.dtype}
        pooled = None if self.pooled_dim is None else torch.zeros(layout.clips, self.pooled_dim, **made)
        mask = torch.ones(layout.clips, text_tokens, dtype=torch.bool, device=made["device"])
        text = TextContext(torch.zeros(layout.clips, text_tokens, self.text_dim, **made), mask, pooled)
        condition = None
        if self.condition_channels:
            rows = torch.zeros(*layout.shape, self.patch_size.volume * self.condition_channels, **made)
            image = (
                None if self.image_dim is None else torch.zeros(layout.clips, self.image_tokens, self.image_dim, **made)
            )
            condition = Condition(rows, image)
        t = torch.zeros(layout.shape if per_token else (layout.clips,), **made)
        return torch.zeros(*layout.shape, self.in_dim, **made), t, text, layout, None, condition

    # Precision.
    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype  # type: ignore[return-value]  # some others stay in float32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept, moved = {id(value): value for value in kept_by_diffusers(self.network)}, uncast(fn)
        return super()._apply(lambda value: moved(value) if id(value) in kept else fn(value), recurse)

    # Parameters and their names.
    def fresh(self) -> frozenset[str]:
        return frozenset(
            name for name, _ in self.named_parameters() if not (self.pretrained and name.startswith(NETWORK))
        )

    def draw(self, seed: int) -> None:
        if self.pretrained:
            initialize(self.attention, seed, "dit.attention.")
        else:
            initialize(self, seed, "dit.")

    def spec_of_its_own(self, spec: str) -> str:
        asked = DENOISERS.resolve(spec)
        kept = {name: value for name, value in asked.options.items() if name not in ("subfolder", "revision")}
        found = {} if self.scheduler is None else {"scheduler": dict(self.scheduler)}
        return str(Spec(asked.name, {**kept, **found, "config": self.config}))

    def diffusers_key(self, name: str) -> str:
        if not name.startswith(NETWORK):
            raise SoraError(
                f"{name!r} is of an attention block of ours within a {self.family.transformer}, and has no name in "
                "diffusers"
            )
        return name.removeprefix(NETWORK)

    def diffusers_module(self) -> nn.Module:
        """The network of diffusers, for its ``save_pretrained``; loaded by diffusers, it has diffusers' attention.

        Raises:
            SoraError: blocks inside have parameters, which diffusers could not hold.
        """
        extra = [name for name, _ in self.attention.named_parameters(prefix="attention")]
        if extra:
            raise SoraError(
                f"a {self.family.transformer} of diffusers cannot hold {some(extra)} of the attention blocks inside; "
                "save it by `lightning-sora export RUN --to pretrained`"
            )
        if len(self.attention):
            names = sorted({type(block).__name__ for block in self.attention})
            log.warning("loaded by diffusers, this network attends in full, and not by %s", ", ".join(names))
        return self.network


def _described(
    path: str, subfolder: str | None, revision: str | None, config: Mapping[str, Any] | None
) -> tuple[Stored | None, Mapping[str, Any]]:
    """Where a transformer lies, None for nowhere, and what its config.json says."""
    if config is None:
        stored = find(path, "transformer", subfolder, revision)
        return stored, stored.config
    if not isinstance(config, Mapping):
        raise SoraError(f"config={config!r} must be a mapping, of what a config.json says")
    return None, config


def _network(stored: Stored | None, config: Mapping[str, Any]) -> nn.Module:
    if stored is not None:
        return load(stored)
    keep_fresh(network := build(config))
    return network


def _filled_in(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says, and the defaults of what it does not."""
    options = inspect.signature(diffusers_class(name).__init__).parameters.values()
    defaults = {one.name: one.default for one in options if one.default is not inspect.Parameter.empty}
    return {**defaults, **config}


def _check_fits(family: HostFamily, channels: int, text_dim: int) -> None:
    for of, given, key, own in (
        ("channels of the VAE", channels, family.channels_key, family.channels),
        ("width of the text encoder", text_dim, family.text_key, family.text_dim),
    ):
        if given != own:
            raise SoraError(
                f"{given} is the {of}, and this {family.transformer} has {key}={own} in its config.json; take the one "
                "that it was trained with"
            )
