"""The page: what it makes, what it refuses, and a browser that clicks through it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_sora as ls
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import load_video_model
from lightning_sora.page import bounds
from lightning_sora.page.asking import asked_of, described, tasks
from lightning_sora.page.bounds import Asked, Range, check, ranges
from lightning_sora.page.guard import is_loopback
from lightning_sora.page.studio import Made, Step, Stopped, Studio
from lightning_sora.tasks import INPUTS

SIZE = ls.VideoSize(9, 32, 32)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dit = {"patch_size": (4, 8, 8), "dim": 32, "depth": 1, "num_heads": 2}
    made = ls.LatentDiffusion.create("identity", text="bytes(dim=16)", dit=dit, sampling={"steps": 3})
    made.seen_sizes.add([SIZE], 8.0)
    made.tasks = ("text_to_video", "image_to_video", "extend_forward")
    return made.save(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def studio(model: Path, tmp_path: Path) -> Studio:
    return Studio(load_video_model(model, "cpu"), tmp_path / "made")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("given")
    clip = torch.randint(0, 256, (9, 4, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clip = clip.repeat_interleave(8, 1).repeat_interleave(8, 2)
    (folder / "broken.png").write_bytes(b"no picture")
    return {
        "image": ls.save_video(folder / "image.png", clip[:1]),
        "video": ls.save_video(folder / "video.mp4", clip, 8),
        "broken": folder / "broken.png",
    }


def test_the_page_makes_what_the_command_makes(studio: Studio, model: Path, files: dict[str, Path]) -> None:
    asked = Asked("image_to_video", "a", seed=4, steps=2, guidance=2.0, inputs={"image": str(files["image"])})
    *steps, made = studio.make(asked)
    assert isinstance(made, Made)
    assert isinstance(steps[-1], Step)
    assert (steps[0].done, steps[0].left, steps[-1].done, steps[-1].total) == (0, None, 2, 2)
    other = ls.sample(
        model, "a", seed=4, steps=2, guidance=2.0, inputs={"image": files["image"]}, out=studio.out / "by_hand",
        scale=8, device="cpu",
    )  # fmt: skip
    assert torch.equal(made.samples.videos[0], other.videos[0])
    # What was given lies beside the video, so that its JSON makes it again when the upload is gone.
    given = json.loads(made.file(".json").read_text())["request"]["inputs"]["image"]
    assert Path(given) == made.file(".json").parent / "given_image.png"
    assert torch.equal(ls.sample_again(made.file(".json"), device="cpu").videos[0], made.samples.videos[0])
    assert not (made.file(".mp4").parent / "preview.png").exists()


@pytest.mark.slow
def test_larger_clips_have_the_positions_that_are_asked_for(studio: Studio) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # at its start a model attends to nothing
        for weights in studio.model.parameters():
            weights += 0.1 * torch.randn(weights.shape, generator=draw)
    made = {}
    for rope in (None, "none", "interpolate", "ntk"):
        *_, one = studio.make(Asked("text_to_video", "a", width=64, rope=rope))
        assert isinstance(one, Made)
        (made[rope],) = one.samples.videos
        other = ls.sample(studio.loaded, "a", width=64, rope=rope, out=studio.out / f"{rope}", device="cpu")
        assert torch.equal(made[rope], other.videos[0])
        assert json.loads(one.file(".json").read_text())["rope"] == (rope or "none")
    assert torch.equal(made[None], made["none"])  # the model's own
    assert not torch.equal(made["none"], made["interpolate"])
    assert not torch.equal(made["ntk"], made["interpolate"])


def test_steps_of_all_passes_are_counted_and_warnings_kept(studio: Studio, files: dict[str, Path]) -> None:
    asked = Asked("extend_forward", "a", inputs={"video": str(files["video"]), "extra": 12}, frames=5)
    *steps, made = studio.make(asked)
    assert isinstance(made, Made)
    assert isinstance(steps[-1], Step)
    assert steps[-1].done == steps[-1].total == 3 * 3
    assert len(made.samples.videos[0]) == 21
    assert any("frames=5 (trained on 9)" in note for note in made.notes)
    *_, looped = studio.make(Asked("loop", "a"))
    assert isinstance(looped, Made)
    assert any("was not trained on loop" in note for note in looped.notes)
    assert [folder.name for folder in sorted(studio.out.iterdir())] == ["0001", "0002"]


def test_nothing_is_left_of_what_is_stopped_or_fails(studio: Studio, files: dict[str, Path]) -> None:
    job = studio.make(Asked("text_to_video", "a", steps=200), owner="me")
    next(job)
    studio.stop("another")
    studio.stop("me")
    with pytest.raises(Stopped):
        list(job)
    studio.wait("me")
    studio.stop("me")
    with pytest.raises(Stopped):
        next(studio.make(Asked("text_to_video", "a"), owner="me"))
    studio.wait("me")  # asked for anew
    again = studio.make(Asked("text_to_video", "a"), owner="me")
    assert isinstance(next(again), Step)
    again.close()
    given_up = studio.make(Asked("text_to_video", "a", steps=200))
    next(given_up)
    given_up.close()
    with pytest.raises(SoraError, match=r"not an image in a known format"):
        list(studio.make(Asked("image_to_video", "a", inputs={"image": str(files["broken"])})))
    assert not list(studio.out.iterdir())
    assert isinstance(list(studio.make(Asked("text_to_video", "a")))[-1], Made)


def test_sizes_are_offered_that_can_be(model: Path) -> None:
    offered = ranges(ls.load(model, "cpu"))
    assert offered == {"frames": Range(1, 33, 4, 9), "height": Range(8, 128, 8, 32), "width": Range(8, 128, 8, 32)}


PLAIN = Asked("text_to_video", "a")
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": " "}, "there is no prompt"),
    ({"task": "to_fly"}, "there is no task 'to_fly'"),
    ({"steps": 201}, "steps=201 must lie between 1 and 200"),
    ({"steps": 0}, "steps=0 must lie between 1 and 200"),
    ({"guidance": 31.0}, "guidance=31.0 must lie between 0 and 30"),
    ({"fps": 0.0}, "fps=0.0 must lie between 0.1 and 120"),
    ({"seed": 2**53}, "must be smaller than"),
    ({"inputs": {"extra": 257}}, "extra=257 must lie between 1 and 256"),
    ({"inputs": {"times": 9}}, "times=9 must lie between 1 and 8"),
    ({"rope": "yarn"}, "rope='yarn' must be 'none', 'interpolate' or 'ntk'"),
    ({"rope": ["ntk"]}, "rope=['ntk'] must be 'none', 'interpolate' or 'ntk'"),
    ({"frames": 37}, "frames=37 must be 33 at most"),
    ({"width": 136}, "width=136 must be 128 at most"),
    ({"height": 30}, "height=30 is not a multiple of 8 (nearest: 24 or 32)"),
]


@pytest.mark.parametrize(("changed", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_out_of_bounds_is_one_line(model: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(SoraError) as told:
        check(replace(PLAIN, **changed), ls.load(model, "cpu"))
    assert said in str(told.value)


def test_work_is_bounded(studio: Studio, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SoraError, match=r"the task windows would take 65 clips of 200 steps each"):
        list(studio.make(Asked("windows", "a", steps=200, frames=5, inputs={"extra": 256})))
    monkeypatch.setattr(bounds, "GIVEN_PIXELS", 8 * 32 * 32)
    with pytest.raises(SoraError, match=r"the video has 9 frames at 8 a second, and 8 of 32 x 32 may be given"):
        list(studio.make(Asked("edit", "a", inputs={"video": str(files["video"])})))
    monkeypatch.setattr(bounds, "TOKENS", 40)
    with pytest.raises(SoraError, match=r"9 frames of 32 x 32 are 48 tokens and 9,216 pixels, of 40"):
        list(studio.make(PLAIN))


def test_a_machine_without_gradio_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lightning_sora.page.serving", "lightning_sora.page.form"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["page", "--ckpt", "none"]) == 2
    assert "pip install 'lightning-sora[page]'" in capsys.readouterr().err


def test_a_port_that_cannot_be_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["page", "--ckpt", "none", "--port", "70000"]) == 2
    assert "--port 70000 must lie between 1 and 65535" in capsys.readouterr().err


def test_the_page_is_for_this_machine_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    serving: Any = ModuleType("lightning_sora.page.serving")
    serving.serve = lambda model, **options: asked.append(options)
    monkeypatch.setitem(sys.modules, serving.__name__, serving)
    assert main(["page", "--ckpt", "none"]) == 0
    assert main(["page", "--ckpt", "none", "--host", "0.0.0.0"]) == 0
    assert [one["host"] for one in asked] == ["127.0.0.1", "0.0.0.0"]
    told = {
        host: is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "0.0.0.0", "10.0.0.1", "a.b")
    }
    assert [host for host, loopback in told.items() if not loopback] == ["0.0.0.0", "10.0.0.1", "a.b"]


def test_every_task_has_its_place(model: Path) -> None:
    with ls.TASKS.temporary():

        @ls.register_task("of_a_plugin")
        class OfAPlugin(ls.Task):
            """A clip of a still. And more."""

            needs = ("image",)
            takes = ("extra",)

            def strengths(self, grid: ls.TokenGrid, draw: torch.Generator) -> torch.Tensor:
                return torch.ones(tuple(grid))

        offered = tasks(ls.load(model, "cpu"))
        assert {name for _, name in offered} == set(ls.TASKS.list())
        assert offered[0] == ("Text to video", "text_to_video")
        assert ("Of a plugin (not trained)", "of_a_plugin") in offered
        about, taken = described("of_a_plugin")
        assert about == "A clip of a still. And more. What may be left out: how many frames are to be made."
        assert [name for name in INPUTS if taken[name]] == ["image", "extra"]
        assert not described("outpaint")[1]["mask"]
        # What other tasks left in the form is not theirs to take.
        values = {
            "task": "of_a_plugin",
            "prompt": "a",
            "seed": "7",
            "fps": "",
            "rope": "ntk",
            "image": "a.png",
            "extra": "",
            "times": "x",
        }
        asked = asked_of(values)
        assert (asked.seed, asked.fps, asked.rope, asked.inputs) == (7, None, "ntk", {"image": "a.png"})
        for seed, said in (("x", "seed='x' must be a number"), ("1.5", "seed=1.5 must be a whole number")):
            with pytest.raises(SoraError, match=said):
                asked_of(values | {"seed": seed})


ELSEWHERE = """
import asyncio, sys
from pathlib import Path
from gradio import processing_utils
from lightning_sora.errors import SoraError
from lightning_sora.lab.models import load_video_model
from lightning_sora.page.form import page
from lightning_sora.page.studio import Studio

