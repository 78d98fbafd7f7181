"""Weights of runs in the forms of others, read back by those: diffusers, mlflow, and this package without a run."""

from __future__ import annotations

import base64
import inspect
import json
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

import lightning_sora as ls
from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.lit import LitDiT
from lightning_sora.models import lora_files
from lightning_sora.models.denoisers.wan_keys import to_original
from lightning_sora.models.lora import adapters, merged
from lightning_sora.models.other_formats import PIPELINES
from lightning_sora.tracking import store
from tests.integration.conftest import make_data, make_dit, make_vae
from tests.integration.test_docs import ROOT
from tests.toys import start_no_workers
from tests.unit.test_pretrained_folder import FakeHub
from tests.unit.test_text import tokenizer_in

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.slow

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline of Wan in miniature, as diffusers writes it."""
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    root = tmp_path_factory.mktemp("base")
    tokenizer_in(root / "words")
    torch.manual_seed(0)
    with torch.random.fork_rng():
        text = UMT5EncoderModel(UMT5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
        network = diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=32, text_dim=16, freq_dim=16
        )
        vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    diffusers.WanPipeline(
        AutoTokenizer.from_pretrained(root / "words"),
        text,
        vae,
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        network,
    ).save_pretrained(root / "wan")
    return root / "wan"


def trained(at: Path, base: Path, denoiser: str = "wan", vae: str = "diffusers", **changes: Any) -> Path:
    """The run of a short training, far enough for its weights to differ in all digits."""
    options = {
        "text": f"hf(name={str(base)!r})", "denoiser": f"{denoiser}(path={str(base)!r})", "schedule": "constant",
        "optimizer": "adamw(lr=1e-2)", "ema_decay": 0.5, "sampling": {"steps": 2}, **changes,
    }  # fmt: skip
    module = LitDiT(f"diffusers(path={str(base)!r})" if vae == "diffusers" else vae, **options)
    fit(module, at, height=32, width=32, batch_size=2)
    return at


def fit(module: ls.LitModule, at: Path, **data: Any) -> None:
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", limit_val_batches=0, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=at, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, make_data(**{"patch": tuple(module.patch), **data}))
    trainer.save_checkpoint(at / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "lora", base, tuning="lora(rank=4, alpha=8)")


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "whole", base)


@pytest.fixture(scope="module")
def hosted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "hosted", base, denoiser="diffusers")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this package's own transformer, on a VAE of its own."""
    at = tmp_path_factory.mktemp("runs") / "own"
    fit(make_dit(), at)
    return at


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")  # of its own type hints
        yield


def same(found: Any, expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    weights = found if isinstance(found, dict) else dict(found.state_dict())
    assert set(weights) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            weights[name], value, atol=tolerance, rtol=0, msg=lambda told, name=name: f"{name}: {told}"
        )


def exported(*arguments: object) -> None:
    assert main(["export", *map(str, arguments), "--out", "out"]) == 0


