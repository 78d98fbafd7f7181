"""The page of recipes: each with its claim and all that it says."""

from __future__ import annotations

from pathlib import Path


def text(folder: Path) -> str:
    """Markdown of all recipes under a folder."""
    found = [
        "# Recipes",
        "A recipe is one complete YAML file. It opens with what it does, what that costs and what came out. "
        "[Write and change recipes](how_to/recipes.md) says how.",
    ]
    for title, files in (
        ("Trainings", sorted(folder.glob("*.yaml"))),
        ("Ablations", sorted((folder / "ablations").glob("*.yaml"))),
    ):
        found.append(f"## {title}")
        found += [one(file, folder) for file in files]
    return "\n\n".join(found) + "\n"


def one(file: Path, folder: Path) -> str:
    """A recipe: its name, its first sentence, and the file, to be unfolded."""
    name, lines = file.relative_to(folder), file.read_text().splitlines()
    first = " ".join(line.removeprefix("# ") for line in lines[: lines.index("#")])
    body = "\n".join(f"    {line}".rstrip() for line in lines)
    return f'### {name}\n\n{first}\n\n??? note "recipes/{name}"\n    ```yaml\n{body}\n    ```'
