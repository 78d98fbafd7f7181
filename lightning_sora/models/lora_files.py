"""Files of LoRA adapters: those of diffusers, of ComfyUI, of kohya's trainers (musubi) and of peft, and our own.

What differs is what a layer is called, and how the two matrices and alpha are:

    diffusers   transformer.blocks.0.attn1.to_q.lora_A.weight           metadata: lora_adapter_metadata (rank, alpha)
    comfyui     diffusion_model.blocks.0.self_attn.q.lora_down.weight   ....alpha
    musubi      lora_unet_blocks_0_self_attn_q.lora_down.weight         ....alpha
    peft        base_model.model.blocks.0.attn1.to_q.lora_A.weight      adapter_config.json beside it
    own         dit.blocks.0.attention.out.lora_A.weight                as diffusers'

All are read; diffusers', ComfyUI's (of Wan) and our own are written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn, tensor

from lightning_sora.errors import SoraError, WeightsMissing, some
from lightning_sora.models.denoisers.base import Denoiser
from lightning_sora.models.denoisers.wan_keys import to_original
from lightning_sora.models.lora import Adapter, adapters, fill, inject, linear_layers
from lightning_sora.names import local_path
from lightning_sora.sealing import BLANK, seal, verify, write_whole

FILES = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "comfyui": "comfyui_lora.safetensors",
    "own": "lora.safetensors",
}
PEFT, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
METADATA = "lora_adapter_metadata"  # as diffusers calls it
REMEDY = "copy or download it again"
_MATRIX = re.compile(r"(.+)\.(?:lora_|lora\.)(A|B|down|up)(?:\.\w+)?\.weight")
_DOWN = ("A", "down")


@dataclass(frozen=True)
class LoraFile:
    """A file of adapters, as it calls its layers.

    Attributes:
        path: of it.
        adapters: by the file's own name of the layer, prefix included.
    """

    path: str
    adapters: Mapping[str, Adapter]


def write_lora(denoiser: Denoiser, path: str | Path, form: str = "diffusers") -> Path:
    """Writes the adapters of a denoiser.

    Args:
        path: of a file that ends in .safetensors, or of a folder, where it gets the name that its readers look for.
        form: "diffusers", which its ``load_lora_weights`` and peft read; "comfyui", of Wan alone; "own", by the names
            of this package, of any denoiser.

    Returns:
        the file.

    Raises:
        SoraError: no adapters, a form in which the layers of this denoiser have no names, or more that was trained
            than adapters: such a file would not be the model.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.models.lora import add_lora
        >>> from lightning_sora.models.lora_files import read_lora, write_lora
        >>> dit = {"patch_size": (1, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
        >>> model = ls.LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit)
        >>> names = add_lora(model.dit, rank=4)
        >>> list(read_lora(write_lora(model.dit, "lora", "own")).adapters)[0]
        'dit.blocks.0.attention.project.qkv'
    """
    if form not in FILES:
        raise SoraError(f"LoRA cannot be written as {form!r}; choose {', '.join(FILES)}")
    found = adapters(denoiser)
    if not found:
        raise SoraError(f"this {type(denoiser).__name__} has no LoRA adapters; train it by model.tuning='lora'")
    if denoiser.pretrained and (fresh := sorted(denoiser.fresh())):
        raise SoraError(
            f"this {type(denoiser).__name__} has {len(fresh)} parameters of blocks that were put in, such as "
            f"{fresh[0]!r}, which no file of LoRA holds; save the model whole"
        )
    names = {name: _name(denoiser, name, form) for name in found}
    weights: dict[str, Tensor] = {}
    down, up = ("lora_down", "lora_up") if form == "comfyui" else ("lora_A", "lora_B")
    for name, adapter in found.items():
        weights[f"{names[name]}.{down}.weight"] = adapter.down.cpu().contiguous()
        weights[f"{names[name]}.{up}.weight"] = adapter.up.cpu().contiguous()
        if form == "comfyui":
            weights[f"{names[name]}.alpha"] = tensor(adapter.alpha)
    told = {} if form == "comfyui" else {METADATA: _metadata({names[name]: one for name, one in found.items()})}
    place = local_path(path)
    file = place if place.suffix == ".safetensors" else place / FILES[form]
    write_whole(file, seal(save(weights, metadata={"format": "pt", "lightning_sora": BLANK, **told})))
    return file


def _name(denoiser: Denoiser, name: str, form: str) -> str:
    if form == "own":
        return f"dit.{name}"
    key = denoiser.diffusers_key(name)
    if form == "diffusers":
        return f"transformer.{key}"
    try:
        return f"diffusion_model.{to_original(key)}"
    except SoraError as problem:
        raise SoraError(f"ComfyUI's form is known of Wan alone: {problem}; write it as 'diffusers'") from problem


def _metadata(named: Mapping[str, Adapter]) -> str:
    """What diffusers makes peft's LoraConfig of, as it packs it."""
    prefix, (first, *_) = next(iter(named)).split(".")[0], named.values()
    bare = {name.removeprefix(f"{prefix}."): adapter.size for name, adapter in named.items()}
    same = len(set(bare.values())) == 1
    config = {
        "peft_type": "LORA",
        "r": first.size.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {} if same else {f"^{re.escape(name)}": size.rank for name, size in bare.items()},
        "alpha_pattern": {} if same else {f"^{re.escape(name)}": size.alpha for name, size in bare.items()},
        "target_modules": sorted(bare),
        "bias": "none",
    }
    return json.dumps({f"{prefix}.{key}": value for key, value in config.items()}, indent=2, sort_keys=True)


def read_lora(path: str | Path) -> LoraFile:
    """Reads a file of adapters, of any of the forms of this module.

    Args:
        path: of it, or of the folder that it is in.

    Raises:
        SoraError: there is none, it is damaged or a pickle, or holds anything but low-rank adapters.
    """
    file = _file(local_path(path))
    content = verify(file.read_bytes(), file, REMEDY)
    try:
        weights = load(content)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as problem:
        raise SoraError(f"{file} is no safetensors ({' '.join(str(problem).split())}); {REMEDY}") from problem
    scale = _scales(file, metadata)
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    foreign = []
    for key, value in weights.items():
        found = _MATRIX.fullmatch(key)
        if found is not None:
            halves.setdefault(found[1], {})["down" if found[2] in _DOWN else "up"] = value
        elif key.endswith(".alpha") and value.numel() == 1:
            alphas[key.removesuffix(".alpha")] = float(value)
        else:
            foreign.append(key)
    foreign += [name for name, half in halves.items() if len(half) == 1 or any(one.dim() != 2 for one in half.values())]
    foreign += [name for name in alphas if name not in halves]
    if foreign or not halves:
        raise SoraError(
            f"{file} is no LoRA of linear layers: {some(foreign or list(weights), written=repr)} is no pair of "
            "low-rank matrices nor an alpha; give one that was trained as plain LoRA"
        )
    found_adapters = {}
    for name, half in sorted(halves.items()):
        rank = len(half["down"])
        alpha = alphas[name] if name in alphas else scale(name, rank)
        found_adapters[name] = Adapter(half["down"], half["up"], alpha)
    return LoraFile(str(path), found_adapters)


def _file(place: Path) -> Path:
    if place.is_dir():
        known = [place / name for name in (*FILES.values(), PEFT) if (place / name).is_file()]
        others = sorted(place.glob("*.safetensors"))
        candidates = known or others
        if len(candidates) != 1:
            there = ", ".join(one.name for one in candidates) or "none"
            raise WeightsMissing(
                f"{place} has not one file of LoRA but {there}; give the path of the .safetensors itself"
            )
        return candidates[0]
    if not place.is_file():
        raise WeightsMissing(f"no LoRA at {place}; give a .safetensors file, or the folder that has one")
    if place.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise SoraError(
            f"{place} is a pickle, which can run code when it is read; where you trust it, save what it holds by "
            "safetensors.torch.save_file, and give that"
        )
    return place


def _scales(file: Path, metadata: Mapping[str, str]) -> Callable[[str, int], float]:
    """The alpha of a layer by what stands beside the weights; the rank itself where nothing does."""
    config: dict[str, Any] = {}
    beside = file.parent / PEFT_CONFIG
    try:
        if METADATA in metadata:
            packed = json.loads(metadata[METADATA])
            config = {
                key.split(".", 1)[-1] if key.startswith(("transformer.", "dit.")) else key: value
                for key, value in packed.items()
            }
        elif file.name == PEFT and beside.is_file():
            config = json.loads(beside.read_text())
    except ValueError as problem:
        raise SoraError(f"what {file} says of its rank and alpha cannot be read ({problem}); {REMEDY}") from problem
    if odd := [key for key in ("use_dora", "lora_bias") if config.get(key)]:
        raise SoraError(f"{file} was trained with {odd[0]}, which is more than low-rank matrices; give a plain LoRA")

    def alpha(name: str, rank: int) -> float:
        known = float(config.get("lora_alpha", rank))
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern.removeprefix('^')})$", name):
                known = float(value)
                break
        return known * math.sqrt(rank) if config.get("use_rslora") else known

    return alpha


