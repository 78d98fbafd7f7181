"""Messages of the parser, of interpolation and of reading processes, in the one line that helps."""

from __future__ import annotations

import inspect
import re

from omegaconf.errors import OmegaConfBaseException

from lightning_sora.errors import SoraError, did_you_mean
from lightning_sora.recipe.classes import imported


def refusal(problem: BaseException | None) -> SoraError | None:
    """The SoraError behind another one, or what stands for a package that is missing."""
    missing, raised = None, True  # by what it caused, and not while something else was tried
    while problem is not None and not isinstance(problem, SoraError):
        if raised and isinstance(problem, ImportError) and missing is None:
            missing = SoraError(f"a part of this recipe cannot be imported: {' '.join(str(problem).split())}")
        raised = raised and problem.__cause__ is not None
        problem = problem.__cause__ or problem.__context__
    return problem or missing


def from_worker(problem: SoraError) -> SoraError:
    """The error as the worker raised it, without the traceback that torch put around it."""
    raised = re.split(r"^[\w.]+: ", str(problem), flags=re.MULTILINE)
    return SoraError(" ".join(raised[-1].split()))


def explain(message: str) -> str:
    """A parser's message without its nesting and its listing of types tried."""
    text = " ".join(message.split())
    if unknown := re.search(r"given class_path '([^']+)': Option '([^']+)' is not accepted", text):
        accepted = list(inspect.signature(imported(unknown[1])).parameters)
        hint = did_you_mean(unknown[2], accepted)
        return f"{unknown[1]} has no option {unknown[2]!r}; {hint}accepted: {', '.join(accepted)}"
    if lacking := re.search(
        r"given class_path '([^']+)': the following arguments are required: ([\w, ]+?)(?= - |$)", text
    ):
        keys = re.findall(r'Parser key "([^"]+)"', text[: lacking.start()])
        first = lacking[2].split(",")[0]
        return f"{lacking[1]} needs {lacking[2]}; give it by --{'.'.join([*keys, first])}=..."
    if unread := re.search(r"Not of type spec: (cannot .*?)(?= - |$)", text):
        keys = re.findall(r'Parser key "([^"]+)"', text[: unread.start()])
        return f"{'.'.join(keys)}: {unread[1]}"
    if none := re.search(
        r'Parser key "([^"]+)": Does not validate .*? Subtypes: \[(.*)\] Errors: .* value: (.*)', text
    ):
        values = re.findall(r"Literal\[([^\]]*)\]", none[2])
        if known := dict.fromkeys(value.strip("'") for one in values for value in one.split(", ")):
            return f"{none[1]}: expected one of {', '.join(known)}, but got {none[3]!r}"
    if wrong := re.search(r"(Expected .*?)\. (?:Got|Given) value: (.*?)(?= - |$)", text):
        keys = re.findall(r'Parser key "([^"]+)"', text[: wrong.start()])
        if of := re.search(r"Literal\[([^\]]*)\]", wrong[1]):
            choices = ", ".join(value.strip("'") for value in of[1].split(", "))
            return f"{'.'.join(keys)}: expected one of {choices}, but got {wrong[2]!r}"
        expected = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", wrong[1]).lower()
        return f"{'.'.join(keys)}: {expected}, but got {wrong[2]!r}"
    return text if len(text) <= 600 else f"{text[:600]} ..."


def explain_interpolation(problem: OmegaConfBaseException) -> str:
    text = str(problem)
    first = text.splitlines()[0]
    place = re.search(r"full_key: (?:fit|validate|test|predict)\.(\S+)", text)
    where = f"{place[1].replace('init_args.', '')}: " if place else ""
    return f"{where}{first}; an interpolation names a key from the top of the recipe, such as ${{vars.dim}}"
