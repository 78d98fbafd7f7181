"""A page per registry, made from the registry: its parts, their options and defaults, what each is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import griffe
from roles import plain

from lightning_sora.lab.parts import registries
from lightning_sora.registry import Registry


class Told(NamedTuple):
    """What a registry does not say of itself.

    Attributes:
        title: of the page.
        what: its parts do.
        chosen: an example of how one is asked for: a recipe's line or a flag.
        own: how to write one.
    """

    title: str
    what: str
    chosen: str
    own: str


INDEX = """# Parts

A recipe names every part by a short string. These ways of writing it mean the same, wherever it stands:

| written | read as |
|---|---|
| `window` | a part by its name |
| `window(size=(2, 4, 4))` | with options; numbers, words and tuples of Python, of which nothing is executed |
| `{{window: {{size: [2, 4, 4]}}}}` | the same in YAML |
| `hf:models/t5` | the part `hf` with the one option that it needs |
| `outputs/world_expander` | a path, where a part of the kind reads one |
| `spec:window` | the part `window`, even if there is a file of that name |

The same string is a recipe's value, a flag, a parameter in mlflow, a row of a table.

| parts | `lightning-sora list` | what they are |
|---|---|---|
{rows}

These pages are made from the registries themselves. `lightning-sora list KIND` prints the same, with the parts of
your own plugins.
"""
PARTS = "[Add any other part](../how_to/parts.md)"
TOLD = {
    "attention": Told(
        "Attention blocks",
        "Who attends to whom among the tokens of a clip. The DiT, the captioner and the `vit` VAE take "
        'their blocks from here. Several make a pattern over the layers: `"spatial, temporal"`, `"window*3, full"`.',
        "--model.dit.attention='window(size=(2,4,4))'",
        "[A block of your own](../tutorials/block.md), [Write any attention block](../how_to/blocks.md)",
    ),
    "kernel": Told(
        "Attention kernels",
        "How softmax attention is computed, apart from who attends to whom. All give the same numbers up to rounding. "
        "A kernel that cannot do what a block asks for is an error.",
        "--model.dit.kernel=sdpa",
        "a function, as those of `lightning_sora/nn/attention/kernels.py`",
    ),
    "vae": Told(
        "VAEs",
        "What turns pixels into latents and back. A DiT names a trained one by the path of its run.",
        "--model.vae='causal_conv(latent_channels=8)'",
        PARTS,
    ),
    "denoiser": Told(
        "Denoisers",
        "What predicts the noise or the velocity of latents. Recipes describe the package's own by `model.dit`; "
        "another, such as a pretrained one, is named in its place.",
        "--model.denoiser=\"diffusers(path='DIR')\"",
        PARTS,
    ),
    "text_encoder": Told(
        "Text encoders",
        "What turns a prompt into the vectors that the DiT reads.",
        "--model.text='words(dim=128)'",
        PARTS,
    ),
    "objective": Told(
        "Objectives",
        "What the network predicts, and on which path from data to noise it is trained. `t = 0` is data and `t = 1` is "
        "noise for every objective.",
        "--model.diffusion.objective=velocity",
        PARTS,
    ),
    "weighting": Told(
        "Loss weightings",
        "How much each noise level counts in the loss.",
        "--model.diffusion.weighting='min_snr(gamma=5)'",
        PARTS,
    ),
    "timesteps": Told(
        "Timestep samplers",
        "How often each noise level is trained on.",
        "--model.diffusion.timesteps='logit_normal(mean=1.0)'",
        PARTS,
    ),
    "sampler": Told(
        "Samplers",
        "How noise becomes a video, step by step. A sampler is a function `(denoise, noise, times) -> x_0`.",
        "--model.sampling.sampler=heun",
        PARTS,
    ),
    "guidance": Told(
        "Guidance",
        "How the prompt is given more weight than the network gives it. A number is `cfg` of that scale; 1 is none.",
        "--model.sampling.guidance='interval(scale=3.0)'",
        PARTS,
    ),
    "extractor": Told(
        "Feature extractors",
        "Networks in whose features distances are measured. Each resizes in its own way, and says so on the card. "
        "Weights are given by path and checked by their digest; nothing is downloaded.",
        "lightning-sora score ... --extractor \"i3d(weights='PATH')\"",
        PARTS,
    ),
    "metric": Told(
        "Metrics",
        "What is said of videos in numbers. [Protocol of every metric](../protocols.md) says how each is made.",
        "lightning-sora score --generated DIR --metrics temporal_flickering",
        "[A metric of your own](../tutorials/metric.md)",
    ),
    "schedule": Told(
        "Learning-rate schedules", "The learning rate over a training.", "--model.schedule='cosine(warmup=100)'", PARTS
    ),
    "source": Told(
        "Sources",
        "Where clips and captions come from; see [Bring data of any format and size](../how_to/data.md).",
        "--data.source=folder --data.root=videos",
        PARTS,
    ),
    "manifest": Told(
        "Manifest styles",
        "Lists of clips in the formats of other projects. `style='auto'` finds out which; see "
        "[Bring data of any format and size](../how_to/data.md).",
        "--data.source=manifest --data.root=PATH",
        PARTS,
    ),
    "sizes": Told(
        "Size policies",
        "At which size each clip is read, and how clips of several sizes make a batch; see "
        "[Bring data of any format and size](../how_to/data.md#sizes).",
        "--data.sizes=packed",
        PARTS,
    ),
    "captioner": Told(
        "Captioners", "What writes a caption for a clip.", "lightning-sora caption videos --captioner hf:DIR", PARTS
    ),
    "expander": Told(
        "Prompt expanders",
        "What turns a short prompt into a rich one.",
        "lightning-sora sample --expand hf:DIR ...",
        PARTS,
    ),
    "caption_score": Told(
        "Caption scores",
        "What scores a captioner's texts, where facts of the clips are known. All that are registered are taken.",
        "",
        PARTS,
    ),
    "expansion_score": Told(
        "Expansion scores",
        "What scores an expander's texts, by their prompts. All that are registered are taken.",
        "",
        PARTS,
    ),
    "engine": Told(
        "Engines",
        "Where the trainings of an ablation and the shards of a data job run; see "
        "[From laptop to cluster](../tutorials/cluster.md).",
        "lightning-sora ablate PLAN.yaml --engine 'local(processes=2)'",
        PARTS,
    ),
}


def kinds() -> list[str]:
    """All kinds of parts, in the order of the pages."""
    found = registries()
    return [*(kind for kind in TOLD if kind in found), *(kind for kind in found if kind not in TOLD)]


def told_of(kind: str) -> Told:
    """What is said of a kind, if only its name."""
    words = registries()[kind].kind
    return TOLD.get(kind, Told(f"{words[0].upper()}{words[1:]}s", "", "", PARTS))


def pages() -> dict[str, str]:
    """Markdown by path."""
    rows = []
    for kind in kinds():
        told = told_of(kind)
        rows.append(
            f"| [{told.title}]({kind}.md) | `{kind}` | {told.what.split('. ')[0].partition('; see')[0].rstrip('.')} |"
        )
    return {
        "parts/index.md": INDEX.format(rows="\n".join(rows)),
        **{f"parts/{kind}.md": page(kind) for kind in kinds()},
    }


def page(kind: str) -> str:
    """The page of one registry."""
    told, registry = told_of(kind), registries()[kind]
    parts = [part(name, registry.builder(name), registry.options(name)) for name in registry.list()]
    chosen = f"```bash\n{told.chosen}\n```\n\n" if told.chosen else ""
    given = (
        f" It is given `{'`, `'.join(registry.given)}`; its other arguments are its options." if registry.given else ""
    )
    return (
        f"# {told.title}\n\n{told.what}\n\n{chosen}One of your own: {told.own}.{given}\n\n"
        + "\n\n".join(parts)
        + laws(kind, registry)
    )


def laws(kind: str, registry: Registry[Any]) -> str:
    """What every part of a kind must keep, where that is written down."""
    if registry.contract is None:
        return ""
    rows = [
        f"| {name.replace('_', ' ')} | {plain(' '.join((inspect.getdoc(law) or '').split()))} |"
        for name, law in registry.contract.laws.items()
    ]
    return (
        "\n\n## What each must keep\n\n"
        f"`lightning-sora list {kind} --check FILE` puts those of a file to these laws:\n\n"
        "| law | |\n|---|---|\n" + "\n".join(row.replace("\n", " ") for row in rows) + "\n"
    )


def part(name: str, builder: Any, options: Mapping[str, inspect.Parameter]) -> str:
    """A heading, what it is, and a table of its options."""
    text, described = read(builder)
    found = f"## {name}\n\n{text}\n\n"
    if not options:
        return found
    rows = [f"| `{o}` | {_default(p)} | {described.get(o, '')} |" for o, p in options.items()]
    return found + "| option | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def read(builder: Any) -> tuple[str, dict[str, str]]:
    """What a docstring says of a part, and of each option; of options that it inherits, what its bases say."""
    described = {name: told for base in getattr(builder, "__mro__", ())[:0:-1] for name, told in _said(base)[1].items()}
    text, own = _said(builder)
    return text, described | own


def _said(builder: Any) -> tuple[str, dict[str, str]]:
    docstring = griffe.Docstring(plain(inspect.getdoc(builder) or ""))
    text, described = [], {}
    explained = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)
    for section in docstring.parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            text.append(section.value)
        elif section.kind in explained:
            for parameter in section.value:
                told = " ".join(parameter.description.split()).replace("|", r"\|")
                described = {name.strip(): told for name in parameter.name.split(",")} | described
    return "\n\n".join(text), described


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "must be given"
    shown = repr(parameter.default)
    return f"`{shown}`" if len(shown) < 120 else f"`{shown[:100]} ...`"
