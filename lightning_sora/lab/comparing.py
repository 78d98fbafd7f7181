"""Which arm of an ablation is better, by how much, with what certainty, at what cost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from lightning_sora.ablation import table
from lightning_sora.ablation.checks import hardware_note, refuse_incomparable, refuse_undeclared
from lightning_sora.ablation.judging import verdicts_of
from lightning_sora.ablation.reader import read_study
from lightning_sora.ablation.study import Study
from lightning_sora.ablation.verdict import Verdict
from lightning_sora.directions import Mode
from lightning_sora.errors import SoraError
from lightning_sora.sealing import write_whole
from lightning_sora.shown import Shown
from lightning_sora.tracking.database import database_path
from lightning_sora.tracking.store import connect, resolve_uri

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Verdicts(Shown, Sequence[Verdict]):
    """The verdict on every arm of a study, the baseline first; a terminal and a notebook show it as a table.

    Attributes:
        study: that was judged.

    Example:
        >>> import lightning_sora as ls
        >>> from lightning_sora.ablation.study import Arm, Trial
        >>> losses = {("full", 0): 1.0, ("full", 1): 1.1, ("time", 0): 0.5, ("time", 1): 0.61}
        >>> trials = tuple(Trial(arm, s, "run", "FINISHED", {"val/loss": x}) for (arm, s), x in losses.items())
        >>> arms = (Arm("full", "full"), Arm("time", "temporal"))
        >>> study = ls.Study("toy", "model.dit.attention", "full", "val/loss", "min", "2 steps", arms, trials)
        >>> [(verdict.arm, verdict.outcome) for verdict in ls.compare(study)]
        [('full', 'baseline'), ('time', 'better')]
    """

    study: Study
    verdicts: tuple[Verdict, ...]

    @overload
    def __getitem__(self, index: int) -> Verdict: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Verdict, ...]: ...
    def __getitem__(self, index: int | slice) -> Verdict | tuple[Verdict, ...]:
        return self.verdicts[index]

    def __len__(self) -> int:
        return len(self.verdicts)

    def of(self, arm: str) -> Verdict:
        """Returns the verdict on an arm; KeyError where there is none of that name."""
        return {verdict.arm: verdict for verdict in self}[arm]

    def tables(self) -> Iterable[RenderableType]:
        yield table.as_table(self.study, self.verdicts)

    @property
    def summary(self) -> str:
        """All of them in one sentence."""
        from lightning_sora.ablation.report import summary

        return summary(self.study, self.verdicts)

    @property
    def note(self) -> str:
        """What to know of the costs beside; empty where there is nothing."""
        return hardware_note(self.study)

    def to_csv(self) -> str:
        """Returns one row per arm, in full precision."""
        return table.as_csv(self.study, self.verdicts)

    def to_json(self) -> str:
        """Returns one object: what was compared, the arms, every trial's value, and what is missing."""
        return table.as_json(self.study, self.verdicts)

    def to_markdown(self) -> str:
        """Returns a page: what it says, the rows, and where they are from."""
        from lightning_sora.ablation.report import facts

        found = facts(self.study).items()
        beside = [(name, value) for name, value in found if name not in ("factor", "baseline", "decided by", "budget")]
        said = "".join(f"- {name}: {value}\n" for name, value in beside)
        rows = table.as_markdown(self.study, self.verdicts)
        return f"# {self.study.name}: `{self.study.factor}`\n\n{self.summary}\n\n{rows}\n{said}"

    def report(self, folder: str | Path) -> Path:
        """Writes the HTML report and the tables, and stores them with the ablation's run where there is one.

        Returns:
            the path of the page.
        """
        from lightning_sora.ablation.report import write_report

        page = write_report(self.study, self.verdicts, Path(folder))
        for form, text in (("md", self.to_markdown()), ("csv", self.to_csv()), ("json", self.to_json())):
            write_whole(page.with_name(f"table.{form}"), text.encode())
        if self.study.run_id is not None and self.study.uri:
            connect(self.study.uri).log_artifacts(self.study.run_id, str(folder), "report")
        return page


def compare(
    what: Study | str | Sequence[str] = (), *, uri: str | None = None, metric: str | None = None,
    mode: Mode | None = None, baseline: str | None = None, level: float = 0.95,
) -> Verdicts:  # fmt: skip
    """Judges the arms of an ablation, or of plain runs that differ in one thing.

    Args:
        what: a study; or the name or run of an ablation; or names or ids of runs; none for the newest ablation.
        uri: of the mlflow store; None for MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db.
        metric, mode, baseline: what to judge by, instead of what the ablation says; not where ``what`` is a study.
        level: of the intervals, between 0 and 1.

    Raises:
        SoraError: nothing of that name, or arms that differ in more than the factor, so that nothing could be said.

    Example:
        >>> import lightning_sora as ls
        >>> verdicts = ls.compare("attention")  # doctest: +SKIP
        >>> verdicts.of("window").difference  # doctest: +SKIP
        -0.021
    """
    if not 0 < level < 1:
        raise SoraError(f"level {level} must lie between 0 and 1, such as 0.95")
    if isinstance(what, Study) and (metric, mode, baseline) != (None, None, None):
        raise SoraError("a study is judged by its own metric, mode and baseline; give its name to have others read")
    study = what if isinstance(what, Study) else _read(resolve_uri(uri), what, metric, mode, baseline)
    refuse_incomparable(study.metric, study.factor)
    refuse_undeclared(study)
    return Verdicts(study, tuple(verdicts_of(study, level)))


def _read(
    uri: str, what: str | Sequence[str], metric: str | None, mode: Mode | None, baseline: str | None
) -> Study:  # fmt: skip
    database = database_path(uri)
    if database is not None and not os.path.exists(database):
        raise SoraError(f"no mlflow store at {database}; run `lightning-sora ablate` here first, or give --uri")
    names = [what] if isinstance(what, str) else list(what)
    return read_study(uri, names, metric=metric, mode=mode, baseline=baseline)
