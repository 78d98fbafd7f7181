"""The parser of recipes: files and flags, refused in one line where they cannot be meant."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

import lightning_sora.data.datamodule  # recipes may name the classes of these without their module
import lightning_sora.lit.captioner
import lightning_sora.lit.dit
import lightning_sora.lit.expander
import lightning_sora.lit.vae  # noqa: F401
from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks import Evaluate
from lightning_sora.lit.checkpoint import check_module, read_checkpoint
from lightning_sora.lit.finite import FiniteSteps
from lightning_sora.names import at_home
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.recipe.classes import find_class, imported
from lightning_sora.recipe.explain import explain, explain_interpolation, refusal
from lightning_sora.recipe.files import (
    check_recipe,
    merged_vars,
    plugin_files,
    read_recipe,
    recipe_files,
    refuse_nulls,
    require_recipe,
    types_of,
    with_local_recipes,
    with_plugins,
    with_quoted_specs,
)
from lightning_sora.recipe.secrets import refuse_hidden
from lightning_sora.recipe.specs import take_specs
from lightning_sora.recipe.trainers import (
    check_asked,
    check_sharded,
)
from lightning_sora.redaction import remember_interpolations, remember_secrets
from lightning_sora.texts import read_text
from lightning_sora.tracking import Checkpoint, MLflowTracker

#: Warnings that would mislead: what they say is meant to be, or untrue.
NOISE = (
    r".*isinstance.treespec, LeafSpec.*",  # lightning on a torch newer than it knows
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # a frozen VAE
    r"It is recommended to use .*sync_dist=True",  # what is logged per epoch is of all ranks already
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # it counts steps, not batches
)
#: What to give as ``--ckpt_path`` to score a model with its initial weights.
UNTRAINED = "none"
PROMPTS = "A text file with one prompt per line, or a .jsonl with one request per line, in place of the recipe's data."
VBENCH = "So many samples of each prompt (the suite takes 5), by the seeds and names of VBench."
VBENCH_NAMES = "VBench's own prompts, by which videos are named, line by line, where --prompts are rewritten ones."
BASES = {"model": pl.LightningModule, "data": pl.LightningDataModule}


@contextmanager
def parsing() -> Iterator[None]:
    """How recipes are parsed here, with what constructors refuse told as such."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    take_specs()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)
    try:
        yield
    except ValueError as problem:
        # The parser wraps what a model's or a data module's constructor refuses.
        refused = refusal(problem)
        if refused is None:
            raise
        raise refused from None


class OneLineRecipeParser(LightningArgumentParser):
    """The recipe parser, with errors of one line instead of the usage of a hundred."""

    #: The recipe as it was last, merged from its files and flags, before interpolations were resolved.
    unresolved = ""

    def dump(self, *args: Any, **kwargs: Any) -> str:
        # The parser writes out what it is about to resolve.
        text: str = super().dump(*args, **kwargs)
        if "${" in text:
            self.unresolved = text
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # asked by another parser, which tries alternatives
            super().error(message, ex)
        raise SoraError(explain(message)) from ex


