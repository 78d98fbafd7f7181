"""The text of HunyuanVideo, against diffusers' own pipeline, on a folder of random encoders."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers import DENOISERS
from lightning_sora.models.frozen_parts import text_differs
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.text import TEXT_ENCODERS, TextEncoder
from lightning_sora.models.text_contract import CAPTIONS as OF_CONTRACT
from lightning_sora.models.text_contract import CONTRACT
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.host_toys import TEXT, channels_of, host_folder, transformer
from tests.unit.test_text import WORDS, tokenizer_in

CAPTIONS = ["a red circle", "", "a circle moves right right right a red red red circle moves"]
POOLED, MOST = 8, 32
GRID = TokenGrid(3, 2, 4)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text side of a pipeline: a LLaMA of three layers and a CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    root = tmp_path_factory.mktemp("hunyuan")
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=TEXT, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=POOLED, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, eos_token_id=3, bos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    for name, model in (("text_encoder", LlamaModel(llama)), ("text_encoder_2", CLIPTextModel(clip))):
        model.save_pretrained(root / name)
        tokenizer_in(root / name.replace("text_encoder", "tokenizer"))
    (root / "model_index.json").write_text('{"_class_name": "HunyuanVideoPipeline"}')
    return root


def made(path: Path, **options: object) -> TextEncoder:
    more = "".join(f", {name}={value!r}" for name, value in {"max_tokens": MOST, **options}.items())
    return TEXT_ENCODERS.create(f"hunyuan_video(path={str(path)!r}{more})")


@torch.no_grad()
def theirs(path: Path, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, a vector and a mask of each caption as diffusers' pipeline makes them."""
    from diffusers import HunyuanVideoPipeline
    from transformers import AutoTokenizer, CLIPTextModel, LlamaModel

    parts: Any = SimpleNamespace(
        text_encoder=LlamaModel.from_pretrained(path / "text_encoder"),
        text_encoder_2=CLIPTextModel.from_pretrained(path / "text_encoder_2"),
        tokenizer=AutoTokenizer.from_pretrained(path / "tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(path / "tokenizer_2"),
        _execution_device=torch.device("cpu"),
    )
    for name in ("_get_llama_prompt_embeds", "_get_clip_prompt_embeds"):
        setattr(parts, name, getattr(HunyuanVideoPipeline, name).__get__(parts))
    return HunyuanVideoPipeline.encode_prompt(parts, captions, max_sequence_length=MOST)


@pytest.mark.parametrize("kind", ["itself", "cached"])
@torch.no_grad()
def test_a_caption_becomes_the_prediction_of_its_pipeline(kind: str, pipeline: Path, tmp_path: Path) -> None:
    encoder = made(pipeline)
    if kind == "cached":
        encoder.store([*CAPTIONS, *OF_CONTRACT], tmp_path / "text")  # type: ignore[operator]
        encoder = TEXT_ENCODERS.create(f"cached(path={str(tmp_path)!r})")
        assert encoder.length(CAPTIONS) == made(pipeline).length(CAPTIONS)
    embeddings, pooled, mask = theirs(pipeline, CAPTIONS)
    context = encoder(CAPTIONS)
    assert mask.sum(dim=1).tolist() == context.mask.sum(dim=1).tolist()
    for ours, own, whole, seen in zip(context.embeddings, context.mask, embeddings, mask.bool(), strict=True):
        torch.testing.assert_close(ours[own], whole[seen], rtol=0, atol=1e-5)
    assert context.pooled is not None
    torch.testing.assert_close(context.pooled, pooled, rtol=0, atol=1e-5)
    assert (encoder.pooled_dim, encoder.padded, context.padded) == (POOLED, None, False)

    at = host_folder("hunyuan_video", tmp_path / "host")
    denoiser = DENOISERS.create(f"diffusers(path={str(at)!r})", channels_of("hunyuan_video"), TEXT).eval()
    p = denoiser.patch_size
    sizes = {"pt": p.frames, "ph": p.height, "pw": p.width}
    size = (GRID.frames * p.frames, GRID.height * p.height, GRID.width * p.width)
    latents = torch.randn(3, channels_of("hunyuan_video"), *size, generator=torch.Generator().manual_seed(0))
    t = torch.full((3,), 0.5)
    expected = transformer("hunyuan_video")(
        hidden_states=latents, timestep=t * 1000, encoder_hidden_states=embeddings, encoder_attention_mask=mask,
        pooled_projections=pooled, guidance=torch.full((3,), 6000.0), return_dict=False,
    )[0]  # fmt: skip
    rows = [
        rearrange(one, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", **sizes) for one in (latents, expected)
    ]
    found = denoiser(rows[0], t, context, TokenLayout.uniform(GRID, 3))
    torch.testing.assert_close(found, rows[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("law", CONTRACT.laws)
def test_it_keeps_the_contract(law: str, pipeline: Path) -> None:
    CONTRACT.laws[law](f"hunyuan_video(path={str(pipeline)!r})")


def test_each_of_its_parts_is_in_its_fingerprint(pipeline: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    other = Path(shutil.copytree(pipeline, tmp_path / "other"))
    clip = CLIPTextModel.from_pretrained(other / "text_encoder_2")
    with torch.no_grad():
        next(iter(clip.parameters())).add_(1.0)
    clip.save_pretrained(other / "text_encoder_2")
    own = made(pipeline).fingerprint()  # type: ignore[operator]
    assert own == made(pipeline).fingerprint()  # type: ignore[operator]
    for path, options in ((other, {}), (pipeline, {"max_tokens": MOST - 1}), (pipeline, {"dtype": "bfloat16"})):
        assert made(path, **options).fingerprint() != own  # type: ignore[operator]


def test_a_longer_caption_is_cut_with_one_warning(pipeline: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = made(pipeline, max_tokens=20)
    assert int(encoder(["a red circle " * 10, "moves right " * 20]).mask.sum(dim=1).max()) == 20
    (record,) = caplog.records
    assert "are cut to max_tokens=20" in record.getMessage()


def test_what_is_not_its_pipeline_is_refused(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SoraError, match="is no folder of a pipeline of diffusers"):
        made(tmp_path)
    lacking = Path(shutil.copytree(pipeline, tmp_path / "lacking"))
    shutil.rmtree(lacking / "tokenizer_2")
    with pytest.raises(SoraError, match="of a pipeline without tokenizer_2/"):
        made(lacking)
    monkeypatch.setattr("lightning_sora.models.memory_estimate.available_memory", lambda device: 1000)
    with pytest.raises(SoraError, match="thousand parameters, needs in float32"):
        made(pipeline)


def test_a_denoiser_that_asks_for_a_vector_takes_an_encoder_that_gives_one(pipeline: Path, tmp_path: Path) -> None:
    path = host_folder("hunyuan_video", tmp_path / "host", in_channels=3, out_channels=3)
    spec, sampling = f"diffusers(path={str(path)!r})", {"steps": 2, "guidance": 2.0}
    text = f"hunyuan_video(path={str(pipeline)!r}, max_tokens={MOST})"
    model = LatentDiffusion.create("identity", text, denoiser=spec, sampling=sampling)
    assert model.sample("a red circle", 2, 8, 8).shape == (2, 8, 8, 3)
    for wrong in (f"bytes(dim={TEXT})", f"hf(name={str(pipeline / 'text_encoder')!r}, max_tokens=8)"):
        with pytest.raises(SoraError, match=r"width 8, as CLIP makes.* gives none; take hunyuan_video\(path='DIR'\)"):
            LatentDiffusion.create("identity", wrong, denoiser=spec)


@pytest.mark.slow
def test_a_pipeline_of_hunyuan_is_the_runs_own_by_both_of_its_encoders(pipeline: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    text = made(pipeline)
    run: Any = SimpleNamespace(text=text, config={"text": f"hunyuan_video(path={str(pipeline)!r}, max_tokens={MOST})"})
    assert text_differs(run, pipeline) is None
    copied = Path(shutil.copytree(pipeline, tmp_path / "copied"))
    assert text_differs(run, copied) is None
    clip = CLIPTextModel.from_pretrained(copied / "text_encoder_2")
    with torch.no_grad():
        next(clip.parameters()).add_(1.0)
    clip.save_pretrained(copied / "text_encoder_2")
    assert f"its text encoder is {text.fingerprint()} by fingerprint, and" in str(text_differs(run, copied))  # type: ignore[operator]
