"""The way of records to mlflow: stores that are silent, away, behind a proxy; spools that are damaged or another's."""

from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_sora.errors import SoraError
from lightning_sora.tracking.outbox import Outbox, replay_earlier
from lightning_sora.tracking.spool import Spool


class Store:
    """A server of the parts of mlflow's protocol that an outbox uses, which answers as it is told."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []  # the next ones; then 200
        self.asked: list[tuple[str, dict]] = []
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = store.answers.pop(0) if store.answers else (200, "{}")
                if status == 200:
                    store.asked.append((self.path.rsplit("/", 1)[1], content))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def values(self) -> list[float]:
        return [metric["value"] for _, content in self.asked for metric in content.get("metrics", [])]

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    made = Store()
    yield made
    made.end()


def client_of(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def metrics(run: str, *values: float, **more: object) -> bytes:
    rows = [["a", value, 0, step] for step, value in enumerate(values)]
    return json.dumps({"kind": "metrics", "rows": rows, "run_id": run, **more}).encode() + b"\n"


def files(folder: Path) -> dict[str, str]:
    return {path.name.split("-")[0]: path.read_text(errors="replace") for path in folder.iterdir()}


def test_records_arrive_in_order_and_leave_nothing_behind(server, tmp_path):
    outbox = Outbox(client_of(server.uri), "run", tmp_path)
    for step in range(50):
        outbox.metrics([("a", float(step), 0, step)])
    outbox.tags({"k": "v"})
    outbox.metrics([("a", 50.0, 0, 50)])
    outbox.close()
    assert server.values == [float(step) for step in range(51)]
    assert len(server.asked) <= 4  # together, not one by one
    assert not list(tmp_path.iterdir())


def test_records_wait_on_disk_while_the_server_is_away(server, tmp_path, caplog):
    outbox = Outbox(client_of(server.uri), "run", tmp_path)
    server.end()
    with caplog.at_level(logging.WARNING):
        outbox.metrics([("a", 2.0, 0, 1)])
        outbox.tags({"k": "v"})
        outbox.close()
    assert "does not take records" in caplog.text
    assert [json.loads(line)["kind"] for line in outbox.spool.read_text().splitlines()] == ["metrics", "tags"]


@pytest.mark.slow
def test_a_server_that_never_answers_holds_no_step_up(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken, and nothing is said
        outbox = Outbox(client_of(f"http://127.0.0.1:{silent.getsockname()[1]}"), "run", tmp_path, every=0.0)
        begun = time.monotonic()
        for step in range(100):
            outbox.metrics([("a", float(step), 0, step)])
            outbox.tags({"step": str(step)})
        outbox.sync()
        assert time.monotonic() - begun < 1.5  # one answered call would be twice that
        assert len(outbox.spool.read_text().splitlines()) == 200
        outbox.close()
    assert len(outbox.spool.read_text().splitlines()) == 200


@pytest.mark.parametrize(
    "answer",
    [
        (400, "<html>bad request</html>"),
        (404, "<html>no such page</html>"),
        (404, '{"message": "no route"}'),
        (404, '{"error_code": 404, "message": "no route"}'),
        (502, ""),
        (200, "<html>log in</html>"),
    ],
)
def test_what_a_proxy_says_puts_no_record_aside(server, tmp_path, monkeypatch, answer):
    monkeypatch.setattr("lightning_sora.tracking.outbox.FIRST_PAUSE", 0.0)
    server.answers = [answer, answer]
    outbox = Outbox(client_of(server.uri), "run", tmp_path, every=0.01)
    outbox.metrics([("a", 1.0, 0, 0)])
    outbox.tags({"k": "v"})
    deadline = time.monotonic() + 20
    while len(server.asked) < 2 + (answer[0] == 200) * 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    outbox.close()
    assert server.values[-1] == 1.0
    assert not list(tmp_path.iterdir())


def test_what_the_store_itself_refuses_is_put_aside_and_not_called_sent(server, tmp_path, caplog):
    server.answers = [(404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run with id=old not found"}')]
    (tmp_path / "spool-old.jsonl").write_bytes(metrics("old", 1.0, 2.0))
    with caplog.at_level(logging.WARNING):
        replay_earlier(client_of(server.uri), tmp_path)
    assert "mlflow refuses 1 record(s) (RESOURCE_DOES_NOT_EXIST: Run with id=old not found)" in caplog.text
    assert "in the mlflow store now" not in caplog.text
    assert list(files(tmp_path)) == ["refused"]


def test_a_spool_of_another_store_waits_for_it(server, tmp_path, caplog):
    line = metrics("old", 1.0, store="http://elsewhere")
    (tmp_path / "spool-old.jsonl").write_bytes(line)
    with caplog.at_level(logging.WARNING):
        replay_earlier(client_of(server.uri), tmp_path, "http://here")
    assert "waits for another mlflow store, http://elsewhere" in caplog.text
    assert "in the mlflow store now" not in caplog.text
    assert (server.asked, files(tmp_path)) == ([], {"spool": line.decode()})
    replay_earlier(client_of(server.uri), tmp_path, "http://elsewhere")
    assert server.values == [1.0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [b'{"kind": "metrics", "rows": [["a", 9', b"\xff\xfe\x00\n", b"[1]\n", b'{"kind": "metrics", "run_id": "x"}\n'],
)
def test_a_damaged_line_is_set_aside_and_the_others_are_sent(server, tmp_path, caplog, damage):
    whole = [metrics("old", 1.0), b"\n", metrics("old", 2.0)]
    last = not damage.endswith(b"\n")
    content = [*whole, damage] if last else [whole[0], damage, *whole[1:]]
    (tmp_path / "spool-old.jsonl").write_bytes(b"".join(content))
    with caplog.at_level(logging.WARNING):
        replay_earlier(client_of(server.uri), tmp_path)
    assert server.values == [1.0, 2.0]
    assert "1 line(s) of" in caplog.text
    (aside,) = tmp_path.iterdir()
    assert aside.name == "damaged-old.jsonl"
    assert aside.read_bytes().strip() == damage.strip()


def test_what_cannot_be_opened_is_said_and_left(server, tmp_path, caplog):
    (tmp_path / "spool-a.jsonl").mkdir()
    (tmp_path / "spool-b.jsonl").write_bytes(metrics("b", 1.0))
    with caplog.at_level(logging.WARNING):
        replay_earlier(client_of(server.uri), tmp_path)
    assert server.values == [1.0]
    assert "spool-a.jsonl cannot be sent" in caplog.text


def test_a_passing_failure_does_not_make_a_resumed_fit_begin_another_run(server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    from lightning_sora.tracking import MLflowTracker

    monkeypatch.setattr(MlflowClient, "search_experiments", lambda *_, **__: [])
    # The server of these tests answers no GET: 501, as a gateway may.
    tracker = MLflowTracker(uri=server.uri).prepare(tmp_path, seed=0, from_run="old")
    with pytest.raises(SoraError, match="cannot be used"):
        tracker.log_tags({"a": 1})
    assert server.asked == []


def test_a_spool_that_another_process_writes_is_left_to_it(server, tmp_path):
    spool = Spool(tmp_path / "spool-run.jsonl")
    spool.append(json.loads(metrics("run", 1.0)))
    replay_earlier(client_of(server.uri), tmp_path)
    assert server.asked == []
    spool.close()
    replay_earlier(client_of(server.uri), tmp_path)
    assert server.values == [1.0]


def test_secrets_reach_neither_the_spool_nor_the_store(server, tmp_path):
    outbox = Outbox(client_of(server.uri), "run", tmp_path)
    outbox.tags({"command": "--tracking.uri=http://u:hunter2@h"})
    outbox.params({"root": "s3://key:hunter2@bucket"})
    outbox.dataset("https://h/x?sig=hunter2", "d", "https://u:hunter2@h/x", "fit")
    assert "hunter2" not in outbox.spool.read_text()
    outbox.close()
    assert "u:***@h" in json.dumps(server.asked)
    assert "hunter2" not in json.dumps(server.asked)


@pytest.mark.slow
def test_what_led_to_a_checkpoint_outlives_a_kill_right_after_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        """
model: {class_path: tracking_toys.ToyModel, init_args: {die_with: outputs/recipe/checkpoints/last.ckpt}}
data: {class_path: tracking_toys.ToyData}
trainer: {max_steps: 8, val_check_interval: 3, check_val_every_n_epoch: null, num_sanity_val_steps: 0}
checkpoint: {every_n_steps: 5}
"""
    )
    flags = ["--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def fit(*more: str) -> int:
        command = [sys.executable, "-m", "lightning_sora.cli", "fit", "--config", "recipe.yaml", *flags, *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, check=False).returncode

    # Killed as soon as the checkpoint of step 5 is there, before lightning has told the values of the fifth.
    assert fit("--model.die_at=5") == -signal.SIGKILL
    assert fit("--ckpt_path=last") == 0
    client = client_of(environment["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(8))
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/loss")] == [2, 5]
