"""list: the registered parts of one kind, with their options; and whether an attention block keeps the contract."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from lightning_sora.errors import SoraError

#: kind: (module, registry, what the framework supplies)
KINDS = {
    "attention": ("lightning_sora.nn.attention", "ATTENTION", ("dim", "num_heads", "layer", "depth")),
    "kernel": ("lightning_sora.nn.attention", "KERNELS", ("q", "k", "v", "mask", "pattern")),
    "vae": ("lightning_sora.models.vae", "VAES", ()),
    "text": ("lightning_sora.models.text", "TEXT_ENCODERS", ()),
    "objective": ("lightning_sora.diffusion.paths", "OBJECTIVES", ()),
    "weighting": ("lightning_sora.diffusion.weighting", "WEIGHTINGS", ()),
    "timesteps": ("lightning_sora.diffusion.timesteps", "TIMESTEPS", ()),
    "sampler": ("lightning_sora.diffusion.samplers", "SAMPLERS", ()),
    "guidance": ("lightning_sora.diffusion.guidance", "GUIDANCE", ()),
    "extractor": ("lightning_sora.metrics.extractors", "EXTRACTORS", ()),
    "schedule": ("lightning_sora.lit.optimizers", "SCHEDULES", ("total",)),
    "source": ("lightning_sora.data.sources", "SOURCES", ("root", "split", "seed")),
    "manifest": ("lightning_sora.data.manifest", "MANIFESTS", ()),
    "sizes": ("lightning_sora.data.sizes", "SIZES", ("limits",)),
    "captioner": ("lightning_sora.lit.captioners", "CAPTIONERS", ("device",)),
    "expander": ("lightning_sora.lit.expander", "EXPANDERS", ()),
    "engine": ("lightning_sora.jobs.engines", "ENGINES", ()),
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="name the registered parts", description=__doc__)
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("pattern", nargs="?", default="*", help="a shell wildcard, such as 'win*'")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument(
        "--check",
        nargs="+",
        metavar="FILE|SPEC",
        help="put attention blocks to the contract: those that a file registers, or 'window(size=(1, 2, 2))'",
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per part: a spec with its options, and what it is."""
    from lightning_sora.plugins import load_packages, load_plugins

    load_packages()
    load_plugins(args.plugins)
    if args.check:
        if args.kind != "attention":
            raise SoraError(f"--check knows the contract of attention blocks only, not of {args.kind!r}")
        return check(args.check)
    registry, given = registry_of(args.kind), KINDS[args.kind][2]
    found = registry.list(args.pattern)
    if not found:
        sys.stderr.write(f"no {registry.kind} matches {args.pattern!r}; known: {', '.join(registry.list())}\n")
        return 1
    for part in found:
        options = ", ".join(_option(p) for p in registry.options(part, given).values())
        sys.stdout.write(f"{part}{f'({options})' if options else ''}\n    {_summary(registry.builder(part))}\n")
    return 0


def registry_of(kind: str) -> Any:
    """The registry of a kind of part."""
    module, name, _ = KINDS[kind]
    return getattr(importlib.import_module(module), name)


def check(wanted: Sequence[str]) -> int:
    """Puts blocks to every check of the contract, and prints what each found.

    Returns:
        0 if all hold, else 1.

    Raises:
        SoraError: a file that cannot be loaded or registers no block, or a spec that names none.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lightning_sora.nn.attention.contract import CHECKS, make, run_checks

    console = Console(width=None if sys.stdout.isatty() else 160)
    warnings.filterwarnings(
        "ignore", module=r"torch\."
    )  # of compilation and FlexAttention, at sizes that do not matter
    broken = 0
    for spec in _specs(wanted):
        make(spec)  # a spec that cannot be built is a mistake of its own, not of the contract
        begun = time.perf_counter()
        table = Table("check", "", title=Text(f"attention {spec}"))
        with console.status(f"checking {spec}"):
            for name, problem in run_checks(spec):
                broken += problem is not None
                said = Text("ok", style="green") if problem is None else Text(problem, style="red")
                what = (inspect.getdoc(CHECKS[name]) or "").split("\n\n")[0].replace("\n", " ")
                table.add_row(
                    f"{name.replace('_', ' ')}\n  [dim]{what}[/dim]" if problem else name.replace("_", " "), said
                )
        console.print(table)
        console.print(f"{spec}: {len(CHECKS)} checks in {time.perf_counter() - begun:.0f} s", markup=False)
    return 1 if broken else 0


def _specs(wanted: Sequence[str]) -> list[str]:
    """Specs as they are, and the blocks that a file registers."""
    from lightning_sora.plugins import load_plugins

    registry = registry_of("attention")
    specs: list[str] = []
    for item in wanted:
        if not item.endswith(".py"):
            specs += registry.list(item) if "*" in item or "?" in item else [item]
            continue
        before = set(registry.list())
        load_plugins([item])
        new = [name for name in registry.list() if name not in before]
        if not new:
            raise SoraError(f"{item} registers no attention block; decorate one with @register_attention('NAME')")
        specs += new
    if not specs:
        raise SoraError(f"no attention block matches {' '.join(wanted)!r}; known: {', '.join(registry.list())}")
    return specs


def _option(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return f"{parameter.name}=..."
    return f"{parameter.name}={parameter.default!r}"


def _summary(builder: Any) -> str:
    text = inspect.getdoc(builder) or ""
    return text.split("\n\n")[0].replace("\n", " ") or "(not documented)"
