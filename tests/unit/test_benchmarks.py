"""The benchmarks run, at sizes of no meaning, and what they share measures what it says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import measure
from lightning_sora.nn.attention import list_attention


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Benchmarks set the threads of their process, which here is that of all tests."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(long, marks=pytest.mark.release) for long in ("frechet", "operators")),
        *("frechet_world", "muon", "sizes", "transformer", "vae"),
    ],
)
def test_each_benchmark_writes_a_page_with_its_origin(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "pages" / f"{name}.md"
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--out", str(out)])
    text = out.read_text()
    assert text in capsys.readouterr().out
    assert f"python -m benchmarks.{name} --quick" in text
    for fact in ("instruction set:", "threads: 1", "torch:", "commit:"):
        assert fact in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.count("|") for row in rows if "ours" in row}) <= 1
    assert "nan" not in text
    if name == "operators":
        counts = {block: sum(row.startswith(f"| {block} |") for row in rows) for block in list_attention()}
        assert set(counts.values()) == {3, 4}  # two sizes, longer videos; of sparse blocks larger ones too
        assert counts["full"] == 3


def test_without_diffusers_ours_are_timed_alone_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    out = tmp_path / "page.md"
    importlib.import_module("benchmarks.transformer").main(["--quick", "--out", str(out)])
    text = out.read_text()
    assert "diffusers is not installed" in text
    assert "ours, joint" in text
    assert "Wan" not in text


@pytest.mark.slow
def test_peers_have_the_parameters_of_ours_within_a_tenth() -> None:
    pytest.importorskip("diffusers")
    transformer = importlib.import_module("benchmarks.transformer")
    size = transformer.Size(1, transformer.TokenGrid(2, 2, 2), 128, 2, 2)
    for name in ("Wan", "LTX"):
        ratio = transformer.PEERS[name](size).parameters / transformer.ours(size, "cross").parameters
        assert 0.9 < ratio < 1.1, name


def test_candidates_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    costs = {"a": iter([9.0, 1.0, 2.0, 60.0]), "b": iter([9.0, 5.0, 4.0, 3.0])}

    def call(name: str) -> None:
        order.append(name)
        clock[0] += next(costs[name])

    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    found = measure.interleaved({n: lambda n=n: call(n) for n in costs}, repeats=3)
    assert found == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_a_quick_candidate_fills_its_turn_with_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], [0]

    def call() -> None:
        calls[0] += 1
        clock[0] += 0.25

    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    assert measure.interleaved({"a": call}, repeats=2, least=1.0) == {"a": 0.25}
    assert calls[0] == 1 + 2 * 4


def test_the_instruction_set_names_what_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in measure.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert "limited" not in measure.instruction_set()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert measure.instruction_set().endswith("limited by ONEDNN_MAX_CPU_ISA=AVX2")
