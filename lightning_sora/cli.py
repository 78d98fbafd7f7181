"""The door: ``lightning-sora COMMAND ...``.

Importing lightning takes many seconds, so this module imports nothing heavy. It finds out which
command is meant, imports that one alone, and turns whatever ends it into an exit status.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from lightning_sora import __version__
from lightning_sora.commands.one_line import PROGRAM, OneLineParser
from lightning_sora.errors import SoraError, did_you_mean, raised_in
from lightning_sora.exits import USER_ERROR, ending_of, own_signal_handlers
from lightning_sora.names import shown
from lightning_sora.redaction import RedactedStream, redact

TRAINING = {
    "fit": "train a model by a recipe",
    "validate": "run the validation of a recipe on a checkpoint",
    "test": "score a checkpoint on the test clips of a recipe",
    "predict": "run a recipe's prediction on a checkpoint",
}
ABLATE = {"ablate": "train the arms of an ablation under an equal budget, and judge them"}
LIGHT = {
    "compare": "judge the arms of an ablation, and write the report",
    "sample": "make videos from prompts with a trained model",
    "score": "score folders of videos from any system: FVD, KVD, CLIP-score ...",
    "caption": "rewrite the captions of every clip by a captioner",
    "data": "look at, check and cache videos",
    "list": "name the registered parts: attention, VAEs, samplers ...",
    "export": "write a trained model for `mlflow models serve`",
    "new": "write a folder to start a study from",
    "page": "make videos in a browser",
    "ui": "open the mlflow pages of past runs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; fit for repeated calls in one process.

    Returns:
        0 after success, 2 after a mistake of the user (one line says which), 130 after Ctrl-C,
        143 after SIGTERM or SIGHUP.
    """
    # Names of files need not be text, and recipes, records and stores hold nothing else.
    arguments = [shown(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    # Before torch is loaded: threads that wait by spinning are many times slower where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with own_signal_handlers(), _no_secrets_printed():
            status = _dispatch(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # not at exit, where Python would only complain
            return status
    except BrokenPipeError:
        # The reader went away (`lightning-sora list | head`); Python would complain again at exit.
        sys.stdout = None
        return 0
    except BaseException as problem:
        ended = ending_of(problem)
        if ended is None:
            raise
        status, said = ended
        if isinstance(problem, OSError | RuntimeError):
            sys.stdout = _still_written(sys.stdout)
        if said:
            _say(said)
        return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if arguments else USER_ERROR
    if arguments[0] == "--version":
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        return 0
    command = arguments[0]
    if command in TRAINING:
        return importlib.import_module("lightning_sora.commands.train").run(arguments)
    if command in ABLATE:
        return importlib.import_module("lightning_sora.commands.ablate").run(arguments[1:])
    if command in LIGHT:
        module = importlib.import_module(f"lightning_sora.commands.{command}")
        parser = OneLineParser(prog=PROGRAM)
        module.add_parser(parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser))
        return module.run(parser.parse_args(arguments))
    known = [*TRAINING, *ABLATE, *LIGHT]
    hint = did_you_mean(command, known, repr)
    raise SoraError(f"unknown command {command!r}; {hint}commands: {', '.join(known)}")


def _help() -> str:
    def table(commands: dict[str, str]) -> str:
        return "".join(f"  {name:<10}{meaning}\n" for name, meaning in commands.items())

    return (
        f"usage: {PROGRAM} COMMAND ...\n\n"
        "Controlled experiments on Sora-class text-to-video models.\n\n"
        f"commands that run a recipe:\n{table(TRAINING)}\n"
        f"  {PROGRAM} fit --config recipes/NAME.yaml [--config OVERLAY.yaml] [--model.dit.dim=256 ...]\n\n"
        f"commands that compare:\n{table(ABLATE)}\n"
        f"other commands:\n{table(LIGHT)}\n"
        f"`{PROGRAM} COMMAND --help` says more.\n"
    )


def _still_written(stream: TextIO | None) -> TextIO | None:
    """A stream, unless it is that which is full: Python would complain again at exit."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return None
    return stream


def _say(text: str) -> None:
    RedactedStream(sys.stderr).write(f"{PROGRAM}: {shown(' '.join(text.split()))}\n")


@contextmanager
def _no_secrets_printed() -> Iterator[None]:
    # Also by libraries and their logs; an error that is a bug is printed after this, by the hook.
    sys.excepthook = _print_error
    outer = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = outer


def _print_error(kind: type[BaseException], problem: BaseException, traceback: TracebackType | None) -> None:
    from traceback import format_exception

    sys.stderr.write(redact("".join(format_exception(kind, problem, traceback))))
    if place := raised_in(problem):  # last, where a reader looks first
        _say(f"error in {place}: {kind.__name__}: {problem}")


if __name__ == "__main__":
    sys.exit(main())
