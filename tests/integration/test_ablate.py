"""Ablations end to end, tiny: what is trained, what is not repeated, what is refused, what two engines agree on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_sora as ls
from lightning_sora.ablation.reader import read_study
from lightning_sora.ablation.study import Study
from lightning_sora.cli import main
from tests.toys import start_no_workers

BASE = Path(__file__).parents[2] / "recipes" / "world_pixels.yaml"
TINY = {
    "model.dit.dim": 16,
    "model.dit.depth": 2,
    "model.dit.num_heads": 2,
    "model.text": "bytes(dim=8, depth=1, num_heads=1)",
    "model.prompts": [],
    "evaluation.extractor": None,
    "evaluation.clip_model": None,
    "data.source": "world(level='tiny', clips=16, heldout_clips=4)",
    "data.frames": 5,
    "data.height": 16,
    "data.width": 16,
    "data.batch_size": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_model_summary": False,
}
PLAN: dict[str, Any] = {
    "base": str(BASE),
    "factor": "model.dit.attention",
    "arms": {"full": "full", "time": "temporal"},
    "seeds": [0, 1],
    "budget": {"steps": 4},
    "validations": 2,
    "overrides": TINY,
}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return file


def study(folder: Path, name: str = "tiny") -> Study:
    return read_study(f"sqlite:///{folder}/mlflow.db", [name])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the plan was carried out."""
    folder = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(["ablate", str(write(folder))]) == 0
    return folder


