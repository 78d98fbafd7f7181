"""Pages of the Python names: which of them stands on which page."""

from __future__ import annotations

import lightning_sora

#: Page: title, and the names on it, in order. What is on none is put on the last.
PAGES = {
    "models": (
        "Models",
        "load LatentDiffusion DiTConfig DiffusionConfig SamplingConfig VAELossConfig ClipVAE LitDiT LitVAE "
        "LitCaptioner LitExpander LitEvaluator LitModule export",
    ),
    "attention": (
        "Attention",
        "create_attention list_attention register_attention AttentionBlock PartitionBlock MaskedBlock",
    ),
    "spacetime": (
        "Spacetime",
        "PatchSize TokenGrid TokenLayout SpacetimeBatch VideoSize Crop DataSpec patchify unpatchify",
    ),
    "data": (
        "Data and videos",
        "World read_video save_video open_collection inspect_data check_data caption cache_latents "
        "SpacetimeDataModule PromptDataModule",
    ),
    "metrics": (
        "Metrics",
        "score Evaluation Results Score register_metric PerVideoMetric VideoMetric Needs Evaluated FVD KVD",
    ),
    "experiments": ("Experiments", "Recipe ablate compare Study Verdicts"),
    "registries": ("Registries", "registries SoraError"),
}
#: Of these, what a user calls; Lightning's own methods are of no use by hand.
MEMBERS = {
    "LitDiT": ["sample"], "LitVAE": ["encode", "decode"], "LitCaptioner": [], "LitExpander": ["expand"],
    "LitEvaluator": [], "LitModule": ["load"], "SpacetimeDataModule": [], "PromptDataModule": [],
}  # fmt: skip


def pages() -> dict[str, str]:
    """Markdown by path, of every public name but the registries, which have pages of their own."""
    public = [name for name in lightning_sora.__all__ if not name.isupper() or name in ("FVD", "KVD")]
    placed = {name for _, names in PAGES.values() for name in names.split()}
    others = [name for name in public if name not in placed and name != "__version__"]
    found = {}
    for page, (title, names) in PAGES.items():
        shown = [name for name in names.split() if name in public] + (others if page == "registries" else [])
        text = f"# {title}\n\n" + "\n".join(map(_entry, shown))
        found[f"api/{page}.md"] = text + (_registries() if page == "registries" else "")
    return found


def _entry(name: str) -> str:
    shown = MEMBERS.get(name)
    options = f"    options:\n      members: {shown}\n      inherited_members: {shown}\n"
    return f"::: lightning_sora.{name}\n{'' if shown is None else options}"


def _registries() -> str:
    rows = []
    for name in lightning_sora.__all__:
        if name.isupper() and name not in ("FVD", "KVD"):
            registry = getattr(lightning_sora, name)
            rows.append(f"| `{name}` | {registry.kind} | [{registry.name}](../parts/{registry.name}.md) |")
    return "\n## By name\n\n| registry | of | its parts |\n|---|---|---|\n" + "\n".join(rows) + "\n"
