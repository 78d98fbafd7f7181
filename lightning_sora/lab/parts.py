"""The parts that can be asked for by name: which there are, and whether one's own keep the contract of their kind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_sora.contracts import Contract, Finding
from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.registry import Registry, named
from lightning_sora.shown import Shown
from lightning_sora.specs import Spec

if TYPE_CHECKING:
    from rich.console import RenderableType

#: The registries of the package, by name: the module of each is imported when it is asked for.
HOMES = {
    "attention": "lightning_sora.nn.attention",
    "caption_score": "lightning_sora.metrics.texts",
    "captioner": "lightning_sora.lit.captioners",
    "denoiser": "lightning_sora.models.denoisers",
    "engine": "lightning_sora.jobs.engines",
    "expander": "lightning_sora.lit.expander",
    "expansion_score": "lightning_sora.metrics.texts",
    "extractor": "lightning_sora.metrics.extractors",
    "guidance": "lightning_sora.diffusion.guidance",
    "kernel": "lightning_sora.nn.attention",
    "manifest": "lightning_sora.data.manifest",
    "metric": "lightning_sora.metrics.asked",
    "objective": "lightning_sora.diffusion.paths",
    "sampler": "lightning_sora.diffusion.samplers",
    "schedule": "lightning_sora.lit.optimizers",
    "sizes": "lightning_sora.data.sizes",
    "source": "lightning_sora.data.sources",
    "task": "lightning_sora.tasks",
    "text_encoder": "lightning_sora.models.text",
    "timesteps": "lightning_sora.diffusion.timesteps",
    "vae": "lightning_sora.models.vae",
    "weighting": "lightning_sora.diffusion.weighting",
}


def registry(name: str) -> Registry[Any]:
    """One kind of part by name, with what installed packages add to it.

    Raises:
        SoraError: no such kind, or a package whose plugin cannot be loaded.

    Example:
        >>> from lightning_sora.lab.parts import registry
        >>> registry("sampler").list("d*")
        ['ddim', 'diffusers', 'dpmpp_2m']
    """
    load_packages(name if name in HOMES else None)
    if name in HOMES:
        import_module(HOMES[name])
    known = named()
    if name not in known:
        kinds = sorted({*HOMES, *known})
        hint = did_you_mean(name, kinds, repr)
        raise SoraError(f"no kind of part is called {name!r}; {hint}known: {', '.join(kinds)}")
    return known[name]


def registries() -> dict[str, Registry[Any]]:
    """Every kind of part, by name, with what installed packages add to them; a package may add a kind of its own.

    Raises:
        SoraError: a package whose plugin cannot be loaded.

    Example:
        >>> import lightning_sora as ls
        >>> ls.registries()["attention"].list("w*")
        ['window']
    """
    load_packages()
    for module in HOMES.values():
        import_module(module)
    return named()


def contract(name: str) -> Contract:
    """What every part of a kind must keep.

    Raises:
        SoraError: no such kind, or one that has no contract.
    """
    found = registry(name).contract
    if found is None:
        having = [kind for kind, one in registries().items() if one.contract is not None]
        raise SoraError(f"parts of the kind {name!r} have no contract; those that do: {', '.join(having)}")
    return found


@dataclass(frozen=True)
class Checked(Shown):
    """What the laws of its kind say of a part; shown as a table.

    Attributes:
        findings: one per law, with the problem where it is broken.
    """

    kind: str
    spec: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> int:
        """How many laws it breaks."""
        return sum(one.problem is not None for one in self.findings)

    def tables(self) -> Iterable[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        table = Table("check", "", title=Text(f"{self.kind} {self.spec}"))
        for one in self.findings:
            said = Text("ok", style="green") if one.problem is None else Text(one.problem, style="red")
            table.add_row(one.law if one.problem is None else f"{one.law}\n  [dim]{one.meaning}[/dim]", said)
        yield table


def check_part(kind: str, spec: str) -> Checked:
    """Puts a part to every law of its kind.

    Raises:
        SoraError: no such kind or part, or a kind that has no contract.
    """
    with warnings.catch_warnings():
        # Of compilation and FlexAttention, at sizes that do not matter.
        warnings.filterwarnings("ignore", module=r"torch\.")
        return Checked(kind, spec, tuple(contract(kind).findings(spec)))


def _decorator(name: str) -> str:
    """What files a part of one's own under a name, as the pages write it."""
    return (
        f"@register_{name}('NAME')"
        if name in ("attention", "metric", "task")
        else f"@registries()[{name!r}].register('NAME')"
    )


def specs(name: str, wanted: Sequence[str]) -> list[str]:
    """The parts of a kind that are meant by files that register some, by specs and by wildcards.

    Where a file registers a part that a spec names too, the spec says with which options it is meant.

    Raises:
        SoraError: a file that cannot be loaded or registers none, or a spec that names none.
    """
    shelf = registry(name)
    found: list[str] = []
    for item in wanted:
        if not item.endswith(".py"):
            continue
        before = set(shelf.list())
        load_plugins([item])
        new = [part for part in shelf.list() if part not in before]
        if not new:
            raise SoraError(f"{item} registers no {shelf.kind}; decorate one with {_decorator(name)}")
        found += new
    asked = [item for item in wanted if not item.endswith(".py")]
    texts = [part for item in asked for part in (shelf.list(item) if "*" in item or "?" in item else [item])]
    for text in texts:
        resolved: Spec = shelf.resolve(text)
        shelf.builder(resolved.name)
        found = [part for part in found if part != resolved.name]
    if not found + texts:
        raise SoraError(f"no {shelf.kind} matches {' '.join(wanted)!r}; known: {', '.join(shelf.list())}")
    return found + texts
