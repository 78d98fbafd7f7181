"""Models as folders of config.json and safetensors: without Lightning and mlflow, to a hub and from there."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import subprocess
import sys
from copy import deepcopy
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
from lightning_sora.models.hub import PushOptions
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
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "mlflow"):
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
            "print(sorted({'lightning', 'mlflow'} & set(sys.modules)))"
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

    def header(repo_id: str, filename: str, **options: Any) -> str:
        asked["header"] = options
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", header)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    read = ls.LatentDiffusion.from_pretrained("OWNER/model", revision="v1", token="t", local_files_only=True)
    assert read.fingerprint() == model.fingerprint()
    for options in asked.values():  # config.json by the mixin, and the rest
        assert (options["revision"], options["token"], options["local_files_only"]) == ("v1", "t", True)
    assert "*.safetensors" in asked["OWNER/model"]["allow_patterns"]
    again = read.save_pretrained(tmp_path / "again")
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    (folder / "config.json").write_text("{")
    with pytest.raises(SoraError, match=r"config\.json of 'OWNER/model' is damaged: it is no JSON .*force_download"):
        ls.LatentDiffusion.from_pretrained("OWNER/model")
    (folder / "config.json").write_text('{"text": 3, "vae": {}, "_class_name": "X"}')
    with pytest.raises(SoraError, match=r"cache, and its config\.json is of another library"):
        ls.LatentDiffusion.from_pretrained("OWNER/model")
    shutil.copy(again / "config.json", folder)
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


def test_a_hub_that_cannot_be_reached_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(SoraError, match=r"'OWNER/model' cannot be written on the hub \(.+\); log in by `hf"):
        made().push_to_hub("OWNER/model", token="x")
    with pytest.raises(SoraError, match="'a/b/c' cannot be written on the hub"):  # no name of a hub's
        made().push_to_hub("a/b/c")


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

    def upload_folder(self, *, folder_path: Path, repo_id: str, **options: Any) -> huggingface_hub.CommitInfo:
        FakeHub.asked |= {"to": repo_id, **options}
        FakeHub.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        at = f"https://huggingface.co/{repo_id}/commit/1"
        return huggingface_hub.CommitInfo(commit_url=at, commit_message="", commit_description="", oid="1")


def test_a_model_is_pushed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", FakeHub)
    model = made()
    told = model.push_to_hub("model", private=True, token="leave", branch="dev", ignore_patterns="*.md")
    assert told.endswith("/OWNER/model/commit/1")
    assert type(told) is str
    assert FakeHub.asked["private"] is True
    assert (FakeHub.asked["to"], FakeHub.asked["revision"], FakeHub.asked["repo_type"]) == (
        "OWNER/model", "dev", "model",
    )  # fmt: skip
    assert (FakeHub.asked["ignore_patterns"], FakeHub.asked["commit_message"]) == ("*.md", "A model of lightning_sora")
    for name, content in FakeHub.files.items():
        (tmp_path / name).write_bytes(content)
    assert "README.md" in FakeHub.files
    assert ls.LatentDiffusion.from_pretrained(tmp_path).fingerprint() == model.fingerprint()
    with pytest.raises(SoraError, match=r"'model' cannot be written on the hub \(401 Unauthorized\); log in by `hf"):
        model.push_to_hub("model")


def test_a_folder_is_written_and_pushed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", FakeHub)
    vae = ls.ClipVAE(made().vae, VAE)
    options: dict[str, Any] = {"token": "leave", "commit_message": "halves", "create_pr": True}
    folder = vae.save_pretrained(tmp_path / "vae", stored="float16", push_to_hub=True, **options)
    assert folder == tmp_path / "vae"
    assert (FakeHub.asked["to"], FakeHub.asked["commit_message"], FakeHub.asked["create_pr"]) == (
        "OWNER/vae", "halves", True,
    )  # fmt: skip
    assert FakeHub.files == {path.name: path.read_bytes() for path in folder.iterdir()}  # in that precision as well
    vae.save_pretrained(folder, push_to_hub=True, repo_id="other", **options)
    assert FakeHub.asked["repo_id"] == "other"
    for asked, words in (
        ({"token": "leave", "repo_id": "x"}, r"token, repo_id are of a push to a hub; add push_to_hub=True"),
        ({"model_card_kwargs": {"a": 1}}, r"config and model_card_kwargs are not taken: .*; edit README\.md"),
    ):
        with pytest.raises(SoraError, match=words):
            vae.save_pretrained(tmp_path / "none", **asked)
    FakeHub.asked = {}
    with pytest.raises(SoraError, match="cannot be stored as 'int8'"):
        vae.push_to_hub("vae", token="leave", stored="int8")
    assert not FakeHub.asked  # nor is an empty repository left there
    assert not (tmp_path / "none").exists()


def test_models_are_of_the_mixin_and_stay_modules(tmp_path: Path) -> None:
    model = made()
    model.tasks = ("text_to_video", "image_to_video")
    for one in (model, ls.ClipVAE(model.vae, VAE)):
        assert isinstance(one, huggingface_hub.ModelHubMixin)
        before = dict(one.__dict__)
        one.save_pretrained(tmp_path / "a", stored="float16")
        assert one.__dict__ == before
        for copied in (deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert type(copied) is type(one)
            weights = copied.state_dict()
            assert all(torch.equal(weights[name], value) for name, value in one.state_dict().items())
            assert next(iter(copied.parameters())) is not next(iter(one.parameters()))
        card = one.generate_model_card()  # of no folder
        assert card.data.library_name == "lightning_sora"
        assert {"lightning_sora", "model_hub_mixin"} < set(card.data.tags)
        assert f"ls.{type(one).__name__}.from_pretrained" in card.text
    assert huggingface_hub.ModelCard.load(tmp_path / "a" / "README.md").data.tags == card.data.tags


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made().save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = made(1)
    other.config = None  # made by hand
    with pytest.raises(SoraError):
        other.save_pretrained(folder)
    with pytest.raises(SoraError, match="cannot be stored as 'int8'"):
        made(1).save_pretrained(folder, stored="int8")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SoraError, match=r"file cannot be written: .*; name a place elsewhere"):
        made().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_installed_mixin_takes_what_it_is_given() -> None:
    mixin = huggingface_hub.ModelHubMixin
    assert set(PushOptions.__annotations__) <= set(inspect.signature(mixin.push_to_hub).parameters)
    taken = set(inspect.signature(ls.LatentDiffusion.from_pretrained).parameters) - {"name", "device"}
    assert taken <= set(inspect.signature(mixin.from_pretrained).parameters)
    assert taken <= set(inspect.signature(huggingface_hub.snapshot_download).parameters)
    saving = set(inspect.signature(ls.LatentDiffusion.save_pretrained).parameters) - {"self", "folder", "stored", "hub"}
    assert saving <= set(inspect.signature(mixin.save_pretrained).parameters)
