"""Names of the parts of a Wan transformer: those that diffusers gives them, and those of Wan's own files.

The two have the same tensors under other names; mind that the second and the third norm of a layer are swapped. A name
is of a parameter (``blocks.0.attn1.to_q.weight``), of a module, or of what hangs on one, as adapters do
(``blocks.0.attn1.to_q.lora_A.weight``): what follows the module is kept.

    diffusers (WanTransformer3DModel)       Wan's own (WanModel)
    blocks.0.attn1.to_out.0.weight          blocks.0.self_attn.o.weight
    blocks.0.norm2.weight                   blocks.0.norm3.weight
    condition_embedder.time_proj.bias       time_projection.1.bias
    scale_shift_table                       head.modulation
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from lightning_sora.errors import SoraError

_PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_OF_IMAGES = {"add_k_proj": "k_img", "add_v_proj": "v_img", "norm_added_k": "norm_k_img"}
_EMBED = "condition_embedder"

#: Within a layer: diffusers' name to Wan's.
_LAYER = {
    **{f"attn1.{name}": f"self_attn.{own}" for name, own in _PROJECTIONS.items()},
    **{f"attn2.{name}": f"cross_attn.{own}" for name, own in (_PROJECTIONS | _OF_IMAGES).items()},
    "norm1": "norm1",
    "norm2": "norm3",  # before the attention to the text
    "norm3": "norm2",  # before the MLP
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
#: Outside of the layers.
_TOP = {
    "patch_embedding": "patch_embedding",
    **{f"{_EMBED}.time_embedder.linear_{n}": f"time_embedding.{2 * n - 2}" for n in (1, 2)},
    **{f"{_EMBED}.text_embedder.linear_{n}": f"text_embedding.{2 * n - 2}" for n in (1, 2)},
    f"{_EMBED}.time_proj": "time_projection.1",
    f"{_EMBED}.image_embedder.norm1": "img_emb.proj.0",
    f"{_EMBED}.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    f"{_EMBED}.image_embedder.ff.net.2": "img_emb.proj.3",
    f"{_EMBED}.image_embedder.norm2": "img_emb.proj.4",
    f"{_EMBED}.image_embedder.pos_embed": "img_emb.emb_pos",
    "norm_out": "head.norm",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
#: Modules of modules, which are named alone, and of which nothing hangs.
_AROUND = {"attn1": "self_attn", "attn2": "cross_attn", "ffn": "ffn"}
_AROUND_TOP = {
    "blocks": "blocks",
    f"{_EMBED}.time_embedder": "time_embedding",
    f"{_EMBED}.text_embedder": "text_embedding",
    f"{_EMBED}.image_embedder": "img_emb",
}
_IN_LAYER = re.compile(r"(blocks\.\d+)(?:\.(.+))?")


def _turned(table: Mapping[str, str]) -> dict[str, str]:
    return {own: name for name, own in table.items()}


def to_original(key: str) -> str:
    """What Wan's own files call a parameter or a module that diffusers calls so.

    Raises:
        SoraError: a ``WanTransformer3DModel`` has no such part.

    Example:
        >>> to_original("blocks.3.attn2.to_out.0.lora_A.weight")
        'blocks.3.cross_attn.o.lora_A.weight'
    """
    return _renamed(key, lambda table: table, "diffusers' WanTransformer3DModel", "blocks.0.attn1.to_q")


def to_diffusers(key: str) -> str:
    """What diffusers calls a parameter or a module that Wan's own files call so.

    Raises:
        SoraError: a ``WanModel`` has no such part.

    Example:
        >>> to_diffusers("blocks.3.norm3.weight")
        'blocks.3.norm2.weight'
    """
    return _renamed(key, _turned, "Wan's own WanModel", "blocks.0.self_attn.q")


def _renamed(key: str, read: Callable[[Mapping[str, str]], Mapping[str, str]], whose: str, such: str) -> str:
    layer = _IN_LAYER.fullmatch(key)
    if layer is not None and layer[2] is None:
        return key
    place, name = ("", key) if layer is None else (f"{layer[1]}.", layer[2])
    parts, around = (_TOP, _AROUND_TOP) if layer is None else (_LAYER, _AROUND)
    if name in read(around):
        return place + read(around)[name]
    words = name.split(".")
    for known in range(len(words), 0, -1):
        found = read(parts).get(".".join(words[:known]))
        if found is not None:
            return place + ".".join([found, *words[known:]])
    raise SoraError(f"{key!r} names no part of {whose}; give a name such as {such!r}, without a prefix before it")
