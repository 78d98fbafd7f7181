"""Processes that read and check clips do not run the script again that asked for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_sora import media
from lightning_sora.data.checking import check_files
from lightning_sora.data.decode import VideoInfo
from lightning_sora.data.processes import Spawned
from lightning_sora.errors import SoraError
from tests.integration.conftest import make_data

# A process starts.
pytestmark = pytest.mark.slow


@pytest.fixture(params=["script.py", "part.py", "<stdin>"])
def script(request, tmp_path, monkeypatch) -> Path:
    """Python as if it ran a script without a guard, of a file or of its input; and what tells that it ran again.

    One has a guard for a part of what it runs.
    """
    text = "from pathlib import Path\nPath(__file__).with_name('again').touch()\n"
    (tmp_path / "script.py").write_text(text)
    (tmp_path / "part.py").write_text(text + "if __name__ == '__main__':\n    print('done')\n")
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / request.param)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return tmp_path / "again"


def test_good_files_are_good_whoever_asks(script, tmp_path):
    path = tmp_path / "good.mp4"
    media.write_mp4(path, torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 8.0)
    ((place, found),) = check_files([path], processes=1, seconds=60)
    assert place == 0
    assert isinstance(found, VideoInfo), found
    assert not script.exists()


def test_clips_are_read_whoever_asks(script):
    (read, *_), (expected, *_) = (make_data(num_workers=workers).loader("train") for workers in (1, 0))
    assert torch.equal(read.patches, expected.patches)
    assert not script.exists()


def test_the_end_of_the_terminal_leaves_reading_to_the_training():
    # Else the training could not end its step, nor keep a checkpoint.
    batches = iter(make_data(num_workers=1).loader("train"))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGHUP)
    assert len(list(batches)) == 1


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':\n    raise SystemExit('run again')\n"])
def test_what_is_the_scripts_own_needs_a_guard_and_is_imported(tmp_path, monkeypatch, guard):
    text = "class Own(bytes):\n    pass\n"
    (tmp_path / "own.py").write_text(text + guard)
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "own.py")
    exec(text, vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    ours, theirs = Spawned().Pipe()
    process = Spawned().Process(target=theirs.send_bytes, args=(main.Own(b"read"),))
    if not guard:
        with pytest.raises(SoraError, match=r"own\.py defines what processes need .* __main__"):
            process.start()
        return
    process.start()
    assert ours.poll(60)
    assert ours.recv_bytes() == b"read"
    process.join()
