"""Video transformers of diffusers, by family: what each is fed, as the pipelines of diffusers feed it.

Each has conventions of its own for the layout of latents, the units of time, the padding of text, rotary positions and
the direction of the prediction; to the rest of the package all take rows and ``t`` in [0, 1], and give rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.models.denoisers.base import Condition
from lightning_sora.models.denoisers.host_steps import fitted, noise_angles, step_of
from lightning_sora.models.text_base import TextContext
from lightning_sora.spacetime import PatchSize, TokenLayout

#: Steps of time of the published models, which are given ``STEPS * t``.
STEPS = 1000.0

Rows = Float[Tensor, "batch tokens row_dim"]
Video = Float[Tensor, "batch channels frames height width"]


class HostOptions(NamedTuple):
    """Options of a spec that some families take; None where it names none.

    Attributes:
        guidance: the scale that a model distilled from guidance is told.
        fps: frames per second of the videos.
        stride: frames, height and width in pixels of a latent position.
        scheduler: what a scheduler_config.json says of betas.
    """

    guidance: float | None = None
    fps: float | None = None
    stride: Sequence[int] | None = None
    scheduler: Mapping[str, Any] | None = None


class Feed(NamedTuple):
    """What a denoiser is given; see :meth:`Denoiser.forward`."""

    x: Rows
    t: Float[Tensor, " clips"] | Float[Tensor, "batch tokens"]
    text: TextContext
    layout: TokenLayout
    condition: Condition | None


class HostFamily(ABC):
    """How a class of diffusers is fed.

    Args:
        config: all that its config.json says, defaults filled in.
        options: of the spec.

    Attributes:
        transformer: the class in diffusers.
        objective: what its rows, as :meth:`rows` turns them, predict.
        token_times: takes a timestep per token.
        options: the fields of :class:`HostOptions` that it takes.
        text: where text is in the sequence that it attends over: ``"before"`` or ``"behind"`` the tokens, or None.
        padded_text: whether it was trained on text that was encoded with its padding, which the text encoder saw.
        padded_to: tokens that it was padded to; None for any number.
        channels_key, text_key: the names in its config.json of latent channels and of the width of text.

    Raises:
        SoraError: a variant that is not known here, or an option that it does not have.
    """

    transformer: ClassVar[str]
    objective: ClassVar[str] = "velocity"
    token_times: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    text: ClassVar[str | None] = None
    padded_text: ClassVar[bool] = False
    padded_to: int | None = None
    channels_key: ClassVar[str] = "out_channels"
    text_key: ClassVar[str] = "text_embed_dim"
    conditioned: ClassVar[bool] = False

    def __init__(self, config: Mapping[str, Any], options: HostOptions) -> None:
        for name, asked in options._asdict().items():
            if asked is not None and name not in self.options:
                raise SoraError(f"{name}={asked!r} has no meaning for a {self.transformer}; leave it out")
        self.config = config
        self.patch = self._patch()
        self.channels, self.text_dim = self._channels(), int(config[self.text_key])
        self.condition_channels = int(config["in_channels"]) - int(config["out_channels"] or config["in_channels"])
        self.image_dim: int | None = None
        self.pooled_dim: int | None = None
        if self.condition_channels < 0 or (self.condition_channels and not self.conditioned):
            raise SoraError(
                f"a {self.transformer} of in_channels={config['in_channels']} and out_channels="
                f"{config['out_channels']} is shown more than noised latents, which is not known of this family here; "
                "take the text-to-video model"
            )

    @abstractmethod
    def _patch(self) -> PatchSize:
        """Latent positions per token."""

    def _channels(self) -> int:
        return int(self.config["out_channels"] or self.config["in_channels"])

    def layers(self, network: Any) -> list[Any]:
        """The modules of the self-attention of each layer, in order."""
        return [block.attn1 for block in network.transformer_blocks]

    def text_tokens(self, given: int) -> int:
        """Length of the text that it sees, of one that is ``given`` long, padding included."""
        return given

    @abstractmethod
    def inputs(self, feed: Feed) -> dict[str, Any]:
        """The arguments of its forward.

        Raises:
            SoraError: text or sizes that it cannot take.
        """

    def rows(self, made: Tensor, layout: TokenLayout) -> Rows:
        """What it returned, as rows."""
        p = self.patch
        return rearrange(
            made, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", pt=p.frames, ph=p.height, pw=p.width
        )

    def video(self, feed: Feed) -> Video:
        """Noised rows as a latent video, what is shown beside them as further channels."""
        made = self._video(feed.x, feed.layout)
        if feed.condition is None:
            return made
        return torch.cat([made, self._video(feed.condition.rows.to(made), feed.layout)], dim=1)

    def _video(self, rows: Rows, layout: TokenLayout) -> Video:
        grid, p = layout.grids[0], self.patch
        sizes = {"t": grid.frames, "h": grid.height, "w": grid.width, "pt": p.frames, "ph": p.height, "pw": p.width}
        return rearrange(rows, "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)", **sizes)

    def _padded(self, feed: Feed, length: int, padding: bool = False) -> Float[Tensor, "clips text_tokens dim"]:
        """Text with zeros behind it, which are seen, or with its padding as it was encoded."""
        unseen = ~feed.text.mask[..., None] & (not padding)
        text = feed.text.embeddings.to(feed.x).masked_fill(unseen, 0.0)
        self._check_text(text.shape[1], length)
        return F.pad(text, (0, 0, 0, length - text.shape[1]))

    def _check_text(self, given: int, most: int) -> None:
        if given > most:
            raise SoraError(
                f"text of {given} tokens, of which a {self.transformer} takes {most}; set max_tokens={most} of the "
                "text encoder"
            )


class Wan(HostFamily):
    """Wan 2.1 and 2.2: text padded by zeros to 512, which are seen; image-to-video models are shown 4 channels of mask
    and 16 of latents, those of 2.1 embeddings of the image too."""

    transformer = "WanTransformer3DModel"
    token_times = True
    text_key = "text_dim"
    conditioned = True
    TEXT = 512

    def __init__(self, config: Mapping[str, Any], options: HostOptions) -> None:
        super().__init__(config, options)
        self.image_dim = None if config["image_dim"] is None else int(config["image_dim"])

    def _patch(self) -> PatchSize:
        return PatchSize.of(self.config["patch_size"])

    def layers(self, network: Any) -> list[Any]:
        return [block.attn1 for block in network.blocks]

    def text_tokens(self, given: int) -> int:
        return self.TEXT

    def inputs(self, feed: Feed) -> dict[str, Any]:
        most = int(self.config["rope_max_seq_len"])
        if max(feed.layout.grids[0]) > most:
            raise SoraError(f"a clip of {tuple(feed.layout.grids[0])} tokens is longer than rope_max_seq_len={most}")
        image = None if feed.condition is None else feed.condition.image
        if image is not None and self.config["pos_embed_seq_len"] is not None:  # of the first and the last frame
            image = image.reshape(2 * len(image), -1, image.shape[-1])
        return {
            "hidden_states": self.video(feed),
            "timestep": STEPS * feed.t.float(),
            "encoder_hidden_states": self._padded(feed, self.TEXT),
            "encoder_hidden_states_image": None if image is None else image.to(feed.x),
        }


class CogVideoX(HostFamily):
    """CogVideoX and 1.5: frames before channels, text within the sequence, with its padding as it was encoded or zeros,
    and the steps of a DDPM for time, of which it is told the one, a fraction, that is as noisy as ``t``."""

    transformer = "CogVideoXTransformer3DModel"
    objective = "v"
    options = ("scheduler",)
    text = "before"
    padded_text = True
    conditioned = True

    def __init__(self, config: Mapping[str, Any], options: HostOptions) -> None:
        super().__init__(config, options)
        self.angles = noise_angles(options.scheduler or self.published(config))
        self.padded_to = int(config["max_text_seq_length"])

    @staticmethod
    def published(config: Mapping[str, Any]) -> dict[str, Any]:
        """The betas of the published models: those with rotary positions (5B) have noise unshifted."""
        shift = 1.0 if config["use_rotary_positional_embeddings"] else 3.0
        return {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "snr_shift_scale": shift}

    def _patch(self) -> PatchSize:
        space = int(self.config["patch_size"])
        return PatchSize(int(self.config["patch_size_t"] or 1), space, space)

    def text_tokens(self, given: int) -> int:
        return int(self.config["max_text_seq_length"])

    def inputs(self, feed: Feed) -> dict[str, Any]:
        video = self.video(feed)
        return {
            "hidden_states": rearrange(video, "b c t h w -> b t c h w"),
            "encoder_hidden_states": self._padded(feed, self.text_tokens(0), padding=feed.text.padded),
            "timestep": step_of(feed.t, self.angles),
            "ofs": video.new_full((1,), 2.0) if self.config["ofs_embed_dim"] else None,
            "image_rotary_emb": self._rotary(feed.layout, video.device),
        }

    def rows(self, made: Tensor, layout: TokenLayout) -> Rows:
        return super().rows(rearrange(made, "b t c h w -> b c t h w"), layout)

    def _rotary(self, layout: TokenLayout, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Positions within the size that it was trained on, into which a clip of another shape is fitted; 1.5 cuts."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        grid, config = layout.grids[0], self.config
        base = int(config["sample_height"]) // self.patch.height, int(config["sample_width"]) // self.patch.width
        if config["use_learned_positional_embeddings"] and (grid.height, grid.width) != base:
            raise SoraError(f"this {self.transformer} has learned positions, of clips of {base} tokens alone")
        if not config["use_rotary_positional_embeddings"]:
            return None
        given: dict[str, Any]
        if config["patch_size_t"] is None:
            given = {"crops_coords": fitted((grid.height, grid.width), base)}
        else:
            given = {"crops_coords": None, "grid_type": "slice", "max_size": base}
        cos, sin = get_3d_rotary_pos_embed(
            embed_dim=int(config["attention_head_dim"]),
            grid_size=(grid.height, grid.width),
            temporal_size=grid.frames,
            device=device,
            **given,
        )
        return cos, sin


class HunyuanVideo(HostFamily):
    """HunyuanVideo: a mask of the text, a vector of all of it (of CLIP), and the scale of the guidance that it was
    distilled from."""

    transformer = "HunyuanVideoTransformer3DModel"
    options = ("guidance",)
    text = "behind"

    def __init__(self, config: Mapping[str, Any], options: HostOptions) -> None:
        super().__init__(config, options)
        if config["image_condition_type"] is not None:
            raise SoraError(
                f"a {self.transformer} of image_condition_type={config['image_condition_type']!r} is not known here; "
                "take the text-to-video model"
            )
        if options.guidance is not None and not config["guidance_embeds"]:
            raise SoraError(
                f"guidance={options.guidance} is told to models of guidance_embeds=True, and this one has False; leave "
                "it out"
            )
        self.pooled_dim = int(config["pooled_projection_dim"])
        self.guidance = 6.0 if options.guidance is None else options.guidance

    def _patch(self) -> PatchSize:
        space = int(self.config["patch_size"])
        return PatchSize(int(self.config["patch_size_t"]), space, space)

    def layers(self, network: Any) -> list[Any]:
        return [block.attn for block in (*network.transformer_blocks, *network.single_transformer_blocks)]

    def inputs(self, feed: Feed) -> dict[str, Any]:
        pooled, width = feed.text.pooled, self.pooled_dim
        if pooled is None or pooled.shape[-1] != width:
            raise SoraError(
                f"a {self.transformer} asks for a vector of each caption of width {width}, as CLIP makes, beside the "
                f"text, and the text encoder gives {'none' if pooled is None else f'one of {pooled.shape[-1]}'}; take "
                "hunyuan_video(path='DIR') of its pipeline"
            )
        guided = feed.x.new_full((len(feed.x),), STEPS * self.guidance)
        return {
            "hidden_states": self.video(feed),
            "timestep": STEPS * feed.t.float(),
            "encoder_hidden_states": feed.text.embeddings.to(feed.x),
            "encoder_attention_mask": feed.text.mask,
            "pooled_projections": pooled.to(feed.x),
            "guidance": guided if self.config["guidance_embeds"] else None,
        }


class LTX(HostFamily):
    """LTX: rows as they are, a mask of the text, and positions in seconds and pixels."""

    transformer = "LTXVideoTransformer3DModel"
    token_times = True
    padded_text = True
    options = ("fps", "stride")
    text_key = "caption_channels"

    def __init__(self, config: Mapping[str, Any], options: HostOptions) -> None:
        super().__init__(config, options)
        fps = 25.0 if options.fps is None else options.fps
        if fps <= 0:
            raise SoraError(f"fps={fps} must be above 0")
        stride = PatchSize.of(options.stride or (8, 32, 32))
        self.scale = stride.frames / fps, stride.height, stride.width

    def _patch(self) -> PatchSize:
        space = int(self.config["patch_size"])
        return PatchSize(int(self.config["patch_size_t"]), space, space)

    def _channels(self) -> int:
        return super()._channels() // self.patch.volume

    def inputs(self, feed: Feed) -> dict[str, Any]:
        grid = feed.layout.grids[0]
        return {
            "hidden_states": rearrange(feed.x, "b n (p c) -> b n (c p)", p=self.patch.volume),
            "timestep": STEPS * feed.t.float(),
            "encoder_hidden_states": feed.text.embeddings.to(feed.x),
            "encoder_attention_mask": feed.text.mask,
            "num_frames": grid.frames,
            "height": grid.height,
            "width": grid.width,
            "rope_interpolation_scale": self.scale,
        }

    def rows(self, made: Tensor, layout: TokenLayout) -> Rows:
        return rearrange(made, "b n (c p) -> b n (p c)", p=self.patch.volume)


class Mochi(HostFamily):
    """Mochi: time runs from noise to data, and so does the prediction; a mask of the text."""

    transformer = "MochiTransformer3DModel"
    text = "behind"

    def _patch(self) -> PatchSize:
        return PatchSize(1, int(self.config["patch_size"]), int(self.config["patch_size"]))

    def inputs(self, feed: Feed) -> dict[str, Any]:
        return {
            "hidden_states": self.video(feed),
            "timestep": STEPS * (1 - feed.t.float()),
            "encoder_hidden_states": feed.text.embeddings.to(feed.x),
            "encoder_attention_mask": feed.text.mask,
        }

    def rows(self, made: Tensor, layout: TokenLayout) -> Rows:
        return -super().rows(made, layout)


HOST_FAMILIES: tuple[type[HostFamily], ...] = (Wan, CogVideoX, HunyuanVideo, LTX, Mochi)


def family_of_transformer(name: object) -> type[HostFamily]:
    """The family of a transformer, by the name of its class in diffusers.

    Raises:
        SoraError: it is of none that is known.

    Example:
        >>> from lightning_sora.models.denoisers.host_families import family_of_transformer
        >>> family_of_transformer("MochiTransformer3DModel").text
        'behind'
    """
    for family in HOST_FAMILIES:
        if family.transformer == name:
            return family
    known = [family.transformer for family in HOST_FAMILIES]
    kind = "makes images, and is no" if "2D" in str(name) else "is no"
    hint = did_you_mean(str(name), known)
    raise SoraError(f"{name!r} {kind} video transformer of a family that is known; {hint}known: {', '.join(known)}")