class RecipeParser(LightningCLI):
    """LightningCLI for the recipes of this package: made, it has read one; ``execute`` runs it.

    Args:
        arguments: the command, one of lightning's, and the flags that say the recipe.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = with_local_recipes(with_quoted_specs(with_plugins(arguments)))
        self.files = recipe_files(self.arguments)
        arguments = self.arguments
        remember_interpolations([*arguments, *map(read_text, self.files)])
        for file in self.files:
            remember_secrets(read_recipe(file))
        load_packages()
        load_plugins(plugin_files(self.files, arguments))
        self._from_run: str | None = None
        self._from_step = 0
        self._trained_by: dict[str, Any] = {}  # the recipe that the checkpoint keeps
        self._sampled_by: dict[str, Any] | None = None  # the options of sampling that it keeps
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            # The sampler deals batches to ranks itself.
            trainer_defaults={"use_distributed_sampler": False},
            seed_everything_default=0,
            parser_class=OneLineRecipeParser,
            parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},
            auto_configure_optimizers=False,
            # Modules save their own arguments; what the parser would add cannot be passed to them.
            load_from_checkpoint_support=False,
            args=arguments,
        )

    def _set_seed(self) -> None:
        """Nothing is drawn while a recipe is read."""

    def instantiate_classes(self) -> None:
        """Nothing is built while a recipe is read."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run while a recipe is read."""

    def execute(self) -> None:
        """Builds what the recipe names, and runs it."""
        super()._set_seed()
        super().instantiate_classes()
        super()._run_subcommand(self.arguments[0])

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # lightning asks by the instance too
        """The command that is run, alone: with parsers of the other three, recipes take half as long again to read."""
        command = self.arguments[0]
        return {command: super().subcommands()[command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--plugins", type=list[str], default=[], help="Files that register parts of their own.")
        parser.add_argument("--vars", type=dict, default={}, help="Values for interpolation: ${vars.name}.")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Evaluate, "evaluation")
        parser.add_lightning_class_args(FiniteSteps, "finite")
        parser.add_class_arguments(MLflowTracker, "tracking")
        if self.arguments[0] == "predict":
            parser.add_argument("--prompts", type=str | None, default=None, help=PROMPTS)
            parser.add_argument("--vbench", type=int | None, default=None, help=VBENCH)
            parser.add_argument("--vbench_names", type=str | None, default=None, help=VBENCH_NAMES)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        command = self.arguments[0]
        if not any(argument in ("-h", "--help") or "help" in argument for argument in self.arguments):
            require_recipe(command, self.arguments[1:])
            check_recipe(self.files, self.arguments[1:], self._accepted)
        name = self.files[0].stem if self.files else command
        self._subcommand_parsers[command].set_defaults({"trainer.default_root_dir": f"outputs/{name}"})
        if command == "predict":  # they are written as they come, not gathered in memory
            self._subcommand_parsers[command].set_defaults({"return_predictions": False})
        try:
            with merged_vars(self.files, self.arguments) as arguments:
                self.config = parser.parse_args(arguments)
            from_home(self.config[command])
            recipe = self.config[command].as_dict()
            refuse_hidden(recipe)
            refuse_nulls(recipe, imported)
            check_asked(self.config[command].trainer)
        except OmegaConfBaseException as problem:
            raise SoraError(explain_interpolation(problem)) from problem
        except RecursionError as problem:
            raise SoraError("a value of the recipe or a flag is nested too deeply to be read") from problem

    def _accepted(self, section: str, name: str | None) -> list[str] | None:
        """The names that may stand in a section of a recipe; see ``check_recipe``."""
        known = [action.dest for action in self._subcommand_parsers[self.arguments[0]]._actions]
        if not section:
            return sorted({"c", "print_config", *(dest.split(".")[0] for dest in known)})
        section, _, group = section.partition(".")
        if section in BASES:
            if name is None:
                return None
            made: Any = find_class(name, BASES[section])
            if group:
                made = types_of(made).get(group)
                if not is_dataclass(made):
                    return None
            parameters = inspect.signature(made).parameters.values()
            if any(p.kind is p.VAR_KEYWORD for p in parameters):
                return None
            return [p.name for p in parameters]
        if group:
            return None
        inside = [dest.split(".")[1] for dest in known if dest.startswith(f"{section}.")]
        return sorted(set(inside)) or None

    def _parse_ckpt_path(self) -> None:
        """Finds and reads the checkpoint; its hyper-parameters change nothing of what the user wrote."""
        command = self.config.subcommand
        config = self.config[command]
        asked = config.get("ckpt_path")
        if asked is None:
            if command == "fit":
                return
            raise SoraError(
                f"{command} needs --ckpt_path: best, last, a path, or {UNTRAINED} to take the untrained model"
            )
        if str(asked) == UNTRAINED:
            config.ckpt_path = None
            return
        path = Path(asked)
        if str(asked) in ("best", "last"):
            folder = Checkpoint(dirpath=config.checkpoint.dirpath).folder(config.trainer.default_root_dir or "")
            path = folder / f"{asked}.ckpt"
            if not path.exists():
                present = ", ".join(sorted(file.name for file in folder.glob("*.ckpt"))) or "no checkpoint"
                raise SoraError(f"--ckpt_path {asked}: {folder} holds {present}; fit this recipe first, or give a path")
        config.ckpt_path = str(path)
        if os.path.isdir(path):  # a sharded checkpoint, which the strategy reads
            check_sharded(path)
            return
        checkpoint = read_checkpoint(path)
        check_module(checkpoint, config.model.class_path.rsplit(".", 1)[-1])
        self._from_run, self._from_step = checkpoint.get("run_id"), checkpoint["global_step"]
        self._trained_by = checkpoint.get("recipe") or {}
        self._sampled_by = (checkpoint.get("hyper_parameters") or {}).get("sampling")


def from_home(value: Any) -> Any:
    """What a recipe sets, with paths from the home folder; a parser's namespaces are changed in place."""
    if isinstance(value, str):
        return at_home(value)
    if isinstance(value, list):
        return [from_home(item) for item in value]
    if isinstance(value, Mapping):
        return {key: from_home(item) for key, item in value.items()}
    if isinstance(value, Namespace):
        for key, item in list(vars(value).items()):
            setattr(value, key, from_home(item))
    return value


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in ("Tip: ", "already configured with model summary callbacks"))
