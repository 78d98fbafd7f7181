"""Models as folders of config.json and safetensors: without Lightning and mlflow, to a hub and from there."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lightning_sora as ls
from lightning_sora.errors import SoraError
from lightning_sora.models.saved import is_saved
from lightning_sora.shipped import MODELS

SIZE = (5, 16, 16)
VAE = "causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8, blocks=1, decoder_blocks=1)"


def made(seed: int = 0) -> ls.LatentDiffusion:
    dit = {"patch_size": (1, 1, 1), "dim": 16, "depth": 1, "num_heads": 2}
    model = ls.LatentDiffusion.create(VAE, "bytes(dim=8, depth=0, num_heads=1)", dit, sampling={"steps": 2}, seed=seed)
    model.seen_sizes.add([SIZE, (1, 16, 16)], fps=12.0)
    model.run_id = "1f" * 16
    return model


def test_a_folder_holds_a_header_weights_and_a_card(tmp_path: Path) -> None:
    model = made()
    folder = model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "dit.safetensors", "text.safetensors", "vae.safetensors",
    ]  # fmt: skip
    told = json.loads((folder / "config.json").read_text())
    assert (told["library_name"], told["library_version"], told["kind"]) == (
        "lightning_sora", ls.__version__, "latent_diffusion",
    )  # fmt: skip
    weights = load_file(folder / "dit.safetensors")  # which any reader reads
    assert all(torch.equal(weights[name], value) for name, value in model.dit.state_dict().items())
    card = (folder / "README.md").read_text()
    for words in (
        "library_name: lightning_sora", "pipeline_tag: text-to-video", "ls.LatentDiffusion.from_pretrained",
        model.vae_hash, "1f" * 16, "text to video", "5 x 16 x 16 at 12 a second, from 1 x 16 x 16", VAE,
        told["weights"]["dit"],
    ):  # fmt: skip
        assert words in card, words
    again = ls.LatentDiffusion.from_pretrained(folder)
    assert (again.run_id, again.fingerprint()) == (model.run_id, model.fingerprint())
    assert not again.training


def test_the_weights_may_be_stored_in_half_the_room(tmp_path: Path) -> None:
    vae = ls.ClipVAE(made().vae, VAE)
    whole, half = vae.save_pretrained(tmp_path / "a"), vae.save_pretrained(tmp_path / "b", stored="float16")
    sizes = [(folder / "vae.safetensors").stat().st_size for folder in (whole, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.75
    read = ls.ClipVAE.from_pretrained(half)
    assert read.vae.latent_mean.dtype == torch.float32
    assert json.loads((half / "config.json").read_text())["vae_hash"] == read.vae.fingerprint() != vae.vae.fingerprint()


def test_a_vae_comes_of_its_own_folder_and_of_that_of_a_model(tmp_path: Path) -> None:
    model = made()
    vae = ls.ClipVAE(model.vae, VAE)
    clip = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for folder in (vae.save_pretrained(tmp_path / "vae"), model.save_pretrained(tmp_path / "model")):
        read = ls.ClipVAE.from_pretrained(folder)
        assert torch.equal(read.encode(clip), vae.encode(clip))
    card = (tmp_path / "vae" / "README.md").read_text()
    assert "ls.ClipVAE.from_pretrained" in card
    assert "pipeline_tag" not in card


def test_a_card_that_was_edited_is_kept(tmp_path: Path) -> None:
    folder = made(0).save_pretrained(tmp_path / "model")
    first = (folder / "README.md").read_text()
    made(1).save_pretrained(folder)
    assert (folder / "README.md").read_text() != first  # it tells of what is there now
    (folder / "README.md").write_text("mine")
    made(0).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_folders_of_before_are_read_and_replaced(tmp_path: Path) -> None:
    model = ls.LatentDiffusion.from_pretrained(shutil.copytree(MODELS / "world64", tmp_path / "old"))
    assert (tmp_path / "old" / "model.json").is_file()
    assert model.vae_hash == ls.load("world64", "cpu").vae_hash
    other = made()
    other.save(tmp_path / "old")
    assert not (tmp_path / "old" / "model.json").exists()
    assert ls.load(tmp_path / "old", "cpu").fingerprint() == other.fingerprint()


WITHOUT = """
import sys
class Refuses:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "mlflow", "huggingface_hub"):
            raise ImportError(f"{name} is not wanted here")
