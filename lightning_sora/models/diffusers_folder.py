"""Models of diffusers: folders that its ``save_pretrained`` wrote, and names that its hub resolves.

What is read is checked first: diffusers fills weights that a folder lacks with random ones, and says so in a log.
"""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sora.errors import SoraError, WeightsMissing, first_line, some
from lightning_sora.models.memory_estimate import check_weights_fit
from lightning_sora.models.safetensors_files import TensorHeader, read_header
from lightning_sora.names import is_hub_name, local_path

CONFIG, PIPELINE = "config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLES = (".pth", ".pt", ".ckpt", ".bin")
INSTALL = "pip install 'lightning-sora[diffusers]'"


@dataclass(frozen=True)
class Stored:
    """A model of diffusers, where it lies.

    Attributes:
        path: as it was asked for.
        place: what diffusers takes: a folder here, or a name on its hub.
        subfolder, revision: of a hub; the folder of a disk is ``place`` itself.
        config: what its config.json says.
    """

    path: str
    place: str
    subfolder: str | None
    revision: str | None
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The class that it is of."""
        return str(self.config.get("_class_name"))


def is_folder(path: str | Path) -> bool:
    """Whether a path is the folder of a model or a pipeline of diffusers."""
    for name, key in ((CONFIG, "_class_name"), (PIPELINE, "_class_name")):
        file = local_path(path) / name
        try:
            if file.is_file() and key in json.loads(file.read_text()):
                return True
        except (OSError, ValueError, TypeError):
            continue
    return False


def find(path: str, part: str, subfolder: str | None = None, revision: str | None = None) -> Stored:
    """Where a model lies, and what it is; no weights are read.

    Args:
        path: a folder with a config.json, or of a pipeline that has the part; or a name on diffusers' hub.
        part: of a pipeline, such as "vae".
        subfolder: that holds it; None for the folder itself, or ``part`` of a pipeline.
        revision: of a hub: a branch, tag or commit.

    Raises:
        SoraError: diffusers is not installed, nothing is there, or it cannot be read.
    """
    place = local_path(path)
    if place.is_file():
        raise SoraError(f"{path!r} is a file, and not the folder of a model of diffusers; {_way(place)}")
    if place.is_dir():
        return _in_folder(path, place, part, subfolder)
    if not is_hub_name(path):
        raise WeightsMissing(
            f"no folder at {path!r}; give one that has a {CONFIG}, or a name on a hub such as OWNER/NAME"
        )
    return _on_a_hub(path, part, subfolder, revision)


def _in_folder(path: str, place: Path, part: str, subfolder: str | None) -> Stored:
    if subfolder is not None:
        place = place / subfolder
    elif not (place / CONFIG).is_file() and (place / PIPELINE).is_file():
        place = place / part
    file = place / CONFIG
    if not file.is_file():
        pickles = sorted(one.name for one in place.glob("*") if one.suffix in PICKLES) if place.is_dir() else []
        way = _way(place / pickles[0]) if pickles else "give the folder that `save_pretrained` of diffusers wrote"
        raise WeightsMissing(f"{place} has no {CONFIG}; {way}")
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise SoraError(f"{file} cannot be read ({problem}); copy or download the folder again") from problem
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise SoraError(f"{file} names no _class_name; give the folder that `save_pretrained` of diffusers wrote")
    return Stored(path, str(place), None, None, config)


def _on_a_hub(path: str, part: str, subfolder: str | None, revision: str | None) -> Stored:
    model, reason = diffusers_class("AutoModel"), ""
    for inside in (part, None) if subfolder is None else (subfolder,):
        try:
            with _quiet_hub():
                config = model.load_config(path, subfolder=inside, revision=revision)
        except (OSError, ValueError) as problem:
            reason = first_line(problem)
            if type(problem.__context__).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
                reason = "it cannot be reached"
                break  # each attempt waits for it
        else:
            return Stored(path, path, inside, revision, config)
    raise WeightsMissing(
        f"no folder at {path!r}, and no model of that name on a hub that this machine reaches ({reason}); download it "
        "where there is a network, and give its folder"
    )


def load(stored: Stored) -> nn.Module:
    """The network of a stored model, in float32 and evaluation mode.

    Raises:
        SoraError: weights that are missing, damaged, pickled, not those that its config.json describes, or more than
            this machine can hold.
    """
    if (place := Path(stored.place)).is_dir():
        instead = "; a VAE stays on the disk by on_demand=True" if stored.name.startswith("Autoencoder") else ""
        check_weights_fit(stored.name, sum(one.numel for _, one in weights_of(place).values()), instead=instead)
    kind = diffusers_class(stored.name)
    # All is read in float32: of a class that keeps parts in it, diffusers would ask for another package to do so.
    plain: Any = type(kind.__name__, (kind,), {"_keep_in_fp32_modules": None})
    try:
        with _no_draws(), _quiet_hub():
            network, found = plain.from_pretrained(
                stored.place, subfolder=stored.subfolder, revision=stored.revision, torch_dtype=torch.float32,
                use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True,
            )  # fmt: skip
    except Exception as problem:  # of reading what others wrote, anything may be raised
        raise SoraError(
            f"{stored.path!r} cannot be loaded as a {stored.name} ({first_line(problem)}); download it again"
        ) from problem
    network.__class__ = kind
    for told, names in (("lacks", found["missing_keys"]), ("has in excess", found["unexpected_keys"])):
        if names:
            raise SoraError(
                f"{stored.path!r} {told} weights of the {stored.name} that its {CONFIG} describes: "
                f"{some(sorted(names))}; download it again"
            )
    for value in (*network.parameters(), *network.buffers()):
        value.data = value.data.clone()  # a file that changes while it is mapped kills the process
    return network.eval()


def weight_files(stored: Stored) -> list[Path]:
    """The files that hold the weights of a stored model, each of which is here then.

    Raises:
        SoraError: some are missing, or pickled; or its hub does not give them.
    """
    if Path(stored.place).is_dir():
        return _files_of(Path(stored.place))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetched(name: str) -> Path:
        with _quiet_hub():
            return Path(hf_hub_download(stored.place, name, subfolder=stored.subfolder, revision=stored.revision))

    try:
        try:
            names = _shards_of(fetched(INDEX))
        except EntryNotFoundError:
            names = [WEIGHTS]
        return [fetched(name) for name in names]
    except (OSError, ValueError) as problem:
        raise WeightsMissing(
            f"the weights of {stored.path!r} cannot be had from its hub ({first_line(problem)}); download it where "
            "there is a network, and give its folder"
        ) from problem


def build(config: Mapping[str, Any]) -> nn.Module:
    """A network of fresh weights, the same every time.

    Args:
        config: what its config.json says.

    Raises:
        SoraError: options that its class cannot be made with, or more weights than this machine can hold.
    """
    check_weights_fit(str(config.get("_class_name")), sum(p.numel() for p in skeleton(config).parameters()))
    return _built(config)


def _built(config: Mapping[str, Any]) -> nn.Module:
    kind = diffusers_class(str(config.get("_class_name")))
    try:
        with _no_draws():
            return kind.from_config(json.loads(json.dumps(dict(config)))).eval()  # lists, of a spec tuples
    except Exception as problem:  # as above
        raise SoraError(
            f"no {kind.__name__} can be made with these options ({first_line(problem)}); correct config.json"
        ) from problem


def keep_fresh(network: nn.Module) -> None:
    """Lets ``randomness.initialize`` leave what diffusers has no ``reset_parameters`` for as it is made: gains at 1."""
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        if own and not (hasattr(module, "reset_parameters") or hasattr(module, "_reset_parameters")):
            made = {name: value.detach().clone() for name, value in own.items()}
            module.reset_parameters = functools.partial(_reset, module, made)  # type: ignore[assignment]


def _reset(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(value)


def skeleton(config: Mapping[str, Any]) -> nn.Module:
    """A network without weights: its shapes alone, on torch's meta device, of no memory.

    Args:
        config: what its config.json says.

    Raises:
        SoraError: options that its class cannot be made with.
    """
    with torch.device("meta"):
        return _built(config)


def weights_of(folder: Path) -> dict[str, tuple[Path, TensorHeader]]:
    """Every weight of a folder by its name: the file that holds it, and what that says of it. None is read.

    Raises:
        SoraError: a folder without weights or with some of them, or files that are cut short.
    """
    return {name: (file, header) for file in _files_of(folder) for name, header in read_header(file).tensors.items()}


def diffusers_class(name: str) -> Any:
    """A class of diffusers by its name.

    Raises:
        SoraError: diffusers is not installed, or this version has no such class.
    """
    try:
        import diffusers
    except ImportError as problem:
        raise SoraError(
            f"a pretrained model of diffusers needs diffusers, which is not installed: {INSTALL}"
        ) from problem
    # Of each class that it does load: those of pipelines say by warnings what else they would need.
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
    try:
        return getattr(diffusers, name)
    except AttributeError:
        raise SoraError(
            f"diffusers {diffusers.__version__} has no {name}; upgrade it: {INSTALL.replace('install', 'install -U')}"
        ) from None


@contextmanager
def _no_draws() -> Iterator[None]:
    """Fresh weights, which are then overwritten or the same every time, are drawn from no global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """It says of each attempt that it failed, and of arguments that diffusers gives to it, that they are of before."""
    told = logging.getLogger("huggingface_hub")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*The `(local_dir_use_symlinks|proxies)` argument")
            yield
    finally:
        told.setLevel(level)


