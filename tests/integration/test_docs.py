"""The documentation: the site builds, every link leads somewhere, and every snippet runs as it is written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
import yaml

import lightning_sora as ls
from lightning_sora import media
from lightning_sora.ablation.reader import read_study
from lightning_sora.cli import main
from lightning_sora.data.quarantine import read_quarantine
from lightning_sora.nn.attention.contract import CONTRACT
from tests.annotations import plain_annotations
from tests.integration.conftest import VAE
from tests.integration.test_ablate import TINY
from tests.toys import start_no_workers
from tests.unit.test_captioner_hf import model  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Pages that have a test of their own.
TOLD = ["tutorials/first_run.md", "tutorials/block.md", "tutorials/videos.md"]
PAGES = sorted({str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")} - set(TOLD))
FENCE = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^( *)```(\w*)[^\n]*\n(.*?)^\2```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A snippet of a page; ``reason`` says why it is not run."""

    language: str
    text: str
    reason: str

    @property
    def file(self) -> str | None:
        """The name in its first line, where it is a file to be written."""
        found = re.match(r"# (\S+\.\w+)\n", self.text)
        return found[1] if found else None


def blocks(page: Path) -> Iterator[Block]:
    """The snippets of a page, in order."""
    for reason, indent, language, text in FENCE.findall(page.read_text()):
        yield Block(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE), reason)


# -- the recipes, small: their names and keys as they are, their sizes as a test can bear

WORLD = "world(level='tiny', clips=16, heldout_clips=20)"
STEPS: dict[str, Any] = {
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
}
SHORT = {**STEPS, "data.frames": 9, "data.height": 16, "data.width": 16, "data.batch_size": 4}
DIT = {key: value for key, value in TINY.items() if key.startswith("model.dit.") or key == "model.text"}
SMALL: dict[str, dict[str, Any]] = {
    "world_vae": {**SHORT, "data.source": WORLD, "model.vae": VAE},
    "world_dit": {**SHORT, "data.source": WORLD, **DIT, "model.sampling.steps": 2},
    "world_pixels": {**TINY, **STEPS, "trainer.max_steps": 3, "model.sampling.steps": 2},
    "world_duo": {**TINY, **STEPS, "trainer.max_steps": 3, "model.sampling.steps": 2},
    "folder_vae": {**SHORT, "model.vae": VAE, "data.num_workers": 0},
    "folder_dit": {**SHORT, **DIT, "model.sampling.steps": 2, "data.num_workers": 0},
}


def shrink(recipe: Path, changes: dict[str, Any]) -> str:
    """A recipe with other values of some keys."""
    told = yaml.safe_load(recipe.read_text())
    for key, value in changes.items():
        section, *names = key.split(".")
        part = told[section].get("init_args", told[section])
        for name in names[:-1]:
            part = part.setdefault(name, {})
        part[names[-1]] = value
    return yaml.safe_dump(told, sort_keys=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a newcomer has it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").mkdir()
    shutil.copytree(ROOT / "recipes" / "ablations", folder / "recipes" / "ablations")
    for file in (ROOT / "recipes").glob("*.yaml"):
        (folder / "recipes" / file.name).write_text(shrink(file, SMALL.get(file.stem, {})))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(autouse=True)
def parts_of_one_page() -> Iterator[None]:
    """What a page registers is unknown to the next one."""
    with contextlib.ExitStack() as stack:
        for registry in ls.registries().values():
            stack.enter_context(registry.temporary())
        yield


# -- running what a page shows


@dataclass
class Shell:
    """Runs the commands of a page in this process.

    Attributes:
        status: what `data check` ends with: 1 if there is a bad file.
    """

    variables: dict[str, str]
    status: int = 0

    def run(self, text: str) -> None:
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if re.fullmatch(r"[A-Z]+=.*", words[0]) and len(words) == 1:
                name, _, value = words[0].partition("=")
                self.variables[name] = value
                continue
            words = [re.sub(r"\$([A-Z]+)", lambda found: self.variables[found[1]], word) for word in words]
            assert words[0] == "lightning-sora", f"{line}: say <!-- not run: WHY --> before it"
            assert main(words[1:]) == (self.status if words[1:3] == ["data", "check"] else 0), line


#: What a page begins with, where it is not a newcomer's folder: what another page leaves.
BEFORE = {
    "tutorials/metric.md": "tutorials/first_run.md",
    "tutorials/verdict.md": "tutorials/block.md",
    "tutorials/cluster.md": "tutorials/block.md",
    "how_to/python.md": "tutorials/first_run.md",
    "how_to/tasks.md": "tutorials/first_run.md",
    "how_to/tracking.md": "tutorials/first_run.md",
    "how_to/weights_out.md": "how_to/fine_tuning.md",
}
DONE: set[tuple[Path, str]] = set()


def run_page(name: str, folder: Path, *, skip: tuple[str, ...] = (), status: int = 0) -> dict[str, Any]:
    """Does what a page says, and returns the variables of its Python.

    Args:
        skip: words by which blocks that are left out can be told.
    """
    if name in BEFORE and (folder, BEFORE[name]) not in DONE:
        run_page(BEFORE[name], folder)
    DONE.add((folder, name))
    space: dict[str, Any] = {"__name__": "__main__"}
    shell = Shell({}, status)
    for block in blocks(DOCS / name):
        if block.reason or block.language in ("text", "json") or any(word in block.text for word in skip):
            continue
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, name, "exec"), space)
        elif block.language == "bash":
            with plain_annotations():
                shell.run(block.text)
        else:
            pytest.fail(f"{name}: a block of {block.language or 'no language'} is neither a file nor run")
    return space


