"""A recipe as a value: read once, changed by dotted keys, built into a model and its data."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml

from lightning_sora.errors import SoraError
from lightning_sora.lit.module import LitModule
from lightning_sora.recipe.classes import find_class
from lightning_sora.recipe.files import quoted_spec
from lightning_sora.recipe.parser import RecipeParser, parsing
from lightning_sora.tracking.flatten import ELSEWHERE, flatten


@dataclass(frozen=True)
class Recipe:
    """Everything that `lightning-sora fit` would be told, every key resolved and checked; it changes by copies.

    Attributes:
        files: the YAML files that it was read from, the base first.
        overrides: what was set beside them, by dotted key.
        content: the sections `model`, `data`, `trainer` and so on, with every default in them.

    Example:
        >>> import pathlib, lightning_sora as ls
        >>> model = "model: {class_path: LitDiT, init_args: {vae: identity, dit: {depth: 1}}}"
        >>> _ = pathlib.Path("tiny.yaml").write_text(f"{model}\\ndata: SpacetimeDataModule")
        >>> recipe = ls.Recipe.load("tiny.yaml", {"data.source": "world(level='tiny')"})
        >>> recipe["model.dit.depth"], recipe.with_("model.dit.depth", 2)["model.dit.depth"], recipe["seed_everything"]
        (1, 2, 0)
    """

    files: tuple[Path, ...]
    overrides: Mapping[str, Any]
    content: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, files: str | Path | Sequence[str | Path], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Reads a recipe, checks every key, and resolves its interpolations; nothing is built.

        Args:
            files: a YAML file, or a base and its overlays, in order.
            overrides: values by dotted key, such as ``{"model.dit.attention": "window(size=(2,4,4))"}``; text is
                read as on the command line.

        Raises:
            SoraError: no such file, a key that does not exist, or a value that does not fit.
        """
        listed = [files] if isinstance(files, str | Path) else files
        found, chosen = tuple(Path(file) for file in listed), dict(overrides or {})
        with parsing():
            parser = RecipeParser(["fit", *flags_of(found, chosen)])
            text = parser._parser("fit").dump(parser.config["fit"], skip_unset=False)
        return cls(found, chosen, yaml.safe_load(text))

    def with_(self, key: str, value: Any) -> Recipe:
        """Returns this recipe with one key set, read and checked anew.

        Raises:
            SoraError: no such key, or a value that does not fit.
        """
        return Recipe.load(self.files, {**self.overrides, key: value})

    def adjusted(self, values: Mapping[str, Any]) -> Recipe:
        """Returns this recipe with typed values set as they are, which is quick: nothing is read or checked anew."""
        content = copy.deepcopy(dict(self.content))
        for key, value in values.items():
            *sections, name = key.split(".")
            inner: Any = content
            for section in sections:
                inner = inner[section]
                inner = inner.setdefault("init_args", {}) if "class_path" in inner else inner
            inner[name] = value
        return Recipe(self.files, {**self.overrides, **values}, content)

    def __getitem__(self, key: str) -> Any:
        """The value of a dotted key, such as "model.dit.attention"; ``init_args`` are not spelt out."""
        found: Any = self.content
        for part in key.split("."):
            found = _options(found)[part]
        return found

    def identity(self) -> dict[str, str]:
        """Returns what makes the result, by dotted key, without what says where it is trained and kept."""
        return {key: value for key, value in flatten(self.content).items() if not key.startswith(ELSEWHERE)}

    def flags(self) -> list[str]:
        """Returns what a command line would say: ``--config=FILE ... --KEY=VALUE ...``."""
        return list(flags_of(self.files, self.overrides))

    def options(self, section: str) -> dict[str, Any]:
        """Returns the options of the class that a section names."""
        return dict(self.content[section].get("init_args") or {})

    def build_data(self) -> Any:
        """Makes the data module.

        Raises:
            SoraError: options that cannot be meant, or clips that are not there.
        """
        return find_class(self.content["data"]["class_path"], pl.LightningDataModule)(**self.options("data"))

    def build(self) -> tuple[LitModule, Any]:
        """Makes the model and its data module, and sees that they fit each other; nothing is trained.

        Raises:
            SoraError: options that cannot be meant, a patch that is not the model's, or a model of another kind.
        """
        model = find_class(self.content["model"]["class_path"], pl.LightningModule)(**self.options("model"))
        data = self.build_data()
        if not isinstance(model, LitModule):
            raise SoraError(f"{type(model).__name__} is no LitModule, so its FLOPs and scores per clip are unknown")
        model.check_patch(data.patch)
        return model, data

    def __str__(self) -> str:
        return str(yaml.safe_dump(dict(self.content), sort_keys=False, allow_unicode=True))


def flags_of(files: Sequence[Path], overrides: Mapping[str, Any]) -> Iterator[str]:
    """What a command line would say of a recipe."""
    yield from (f"--config={file}" for file in files)
    yield from (f"--{key}={quoted_spec(as_text(value))}" for key, value in overrides.items())


def as_text(value: Any) -> str:
    """A value as a flag says it."""
    return value if isinstance(value, str) else json.dumps(value)


def _options(section: Any) -> Any:
    """Where the options of a section are: a class has them one level deeper."""
    return section.get("init_args") or {} if isinstance(section, Mapping) and "class_path" in section else section
