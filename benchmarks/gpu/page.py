"""The results of the suite as one Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.gpu.mfu import BAR, PUBLISHED
from benchmarks.measure import markdown_table

Row = dict[str, Any]
#: Told in per cent.
SHARES = ("mfu", "mfu_of_measured_matmul", "pairs_share", "flops_share")


def page(results: dict[str, Any]) -> str:
    """The page of a ``results.json``, finished or not."""
    provenance, parts = results["provenance"], results["parts"]
    lines = [f"# lightning_sora on {provenance.get('device', 'a device without a name')}", ""]
    lines += [f"- {key.replace('_', ' ')}: {_cell(key, value)}" for key, value in provenance.items()]
    lines += ["", "## Summary", "", *_summary(parts), ""]
    lines += _table(
        {"part": f"{found['title']} (`{name}`)", "status": _status(found), "seconds": found["seconds"]}
        for name, found in parts.items()
    )
    for name, found in parts.items():
        lines += ["", f"## {found['title']}", "", f"`{name}`: {_status(found)}"]
        if found.get("about"):
            lines += ["", found["about"]]
        figures = [row for row in found["rows"] if "raised" not in row]
        if figures:
            lines += ["", *(_checks(found["rows"]) if _are_checks(figures) else _table(figures))]
        raised = [row for row in found["rows"] if "raised" in row]
        if raised:
            lines += ["", "What raised:", "", *(f"- {_labels(row)}: {row['raised']}" for row in raised)]
    return "\n".join(lines) + "\n"


def _summary(parts: dict[str, Any]) -> list[str]:
    lines = []
    checks = [row for found in parts.values() for row in found["rows"] if "passed" in row]
    if checks:
        wrong = [_labels(row) for row in checks if not row["passed"]]
        lines.append(f"- {len(checks) - len(wrong)} of {len(checks)} checks of blocks are within their tolerances")
        lines += [f"- **outside of it**: {words}" for words in wrong]
    raised = sum("raised" in row for found in parts.values() for row in found["rows"])
    lines.append(f"- {raised} cases raised (listed with their part)" if raised else "- no case raised")
    best = max((row for row in parts.get("mfu", {}).get("rows", []) if row.get("mfu")), key=_mfu, default=None)
    if best is not None:
        words = f"DiT-{best['model']}, {best['tokens']:,} tokens, {best['mode']}"
        reached = "reached" if _mfu(best) >= BAR else "not reached"
        lines.append(
            f"- best MFU: {_mfu(best):.1%} ({words}); best published for training a video DiT: {PUBLISHED:.0%} on "
            f"H100; the bar of {BAR:.0%} is {reached}"
        )
    return lines


def _mfu(row: Row) -> float:
    return row["mfu"]


def _status(found: dict[str, Any]) -> str:
    words = found["status"] if found["status"] == "done" else f"**{found['status']}**"
    return f"{words}: {found['reason']}" if found["reason"] else words


def _are_checks(rows: Sequence[Row]) -> bool:
    return all("passed" in row for row in rows)


def _checks(rows: Sequence[Row]) -> list[str]:
    """A row for each block and kernel, a column for each check: the errors of outputs and of gradients."""
    lines: dict[tuple[str, str], Row] = {}
    for row in rows:
        line = lines.setdefault((row["block"], row["kernel"]), {"block": row["block"], "kernel": row["kernel"]})
        if "raised" in row:
            line[row["check"]] = "**raised**"
            continue
        errors = " / ".join(f"{row[key]:.1e}" for key in ("error", "gradient_error") if isinstance(row.get(key), float))
        line[row["check"]] = errors if row["passed"] else f"**{errors or 'not finite'}**"
    tolerances = {row["check"]: f"{row['tolerance']:g} / {row['gradient_tolerance']:g}" for row in rows if _both(row)}
    limits = {"block": "tolerance (output / gradient)", "kernel": "", **tolerances}
    return _table([limits, *lines.values()])


def _both(row: Row) -> bool:
    return "gradient_tolerance" in row


def _labels(row: Row) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key not in ("raised", "passed")
    )


def _table(rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = [key.replace("_", " ") for key in keys]
    return markdown_table(head, [[_cell(key, row.get(key, "")) for key in keys] for row in rows]).split("\n")


def _cell(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.1%}" if key in SHARES else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