def test_a_run_becomes_a_pretrained_folder_with_its_average(
    lora: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (own, lora):
        exported(run, "--to", "pretrained")
        assert capsys.readouterr().out == "ls.LatentDiffusion.from_pretrained('out')\n"
        model = ls.load(run, "cpu").model
        model.dit = merged(model.dit)
        read = ls.LatentDiffusion.from_pretrained("out")
        assert read.fingerprint() == model.fingerprint()
        assert torch.equal(read.sample(PROMPT, seed=3), model.sample(PROMPT, seed=3))
        assert Path("out/README.md").is_file()
        shutil.rmtree("out")
    # Merged, LoRA makes what it made beside its base: up to rounding.
    clips = [one.sample(PROMPT, seed=3).int() for one in (read, ls.load(lora, "cpu"))]
    assert int((clips[0] - clips[1]).abs().max()) <= 2


def test_a_vae_that_is_read_on_demand_goes_with_the_model(base: Path) -> None:
    vae, text = f"diffusers(path={str(base)!r}, on_demand=True)", "bytes(dim=16, depth=0, num_heads=1)"
    model = ls.LatentDiffusion.create(vae, text, denoiser=f"wan(path={str(base)!r})", sampling={"steps": 2})
    assert (
        "Not in this folder, but read from where the spec says: vae."
        in (model.save_pretrained("by_path") / "README.md").read_text()
    )
    ls.export("by_path", "out", to="pretrained")
    assert "Not in this folder" not in Path("out/README.md").read_text()
    read = ls.LatentDiffusion.from_pretrained("out")
    assert read.vae_hash == model.vae_hash
    assert "network.encoder.conv_in.weight" in load_file("out/vae.safetensors")
    assert torch.equal(read.sample("a", 5, 32, 32), model.sample("a", 5, 32, 32))
    ls.export("by_path", "pipeline", to="diffusers")
    same(diffusers.AutoencoderKLWan.from_pretrained("pipeline/vae"), dict(read.vae.network.state_dict()))


def test_a_folder_is_uploaded_and_stays_where_that_fails(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", FakeHub)
    asked = ["export", str(own), "--to", "pretrained", "--push", "model", "--out"]
    assert main([*asked, "refused"]) == 2
    assert "'model' cannot be written on the hub" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", lambda token: FakeHub("leave"))
    assert main([*asked, "taken"]) == 0
    assert "/OWNER/model/commit/1" in capsys.readouterr().out
    model = ls.LatentDiffusion.from_pretrained("refused")
    assert FakeHub.files["dit.safetensors"] == Path("taken/dit.safetensors").read_bytes()
    assert model.fingerprint() == ls.LatentDiffusion.from_pretrained("taken").fingerprint()


def test_a_vae_becomes_a_pretrained_folder_and_nothing_else(tmp_path: Path) -> None:
    fit(make_vae(ema_decay=0.5), tmp_path / "vae")
    assert ls.export("vae", "out", to="pretrained", stored="float16") == "out"
    assert ls.ClipVAE.from_pretrained("out").vae.fingerprint() != ls.load("vae", "cpu").vae.fingerprint()
    for to in ("diffusers", "lora", "comfyui", "mlflow"):
        with pytest.raises(SoraError, match=f"vae holds a VAE, and --to {to} writes models that make videos; --to pre"):
            ls.export("vae", "other", to=to)


@pytest.mark.parametrize("run", ["whole", "hosted"])
def test_a_run_becomes_a_pipeline_of_diffusers(
    run: str, base: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    path = request.getfixturevalue(run)
    exported(path, "--to", "diffusers")
    told = capsys.readouterr().out
    assert "written: transformer (WanTransformer3DModel), vae (AutoencoderKLWan)" in told
    assert f"copied from {base}: " in told
    assert "diffusers.WanPipeline.from_pretrained('out')" in told
    pipeline = diffusers.WanPipeline.from_pretrained("out")
    model = ls.load(path, "cpu").model
    same(pipeline.transformer, {model.dit.diffusers_key(name): one for name, one in model.dit.state_dict().items()})
    same(pipeline.vae, dict(model.vae.network.state_dict()))
    begun = diffusers.WanTransformer3DModel.from_pretrained(base / "transformer")
    assert not torch.equal(pipeline.transformer.proj_out.weight, begun.proj_out.weight)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(PROMPT, height=32, width=32, num_frames=5, num_inference_steps=1, output_type="np").frames
    assert made.shape == (1, 5, 32, 32, 3)
    index = json.loads((base / "model_index.json").read_text())
    assert json.loads(Path("out/model_index.json").read_text()) == index


def test_merged_lora_is_what_diffusers_fuses(lora: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(lora, "--to", "lora")
    assert "pipeline.load_lora_weights('out/pytorch_lora_weights.safetensors')" in capsys.readouterr().out
    shutil.move("out", "adapters")
    exported(lora, "--to", "comfyui")
    assert "ComfyUI's models/loras: out/comfyui_lora.safetensors" in capsys.readouterr().out
    keys = load_file("out/comfyui_lora.safetensors")
    assert "diffusion_model.blocks.0.self_attn.q.lora_down.weight" in keys
    shutil.move("out", "comfyui")
    exported(lora, "--to", "diffusers", "--link")
    told = capsys.readouterr().out
    assert "its LoRA adapters are merged into the weights" in told
    assert f"linked from {base}" in told
    assert Path("out/text_encoder").is_symlink()
    found = diffusers.WanPipeline.from_pretrained("out").transformer
    for file in ("adapters", "comfyui/comfyui_lora.safetensors"):
        pipeline = diffusers.WanPipeline.from_pretrained(base)
        pipeline.load_lora_weights(file)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        same(found, dict(pipeline.transformer.state_dict()), tolerance=1e-6)
    plain = diffusers.WanTransformer3DModel.from_pretrained(base / "transformer")
    name = "blocks.0.attn1.to_q.weight"
    assert (found.state_dict()[name] - plain.state_dict()[name]).abs().max() > 1e-4


def test_a_whole_transformer_goes_to_comfyui(whole: Path, base: Path) -> None:
    assert ls.export(whole, "wan.safetensors", to="comfyui", stored="bfloat16") == "wan.safetensors"
    model = ls.load(whole, "cpu").model.dit
    found = load_file("wan.safetensors")
    assert found["model.diffusion_model.blocks.1.cross_attn.norm_q.weight"].dtype == torch.bfloat16
    weights = {name: value.bfloat16() for name, value in model.state_dict().items()}
    same(found, {f"model.diffusion_model.{to_original(name)}": value for name, value in weights.items()})
    read = diffusers.WanTransformer3DModel.from_single_file(
        "wan.safetensors", config=str(base / "transformer"), torch_dtype=torch.float32
    )
    same(read, {name: value.float() for name, value in weights.items()})


def test_what_is_no_whole_pipeline_says_how_it_is_put_together(
    whole: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = trained(tmp_path / "run", base, text="bytes(dim=16, depth=0, num_heads=1)")
    exported(alone, "--to", "diffusers")
    told = capsys.readouterr().out
    assert "it is no whole pipeline: its text encoder is a By" in told
    assert sorted(path.name for path in Path("out").iterdir()) == ["transformer", "vae"]
    assert "with one: diffusers.WanPipeline.from_pretrained(" in told
    call = told.rpartition("with one: ")[2].strip()
    pipeline = eval(call, {"diffusers": diffusers})  # as it is told
    same(pipeline.transformer, dict(ls.load(alone, "cpu").model.dit.state_dict()))
    shutil.rmtree("out")
    moved = shutil.move(shutil.copytree(base, tmp_path / "a"), tmp_path / "b")
    with pytest.raises(SoraError, match=r"base='.*/none' is no pipeline here"):
        ls.export(whole, "out", to="diffusers", base=str(tmp_path / "none"))
    shutil.rmtree(Path(moved) / "scheduler")
    with pytest.raises(SoraError, match=r"b lacks scheduler, which its model_index\.json names; download it whole"):
        ls.export(whole, "out", to="diffusers", base=moved)
    index = Path(moved) / "model_index.json"
    index.write_text(index.read_text().replace("WanTransformer3DModel", "LTXVideoTransformer3DModel"))
    with pytest.raises(SoraError, match=r"has transformer of LTXVideo.*, and this model's is a WanTransformer3DModel"):
        ls.export(whole, "out", to="diffusers", base=moved)
    assert not Path("out").exists()


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("own", {"to": "onnx"}, "written --to 'onnx'; choose mlflow, pretrained, diffusers, lora, comfyui"),
    ("own", {"to": "difusers"}, "did you mean 'diffusers'"),
    ("own", {"to": "diffusers"}, "a DiT is no transformer of diffusers, and only runs .*; --to pretrained writes any"),
    ("own", {"to": "comfyui"}, "ComfyUI's form is known of Wan alone .*; --to pretrained writes any model"),
    (
        "own",
        {"to": "lora"},
        "own has no LoRA adapters: all of it was trained.*; train with model.tuning",
    ),
    (
        "own",
        {"to": "pretrained", "base": "x"},
        "--base is of --to diffusers, lora, and of --to pretrained where a pretrained folder was moved; leave",
    ),
    ("own", {"to": "mlflow", "stored": "float16"}, "--stored is of --to pretrained, diffusers, comfyui, and not of"),
    ("own", {"to": "lora", "limits": {"steps": 3}}, r"--max-\.\.\. is of --to mlflow, and not of --to lora"),
    ("own", {"register": "mine"}, "--register is of what is kept in mlflow; add --log"),
    ("own", {"uri": "sqlite:///x.db"}, "--uri is of what is kept in mlflow; add --log"),
    ("own", {"limits": {"seconds": 3}}, r"limits=\{'seconds': 3\} must be of frames, height"),
    ("own", {"to": "pretrained", "stored": "int8"}, "cannot be stored as 'int8'; choose float16"),
    ("lora", {"to": "comfyui", "stored": "float16"}, "--stored=float16 is of whole models"),
    ("lora", {"to": "lora", "base": "x"}, "--base is of what is kept in mlflow"),
]


@pytest.mark.parametrize(("run", "options", "said"), BAD, ids=[said for *_, said in BAD])
def test_what_cannot_be_written_says_why(
    run: str, options: dict[str, Any], said: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(SoraError, match=said):
        ls.export(request.getfixturevalue(run), "out", **options)
    assert not list(Path().iterdir())  # nor anything half written


def test_what_is_there_stays(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").write_text("mine")
    for to in ("mlflow", "pretrained", "diffusers", "lora", "comfyui"):
        assert main(["export", str(own), "--to", to, "--out", "out"]) == 2
        assert "out is there already; give --out of a place that is not" in capsys.readouterr().err
    assert Path("out").read_text() == "mine"
    assert main(["export", str(own), "--ckpt", str(own), "--out", "other"]) == 2
    assert re.search(r"own and --ckpt .*own are two models; name one", capsys.readouterr().err)


def in_a_store(run: Path, at: Path) -> tuple[Path, str, str]:
    """A copy of a run that says that a store tracked it, the store, and the id there."""
    uri = store.resolve_uri(f"sqlite:///{at}/mlflow.db")
    client = store.connect(uri)
    tracked = client.create_run(store.experiment_id(client, uri, "toys")).info.run_id
    copied = Path(shutil.copytree(run, at / "tracked"))
    file = copied / "checkpoints" / "last.ckpt"
    torch.save(torch.load(file, weights_only=True) | {"run_id": tracked}, file)
    return copied, uri, tracked


def test_a_registered_model_answers_a_prompt(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, uri, _ = in_a_store(lora, tmp_path)
    for version in (1, 2):
        where = ls.export(run, f"out{version}", log_to_run=True, uri=uri, register="wan")
        assert where == f"models:/wan/{version}"
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    served = mlflow.pyfunc.load_model(where)
    (answer,) = served.predict([{"prompt": PROMPT}], params={"seed": 3})
    plain = ls.load(run, "cpu").model
    plain.dit = merged(plain.dit)
    plain.save("plain")
    made = ls.sample("plain", PROMPT, seed=3, out="made", device="cpu")
    assert base64.b64decode(answer["video"]) == next(file for file in made.files if file.suffix == ".mp4").read_bytes()
    assert "lightning-sora[diffusers,hf]==" in Path("out1/requirements.txt").read_text()
    with pytest.raises(SoraError, match=r"mlflow's registry does not take 'a/b' \(.*\); the model is kept as runs:/"):
        ls.export(run, "out3", log_to_run=True, uri=uri, register="a/b")


def test_lora_is_kept_in_mlflow_beside_its_base(
    lora: Path, own: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, uri, tracked = in_a_store(lora, tmp_path)
    where = ls.export(run, "out", to="lora", log_to_run=True, uri=uri)
    assert where == f"runs:/{tracked}/lora"
    ls.export(run, "folder", to="pretrained")
    assert ls.LatentDiffusion.from_pretrained("folder").run_id == tracked
    import mlflow.diffusers

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    kept = mlflow.diffusers.load_model(where)
    assert (kept.base_model, kept.adapter_type) == (str(base), "lora")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")  # diffusers of mlflow's call
        pipeline = kept.load_pipeline(device="cpu", torch_dtype=torch.float32)
    pipeline.fuse_lora()
    fused = dict(pipeline.transformer.named_parameters())["blocks.0.attn1.to_q.base_layer.weight"]
    own_weights = merged(ls.load(lora, "cpu").model.dit).state_dict()["blocks.0.attn1.to_q.weight"]
    torch.testing.assert_close(fused.data, own_weights, atol=1e-6, rtol=0)


def test_adapters_of_other_networks_are_written_by_our_own_names(tmp_path: Path, capsys: Any) -> None:
    fit(make_dit(), tmp_path / "first")
    fit(make_dit(init_from="first/checkpoints/last.ckpt", tuning="lora(rank=2)"), tmp_path / "second")
    exported("second", "--to", "lora")
    told = capsys.readouterr().out
    assert "by this package's own names" in told
    assert "they go upon the weights of first/checkpoints/last.ckpt, with which the run began" in told
    found = load_file("out/lora.safetensors")
    assert len(found) == 2 * len(adapters(ls.load("second", "cpu").model.dit))


def untrained(at: str, vae: Path, denoiser: str, **options: Any) -> ls.LatentDiffusion:
    """A model of fresh or given parts, saved."""
    options = {"text": "bytes(dim=16, depth=0, num_heads=1)", "sampling": {"steps": 2}, **options}
    model = ls.LatentDiffusion.create(f"diffusers(path={str(vae)!r})", denoiser=denoiser, **options)
    model.save(at)
    return model


@pytest.fixture
def other_text(base: Path, tmp_path: Path) -> Path:
    """A text encoder like the base's, of other weights."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    place = tmp_path / "other_text"
    AutoTokenizer.from_pretrained(base / "tokenizer").save_pretrained(place)
    model = UMT5EncoderModel.from_pretrained(base / "text_encoder")
    with torch.no_grad():
        model.shared.weight.add_(1.0)
    model.save_pretrained(place)
    return place


def test_a_pipeline_is_whole_with_the_text_encoder_of_the_run_alone(
    base: Path, other_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(base, tmp_path / "copied")
    wan = f"wan(path={str(base)!r})"
    for text, whole in ((copied, True), (other_text, False)):
        model = untrained("made", base, wan, text=f"hf(name={str(text)!r}, max_tokens=32)")
        exported("made", "--to", "diffusers")
        told = capsys.readouterr().out
        assert ("it is whole: " in told) == whole
        assert Path("out/text_encoder").is_dir() == whole
        if not whole:
            fingerprint = model.text.fingerprint()  # type: ignore[operator]
            assert f"it is no whole pipeline: its text encoder is {fingerprint} by fingerprint, and that of" in told
        shutil.rmtree("out")
    exported("made", "--to", "diffusers", "--base", copied)  # nor by a base that is named
    assert "it is no whole pipeline" in capsys.readouterr().out


@pytest.fixture
def of_frames(base: Path, tmp_path: Path) -> Path:
    """A whole image-to-video pipeline of Wan in miniature."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    place = Path(shutil.copytree(base, tmp_path / "of_frames"))
    torch.manual_seed(1)
    diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=32, text_dim=16, freq_dim=16,
        in_channels=36, out_channels=16, image_dim=8, added_kv_proj_dim=24,
    ).save_pretrained(place / "transformer")  # fmt: skip
    seen = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(seen).save_pretrained(place / "image_encoder")
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(place / "image_processor")
    index = json.loads((place / "model_index.json").read_text())
    index |= {
        "_class_name": "WanImageToVideoPipeline", "image_encoder": ["transformers", "CLIPVisionModel"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    }  # fmt: skip
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def of_first_frames(place: Path, **options: Any) -> ls.LatentDiffusion:
    options = {"text": f"hf(name={str(place)!r})", "image": str(place / "image_encoder"), **options}
    model = untrained("made", place, f"wan(path={str(place)!r})", **options)
    model.seen_sizes.add([ls.VideoSize(5, 32, 32)], 8.0)
    model.save("made")
    return model


def test_an_image_to_video_model_is_told_its_own_pipeline(
    base: Path, of_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_first_frames(of_frames)
    exported("made", "--to", "diffusers")
    assert "it is whole: diffusers.WanImageToVideoPipeline.from_pretrained('out')" in capsys.readouterr().out
    pipeline = diffusers.WanImageToVideoPipeline.from_pretrained("out")
    assert pipeline.transformer.config.in_channels == 36
    shutil.rmtree("out")
    exported("made", "--to", "diffusers", "--base", base)
    told = capsys.readouterr().out
    assert f"no whole pipeline: {base} is a WanPipeline, and this model makes clips from their first frame" in told
    assert f"with one: diffusers.WanImageToVideoPipeline.from_pretrained('{base}', transformer=" in told
    shutil.rmtree("out")
    other = Path(shutil.copytree(of_frames, tmp_path / "other"))
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel.from_pretrained(other / "image_encoder")
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    encoder.save_pretrained(other / "image_encoder")
    exported("made", "--to", "diffusers", "--base", other)
    assert "it is no whole pipeline: its image encoder is" in capsys.readouterr().out
    shutil.rmtree("out")
    of_first_frames(of_frames, text="bytes(dim=16, depth=0, num_heads=1)")
    shutil.move(of_frames / "model_index.json", tmp_path)
    exported("made", "--to", "diffusers")
    assert "with one: diffusers.WanImageToVideoPipeline.from_pretrained(" in capsys.readouterr().out


@pytest.mark.parametrize(("network", "name"), [(one, name) for one, names in PIPELINES.items() for name in names])
def test_pipelines_take_the_transformers_that_they_are_told_for(network: str, name: str) -> None:
    assert network in str(inspect.signature(getattr(diffusers, name).__init__).parameters["transformer"].annotation)


def answered(folder: str, *rows: dict[str, str]) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(folder).predict(list(rows), params={"seed": 3})


def test_an_image_to_video_model_is_served_with_its_first_frame(of_frames: Path, tmp_path: Path) -> None:
    of_first_frames(of_frames)
    ls.export("made", "out")
    assert "lightning-sora[hf]==" not in Path("out/requirements.txt").read_text()
    assert "lightning-sora[diffusers,hf]==" in Path("out/requirements.txt").read_text()
    picture = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    media.write_image(Path("first.png"), picture)
    text = base64.b64encode(Path("first.png").read_bytes()).decode()
    (answer,) = answered("out", {"prompt": PROMPT, "image": text})
    made = ls.sample("made", PROMPT, seed=3, inputs={"image": "first.png"}, out="samples", device="cpu")
    assert base64.b64decode(answer["video"]) == next(file for file in made.files if file.suffix == ".mp4").read_bytes()
    for image in ("first.png", base64.b64encode(b"GIF89a").decode()):
        with pytest.raises(Exception, match="the image of row 0 is no picture; give a PNG or JPEG as base64 text"):
            answered("out", {"prompt": PROMPT, "image": image})
    with pytest.raises(Exception, match="image"):
        answered("out", {"prompt": PROMPT})


def test_the_card_of_an_image_to_video_model_gives_the_first_frame(of_frames: Path) -> None:
    of_first_frames(of_frames)
    ls.export("made", "out", to="pretrained")
    card = Path("out/README.md").read_text()
    assert "pipeline_tag: image-to-video" in card
    assert ls.LatentDiffusion._hub_mixin_info.model_card_data.pipeline_tag == "text-to-video"  # of the others
    media.write_image(Path("first.png"), torch.zeros(32, 32, 3, dtype=torch.uint8))
    found: dict[str, Any] = {}
    exec(card.split("```python")[1].split("```")[0].replace("OWNER/NAME", "out"), found)
    assert found["clip"].shape == (17, 32, 32, 3)


@pytest.fixture
def cached(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the shipped recipe, in a folder where its base is called wan."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    start_no_workers(monkeypatch)
    place = tmp_path / "work"
    place.mkdir()
    (place / "wan").symlink_to(base)
    monkeypatch.chdir(place)
    size = "data.frames=5 data.height=32 data.width=32 data.fps=8 data.num_workers=0"
    source = "world(level='tiny', clips=6, heldout_clips=4)"
    recipe = ["--config", str(ROOT / "recipes" / "wan_lora.yaml")]
    parts = ["--vae", "diffusers(path='wan')", "--text", "hf(name='wan', max_tokens=512)"]
    into = ["--out", "outputs/wan_latents", f"data.source={source}", *size.split()]
    assert main(["data", "cache", *recipe, *parts, *into]) == 0
    fit = (
        f"{' '.join(f'--{one}' for one in size.split())} --data.source=latents --data.root=outputs/wan_latents "
        "--trainer.max_steps=2 --trainer.precision=32-true --trainer.accelerator=cpu --trainer.limit_val_batches=0 "
        "--model.sampling.steps=2 --trainer.val_check_interval=2 --trainer.default_root_dir=outputs/run "
        "--model.optimizer=adamw(lr=1e-2)"
    )
    assert main(["fit", *recipe, *shlex.split(fit)]) == 0
    (checkpoint,) = (place / "outputs").rglob("last.ckpt")
    return checkpoint.parents[1]


def test_a_run_of_the_shipped_recipe_answers_prompts_with_its_text_encoder(
    cached: Path, base: Path, other_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    text = "hf(name='wan', max_tokens=512)"
    with pytest.raises(SoraError, match=r"would answer no other prompt; name the encoder by --text \"hf\(.*512"):
        ls.export(cached, tmp_path / "out")
    for wrong in (f"hf(name={str(other_text)!r}, max_tokens=512)", "hf(name='wan')"):
        with pytest.raises(SoraError, match="is another text encoder than the model was trained with"):
            ls.export(cached, tmp_path / "out", text=wrong)
    ls.export(cached, tmp_path / "alone", to="pretrained")
    assert "answers the prompts alone whose embeddings are in" in caplog.text
    ls.export(cached, tmp_path / "pretrained", to="pretrained", text=text)
    ls.export(cached, tmp_path / "out", text=text)
    capsys.readouterr()
    assert main(["export", str(cached), "--to", "diffusers", "--out", str(tmp_path / "pipeline")]) == 0
    assert "it is whole" in capsys.readouterr().out  # as the cache says how it was made
    made = ls.sample(str(tmp_path / "pretrained"), PROMPT, seed=3, out=tmp_path / "made", device="cpu")
    monkeypatch.chdir(tmp_path)
    for to in ("lora", "comfyui"):  # whose base and embeddings the run names by relative paths
        ls.export(cached, to, to=to)
    for folder in ("alone", "pretrained", "out"):
        (file,) = Path(folder).rglob("config.json")
        assert str(tmp_path / "work") in json.loads(file.read_text())["config"]["text"]
    (answer,) = answered("out", {"prompt": PROMPT})
    assert base64.b64decode(answer["video"]) == next(file for file in made.files if file.suffix == ".mp4").read_bytes()
    with pytest.raises(SoraError, match=f"no embedding of the caption '{PROMPT}'"):
        ls.LatentDiffusion.from_pretrained("alone").sample(PROMPT)


def test_text_is_of_runs_whose_encoder_is_frozen(own: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="text encoder is a BytesEncoder, whose weights are among the model's own"):
        ls.export(own, "out", text=f"hf(name={str(base)!r})")
    fit(make_vae(), tmp_path / "vae")
    with pytest.raises(SoraError, match="vae holds a VAE; leave it out"):
        ls.export("vae", "out", to="pretrained", text=f"hf(name={str(base)!r})")


@pytest.mark.parametrize("denoiser", ["wan", "diffusers"])
def test_a_whole_transformer_of_other_attention_is_told_to_attend_in_full_elsewhere(
    denoiser: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained("made", base, f"{denoiser}(path={str(base)!r}, attention='window(size=(2, 4, 4))')")
    exported("made", "--to", "comfyui")
    assert re.search(
        r"it was trained with attention by .*[wW]indow.*, and others attend in full", capsys.readouterr().out
    )


def test_a_file_that_is_cut_short_is_not_left_behind(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(file: Path, content: bytes) -> None:
        file.write_bytes(content[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lora_files, "write_whole", cut)
        with pytest.raises(KeyboardInterrupt):
            ls.export(lora, "x.safetensors", to="lora")
    assert ls.export(lora, "x.safetensors", to="lora") == "x.safetensors"


def test_adapters_of_a_run_that_began_elsewhere_are_kept_beside_a_base_that_is_named(
    whole: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = trained(tmp_path / "began", base, init_from=str(whole / "checkpoints" / "last.ckpt"), tuning="lora(rank=2)")
    run, uri, _ = in_a_store(began, tmp_path)
    with pytest.raises(
        SoraError, match=r"these adapters go upon the weights of .*last\.ckpt, with which the run began"
    ):
        ls.export(run, "out", to="lora", log_to_run=True, uri=uri)
    assert not Path("out").exists()
    ls.export(whole, "first", to="diffusers")
    where = ls.export(run, "out", to="lora", log_to_run=True, uri=uri, base="first")
    import mlflow.diffusers

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow.diffusers.load_model(where).base_model == str(tmp_path / "first")


def test_a_run_whose_base_was_moved_is_exported_by_where_it_is_now(base: Path, tmp_path: Path) -> None:
    before, now = Path(shutil.copytree(base, tmp_path / "before")), tmp_path / "now"
    run = trained(tmp_path / "run", before, tuning="lora(rank=2)")
    ls.export(run, "expected.safetensors", to="lora")
    shutil.move(before, now)
    for to in ("lora", "comfyui", "pretrained", "mlflow"):
        with pytest.raises(SoraError, match="export --base DIR"):
            ls.export(run, to, to=to)
        ls.export(run, to, to=to, base=now)
    same(load_file("lora/pytorch_lora_weights.safetensors"), load_file("expected.safetensors"))
