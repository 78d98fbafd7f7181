"""One trial of an ablation, as the job of an engine."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sora.exits import own_signal_handlers
from lightning_sora.lab.training import run_recipe


def run_trial(commands: Sequence[Sequence[str]]) -> None:
    """Runs recipes one after the other in this process.

    Args:
        commands: of each, fit or test, and the flags that say its recipe.

    Raises:
        SoraError: of the first that is refused; KeyboardInterrupt and SystemExit where it is stopped.
    """
    for command, *flags in commands:
        print(f"$ lightning-sora {command} {' '.join(flags)}", flush=True)
        with own_signal_handlers():
            print(run_recipe(command, flags), flush=True)