def test_first_run(lab: Path) -> None:
    found = run_page("tutorials/first_run.md", lab)
    assert (found["video"].shape, found["latent"].shape) == ((9, 16, 16, 3), (4, 3, 2, 2))
    assert ls.read_video("cube.mp4")[0].shape == (9, 128, 128, 3)
    saved = ls.load("cube_model", "cpu")
    assert isinstance(saved, ls.LatentDiffusion)
    assert torch.equal(saved.sample("a big red cube moves left", seed=0), found["video"])
    # The face's latent is the network's own, of the same pixels in [-1, 1] and scaled to unit variance.
    module = ls.load("outputs/world_vae", "cpu")
    assert isinstance(module, ls.LitVAE)
    raw = module.vae.encode((found["video"].float() / 127.5 - 1).permute(3, 0, 1, 2)[None]).mean[0]
    mean, std = (value[:, None, None, None] for value in (module.vae.latent_mean, module.vae.latent_std))
    torch.testing.assert_close(found["latent"], (raw - mean) / std)
    assert module.decode(found["latent"]).shape == found["video"].shape


def test_a_block_of_ones_own(lab: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    start_no_workers(monkeypatch)
    run_page("tutorials/block.md", lab)
    printed = capfd.readouterr().out
    laws = len(CONTRACT.laws)
    assert f"({laws} laws, such as" in (ROOT / "README.md").read_text()
    assert f"{laws} checks" in printed
    assert "mine(k=3)" in printed[printed.index(f"{laws} checks") :]
    sources = [file.read_text() for file in (lab / "mlruns").rglob("plugins/my_block.py")]
    assert set(sources) == {(lab / "my_block.py").read_text()}
    found = read_study(f"sqlite:///{lab}/mlflow.db", ["mine"])
    assert {(t.arm, t.seed) for t in found.trials if t.finished} == set(product(("full", "mine(k=3)"), (0, 1, 2)))
    assert "mine(k=3)" in (lab / "outputs/ablations/mine/report/index.html").read_text()


def test_ones_own_videos(
    lab: Path,
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On real clips of several codecs, one of which is corrupt, where there are any."""
    shutil.copytree(model, lab / "LOCAL_MODEL")
    start_no_workers(monkeypatch)
    real = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if real:
        shutil.copytree(Path(real) / "clips", lab / "videos")
    run_page("tutorials/videos.md", lab, skip=("ls.World",) if real else (), status=1 if real else 0)
    out = capsys.readouterr().out
    assert ("13" if real else "24") + " videos" in out
    assert set(read_quarantine("bad.jsonl")) == ({"corrupted.mp4"} if real else set())
    assert media.image_size(lab / "outputs" / "inspect.png")[0] > 300
    rows = pyarrow.parquet.read_table("captions.parquet").to_pylist()
    assert len(rows) == (12 if real else 24)
    assert all(row["caption"] and not row["error"] for row in rows)
    told = json.loads((lab / "latents" / "cache.json").read_text())
    assert sum(told["splits"].values()) <= len(rows)
    assert list((lab / "outputs" / "folder_dit" / "samples" / "prompts").glob("*a-person-moves*.mp4"))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_runs_as_written(name: str, lab: Path) -> None:
    run_page(name, lab)


def test_the_readme_shows_what_the_pages_run() -> None:
    run = {block.text.strip() for name in (*TOLD, *PAGES) for block in blocks(DOCS / name) if not block.reason}
    for block in blocks(ROOT / "README.md"):
        if not block.reason:
            assert block.text.strip() in run, block.text


# -- the site


def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:  # nothing is fetched from elsewhere when it is read
        assert not re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="https?:', page.read_text()), (
            page
        )
    attention = (tmp_path / "parts" / "attention.html").read_text()
    assert re.search(r'<h2 id="what-each-must-keep">', attention), "laws have a heading of their own"
    assert "laws[name](" in re.sub(r"<[^>]+>", "", (tmp_path / "notebooks" / "attention.html").read_text())
    assert "../notebooks/&quot;" not in (tmp_path / "notebooks" / "attention.html").read_text(), "no link within code"
