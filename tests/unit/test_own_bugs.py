"""A bug in a part of a user's own is told with its file and line, once."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import lightning_sora as ls
from lightning_sora.errors import raised_in
from lightning_sora.metrics.contract import CONTRACT as METRIC_CONTRACT
from lightning_sora.nn.attention.contract import CONTRACT
from lightning_sora.plugins import load_plugins

BUGGY = """
import lightning_sora as ls

@ls.register_attention("with_a_bug")
class Buggy(ls.MaskedBlock):
    def visible(self, queries, keys, grid):
        return (queries.t - keys.t).abs() <= self.raduis
"""

BUGGY_METRIC = """import lightning_sora as ls

@ls.register_metric("metric_with_a_bug")
class Buggy(ls.PerVideoMetric):
    \"\"\"The words of a clip, which has none.\"\"\"
    def score(self, video):
        return len(video.clip.words)
"""


def test_a_bug_in_a_block_is_told_once_with_its_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "buggy.py"
    file.write_text(BUGGY)
    load_plugins([file])
    problems = [found.problem for found in CONTRACT.findings("with_a_bug") if found.problem]
    assert len(problems) > 10
    assert problems[0] == f"{file}, line 7, in visible: AttributeError: 'Buggy' object has no attribute 'raduis'"
    assert set(problems[1:]) == {"the same as of 'keeps shape and dtype'"}
    block = ls.create_attention("with_a_bug", dim=8, num_heads=2)
    with pytest.raises(AttributeError) as caught:
        block.receptive_field(ls.TokenLayout.uniform(ls.TokenGrid(1, 2, 2), clips=1))
    assert raised_in(caught.value) == f"{file}, line 7, in visible"


def test_a_bug_in_a_metric_is_told_once_with_its_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "buggy_metric.py"
    file.write_text(BUGGY_METRIC)
    load_plugins([file])
    problems = [found.problem for found in METRIC_CONTRACT.findings("metric_with_a_bug") if found.problem]
    said = "AttributeError: 'Tensor' object has no attribute 'words'"
    assert problems[0] == f"{file}, line 7, in score: {said}"
    assert set(problems[1:]) == {"the same as of 'gives a finite score'"}


def test_a_metric_that_reads_what_it_does_not_ask_for_is_told_what_to_declare(tmp_path: Path) -> None:
    file = tmp_path / "curious_metric.py"
    file.write_text(BUGGY_METRIC.replace("with_a_bug", "curious").replace("clip.words", "caption"))
    load_plugins([file])
    problems = [found.problem for found in METRIC_CONTRACT.findings("metric_curious") if found.problem]
    assert problems[0] is not None
    assert problems[0].endswith("which it does not ask for; declare needs = Needs(captions=True) in its class")


def test_what_is_no_fault_of_a_users_file_names_none() -> None:
    with pytest.raises(ls.SoraError) as caught:
        ls.create_attention("full", dim=8, num_heads=3)
    assert raised_in(caught.value) == ""


def test_the_sliding_window_of_the_docstring_runs_as_written() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(ls.MaskedBlock.visible, "visible", globs={})
    assert doctest.DocTestRunner().run(example).failed == 0
