"""The README's way from raw files to samples, command by command as written, on real clips of several codecs."""

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet
import pytest

from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data.quarantine import read_quarantine
from lightning_sora.jobs.engines import ENGINES
from tests.integration.conftest import VAE
from tests.integration.test_cache import InThisProcess
from tests.integration.test_folder import SIZE, STEPS
from tests.integration.test_lab import SMALL_DIT
from tests.unit.test_captioner_hf import model  # noqa: F401

ROOT = Path(__file__).parents[2]
HERE = ["--engine", "inline"]  # each process would take longer to start than its work
#: What makes it small.
SMALLER = {
    ("fit", "folder_vae"): [*SIZE, *STEPS, f"--model.vae={VAE}"],
    ("fit", "folder_dit"): [*SIZE, *STEPS, *SMALL_DIT],
    ("test", "folder_dit"): [*SIZE, *STEPS, *SMALL_DIT],
    ("caption",): ["--frames", "2", *HERE],
    ("cache",): [*(flag.removeprefix("--") for flag in SIZE), *HERE],
}


def commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```bash\n(SOURCE=.*?)```", text, re.DOTALL)
    first, *lines = block.splitlines()
    source = shlex.split(first)[0].removeprefix("SOURCE=")
    found = [shlex.split(line.split("  #")[0].replace("$SOURCE", source)) for line in lines]
    assert all(words[0] == "lightning-sora" for words in found)
    return [words[1:] for words in found]


def test_real_clips_go_from_raw_files_to_samples(
    real_clips: Path,
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    done = []
    with ENGINES.temporary():
        ENGINES.register("inline")(InThisProcess)
        for words in commands():
            own = [w.replace("FOLDER", str(real_clips)).replace("LOCAL_MODEL", str(model)) for w in words]
            name = next((key for key in SMALLER if all(any(part in word for word in words[:4]) for part in key)), None)
            status = main(own + SMALLER.get(name or (), []))
            assert status == (1 if "check" in words else 0), words  # one clip is corrupt
            done.append(words[0] if words[0] != "data" else words[1])
    assert done == ["inspect", "check", "fit", "caption", "cache", "fit", "test", "sample"]
    out = capsys.readouterr().out
    assert "13 videos" in out
    assert set(read_quarantine("bad.jsonl")) == {"corrupted.mp4"}
    assert media.image_size(tmp_path / "outputs" / "inspect.png")[0] > 300
    rows = pyarrow.parquet.read_table("captions.parquet").to_pylist()
    assert len(rows) == 12
    assert all(row["caption"] and not row["error"] for row in rows)
    told = json.loads((tmp_path / "latents" / "cache.json").read_text())
    assert sum(told["splits"].values()) <= 12
    assert list((tmp_path / "outputs" / "folder_dit" / "samples" / "prompts").glob("*a-person-moves*.mp4"))