sys.meta_path.insert(0, Refuses())
import numpy
"""


@pytest.mark.slow
def test_a_folder_is_sampled_from_without_lightning_and_mlflow(tmp_path: Path) -> None:
    model = made(seed=3)
    model.save_pretrained(tmp_path / "model")
    ls.ClipVAE(model.vae, VAE).save_pretrained(tmp_path / "vae")
    ways = {
        "a": "from lightning_sora.models import latent_diffusion as at\n"
        "model = at.LatentDiffusion.from_pretrained('model')",
        "b": "import lightning_sora as ls\nmodel = ls.load('model', 'cpu')\nassert ls.load('vae', 'cpu').vae",
    }  # fmt: skip
    for name, loads in ways.items():
        told = (
            f"{WITHOUT}{loads}\nnumpy.save('{name}.npy', model.sample('a red cube', seed=5).numpy())\n"
            "print(sorted({'lightning', 'mlflow', 'huggingface_hub'} & set(sys.modules)))"
        )
        made_there = subprocess.run([sys.executable, "-c", told], cwd=tmp_path, capture_output=True, text=True)
        assert made_there.stdout == "[]\n", made_there.stderr
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), model.sample("a red cube", seed=5).numpy())


def test_a_folder_that_is_no_whole_model_is_refused(tmp_path: Path) -> None:
    folder = made().save_pretrained(tmp_path / "a")
    header = (folder / "config.json").read_bytes()
    for content, words in (
        (header.replace(b'"velocity"', b'"x"'), "is damaged: its bytes are not those that were written"),
        (header[: len(header) // 2], "is damaged: it is no JSON"),
        (b"{}", r"no model at .*a, and its config\.json is of another library; give a folder that `save_pretrained`"),
        (b'{"library_name": "lightning_sora", "schema": 9}', "of schema 9"),
    ):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(SoraError, match=words):
            ls.LatentDiffusion.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SoraError, match=r"no model at .*a; give a folder that `save_pretrained` of a model wrote"):
        ls.LatentDiffusion.from_pretrained(folder)
    vae = ls.ClipVAE(made().vae, VAE).save_pretrained(tmp_path / "vae")
    with pytest.raises(SoraError, match="holds a model of kind 'vae', not 'latent_diffusion'"):
        ls.LatentDiffusion.from_pretrained(vae)


def test_what_another_library_wrote_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    assert not is_saved(tmp_path)
    with pytest.raises(SoraError, match=r"holds a config\.json of another library, which stays as it is"):
        made().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_model_of_a_hub_is_fetched_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = made(), {}
    folder = model.save_pretrained(tmp_path / "cache")

    def fetch(name: str, **options: Any) -> str:
        asked[name] = options
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    read = ls.LatentDiffusion.from_pretrained("OWNER/model", revision="v1", token="t", local_files_only=True)
    assert read.fingerprint() == model.fingerprint()
    options = asked["OWNER/model"]
    assert (options["revision"], options["token"], options["local_files_only"]) == ("v1", "t", True)
    assert "*.safetensors" in options["allow_patterns"]
    asked.clear()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "OWNER" / "model")
    ls.LatentDiffusion.from_pretrained("OWNER/model")  # a folder of that name comes first
    assert not asked


def test_a_hub_that_gives_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SoraError, match="no folder at 'OWNER/none', and no model of that name on a hub"):
        ls.LatentDiffusion.from_pretrained("OWNER/none", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(SoraError, match="no folder at 'nowhere'; give one that `save_pretrained` wrote, or OWNER/NAME"):
        ls.LatentDiffusion.from_pretrained("nowhere")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (ls.LatentDiffusion.from_pretrained, made().push_to_hub):
        with pytest.raises(SoraError, match=r"needs huggingface_hub, which is not installed: pip install hugg"):
            call("OWNER/model")


class FakeHub:
    """Keeps what is uploaded to it."""

    files: dict[str, bytes]

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, *, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        if self.token != "leave":
            raise OSError("401 Unauthorized\nlog in")
        FakeHub.asked = {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}
        return SimpleNamespace(repo_id=f"OWNER/{repo_id}")

    def upload_folder(self, *, folder_path: Path, repo_id: str, **options: Any) -> SimpleNamespace:
        FakeHub.asked |= {"to": repo_id, **options}
        FakeHub.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit")


def test_a_model_is_pushed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    model = made()
    assert model.push_to_hub("model", private=True, token="leave", branch="dev") == "hub/OWNER/model/commit"
    assert FakeHub.asked["private"] is True
    assert (FakeHub.asked["to"], FakeHub.asked["revision"], FakeHub.asked["repo_type"]) == (
        "OWNER/model", "dev", "model",
    )  # fmt: skip
    for name, content in FakeHub.files.items():
        (tmp_path / name).write_bytes(content)
    assert "README.md" in FakeHub.files
    assert ls.LatentDiffusion.from_pretrained(tmp_path).fingerprint() == model.fingerprint()
    with pytest.raises(SoraError, match=r"'model' cannot be written on the hub \(401 Unauthorized\); log in by `hf"):
        model.push_to_hub("model")


def test_the_calls_are_those_that_the_installed_hub_takes() -> None:
    for call, names in (
        (huggingface_hub.HfApi.create_repo, {"repo_id", "private", "exist_ok"}),
        (
            huggingface_hub.HfApi.upload_folder,
            {"repo_id", "repo_type", "folder_path", "commit_message", "revision", "create_pr"},
        ),
        (
            huggingface_hub.snapshot_download,
            {"revision", "cache_dir", "token", "force_download", "local_files_only", "allow_patterns", "library_name"},
        ),
    ):
        assert names <= set(inspect.signature(call).parameters)
    theirs = inspect.signature(huggingface_hub.ModelHubMixin.from_pretrained).parameters
    ours = inspect.signature(ls.LatentDiffusion.from_pretrained).parameters
    shared = {"revision", "cache_dir", "token", "force_download", "local_files_only"}
    assert shared <= set(theirs)
    assert shared <= set(ours)
