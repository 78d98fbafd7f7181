"""What a config.json says of a Wan transformer, by diffusers and by Wan's own code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import head_width
from lightning_sora.nn.rope import axis_pairs
from lightning_sora.registry import check_types

DIFFUSERS, ORIGINAL = "WanTransformer3DModel", "WanModel"
#: Tokens that a text is filled up to, with zeros that are attended to, as diffusers' ``pipeline_wan.py`` does it.
TEXT_TOKENS = 512
OF = "config.json of a Wan transformer"
QK_NORM = "rms_norm_across_heads"
#: Wan's own names of what diffusers calls otherwise.
_ORIGINAL = {
    "num_heads": "num_attention_heads", "in_dim": "in_channels", "out_dim": "out_channels", "num_layers": "num_layers",
    "ffn_dim": "ffn_dim", "freq_dim": "freq_dim", "text_dim": "text_dim", "eps": "eps", "patch_size": "patch_size",
    "cross_attn_norm": "cross_attn_norm",
}  # fmt: skip
#: What Wan's own code leaves out of its config.json where it is so, and what else it says of all models.
_UNSAID = {"text_dim": 4096, "patch_size": [1, 2, 2], "cross_attn_norm": True}
_ALWAYS = {"text_len": TEXT_TOKENS, "qk_norm": True, "window_size": [-1, -1]}
#: The kinds of models of Wan's own code that are of this network.
MODEL_TYPES = ("t2v", "i2v", "ti2v", "flf2v")


@dataclass(frozen=True)
class WanConfig:
    """The options of a Wan transformer, by diffusers' names.

    Attributes:
        in_channels: of a latent position, with those of what it is shown beside.
        out_channels: of a latent position.
        image_dim: width of image embeddings; None for a model that attends to none.
        added_kv_proj_dim: width of the same where they are attended to: that of the model.
        pos_embed_seq_len: image tokens that have positions of their own, as first and last frames do; None for none.
        rope_max_seq_len: positions per axis that diffusers keeps a table of; there is no such bound here.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = QK_NORM
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type in ("int", "int | None") and value is not None:
                _need(value > 0, f"{one.name}={value} must be positive")
        _need(min(self.patch_size) > 0, f"patch_size={self.patch_size} must be positive (frames, height, width)")
        _need(self.eps > 0, f"eps={self.eps} must be positive")
        _need(self.qk_norm == QK_NORM, f"qk_norm={self.qk_norm!r} is none of this network's, which has {QK_NORM!r}")
        _need(
            self.in_channels >= self.out_channels,
            f"in_channels={self.in_channels} must be at least out_channels={self.out_channels}: the noised channels, "
            "and those of what it is shown beside",
        )
        _need(self.freq_dim % 2 == 0, f"freq_dim={self.freq_dim} must be even: cosines and sines")
        _need(
            (self.image_dim is None) == (self.added_kv_proj_dim is None),
            f"image_dim={self.image_dim} and added_kv_proj_dim={self.added_kv_proj_dim} must both be given, or neither",
        )
        _need(
            self.added_kv_proj_dim in (None, self.dim),
            f"added_kv_proj_dim={self.added_kv_proj_dim} must be the model's width, {self.dim}",
        )
        _need(
            self.pos_embed_seq_len is None or self.image_dim is not None,
            f"pos_embed_seq_len={self.pos_embed_seq_len} has no meaning without image_dim",
        )
        head_width(self.dim, self.num_attention_heads)
        axis_pairs(self.attention_head_dim, axes=3)

    @classmethod
    def of(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> WanConfig:
        """What a config.json describes.

        Args:
            config: as diffusers writes it, or as Wan's own code does.
            shapes: of the weights, by diffusers' names: Wan's own config.json does not say whether a model attends to
                image embeddings.

        Raises:
            SoraError: it is of another network, or has options that this one has not.
        """
        check_class(config)
        told = {key: value for key, value in config.items() if not str(key).startswith("_")}
        if config["_class_name"] == ORIGINAL:
            told = _of_original(told, shapes or {})
        known = [one.name for one in fields(cls)]
        unknown = sorted(set(told) - set(known))
        _need(not unknown, f"{', '.join(unknown)}: no option of a {DIFFUSERS}, which has {', '.join(known)}")
        if told.get("out_channels", 0) is None:  # as diffusers has it
            told["out_channels"] = told.get("in_channels", cls.in_channels)
        check_types(OF, cls, told)
        plain: dict[str, Any] = {name: tuple(it) if name == "patch_size" else it for name, it in told.items()}
        return cls(**plain)

    def diffusers(self) -> dict[str, Any]:
        """What diffusers' config.json says of it."""
        return {"_class_name": DIFFUSERS, **asdict(self), "patch_size": list(self.patch_size)}

    def original(self) -> dict[str, Any]:
        """What the config.json of Wan's own says of it."""
        shown = self.in_channels > self.out_channels
        kind = "flf2v" if self.pos_embed_seq_len else "i2v" if shown else "ti2v" if self.out_channels > 16 else "t2v"
        own = self.diffusers()
        told = {name: own[of] for name, of in _ORIGINAL.items() if own[of] != _UNSAID.get(of)}
        return {"_class_name": ORIGINAL, "model_type": kind, "dim": self.dim, "text_len": TEXT_TOKENS, **told}


def check_class(config: Mapping[str, Any]) -> None:
    """Refuses the config.json of another network.

    Raises:
        SoraError: it is of another class, or of a kind of model of Wan's own code that has further parts.
    """
    name, kind = config.get("_class_name"), config.get("model_type", MODEL_TYPES[0])
    if name not in (DIFFUSERS, ORIGINAL):
        raise SoraError(
            f"{name!r} is no Wan transformer of this kind, which is a {DIFFUSERS} of diffusers or a {ORIGINAL} of "
            "Wan's own; VACE and Animate have parts that it has not"
        )
    if name == ORIGINAL and kind not in MODEL_TYPES:
        raise SoraError(
            f"model_type={kind!r} is no Wan transformer of this kind; of Wan's own there are {', '.join(MODEL_TYPES)}"
        )


def _of_original(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The options of Wan's own config.json by diffusers' names."""
    told = dict(config)
    told.pop("model_type", None)
    dim = told.pop("dim", 2048)
    unknown = sorted(set(told) - set(_ORIGINAL) - set(_ALWAYS))
    _need(not unknown, f"{', '.join(unknown)}: no option of a {ORIGINAL}, which has dim, {', '.join(_ORIGINAL)}")
    for name, always in _ALWAYS.items():
        value = told.pop(name, always)
        value = list(value) if isinstance(value, tuple) else value
        _need(value == always, f"{name}={value!r} is not what this network has, which is {always!r}")
    missing = [name for name in ("num_heads", "num_layers", "ffn_dim", "in_dim", "out_dim") if name not in told]
    _need(not missing, f"{', '.join(missing)} of a {ORIGINAL} is not said")
    heads = told["num_heads"]
    fits = type(dim) is int and type(heads) is int and heads > 0 and dim % heads == 0
    _need(fits, f"dim={dim!r} does not divide into num_heads={heads!r}")
    named = {_ORIGINAL[name]: value for name, value in told.items()} | {"attention_head_dim": dim // heads}
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    if image is not None:
        named |= {"image_dim": image[0], "added_kv_proj_dim": dim}
    places = shapes.get("condition_embedder.image_embedder.pos_embed")
    return named | ({} if places is None else {"pos_embed_seq_len": places[1]})


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SoraError(f"{OF}: {otherwise}; correct it, or give another folder")
