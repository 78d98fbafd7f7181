"""Passwords planted everywhere: none is found again in anything that is printed, logged, written or stored."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.recipe.secrets import refuse_hidden, without_secrets
from lightning_sora.redaction import RedactedStream, from_environment, in_environment, redact, remember_interpolations
from lightning_sora.tracking import store

SECRET = "hunter2/Xy+9"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hunter2/Xy+9@host:80/x", "http://ann:***@host:80/x"),
        ("postgresql+psycopg2://ann:hunt@r2@host/db", "postgresql+psycopg2://ann:***@host/db"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("https://hunter2@host/x.git", "https://***@host/x.git"),
        ("ssh://git@host/x.git", "ssh://git@host/x.git"),
        ('["s3://K:hunter2@a", "s3://K:hunter2@b"]', '["s3://K:***@a", "s3://K:***@b"]'),
        ("https://h/f?X-Amz-Signature=hunter2&v=1", "https://h/f?X-Amz-Signature=***&v=1"),
        ("https://h/f?sv=1&sig=hunter2#t", "https://h/f?sv=1&sig=***#t"),
        ("s3(secret='hunter2', key=1)", "s3(secret='***', key=1)"),
        ("--model.api_key=hunter2 --model.dim=3", "--model.api_key=*** --model.dim=3"),
        ("a: 1\npassword: hunter2\n", "a: 1\npassword: '***'\n"),
        ("http://u:${oc.env:PW}@host", "http://u:${oc.env:PW}@host"),
        ("http://${oc.env:U}:hunter2@host", "http://${oc.env:U}:***@host"),
        # What is none.
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("max_tokens=5 tokens: 3 text_tokens", "max_tokens=5 tokens: 3 text_tokens"),
        ("secret = getpass()", "secret = getpass()"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_secrets_in_texts_are_replaced_and_nothing_else(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown
    assert str(SoraError(text)) == shown


def test_long_texts_are_redacted_in_linear_time():
    # A pattern that tries every beginning would take hours.
    for part in ("a", "a.", "--a", "://", "://a:", "?a", "password=", " ", "x: "):
        redact(part * (60_000 // len(part)))


def test_values_of_the_environment_are_shown_by_their_names(monkeypatch):
    monkeypatch.setenv("SORA_TEST_TOKEN", SECRET)
    monkeypatch.setenv("SORA_TEST_STORE", "bucket-of-ours")
    assert redact(f"{SECRET} at bucket-of-ours") == "*** at bucket-of-ours"
    remember_interpolations(["a: ${oc.env:SORA_TEST_TOKEN}/${oc.env:SORA_TEST_STORE,none}"])
    text = f"a{SECRET}b at bucket-of-ours, not at my-bucket-of-ours"
    shown = "a${oc.env:SORA_TEST_TOKEN}b at ${oc.env:SORA_TEST_STORE}, not at my-bucket-of-ours"
    assert redact(text) == shown
    assert from_environment({"a": (shown,)}) == {"a": (text,)}


def test_a_recorded_recipe_names_the_environment_wherever_a_value_stems_from_it():
    unresolved = """
fit:
  vars: {where: "${oc.env:WHERE,/data}", n: "${oc.env:N}"}
  model: {init_args: {dim: "${...vars.n}", other: 3, list: ["x", "${....vars.where}/y"]}}
  tracking: {uri: "http://a:${oc.env:PW}@h"}
"""
    resolved = """
