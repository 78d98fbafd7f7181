"""What a run is called, how mlflow's pages show it, and how a command differs from the fit of its checkpoint."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightning_sora.tracking.described import DESCRIPTION, Described, changes, claim
from lightning_sora.tracking.differences import differences, flags, forgotten, remedy
from lightning_sora.tracking.pages import columns, prepared_page


def test_what_a_command_line_changes() -> None:
    given = ["fit", "--config", "a.yaml", "-c=b.yaml", "--model.init_args.dim=96", "--trainer.max_steps", "10"]
    given += ["--ckpt_path", "last", "--tracking.uri=x", "--trainer.default_root_dir=o", "--model.attention=win(a=1)"]
    assert changes(given) == {"model.dim": "96", "trainer.max_steps": "10", "model.attention": "win(a=1)"}


def test_a_run_is_named_by_what_it_changes() -> None:
    assert Described().name("dit", "seed0") == "dit-seed0"
    assert Described({"model.dim": "96", "data.fps": "8"}).name("dit", "seed0") == "dit-dim=96,fps=8-seed0"
    assert Described({"model.dim": "96", "model.prompts": "a" * 99}).name("dit", "s") == "dit-dim=96,1 more-s"
    assert Described({"model.prompts": "a" * 99}).name("dit", "s") == "dit-1 changed-s"


def test_a_run_is_described_by_its_changes_its_claim_and_its_last_contact_sheet(tmp_path: Path) -> None:
    assert claim("# A claim.\n#\n#   fit it\nmodel:\n# no more\n") == "A claim.\n\n  fit it"
    told = Described({"model.dim": "96", "api_key": "hush"}, "A claim.")
    assert "hush" not in str(told.tags())
    assert told.tags()[DESCRIPTION].startswith("Changed: `model.dim=96`")
    assert "A claim." in told.tags()[DESCRIPTION]
    assert told.last_tags("r1") == {}
    (tmp_path / "contact_sheet.png").touch()
    for step in ("samples/step_1", "samples/step_2"):
        told.note(tmp_path, step)
        told.rejoin(told.last_tags("r1"))
    assert told.text.count("![contact sheet]") == 1
    assert "get-artifact?path=samples/step_2/contact_sheet.png&run_uuid=r1" in told.text


def test_a_command_knows_which_flags_of_the_fit_it_lacks(tmp_path: Path) -> None:
    trained = {"model": {"class_path": "M", "init_args": {"dim": 96, "attention": "win(a=1)"}}, "data": {"fps": 8}}
    now = {"model": {"class_path": "M", "init_args": {"dim": 64, "attention": "full"}}, "data": {"fps": 8}, "x": 1}
    found = differences(trained, now)
    assert found == {"model.attention": ("win(a=1)", "full"), "model.dim": ("96", "64")}
    lacking = forgotten(found, {"model.attention": "full"})
    assert (flags(lacking), flags(found)) == ("--model.dim=96", "'--model.attention=win(a=1)' --model.dim=96")
    (tmp_path / "checkpoints").mkdir()
    assert "recipe/fit.yaml" in remedy(tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "fit.yaml").touch()
    assert remedy(tmp_path / "checkpoints" / "last.ckpt").endswith("fit.yaml")


def test_the_pages_open_on_the_columns_that_matter(caplog: pytest.LogCaptureFixture) -> None:
    metrics = ["cost/seconds", "epoch", "test/loss", "val/loss", "val/loss_t0", "test/fvd", "val/psnr"]
    shown = columns(metrics, ["model.dim", "model.dim data.fps plugins+"])
    assert shown[:3] == ["params.`model.dim`", "params.`data.fps`", "params.`plugins`"]
    assert shown[3:] == ["metrics.`test/fvd`", "metrics.`test/loss`", "metrics.`val/psnr`", "metrics.`val/loss`",
                         "metrics.`cost/seconds`"]  # fmt: skip
    asked: list[Any] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        page = prepared_page(address, "7", shown)
        server.shutdown()
    assert page == "#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=lightning_sora"
    assert {path for path, _ in asked} == {"/api/2.0/mlflow/experiments/set-experiment-tag"}
    told = {body["key"]: body["value"] for _, body in asked}
    assert told["mlflow.experimentKind"] == "custom_model_development"
    assert json.loads(told["mlflow.sharedViewState.lightning_sora"]) == {"selectedColumns": shown}
    prepared_page(address, "7", shown)  # of a server that is gone: the page is there all the same
    assert "columns of their own choice" in caplog.text
