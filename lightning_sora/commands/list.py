"""list: the registered parts of one kind, with their options."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from typing import Any

#: kind: (module, registry, what the framework supplies)
KINDS = {
    "attention": ("lightning_sora.nn.attention", "ATTENTION", ("dim", "num_heads", "layer", "depth")),
    "vae": ("lightning_sora.models.vae", "VAES", ()),
    "text": ("lightning_sora.models.text", "TEXT_ENCODERS", ()),
    "objective": ("lightning_sora.diffusion.paths", "OBJECTIVES", ()),
    "timesteps": ("lightning_sora.diffusion.timesteps", "TIMESTEPS", ()),
    "sampler": ("lightning_sora.diffusion.samplers", "SAMPLERS", ()),
    "source": ("lightning_sora.data.sources", "SOURCES", ("root", "split", "seed")),
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="name the registered parts", description=__doc__)
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("pattern", nargs="?", default="*", help="a shell wildcard, such as 'win*'")


def run(args: argparse.Namespace) -> int:
    """Prints one line per part: a spec with its options, and what it is."""
    module, name, given = KINDS[args.kind]
    registry = getattr(importlib.import_module(module), name)
    found = registry.list(args.pattern)
    if not found:
        sys.stderr.write(f"no {registry.kind} matches {args.pattern!r}; known: {', '.join(registry.list())}\n")
        return 1
    for part in found:
        options = ", ".join(_option(p) for p in registry.options(part, given).values())
        sys.stdout.write(f"{part}{f'({options})' if options else ''}\n    {_summary(registry.builder(part))}\n")
    return 0


def _option(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return f"{parameter.name}=..."
    return f"{parameter.name}={parameter.default!r}"


def _summary(builder: Any) -> str:
    text = inspect.getdoc(builder) or ""
    return text.split("\n\n")[0].replace("\n", " ") or "(not documented)"