@pytest.fixture
def inside(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(lab)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lab


def test_every_arm_has_every_seed_in_nested_runs(inside: Path) -> None:
    found = study(inside)
    assert {(t.arm, t.seed, t.status) for t in found.trials} == {
        (arm, seed, "FINISHED") for arm in ("full", "time") for seed in (0, 1)
    }
    assert found.unmet == ()
    parents = {t.tags["mlflow.parentRunId"] for t in found.of("full")}
    assert len(parents) == 1
    assert found.run_id not in parents


def test_trials_keep_what_a_verdict_needs(inside: Path) -> None:
    for trial in study(inside).trials:
        steps = [step for step, _ in trial.history["val/denoising_error"]]
        assert len(steps) == 2
        assert [step for step, _ in trial.history["cost/flops"]] == steps
        assert len(trial.clip_scores["val/denoising_error"]) == 4
        mean = sum(trial.clip_scores["val/denoising_error"].values()) / 4
        assert mean == pytest.approx(trial.metrics["val/denoising_error"], rel=1e-5)
        assert trial.protocol["val"]["seed"] == trial.seed
        assert trial.metrics["cost/tokens"] == 4 * 4 * 2 * 2 * 2  # steps, clips, tokens of 2 x 2 x 2


def test_arms_share_what_they_have_in_common(inside: Path) -> None:
    """The first training loss differs by the attention alone; the data and the text drops are the same."""
    full, time_ = (read_study(f"sqlite:///{inside}/mlflow.db", ["tiny"]).of(arm)[0] for arm in ("full", "time"))
    assert full.tags["data.fingerprint"] == time_.tags["data.fingerprint"]
    # Layers begin gated shut, so the first loss of all arms is the same number.
    assert full.history["train/loss"][0] == time_.history["train/loss"][0]
    assert full.history["train/loss"][-1] != time_.history["train/loss"][-1]


def test_the_report_is_kept_with_the_ablation(inside: Path) -> None:
    page = (inside / "outputs/ablations/tiny/report/index.html").read_text()
    assert "time" in page
    assert "val/denoising_error" in page
    stored = list((inside / "mlruns").rglob("report/index.html"))
    assert [p.read_text() == page for p in stored] == [True]


def test_running_it_again_repeats_nothing(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {t.run_id for t in study(inside).trials}
    assert main(["ablate", "tiny.yaml"]) == 0
    assert "4 of 4 trials are finished" in capfd.readouterr().out
    assert {t.run_id for t in study(inside).trials} == before
    said: list[Any] = []
    found = ls.ablate({**PLAN, "ablation": "tiny"}, tell=said.append)
    assert {t.run_id for t in found.trials} == before
    assert found.complete
    assert "4 of 4 trials are finished" in said[-1]
    assert {arm.name: arm.steps for arm in said[1].arms} == {"full": 4, "time": 4}


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--budget.steps=6", "budget"),
        ("--model.dit.dim=24", "recipe model.dit.dim was 16, now 24"),
        ("--data.source_seed=7", "data train was"),
    ],
)
def test_another_design_is_refused_under_the_same_name(
    flag: str, said: str, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", "tiny.yaml", flag]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "--name" in error


def test_changed_code_is_refused_and_named(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lightning_sora.tracking import provenance

    hashes = {**provenance.code_hashes(), "lightning_sora/nn/attention/full.py": "edited"}
    monkeypatch.setattr(provenance, "code_hashes", lambda: hashes)
    assert main(["ablate", "tiny.yaml"]) == 2
    assert "code lightning_sora/nn/attention/full.py" in capfd.readouterr().err


def test_a_failing_arm_stops_no_other_and_is_reported(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One arm diverges into an error; an arm and a seed that are new are trained, the old ones are not repeated."""
    start_no_workers(monkeypatch)
    plugin = inside / "breaks.py"
    plugin.write_text(
        "from lightning_sora.nn.attention import register_attention\n"
        "from lightning_sora.nn.attention.full import FullAttention\n\n\n"
        "@register_attention('breaks')\n"
        "class Breaks(FullAttention):\n"
        "    def attend(self, q, k, v, layout, text=None):\n"
        "        if q.requires_grad:\n"
        "            raise RuntimeError('this arm breaks')\n"
        "        return super().attend(q, k, v, layout, text)\n"
    )
    arms = {"full": "full", "breaks": "breaks", "space": "spatial"}
    file = write(inside, arms=arms, seeds=[0], ablation="breaking")
    assert main(["ablate", str(file), "--plugins", str(plugin)]) == 1
    output = capfd.readouterr()
    assert "this arm breaks" in output.out
    found = study(inside, "breaking")
    status = {t.arm: t.status for t in found.trials}
    assert status == {"full": "FINISHED", "breaks": "FAILED", "space": "FINISHED"}
    assert "this arm breaks" in next(t.reason for t in found.trials if t.arm == "breaks")
    assert list((inside / "mlruns").rglob("plugins/breaks.py"))


@pytest.mark.release
def test_killed_in_the_middle_it_completes_without_repeating(tmp_path: Path) -> None:
    file = write(tmp_path, seeds=[0, 1], budget={"steps": 60}, validations=6)
    command = [sys.executable, "-m", "lightning_sora.cli", "ablate", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("[1/4]"):
                break
        first.send_signal(signal.SIGKILL)
    done = {t.run_id for t in study(tmp_path).trials if t.finished}
    assert 1 <= len(done) < 4
    deadline = time.monotonic() + 60
    while _held(tmp_path) and time.monotonic() < deadline:  # its worker keeps a checkpoint, and ends
        time.sleep(0.2)
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "trials are finished already" in second.stdout
    found = study(tmp_path)
    assert len([t for t in found.trials if t.finished]) == 4
    assert done <= {t.run_id for t in found.trials}


def _held(folder: Path) -> bool:
    """Whether a process that was started in the folder still runs."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder and b"worker" in (process / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.release
def test_ray_and_local_give_the_same_bits(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert main(["ablate", str(write(inside)), "--name", "by-ray", "--engine", "ray"]) == 0
    local, ray = study(inside), study(inside, "by-ray")
    for ours in local.trials:
        theirs = next(t for t in ray.trials if (t.arm, t.seed) == (ours.arm, ours.seed))
        for metric in ("val/denoising_error", "val/loss", "train/loss", "cost/flops"):
            assert theirs.history[metric] == ours.history[metric], metric
        assert theirs.clip_scores == ours.clip_scores


def test_a_plan_for_what_cannot_be_trained_is_refused_before_anything_is(
    inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"factor": "model.dit.atention"}, "did you mean model.dit.attention"),
        ({"arms": {"full": "full", "none": "fulll"}}, "unknown attention block 'fulll'"),
        ({"budget": {"tokens": 100}}, "cannot be met"),
        ({"engine": "slurm"}, "unknown engine"),
        ({"overrides": {**TINY, "trainer.max_epochs": 1}}, "set `trainer.max_epochs: null` in overrides"),
        (
            {"factor": "model.diffusion.objective", "arms": ["x", "v"], "metric": "val/loss"},
            "cannot be compared between arms",
        ),
        ({"factor": "seed_everything.x", "arms": {"a": "1", "b": "2"}}, ""),
    ]
    for changes, said in mistakes:
        assert main(["ablate", str(write(inside, ablation="bad", **changes))]) == 2
        error = capfd.readouterr().err
        assert said in error
        assert error.strip().count("\n") == 0, error
    assert not (inside / "outputs/ablations/bad").exists() or not list(
        (inside / "outputs/ablations/bad").rglob("*.ckpt")
    )


def test_a_metric_that_nobody_logs_is_named(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "tiny", "--metric", "val/denoising_eror", "--no-report"]) == 2
    assert "did you mean val/denoising_error" in capfd.readouterr().err


def test_the_table_for_machines_has_what_the_runs_have(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "tiny", "--format", "json", "--no-report"]) == 0
    content = json.loads(capfd.readouterr().out)
    assert [row["arm"] for row in content["arms"]] == ["full", "time"]
    values = study(inside).values("time")
    assert content["arms"][1]["val/denoising_error"] == pytest.approx(sum(values.values()) / 2)
    assert content["arms"][1]["seeds"] == 2
