"""Messages of the parser, of interpolation and of reading processes, in the one line that helps."""

from __future__ import annotations

import difflib
import inspect
import re

from omegaconf.errors import OmegaConfBaseException

from lightning_sora.commands.classes import imported
from lightning_sora.errors import SoraError


def refusal(problem: BaseException | None) -> SoraError | None:
    """The SoraError behind another one."""
    while problem is not None and not isinstance(problem, SoraError):
        problem = problem.__cause__ or problem.__context__
    return problem


def from_worker(problem: SoraError) -> SoraError:
    """The error as the worker raised it, without the traceback that torch put around it."""
    raised = re.split(r"^[\w.]+: ", str(problem), flags=re.MULTILINE)
    return SoraError(" ".join(raised[-1].split()))


def explain(message: str) -> str:
    """A parser's message without its nesting and its listing of types tried."""
    text = " ".join(message.split())
    if unknown := re.search(r"given class_path '([^']+)': Option '([^']+)' is not accepted", text):
        accepted = list(inspect.signature(imported(unknown[1])).parameters)
        near = difflib.get_close_matches(unknown[2], accepted, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{unknown[1]} has no option {unknown[2]!r}; {hint}accepted: {', '.join(accepted)}"
    if wrong := re.search(r"(Expected .*?)\. (?:Got|Given) value: (.*?)(?= - |$)", text):
        keys = re.findall(r'Parser key "([^"]+)"', text[: wrong.start()])
        expected = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", wrong[1]).lower()
        return f"{'.'.join(keys)}: {expected}, but got {wrong[2]!r}"
    return text if len(text) <= 600 else f"{text[:600]} ..."


def explain_interpolation(problem: OmegaConfBaseException) -> str:
    text = str(problem)
    first = text.splitlines()[0]
    place = re.search(r"full_key: (?:fit|validate|test|predict)\.(\S+)", text)
    where = f"{place[1].replace('init_args.', '')}: " if place else ""
    return f"{where}{first}; an interpolation names a key from the top of the recipe, such as ${{vars.dim}}"
