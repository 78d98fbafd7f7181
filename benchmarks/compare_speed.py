"""How long `compare` takes on a store of 500 runs.

    python benchmarks/compare_speed.py [FOLDER]

Writes an ablation of 5 arms and 100 seeds, each with 60 parameters, 20 metrics of 20 steps and scores of 128 clips,
into a sqlite store (once; a minute or two), then times the command as a user types it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag

from lightning_sora.tracking import store

ARMS, SEEDS, METRIC = ("full", "window", "tile", "linear", "gated"), 100, "val/denoising_error"


def write(uri: str) -> None:
    client = store.connect(uri)
    experiment = store.experiment_id(client, uri, "ablation-speed")
    tags = {"ablation.role": "ablation", "ablation.name": "speed"}
    ablation = client.create_run(experiment, run_name="speed", tags=tags).info.run_id
    trials = [{"arm": arm, "seed": seed, "trial": f"{arm}-{seed}"} for arm in ARMS for seed in range(SEEDS)]
    plan = {"name": "speed", "factor": "model.attention", "baseline": "full", "metric": METRIC, "mode": "min"}
    plan |= {"budget": {"quantity": "steps", "amount": 10.0, "matched_by": "steps"}, "trials": trials}
    plan |= {"arms": [{"name": arm, "value": arm, "adjusted": {}} for arm in ARMS]}
    client.log_text(ablation, json.dumps(plan), "plan.json")
    for trial in trials:
        tags = {"ablation.role": "seed", "ablation.id": ablation, "ablation.trial": str(trial["trial"])}
        run = client.create_run(experiment, tags=tags).info.run_id
        value = len(str(trial["arm"])) + 0.01 * int(trial["seed"])
        names = [METRIC, "cost/flops", "cost/tokens", "cost/seconds", *(f"train/m{i}" for i in range(16))]
        metrics = [Metric(name, value / (step + 1), 0, step) for name in names for step in range(20)]
        params = [Param("model.attention", str(trial["arm"])), *(Param(f"model.p{i}", "1") for i in range(60))]
        client.log_batch(run, metrics, params, [RunTag("code.hash", "c")])
        scores = {METRIC: {f"clip{i}": value + i for i in range(128)}}
        client.log_text(run, json.dumps({"step": 19, "scores": scores}), "clips/val.json")
        client.set_terminated(run)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{folder}/mlflow.db"
    if not (folder / "mlflow.db").exists():
        write(uri)
    for words, extra in (("table", ["--no-report"]), ("table and report", ["--out", str(folder / "report")])):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "lightning_sora.cli", "compare", "speed", "--uri", uri, *extra]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"compare, {words}: {time.perf_counter() - begun:.1f} s for {len(ARMS) * SEEDS} runs")


if __name__ == "__main__":
    main()