vars: {where: /data, n: '3'}
model: {init_args: {dim: 3, other: 3, list: [x, /data/y]}}
tracking: {uri: "http://a:hunter2@h", tags: {password: hunter2}}
"""
    _, recipe = without_secrets(resolved, unresolved)
    assert recipe == {
        "vars": {"where": "${oc.env:WHERE,/data}", "n": "${oc.env:N}"},
        "model": {"init_args": {"dim": "${oc.env:N}", "other": 3, "list": ["x", "${oc.env:WHERE,/data}/y"]}},
        "tracking": {"uri": "http://a:${oc.env:PW}@h", "tags": {"password": "***"}},
    }
    with pytest.raises(SoraError, match=r"tracking.tags.password='\*\*\*' lacks its secret"):
        refuse_hidden(recipe)


def test_recipes_for_child_processes_leave_secrets_in_the_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    recipe = {"data": {"root": f"s3://k:{SECRET}@b", "n": 3}, "options": ({"password": SECRET},)}
    given = in_environment(recipe)
    assert SECRET not in json.dumps(given)
    assert from_environment(given) == recipe


def test_the_password_of_a_server_moves_to_where_mlflow_looks_for_it(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    assert store.resolve_uri("https://ann:hunter%2F2@host:5000/x") == "https://host:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "hunter/2")
    assert store.identity("postgresql://ann:pw@host/db") == "postgresql://host/db"
    with pytest.raises(SoraError, match="lacks its password"):
        store.resolve_uri("postgresql://ann:***@host/db")


RECIPE = """
# written by ann, password: {literal}
plugins: [part.py]
vars: {{where: "s3://key:${{oc.env:STORE_PASS}}@bucket", note: "${{oc.env:PLAIN}}"}}
model: {{class_path: tracking_toys.ToyModel, init_args: {{note: "${{vars.note}} http://h/?token={literal}"}}}}
data: {{class_path: tracking_toys.ToyData, init_args: {{root: "${{vars.where}}"}}}}
trainer: {{max_steps: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
tracking: {{tags: {{api_key: {literal}, mirror: "https://ann:{literal}@mirror"}}}}
"""


@pytest.fixture
def sora(tmp_path, monkeypatch, capfd):
    """Runs the command, in a process of its own or ``here``: the status that it ended with, and what it printed."""
    word = "".join(["Sen", "ti", "nel"])  # this file may be a part of the patch that a run records
    literal, variables = f"{word}-One!1", {"STORE_PASS": f"{word}/Two+2", "PLAIN": f"{word}Three3"}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(literal=literal))
    (tmp_path / "part.py").write_text(f"ADDRESS = 'http://ann:{literal}@host'\n")
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **variables, "PYTHONPATH": paths}
    environment.pop("MLFLOW_TRACKING_URI", None)

    def run(*arguments: str, here: bool = False) -> subprocess.CompletedProcess[bytes]:
        words = [a.replace("SECRET", literal) for a in arguments]
        if here:
            with monkeypatch.context() as patch:
                patch.setattr(os, "environ", dict(environment))
                patch.syspath_prepend(str(Path(__file__).parent))
                patch.chdir(tmp_path)
                capfd.readouterr()
                status = main(words)
                printed = capfd.readouterr()
            done = subprocess.CompletedProcess(words, status, printed.out.encode(), printed.err.encode())
        else:
            command = [sys.executable, "-m", "lightning_sora.cli", *words]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False)
        given = (tmp_path / "recipe.yaml", tmp_path / "part.py")
        written = [p for p in tmp_path.rglob("*") if p.is_file() and p not in given and "__pycache__" not in p.parts]
        for word in (literal, *variables.values()):
            assert word.encode() not in done.stdout + done.stderr
            assert [path for path in written if word.encode() in path.read_bytes()] == []
        return done

    return run


@pytest.mark.slow
def test_nothing_that_a_fit_leaves_holds_a_secret(sora, tmp_path):
    flags = ["--config=recipe.yaml", "--tracking.tags.more=redis://:SECRET@host"]
    done = sora("fit", *flags)
    assert done.returncode == 0, done.stderr.decode()
    text = (tmp_path / "outputs/recipe/fit.yaml").read_text()
    assert "root: s3://key:${oc.env:STORE_PASS}@bucket" in text
    assert "more: redis://:***@host" in text
    last = torch.load(tmp_path / "outputs/recipe/checkpoints/last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["note"] == "${oc.env:PLAIN} http://h/?token=***"
    # The record cannot be run without its secrets, and says so; nothing is lost for the recipe itself.
    again = sora("fit", "--config=outputs/recipe/fit.yaml")
    assert again.returncode == 2
    assert b"lacks its secret" in again.stderr
    assert sora("fit", *flags, "--ckpt_path=last", "--trainer.max_steps=3").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "--config=recipe.yaml", "--tracking.uri=http://ann:SECRET@127.0.0.1:9"),
        ("fit", "--config=recipe.yaml", "--tracking.uri=mysql+nothing://ann:SECRET@127.0.0.1:9/db"),
        ("fit", "--config=recipe.yaml", "--model.fail_at=1"),
        ("fit", "--config=recipe.yaml", "--model.dim=http://ann:SECRET@host"),
        ("fit", "--config=http://ann:SECRET@host/recipe.yaml"),
        ("ui", "--uri=http://ann:SECRET@127.0.0.1:9"),
        ("ui", "--uri=postgresql://ann:SECRET@127.0.0.1:9/db"),
        ("compare", "x", "--uri=http://ann:SECRET@127.0.0.1:9"),
        ("data", "inspect", "s3://ann:SECRET@bucket/x"),
        ("data", "check", "https://127.0.0.1:9/x.mp4?X-Amz-Signature=SECRET"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_no_error_shows_a_secret(sora, arguments):
    """A bug's traceback is shown by the end of a process, and `ui` serves; a user's mistake is told in any."""
    done = sora(*arguments, here=arguments[0] != "ui" and "--model.fail_at=1" not in arguments)
    assert done.returncode != 0 or arguments[0] == "ui"
    assert done.stdout + done.stderr


def test_what_is_printed_to_a_closed_terminal_is_lost_and_no_error():
    master, slave = os.openpty()
    terminal = os.fdopen(slave, "w")
    os.close(master)
    with pytest.raises(OSError, match="Input/output"):
        print("step 3", file=terminal, flush=True)
    print("step 3", file=RedactedStream(terminal), flush=True)
    with contextlib.suppress(OSError):
        terminal.close()
