"""What a process that is killed leaves running: nothing, within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

READERS = """
import sys, time
from lightning_sora.data.datamodule import SpacetimeDataModule

if __name__ == "__main__":
    data = SpacetimeDataModule("world(level='tiny')", batch_size=2, num_workers=2)
    data.setup("fit")
    batches = iter(data.loader("train"))
    next(batches)
    print("started", flush=True)
    time.sleep(600)
"""
# What a rank is to the first one, and what hangs in a collective does not hear.
RANKS = """
import os, subprocess, sys, time
from lightning_sora.lifeline import end_with_starter

end_with_starter()
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "rank"], env={**os.environ, "LOCAL_RANK": "1"})
else:
    print("started", flush=True)
time.sleep(600)
"""
# What `ui` is to its server and the workers of that.
SERVER = """
import subprocess, sys, time
from lightning_sora.lifeline import guard

nested = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('started', flush=True); time.sleep(600)"
server = subprocess.Popen([sys.executable, "-c", nested], start_new_session=True)
watch = guard(server)
time.sleep(600)
"""
# A decoder that hangs, of `data check`: its process imports the decoder, and not the program.
DECODERS = """
from lightning_sora.data import checking

if __name__ == "__main__":
    for _ in checking.check_files(["x.mp4"], 1, 600.0):
        pass
"""
HANGING = """
import time
from lightning_sora.data import decode

def hang(path):
    print("started", flush=True)
    time.sleep(600)

decode.check = hang
"""


def alive(mark: str) -> dict[int, str]:
    """The processes that have a variable of this value in their environment, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.mark.parametrize(("program", "count"), [(READERS, 4), (RANKS, 2), (SERVER, 4), (DECODERS, 2)])
def test_what_is_killed_leaves_no_process_behind(tmp_path, program, count):
    file = tmp_path / "program.py"
    file.write_text(program)
    mark = f"LIFELINE_TEST={tmp_path}"
    environment = {**os.environ, "LIFELINE_TEST": str(tmp_path)}
    if program is DECODERS:  # Python imports this as it starts
        (tmp_path / "sitecustomize.py").write_text(HANGING)
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        )
    for name in ("LIGHTNING_SORA_STARTER", "LOCAL_RANK"):
        environment.pop(name, None)
    killed = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, env=environment)
    try:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 30
        while len(alive(mark)) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(alive(mark)) >= count
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        deadline = time.monotonic() + 10
        while alive(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(mark) == {}
    finally:
        killed.kill()
        killed.stdout.close()
        for process in alive(mark):
            os.kill(process, signal.SIGKILL)