async def fetch(url, **options):
    raise AssertionError(f"{url} was fetched")

processing_utils.async_ssrf_protected_download = fetch
folder = Path(sys.argv[2])
blocks = page(Studio(load_video_model(sys.argv[1], "cpu"), folder), folder / "served").blocks.values()
fields = {one.elem_id: one for one in blocks}
file = {"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}
for name in sys.argv[3:]:
    try:
        asyncio.run(processing_utils.async_move_files_to_cache(file, fields[name], check_in_upload_folder=True))
    except SoraError as problem:
        print(name, problem)
"""


@pytest.mark.release
def test_no_field_makes_the_server_fetch_what_lies_elsewhere(model: Path, tmp_path: Path) -> None:
    """In a process of its own, with which what gradio leaves open ends."""
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'lightning-sora[page]'")
    fields = [
        "prompt",
        "seed",
        "task",
        "sampler",
        "rope",
        "frames",
        "given-image",
        "given-video",
        "given-mask",
        "given-extra",
    ]
    command = [sys.executable, "-c", ELSEWHERE, str(model), str(tmp_path), *fields]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert told == [f"{name} http://127.0.0.1:9/x.png lies elsewhere; upload a file" for name in fields]


PATIENT = """
import time
from lightning_sora.diffusion.samplers import SAMPLERS, sample_euler

@SAMPLERS.register("patient")
def sample_patiently(denoise, noise, times, progress=iter):
    \"\"\"So slow that it can be stopped.\"\"\"
    def slowly(x, t):
        time.sleep(0.5)
        return denoise(x, t)

    return sample_euler(slowly, noise, times, progress)
"""


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the command, in a process of its own: what gradio leaves open ends with it."""
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'lightning-sora[page]'")
    plugin = tmp_path_factory.mktemp("plugins") / "patient.py"
    plugin.write_text(PATIENT)
    command = [sys.executable, "-m", "lightning_sora.cli", "page", "--ckpt", str(model), "--device", "cpu"]
    command += ["--plugins", str(plugin)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
    assert server.returncode == 143


def status(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.mark.slow
def test_the_server_gives_its_page_and_nothing_else(address: str, files: dict[str, Path]) -> None:
    assert address.startswith("http://127.0.0.1:")
    assert status(address) == 200
    assert status(address, Host="elsewhere.example") == 403
    assert status(address, Origin="https://elsewhere.example") == 403
    for path in (Path(__file__), files["image"], files["image"].parent, Path("/etc/hostname")):
        assert status(f"{address}gradio_api/file={path}") == 403
    for elsewhere in ("file=http://127.0.0.1/x", "file=https://example.org/x", "proxy=https://a.hf.space/x"):
        assert status(f"{address}gradio_api/{elsewhere}") == 403
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    large = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    large += bytes(bounds.UPLOAD + 1) + b"\r\n--x--\r\n"
    upload = urllib.request.Request(
        f"{address}gradio_api/upload", large, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(upload, timeout=60)


@pytest.mark.slow
def test_a_browser_clicks_through_it(address: str, files: dict[str, Path], tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as driver, driver.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox"]
    ) as browser:  # fmt: skip
        view = browser.new_page(viewport={"width": 400, "height": 900})
        view.set_default_timeout(120_000)
        api.expect.set_options(timeout=120_000)  # beside other tests an answer takes seconds
        asked, faults = [], []
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda fault: faults.append(str(fault)))
        view.goto(address)

        # A video of a prompt plays, and its files can be had.
        view.fill("#prompt textarea", "a red cube")
        view.click("#start")
        video = view.locator("#video video")
        api.expect(video).to_be_visible()
        api.expect(view.locator("#say")).to_contain_text("9 frames of 32 x 32 at 8 a second")
        video.evaluate("video => new Promise(done => video.ontimeupdate = () => video.currentTime > 0 && done())")
        assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [256, 256]
        for ending, begins in (("mp4", b"\0\0\0"), ("gif", b"GIF8"), ("json", b'{\n "request"')):
            with view.expect_download() as download:
                view.click(f"#get-{ending}")
            assert download.value.suggested_filename == f"000_a-red-cube_seed0.{ending}"
            download.value.save_as(tmp_path / ending)
            assert (tmp_path / ending).read_bytes().startswith(begins)

        # What is missing is told by one line, and what was made and typed stays.
        view.click("#task input")
        view.get_by_role("option", name="Image to video").click()
        image = view.locator("#given-image")
        api.expect(image).to_be_visible()
        view.click("#start")
        api.expect(view.locator("#say [role=alert]")).to_contain_text("image_to_video needs image")
        api.expect(video).to_be_visible()
        assert view.input_value("#prompt textarea") == "a red cube"

        # So is a file that is no picture.
        with view.expect_response("**/upload*"):
            image.locator("input[type=file]").set_input_files(str(files["broken"]))
        view.click("#start")
        api.expect(view.locator("#say [role=alert]")).to_contain_text("not an image in a known format")

        # A video that begins with a picture.
        image.get_by_label("Remove Image").click()
        with view.expect_response("**/upload*"):
            image.locator("input[type=file]").set_input_files(str(files["image"]))
        view.fill("#seed textarea, #seed input", "5")
        view.click("#start")
        api.expect(view.locator("#say")).to_contain_text("seed 5")
        api.expect(video).to_be_visible()
        with view.expect_download() as download:
            view.click("#get-json")
        told = json.loads(Path(download.value.path()).read_text())
        assert (told["task"], told["request"]["seeds"], told["steps"]) == ("image_to_video", [5], 3)

        # A long job, by a sampler of a plugin, is stopped; on a narrow screen nothing is beside the page; nothing came
        # from elsewhere.
        view.click("#more button")
        view.click("#sampler input")
        view.get_by_role("option", name="patient").click()
        view.locator("#steps input[type=number]").fill("200")
        view.locator("#steps input[type=number]").press("Tab")
        view.click("#start")
        api.expect(view.locator("#say")).to_contain_text("of 200")
        view.click("#stop")
        api.expect(view.locator("#say")).to_contain_text("Stopped")
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        assert not faults
