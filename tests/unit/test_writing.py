"""What is written: whole or not at all, on a full disk, where nothing can be written, and what killed writers leave."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lightning_sora import media, writing
from lightning_sora.cli import main
from lightning_sora.data.sources import SOURCES
from lightning_sora.errors import SoraError
from lightning_sora.sealing import write_whole
from lightning_sora.spacetime import Crop, VideoSize
from lightning_sora.tracking.checkpoint import AtomicCheckpointIO
from lightning_sora.tracking.spool import Spool

VIDEO = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], object]] = {
    "any": lambda path: write_whole(path, bytes(100_000)),
    "checkpoint": lambda path: AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(50_000)}, path),
    "mp4": lambda path: media.write_mp4(path, VIDEO, 8),
    "gif": lambda path: media.write_gif(path, VIDEO, 8),
    "sheet": lambda path: media.contact_sheet(path, [VIDEO], ["noise"]),
}


# A full disk.


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_as_such_and_leaves_the_file_before(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with files_of_at_most(20_000), pytest.raises(SoraError, match=rf"{path} cannot be written: File too large"):
        WRITERS[writer](path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_no_space_left_is_told_with_the_space_there_is(tmp_path: Path) -> None:
    with (
        pytest.raises(SoraError, match=r"last.ckpt cannot be written: No space left on device, which had \d.* MiB"),
        writing.whole(tmp_path / "last.ckpt"),
        open("/dev/full", "wb") as full,  # the kernel's own refusal, and torch's words after it
    ):
        torch.save({"weights": torch.zeros(50_000)}, full)


def test_a_cache_of_the_world_on_a_full_disk_ends_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = SOURCES.create(f"world(clips=2, cache='{tmp_path}')", root=None, split="train", seed=0)
    monkeypatch.setattr(os, "posix_fallocate", full)  # memory that is mapped to a full disk would be a SIGBUS
    with pytest.raises(SoraError, match=r"\.u8 cannot be written: No space left"):
        source.load(0, Crop(VideoSize(2, 16, 16)), generator=torch.Generator())


def test_output_that_cannot_be_printed_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from lightning_sora.cli import main; sys.exit(main(['--help']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot be written: No space left on device" in line


# Looked at before the work.


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A folder that cannot be: a file is in its way."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "below"


@pytest.mark.slow  # loads lightning
def test_an_output_that_cannot_be_is_refused_before_the_work(blocked: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.ckpt").write_text("")
    parts = {"model": ("LitDiT", {"vae": "identity"}), "data": ("SpacetimeDataModule", {"source": "world"})}
    sections = {name: {"class_path": made, "init_args": options} for name, (made, options) in parts.items()}
    (tmp_path / "recipe.yaml").write_text(json.dumps(sections))
    recipe = str(Path(__file__).parents[2] / "recipes/world_pixels.yaml")
    for command in (
        ["fit", f"--config={recipe}", f"--trainer.default_root_dir={blocked}"],
        ["fit", f"--config={recipe}", f"--checkpoint.dirpath={blocked}"],
        ["test", f"--config={recipe}", "--ckpt_path=none", f"--trainer.default_root_dir={blocked}"],
        ["sample", "--ckpt=none.ckpt", "--prompt=a cube", f"--out={blocked}"],
        ["data", "check", str(tmp_path), f"--out={blocked}/bad.jsonl"],
        ["data", "inspect", str(tmp_path), f"--out={blocked}/x.png"],
        ["data", "inspect", str(tmp_path), f"--out={tmp_path}/x.xyz"],
        ["data", "cache", "--config=recipe.yaml", f"--out={blocked}"],
        ["caption", str(tmp_path), "--captioner=x", f"--out={blocked}/c.parquet"],
        ["score", "--metrics=ssim", f"--real={tmp_path}", f"--generated={tmp_path}", f"--out={blocked}/s.json"],
        ["score", "--metrics=ssim", f"--real={tmp_path}", f"--generated={tmp_path}", f"--out={'n' * 250}.json"],
        ["caption", str(tmp_path), "--captioner=x", f"--out={'n' * 250}.parquet"],
        ["fit", f"--config={recipe}", f"--data.source=world(cache='{blocked}')"],
    ):
        assert main(command) == 2, command
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("lightning-sora:")]
        told = ("cannot be written", "is a file; give a folder", "must end as a kind of picture")
        assert any(words in line for words in told), (command, line)
    assert not list(tmp_path.rglob("*.part"))


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writing.check_file("--out", pipe)
        write_whole(pipe, b"scores")
        assert os.read(reader, 10) == b"scores"
    finally:
        os.close(reader)
    assert not pipe.is_file()


# What killed writers leave.

KILLED = """
import os, signal, sys
from lightning_sora.writing import whole
with whole(sys.argv[1]) as part:
    part.write_bytes(bytes(1000))
    print(part, flush=True)
    sys.stdin.read() if sys.argv[2] == "lives" else os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_writers_left_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / "video.mp4.part").write_text("somebody else's")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "b.json"), "lives"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as alive:  # fmt: skip
        assert alive.stdout is not None
        living = Path(alive.stdout.readline().strip())
        dead = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "a.json"), "dies"],
            capture_output=True,
            text=True,
            check=False,
        )
        left = Path(dead.stdout.strip())
        assert left.exists()
        assert living.exists()
        write_whole(tmp_path / "c.json", b"{}")
        assert not left.exists()
        assert living.exists()
        alive.communicate()
    assert sorted(os.listdir(tmp_path)) == ["b.json", "c.json", "video.mp4.part"]


def test_what_killed_writers_left_in_the_folders_of_earlier_steps_is_removed(tmp_path: Path) -> None:
    for name in ("step_1/.00.gif.12.part", "step_1/.00.mp4.12.partial", "step_1/00.gif", "step_2/notes.12.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    writing.sweep_inside(tmp_path)
    writing.sweep_inside(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["00.gif", "notes.12.part"]


def test_a_spool_that_cannot_be_cut_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool-run.jsonl")
    for number in range(3):
        spool.append({"kind": "tags", "values": {"n": "x" * 1000}, "run_id": str(number)})
    content = spool.path.read_bytes()
    with files_of_at_most(100), pytest.raises(SoraError):
        spool.keep_from(len(content) // 3)
    assert spool.path.read_bytes() == content
    assert os.listdir(tmp_path) == ["spool-run.jsonl"]
    spool.close()