@contextmanager
def quiet_on_cpu() -> Iterator[None]:
    """What torch says of CPUs alone: that parts which ask for float32 within mixed precision have it as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype is not supported")
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield


def _files_of(folder: Path) -> list[Path]:
    """The files of weights of a folder; raises SoraError where there are none, not all of them, or some
    cut short."""
    index, shards = folder / INDEX, []
    if index.is_file():
        shards = _shards_of(index)
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise WeightsMissing(
            f"{folder} was not downloaded whole: {INDEX} names {len(shards)} files, and {some(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there; download the rest"
        )
    if not shards and not (folder / WEIGHTS).is_file():
        pickles = sorted(one.name for one in folder.glob("*") if one.suffix in PICKLES)
        there = ", ".join(sorted(one.name for one in folder.glob("*"))[:6])
        way = f"{pickles[0]} is no safetensors; {_way(folder / pickles[0])}" if pickles else f"it holds {there}"
        raise WeightsMissing(f"{folder} has no {WEIGHTS}: {way}")
    files = [folder / name for name in shards or [WEIGHTS]]
    for file in files:
        read_header(file)
    return files


def _shards_of(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise SoraError(f"{index} cannot be read ({problem!r}); download the folder again") from problem


def _way(file: Path) -> str:
    """How the original weights of a file become a folder."""
    if file.name.endswith(".bin") and (file.parent / CONFIG).is_file():
        call = f"CLASS.from_pretrained('{file.parent}', use_safetensors=False).save_pretrained('FOLDER')"
    else:
        call = f"CLASS.from_single_file('{file}').save_pretrained('FOLDER')"
    pickled = "a pickle can run code when it is read: where you trust it, " if file.suffix in PICKLES else ""
    return f"{pickled}turn it into a folder of safetensors by diffusers' {call}, and give that"
