"""The suite for accelerators, at its reduced size on a CPU; and what it makes of parts that go wrong."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from benchmarks.gpu.__main__ import main, passed
from benchmarks.gpu.contract import TOLERANCES, Worst, compute, settings
from benchmarks.gpu.devices import peak_tflops
from benchmarks.gpu.mfu import FORWARD_AND_BACKWARD, fitting_clips, mfu
from benchmarks.gpu.models import IN_DIM, SIZES, TEXT_DIM, make_dit
from benchmarks.gpu.part import Case, Part
from benchmarks.gpu.session import Session
from benchmarks.gpu.suite import PARTS, Suite
from lightning_sora.models.denoisers import DiT
from lightning_sora.spacetime import TokenGrid, TokenLayout

TOY = Part("toy", "A toy", share=1, module="tests.benchmarks.gpu_toys")
WORKING = Part("other", "Another toy", share=1, module="tests.benchmarks.gpu_toys")
CPU = torch.device("cpu")


#: Of compilation and FlexAttention, at sizes that do not matter.
pytestmark = pytest.mark.filterwarnings("ignore:::torch")


def run(folder: Path, *parts: Part, minutes: float = 10, isolate: bool = False) -> dict[str, Any]:
    return Suite(Session(CPU, True, folder), minutes, {"device": "CPU"}, parts=parts, isolate=isolate).run()


def written(folder: Path) -> tuple[dict[str, Any], str]:
    return json.loads((folder / "results.json").read_text()), (folder / "page.md").read_text()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every part, in this process."""
    folder = tmp_path_factory.mktemp("suite")
    # Shapes are checked where the models are tested; here the checks would be compiled along with them.
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return folder, run(folder, *PARTS)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.slow
def test_every_part_runs_at_its_reduced_size(suite: tuple[Path, dict[str, Any]]) -> None:
    _, results = suite
    assert {name: (part["status"], part["reason"]) for name, part in results["parts"].items()} == {
        part.name: ("done", "") for part in PARTS
    }
    assert passed(results)


@pytest.mark.slow
def test_figures_are_there_and_finite(suite: tuple[Path, dict[str, Any]]) -> None:
    _, results = suite
    rows = {name: part["rows"] for name, part in results["parts"].items()}
    figures = [value for part in rows.values() for row in part for value in row.values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in figures)
    assert {row["check"] for row in rows["contract"]} == {*TOLERANCES, "compiled (eager), against eager"}
    assert {row["kernel"] for row in rows["contract"]} == {"sdpa", "matmul", "flex"}
    for row in rows["mfu"]:
        by_hand = row["TFLOP_per_step"] / (row["step_ms"] / 1000) / row["matmul_TFLOP_per_s"]
        assert row["mfu_of_measured_matmul"] == pytest.approx(by_hand, rel=0.01)
        assert row["mfu"] is None  # a CPU has no entry in the table of peaks
    assert {row["mode"] for row in rows["mfu"]} == {"eager", "compiled"}
    assert all(row["ms"] > 0 and row["ratio"] > 0 and 0 < row["pairs_share"] <= 1 for row in rows["blocks"])
    assert {row["what"] for row in rows["vae"]} == {"encode", "decode", "forward and backward"}
    assert {row["guidance"] for row in rows["sampling"]} == {"two calls", "one batch"}
    difference = [row["value"] for row in rows["packing"] if "value" in row]
    assert difference == [pytest.approx(0, abs=0.02)]
    trained = {row["what"]: row["value"] for row in rows["training"]}
    assert {"val/psnr", "val/loss", "test/fvd", "test/clip_score", "test/adherence_color"} <= trained.keys()


@pytest.mark.slow
def test_json_and_page_hold_every_part(suite: tuple[Path, dict[str, Any]]) -> None:
    folder, results = suite
    found, page = written(folder)
    assert found == json.loads(json.dumps(results))
    assert set(found) == {"provenance", "parts"}
    for part in PARTS:
        assert f"## {part.title}\n\n`{part.name}`: done" in page
    assert "10 of 10 checks of blocks are within their tolerances" in page
    assert "test/fvd" in page


def test_a_case_that_raises_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "works-raises-works"
    results = run(folder, TOY, WORKING)
    part = results["parts"]["toy"]
    assert not passed(results)
    assert (part["status"], part["reason"]) == ("done", "1 of 3 cases raised")
    assert [row.get("value") for row in part["rows"]] == [1.0, 2.0, None, 1.0]
    assert part["rows"][2]["raised"] == "RuntimeError: CUDA out of memory. Tried to allocate 80 GiB"
    _, page = written(folder)
    assert "case 1, way raises: RuntimeError: CUDA out of memory" in page


def test_a_part_without_a_figure_has_failed_and_the_next_runs(tmp_path: Path) -> None:
    absent = Part("absent", "No such module", share=1, module="tests.benchmarks.no_such_module")
    lacking = Part("lacking", "A package that is not here", share=1, needs=("torch", "no_such_package"))
    results = run(tmp_path / "works", absent, lacking, WORKING)
    assert results["parts"]["absent"]["status"] == "failed"
    assert "no_such_module" in results["parts"]["absent"]["reason"]
    assert results["parts"]["lacking"]["status"] == "not run"
    assert results["parts"]["lacking"]["reason"].startswith("needs no_such_package; install")
    assert results["parts"]["other"]["status"] == "done"
    assert not passed(results)


