"""A model that mlflow serves: real requests, answered with the videos that `sample` makes."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas import DataFrame

import lightning_sora as ls
from lightning_sora import plugins
from lightning_sora.cli import main
from lightning_sora.lab import exporting, serving
from lightning_sora.lab.models import load_video_model
from lightning_sora.tracking import store
from tests.integration.test_sample import toy_model

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(address: str, prompts: list[str], **params: Any) -> tuple[int, Any]:
    """The status of an answer, and its videos or its error."""
    told = {"dataframe_records": [{"prompt": prompt} for prompt in prompts], "params": params}
    asked = urllib.request.Request(
        f"{address}/invocations", json.dumps(told).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.load(answer)["predictions"]
    except urllib.error.HTTPError as problem:
        return problem.code, json.load(problem)["message"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "toy"
    assert main(["export", "--ckpt", str(model), "--out", str(folder), "--max-steps=5"]) == 0
    return folder


@pytest.fixture(scope="module")
def address(served: Path) -> Iterator[str]:
    """mlflow's server, in this process: its own start takes long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mlflow's, of its own type hints
        import mlflow.pyfunc
    import uvicorn
    from mlflow.pyfunc import scoring_server

    port = free_port()
    app = scoring_server.init(mlflow.pyfunc.load_model(str(served)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)  # nothing waits for it where it does not answer
    thread.start()
    wait(f"http://127.0.0.1:{port}", thread.is_alive)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def wait(address: str, alive: Any) -> None:
    until = time.monotonic() + 120
    while alive() and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def same_as_sampled(answer: list[dict[str, Any]], model: Path, folder: Path, **asked: Any) -> None:
    prompts = ["a red cube", "a cone"]
    made = ls.sample(model, prompts, out=folder, device="cpu", **asked)
    files = [file for file in made.files if file.suffix == ".mp4"]
    assert [base64.b64decode(one["video"]) for one in answer] == [file.read_bytes() for file in files]
    (folder / "served.mp4").write_bytes(base64.b64decode(answer[0]["video"]))
    shown, fps = ls.read_video(folder / "served.mp4")
    assert torch.equal(shown, ls.read_video(files[0])[0])
    assert (len(shown), fps) == (asked.get("frames", 9), answer[0]["fps"])


def test_a_prompt_is_answered_with_the_video_that_sample_makes(address: str, model: Path, tmp_path: Path) -> None:
    for name, asked in {
        "plain": {},
        "more": {"seed": 7, "frames": 17, "height": 64, "steps": 3, "guidance": 2.0},
    }.items():
        status, answer = ask(address, ["a red cube", "a cone"], **asked)
        assert status == 200, answer
        same_as_sampled(answer, model, tmp_path / name, **asked)


BAD = [
    ({"frames": 21}, "frames=21 is more than is made here; ask for 18 at most"),
    ({"height": 72}, "height=72 is more than is made here; ask for 64 at most"),
    ({"steps": 6}, "steps=6 is more than is made here; ask for 5 at most"),
    ({"frames": 8}, r"frames=8 is not 1 \+ n\*4 \(nearest: 5 or 9\)"),
    ({"width": -8}, "width=-8 is not a multiple of 8"),
    ({"steps": 0}, "steps=0 must be at least 1"),
    ({"sampler": "oiler"}, "did you mean 'euler'"),
    ({"fps": -1.0}, "fps=-1 must be positive"),
    ({"fps": 1e300}, r"fps=1e\+300 must be positive, from 0.01 to 1000"),
    ({"seed": "many"}, "seed"),
]


@pytest.mark.parametrize(("params", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_made_is_told_in_one_line(address: str, params: dict[str, Any], said: str) -> None:
    status, message = ask(address, ["a"], **params)
    assert status == 400
    assert re.search(said, message.rpartition("Error: ")[2])
    assert "\n" not in message.rpartition("Error: ")[2]


def test_a_request_names_few_prompts_that_can_be_read(address: str) -> None:
    assert ask(address, ["a"] * 5)[1].endswith("prompts=5 is more than is made here; ask for 4 at most")
    assert "a prompt has 10000 letters" in ask(address, ["a" * 10_000])[1]
    assert ask(address, [])[0] == 400


def test_what_a_row_leaves_out_is_no_text(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def sample(loaded: Any, prompt: str, *, negative: str, **options: Any) -> ls.Samples:
        asked.append((prompt, negative))
        return ls.sample(loaded, prompt, negative=negative, **options)

    monkeypatch.setattr(serving, "sample", sample)
    served = serving.ServedModel(load_video_model(model, "cpu"), serving.Limits(9, 32, 32))
    served.predict(DataFrame([{"prompt": "a", "negative_prompt": "grey"}, {"prompt": "b"}]))
    assert asked == [("a", "grey"), ("b", "")]
    with pytest.raises(Exception, match="a row has no prompt"):
        served.predict(DataFrame([{"prompt": "a"}, {"negative_prompt": "b"}]))


def test_plugins_go_with_the_model_and_are_loaded_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "from lightning_sora import TASKS\nfrom lightning_sora.tasks.text import TextToVideo\n"
    (tmp_path / "mine.py").write_text(f'{text}\n@TASKS.register("mine")\nclass Mine(TextToVideo):\n    "As text."\n')
    monkeypatch.setattr(plugins, "_LOADED", {})
    with ls.TASKS.temporary():
        exporting.export(model, tmp_path / "out", plugins=["~/mine.py"])
        (kept,) = (tmp_path / "out").rglob("00_mine.py")
        assert kept.read_text() == (tmp_path / "mine.py").read_text()
        served = serving._load_pyfunc(str(kept.parents[1]))  # where it was exported
        assert len(served.predict(DataFrame([{"prompt": "a"}]))) == 1
    plugins._LOADED.clear()
    with ls.TASKS.temporary():
        serving._load_pyfunc(str(kept.parents[1]))  # and elsewhere
        assert "mine" in ls.TASKS.list()


def test_what_cannot_be_exported_says_why(
    served: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["export", "--ckpt", str(model), "--out"]
    assert main([*common, str(served)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*common, str(tmp_path / "a"), "--log"]) == 2
    assert "names no run that trained it" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_model_is_kept_in_the_run_that_trained_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = store.resolve_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = store.connect(uri)
    run = client.create_run(store.experiment_id(client, uri, "toys")).info.run_id
    trained = replace(load_video_model(model, "cpu"), run_id=run)
    monkeypatch.setattr(exporting, "load_video_model", lambda *_: trained)
    common = ["export", "--ckpt", str(model), "--log", "--uri"]
    assert main([*common, uri, "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.split()[-1] == f"runs:/{run}/model"
    kept = client.download_artifacts(run, "model", str(tmp_path))
    assert (Path(kept) / "MLmodel").read_bytes() == (tmp_path / "a" / "MLmodel").read_bytes()
    other = f"sqlite:///{tmp_path}/other.db"
    assert main([*common, other, "--out", str(tmp_path / "b")]) == 2
    assert f"the run {run} that trained {model} is not in {other}" in capsys.readouterr().err


@pytest.mark.release
def test_mlflow_models_serve_answers(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command that `export` prints, which listens on this machine alone."""
    assert main(["export", "--ckpt", str(model), "--out", str(tmp_path / "toy")]) == 0
    command, port = shlex.split(capsys.readouterr().out), free_port()
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)], env=environment, stdout=log, stderr=log
        )
        try:
            wait(f"http://127.0.0.1:{port}", lambda: server.poll() is None)
            status, answer = ask(f"http://127.0.0.1:{port}", ["a red cube", "a cone"], seed=3)
            assert status == 200, answer
            same_as_sampled(answer, model, tmp_path / "s", seed=3)
        finally:
            server.terminate()
            server.wait()