def matched(file: LoraFile, denoiser: Denoiser) -> dict[str, Adapter]:
    """The adapters of a file by the names of the denoiser's layers.

    Raises:
        SoraError: they are of layers that it does not have, or of other shapes.
    """
    layers = linear_layers(denoiser)
    known = _stems(denoiser, layers)
    foreign = [name for name in file.adapters if name not in known]
    if foreign:
        such = next(iter(known))
        raise SoraError(
            f"LoRA {file.path} is of another model: it has adapters for {some(foreign, written=repr)}, and this "
            f"{type(denoiser).__name__} no such layers, but such as {such!r}"
        )
    found = {known[name]: adapter for name, adapter in file.adapters.items()}
    for name, adapter in found.items():
        own, theirs = tuple(layers[name].weight.shape), (len(adapter.up), adapter.down.shape[1])
        if own != theirs or adapter.up.shape[1] != len(adapter.down):
            raise SoraError(
                f"LoRA {file.path} is of a model of other widths: its adapter of {name!r} makes a matrix of shape "
                f"{theirs} by ranks {len(adapter.down)} and {adapter.up.shape[1]}, and the layer has {own}"
            )
    return {name: found[name] for name in layers if name in found}


def _stems(denoiser: Denoiser, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """What files may call each layer, and what it is called here."""
    found: dict[str, str] = {}
    for name in layers:
        for stem in _called(denoiser, name):
            found.setdefault(stem, name)
    return found


def _called(denoiser: Denoiser, name: str) -> Iterator[str]:
    try:
        key = denoiser.diffusers_key(name)
    except SoraError:  # of a model, or a block, that diffusers has not: it is told where something is written
        key = None
    if key is not None:
        for prefix in ("transformer.", "diffusion_model.", "base_model.model.", "base_model.model.transformer.", ""):
            yield prefix + key
        yield f"lora_unet_{key.replace('.', '_')}"
        try:
            original = to_original(key)
        except SoraError:  # no Wan
            original = None
        if original is not None:
            yield from (f"diffusion_model.{original}", original, f"lora_unet_{original.replace('.', '_')}")
    yield from (f"dit.{name}", f"base_model.model.{name}")


def load_lora(denoiser: Denoiser, path: str | Path, dropout: float = 0.0) -> tuple[str, ...]:
    """Puts the adapters of a file into a denoiser, in place, with their ranks and alphas, and freezes all else of it.

    Returns:
        the names of the layers.

    Raises:
        SoraError: see :func:`read_lora` and :func:`matched`; there are adapters already, or peft is not installed.
    """
    found = matched(read_lora(path), denoiser)
    inject(denoiser, {name: adapter.size for name, adapter in found.items()}, dropout)
    fill(denoiser, found)
    return tuple(found)