def test_what_there_was_no_time_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path / "works", TOY, minutes=0)["parts"]["toy"]["status"] == "out of time"
    monkeypatch.setattr("tests.benchmarks.gpu_toys.Case", lambda labels, measure: Case(labels, measure, seconds=1e6))
    part = run(tmp_path / "works-works", TOY)["parts"]["toy"]
    assert (part["status"], part["reason"]) == ("out of time", "2 of 2 cases left")


@pytest.mark.slow
def test_a_process_that_dies_costs_one_case(tmp_path: Path) -> None:
    part = run(tmp_path / "works-dies-raises", TOY, isolate=True)["parts"]["toy"]
    assert (part["status"], part["reason"]) == ("done", "2 of 3 cases raised")
    assert [row.get("value") for row in part["rows"]] == [1.0, None, 2.0, None]
    assert part["rows"][1] == {"case": 1, "way": "dies", "raised": "its process was killed by SIGKILL"}


@pytest.mark.slow
def test_a_case_that_hangs_is_ended_with_its_part(tmp_path: Path) -> None:
    begun = time.monotonic()
    part = run(tmp_path / "hangs", TOY, minutes=1 / 60, isolate=True)["parts"]["toy"]
    assert part["status"] == "out of time"
    assert time.monotonic() - begun < 300  # it would sleep for 600 s


def test_a_run_that_is_killed_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Any:
        yield {"value": 5.0}
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.benchmarks.gpu_toys.raises", interrupted)
    folder = tmp_path / "works-raises"
    with pytest.raises(KeyboardInterrupt):
        run(folder, TOY, WORKING)
    found, page = written(folder)
    assert [row["value"] for row in found["parts"]["toy"]["rows"]] == [1.0, 5.0]
    assert found["parts"]["toy"]["status"] == "failed"
    assert "`toy`: **failed**: ended from outside" in page
    assert "`other`: **not run**: not reached" in page


def test_utilization_by_hand() -> None:
    # 2 s for 989 TFLOP on a device of 989 TFLOP/s is half of its peak.
    assert mfu(989e12, 2.0, 989.0) == pytest.approx(0.5)
    assert mfu(3 * 1.1e14, 0.75, 989.0) == pytest.approx(0.4449, abs=1e-4)


def test_flops_of_a_step_are_six_per_parameter_and_twelve_per_pair() -> None:
    """PaLM's count (arXiv:2204.02311, appendix B), whose parameters are those of the layers."""
    depth, dim, heads = SIZES["B"]
    with torch.device("meta"):
        model = DiT(IN_DIM, dim=dim, depth=depth, num_heads=heads, text_dim=TEXT_DIM)
    layout, words = TokenLayout.uniform(TokenGrid(16, 16, 16), 2), 1
    weights = sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim > 1 and "key_value" not in name)
    expected = layout.total * (6 * weights + 12 * depth * dim * (4096 + words))
    assert FORWARD_AND_BACKWARD * model.flops(layout, words) == pytest.approx(expected, rel=0.005)


class Measured(Session):
    """A device whose peaks are given, one after the other; None is a batch that does not fit."""

    cuda = True
    peaks: tuple[float | None, ...] = ()

    def peak_gib(self, run: Callable[[], object]) -> float:
        peak, *rest = self.peaks
        object.__setattr__(self, "peaks", tuple(rest))
        if peak is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peak

    def capacity_gib(self) -> float:
        return 80.0

    def clean(self) -> None:
        pass


@pytest.mark.parametrize(
    ("peaks", "clips", "checkpointing"),
    [
        ((12.0, 10.0, 14.0), 10, False),  # 10 + 9 x 4 GiB is what stays below 0.6 x 80
        ((12.0, 50.0, 90.0), 1, False),
        ((70.0, 70.0, None), 1, False),
        ((None, 12.0, 10.0, 20.0), 4, True),
        ((12.0, None, 40.0, 40.0, None), 1, True),
    ],
)
def test_batches_fill_the_memory_moderately(
    tmp_path: Path, peaks: tuple[float | None, ...], clips: int, checkpointing: bool
) -> None:
    session = Measured(CPU, True, tmp_path)
    object.__setattr__(session, "peaks", peaks)
    model = make_dit(session, "S")
    optimizer = torch.optim.AdamW(model.parameters())
    assert fitting_clips(session, model, optimizer, TokenGrid(2, 4, 4)) == clips
    assert model.checkpoint == checkpointing
    assert session.peaks == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_peaks_by_name(name: str, expected: float | None) -> None:
    assert peak_tflops(name) == expected


def test_the_check_of_blocks_sees_a_wrong_value() -> None:
    setting = settings(reduced=True)[-1]
    exact = compute("window", setting, 32, CPU, "float64")
    assert _passed(compute("window", setting, 32, CPU, "float32"), exact)
    for name in ("output", "x", "project.qkv.weight"):
        for wrong in (1e-3, float("nan")):
            changed = {key: value.clone() for key, value in exact.items()}
            changed[name].view(-1)[7] += wrong * changed[name].abs().max()
            assert not _passed(changed, exact)


def _passed(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> bool:
    worst = Worst()
    worst.add(found, exact, "here")
    return worst.row(TOLERANCES["float32"])["passed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_the_command_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (([], "--device cpu --reduced"), (["--device=cpu"], "--reduced size only")):
        with pytest.raises(SystemExit):
            main([f"--out={tmp_path / 'out'}", *arguments])
        assert words in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SystemExit):
        main([f"--out={tmp_path}", "--device=cpu", "--reduced"])
    assert "holds results already" in capsys.readouterr().err
