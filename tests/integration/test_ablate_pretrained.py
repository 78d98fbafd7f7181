"""The ablation of a pretrained model's attention on real clips, from the folder of a pipeline to the verdict."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

from lightning_sora.ablation.reader import read_study
from lightning_sora.models.text import TEXT_ENCODERS
from lightning_sora.models.vae import on_demand
from tests.integration.test_docs import ROOT, run_page
from tests.toys import start_no_workers

pytestmark = pytest.mark.slow


def test_the_page_runs_on_real_clips(
    real_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(real_clips, tmp_path / "clips")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    start_no_workers(monkeypatch)
    reads: list[str] = []
    load = on_demand.load
    monkeypatch.setattr(on_demand, "load", lambda stored: reads.append(stored.path) or load(stored))
    run_page("how_to/ablate_pretrained.md", tmp_path, skip=("ls.World",))
    assert not reads, "a training on cached latents read the weights of its VAE"
    told = json.loads((tmp_path / "outputs/wan_latents/cache.json").read_text())
    assert sum(told["splits"].values()) == 10  # of 13 clips one is damaged and two are kept for the test
    assert (told["vae_stride"], told["channels"]) == ([4, 8, 8], 16)
    arms = yaml.safe_load((tmp_path / "wan_attention.yaml").read_text())["arms"]
    study = read_study(f"sqlite:///{tmp_path}/mlflow.db", ["wan_attention"])
    assert {(t.arm, t.seed) for t in study.trials if t.finished} == set(product(arms, (0, 1)))
    assert (tmp_path / "outputs/ablations/wan_attention/report/index.html").is_file()
    assert "inconclusive" in capfd.readouterr().out
    kept = TEXT_ENCODERS.create("cached(path='outputs/wan_latents')")
    full = TEXT_ENCODERS.create("hf(name='wan', max_tokens=512)")
    state = None
    for checkpoint in (tmp_path / "outputs/ablations").rglob("last.ckpt"):
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert not [name for name in state if ".vae.network." in name and "extra_state" not in name]
        full.set_extra_state(state["model.text._extra_state"])  # of the encoder that made the embeddings
    assert state is not None
    assert kept.fingerprint() == full.fingerprint()  # type: ignore[operator]
