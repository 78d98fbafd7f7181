"""fit, validate, test, predict: a recipe, run by lightning."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sora.recipe.files import require_recipe


def run(arguments: Sequence[str]) -> int:
    """Runs a recipe, and says where things are.

    Args:
        arguments: the command line, from the command on; the recipe's parser reads it.

    Returns:
        0.

    Raises:
        SoraError: a mistake in the recipe, the flags or the checkpoint.
        KeyboardInterrupt: Ctrl-C during training, once a checkpoint is kept.
        SystemExit: SIGTERM or SIGHUP, with status 143.
    """
    require_recipe(arguments[0], arguments[1:])  # before lightning is loaded, which takes seconds

    from lightning_sora.commands import ending
    from lightning_sora.lab.training import run_recipe

    ending.tell(run_recipe(arguments[0], arguments[1:]), arguments)
    return 0
