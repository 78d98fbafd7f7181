"""Text that is encoded with its padding, from a caption to a prediction, as the pipelines of diffusers have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers import DENOISERS, DiffusersDenoiser
from lightning_sora.models.diffusers_folder import quiet_on_cpu
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.text import TEXT_ENCODERS, TextEncoder
from lightning_sora.models.text_contract import CONTRACT
from lightning_sora.randomness import generator
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.host_toys import TEXT, channels_of, host_folder, transformer
from tests.unit.test_text import WORDS, tokenizer_in

CAPTIONS = ["a red circle", "", "a circle moves right right right a red red red circle moves"]
GRID = TokenGrid(3, 2, 4)
MOST = 12  # tokens of the random CogVideoX
#: Whether the encoder sees padding, and the pipeline that says so.
PIPELINES = {
    "wan": (False, "WanPipeline"),
    "mochi": (False, "MochiPipeline"),
    "cogvideox": (True, "CogVideoXPipeline"),
    "ltx": (True, "LTXPipeline"),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random encoders in which padding, where it is seen, moves the text."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    made = {}
    sizes = {"vocab_size": len(WORDS), "d_model": TEXT, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    for name, model in (("t5", T5EncoderModel(T5Config(**sizes))), ("umt5", UMT5EncoderModel(UMT5Config(**sizes)))):
        at = made[name] = tmp_path_factory.mktemp(name)
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(0, key)) * 0.3)
        model.save_pretrained(at)
        tokenizer_in(at)
    return made


def hf(path: Path, **options: object) -> TextEncoder:
    more = "".join(f", {name}={value!r}" for name, value in {"max_tokens": MOST, **options}.items())
    return TEXT_ENCODERS.create(f"hf(name={str(path)!r}{more})")


def encoder_of(family: str, encoders: dict[str, Path], **options: object) -> TextEncoder:
    padded = {"padded": True} if PIPELINES[family][0] else {}
    return hf(encoders["umt5" if family == "wan" else "t5"], **{**padded, **options})


@torch.no_grad()
def theirs(family: str, path: Path, captions: list[str]) -> tuple[Tensor, Tensor | None]:
    """Embeddings and a mask as a pipeline of diffusers makes them of captions."""
    from transformers import AutoTokenizer, T5EncoderModel, UMT5EncoderModel

    kind = UMT5EncoderModel if family == "wan" else T5EncoderModel
    parts: Any = SimpleNamespace(
        text_encoder=kind.from_pretrained(path).eval(), tokenizer=AutoTokenizer.from_pretrained(path),
        config=SimpleNamespace(force_zeros_for_empty_prompt=False),
    )  # fmt: skip
    encode = getattr(diffusers, PIPELINES[family][1])._get_t5_prompt_embeds
    made = encode(parts, captions, max_sequence_length=MOST, device=torch.device("cpu"), dtype=torch.float32)
    return made if isinstance(made, tuple) else (made, None)


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def predicted(family: str, latents: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """What the transformer of diffusers, called as by its pipeline, makes of latents."""
    net, t = transformer(family), torch.full((len(latents),), 0.5)
    given: dict[str, Any] = {"encoder_hidden_states": text, "return_dict": False}
    if family == "cogvideox":
        parts: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=net)
        frames, height, width = latents.shape[2:]
        rotary = diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(
            parts, 8 * height, 8 * width, frames, torch.device("cpu")
        )
        step = torch.full((len(latents),), 300)
        made = net(latents.transpose(1, 2), timestep=step, image_rotary_emb=rotary, **given)[0]
        return made.transpose(1, 2)
    if family == "ltx":
        frames, height, width = latents.shape[2:]
        packed = diffusers.LTXPipeline._pack_latents(latents, 1, 1)
        made = net(
            packed, timestep=1000 * t, encoder_attention_mask=mask, num_frames=frames, height=height, width=width,
            rope_interpolation_scale=(8 / 25, 32, 32), **given,
        )[0]  # fmt: skip
        return diffusers.LTXPipeline._unpack_latents(made, frames, height, width, 1, 1)
    if family == "mochi":
        with quiet_on_cpu():
            return -net(latents, timestep=1000 * t, encoder_attention_mask=mask, **given)[0]
    zeros = text.new_zeros(len(text), 512 - text.shape[1], text.shape[2])  # whose pipeline pads to 512 itself
    return net(latents, timestep=1000 * t, **{**given, "encoder_hidden_states": torch.cat([text, zeros], dim=1)})[0]


def time_of(family: str) -> float:
    """Half way, or as noisy as step 300 of CogVideoX's DDPM."""
    if family != "cogvideox":
        return 0.5
    scheduler = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, snr_shift_scale=1.0)
    kept = scheduler.alphas_cumprod[300].double()
    ratio = ((1 - kept) / kept).sqrt()
    return float(ratio / (1 + ratio))


@pytest.fixture(params=["hf", "cached"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[TextEncoder], TextEncoder]:
    """The encoder itself, or a cache of what it gives."""

    def of(encoder: TextEncoder) -> TextEncoder:
        if request.param == "hf":
            return encoder
        encoder.store(CAPTIONS, tmp_path / "text")  # type: ignore[operator]
        return TEXT_ENCODERS.create(f"cached(path={str(tmp_path)!r})")

    return of


@pytest.mark.parametrize("family", PIPELINES)
@torch.no_grad()
def test_a_caption_becomes_the_prediction_of_its_pipeline(
    family: str,
    encoders: dict[str, Path],
    tmp_path: Path,
    served: Callable[[TextEncoder], TextEncoder],
) -> None:
    at = host_folder(family, tmp_path / "host")
    denoiser = DENOISERS.create(f"diffusers(path={str(at)!r})", channels_of(family), TEXT).eval()
    encoder = served(encoder_of(family, encoders))
    path = encoders["umt5" if family == "wan" else "t5"]
    p = denoiser.patch_size
    sizes = {"pt": p.frames, "ph": p.height, "pw": p.width}
    size = (GRID.frames * p.frames, GRID.height * p.height, GRID.width * p.width)
    latents = draw(len(CAPTIONS), channels_of(family), *size)

    def rows(video: Tensor) -> Tensor:
        return rearrange(video, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", **sizes)

    expected = rows(predicted(family, latents, *theirs(family, path, CAPTIONS)))
    layout, t = TokenLayout.uniform(GRID, len(CAPTIONS)), torch.full((len(CAPTIONS),), time_of(family))
    found = denoiser(rows(latents), t, encoder(CAPTIONS), layout)
    tolerance = 5e-5 if family == "cogvideox" else 5e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    other = encoder_of(family, encoders, padded=not PIPELINES[family][0])(CAPTIONS)
    moved = (denoiser(rows(latents), t, other, layout) - expected).abs().max()
    assert moved > 20 * tolerance  # the other way to encode is another text


def test_padding_that_is_seen_has_rows_and_a_mask_says_which_are_text(encoders: dict[str, Path]) -> None:
    encoder = hf(encoders["t5"], padded=True)
    for captions in (CAPTIONS, ["", "a"], ["a"]):
        context = encoder(captions)
        embeddings, mask = theirs("ltx", encoders["t5"], captions)
        torch.testing.assert_close(context.embeddings, embeddings, rtol=0, atol=1e-5)
        assert torch.equal(context.mask, mask)
        assert context.padded
        assert encoder.length(captions) == MOST == encoder.padded
    assert not hf(encoders["t5"])(CAPTIONS).padded


@pytest.mark.parametrize("law", CONTRACT.laws)
def test_it_keeps_the_contract(law: str, encoders: dict[str, Path]) -> None:
    CONTRACT.laws[law](f"hf(name={str(encoders['t5'])!r}, max_tokens=32, padded=True)")


def test_a_fingerprint_says_so_and_others_are_as_they_were(encoders: dict[str, Path]) -> None:
    from lightning_sora.models.text_hf import fingerprint_of

    plain, padded = hf(encoders["t5"]), hf(encoders["t5"], padded=True)
    backbone, tokenizer = plain._hidden[0], plain.tokenizer  # type: ignore[index, union-attr]
    assert plain.fingerprint() == fingerprint_of(backbone, tokenizer, f"{MOST} float32")  # type: ignore[operator]
    assert padded.fingerprint() != plain.fingerprint()  # type: ignore[operator]
    with pytest.raises(SoraError, match="dtype and padded"):
        padded.load_state_dict(plain.state_dict())


def test_a_cache_serves_the_same_rows_in_the_precision_of_the_encoder(
    encoders: dict[str, Path], tmp_path: Path
) -> None:
    full = hf(encoders["t5"], padded=True, dtype="bfloat16", cache=str(tmp_path / "files"))
    full.store(CAPTIONS, tmp_path / "text")  # type: ignore[operator]
    spec = f"hf(name={str(encoders['t5'])!r}, max_tokens={MOST}, padded=True, dtype='bfloat16')"
    read = TEXT_ENCODERS.create(f"cached(path={str(tmp_path)!r}, encoder={spec!r})")
    expected = full([*CAPTIONS, "red"])
    again = hf(encoders["t5"], padded=True, dtype="bfloat16", cache=str(tmp_path / "files"))
    for encoder in (read, again):
        found = encoder([*CAPTIONS, "red"])  # the last one is not in the cache
        assert torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=0, atol=0.05)
        assert found.embeddings.dtype == torch.float32
        assert (found.padded, encoder.padded) == (True, MOST)
    assert torch.equal(again(CAPTIONS).embeddings, full(CAPTIONS).embeddings)
    assert read.length(CAPTIONS) == MOST
    (shard,) = (tmp_path / "text").glob("*/shard-*.safetensors")
    assert shard.stat().st_size < len(CAPTIONS) * MOST * TEXT * 2 + 2000


def test_an_embedding_does_not_depend_on_autocast(encoders: dict[str, Path]) -> None:
    for options in ({}, {"padded": True}):
        with torch.autocast("cpu", torch.bfloat16):
            inside = hf(encoders["t5"], **options)(CAPTIONS).embeddings
        assert torch.equal(inside, hf(encoders["t5"], **options)(CAPTIONS).embeddings)


def model(family: str, at: Path, text: str) -> LatentDiffusion:
    options = {"in_channels": 3, "out_channels": 3}
    objective = "v" if family == "cogvideox" else "velocity"
    path = at if (at / "config.json").is_file() else host_folder(family, at, **options)
    return LatentDiffusion.create("identity", text, denoiser=f"diffusers(path={str(path)!r})", objective=objective)


@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("cogvideox", "max_tokens=12", r"masks it; set max_tokens=12, padded=True of the text encoder, as in hf\("),
        ("cogvideox", "max_tokens=8, padded=True", "to 12 tokens, and this text encoder pads to 8 tokens"),
        ("ltx", "max_tokens=12", "masks it; set max_tokens=N, padded=True"),
        ("wan", "padded=True, max_tokens=12", "sees 12 tokens of every caption; leave out padded=True"),
        ("mochi", "padded=True, max_tokens=12", "leave out padded=True"),
        ("cogvideox", "max_tokens=12, padded=True", None),
        ("ltx", "max_tokens=9, padded=True", None),
        ("wan", "max_tokens=12", None),
    ],
)
def test_a_pretrained_denoiser_refuses_text_that_it_was_not_trained_on(
    family: str, options: str, told: str | None, encoders: dict[str, Path], tmp_path: Path
) -> None:
    text = f"hf(name={str(encoders['t5'])!r}, {options})"
    TEXT_ENCODERS.create(text).store(["a", ""], tmp_path / "cache/text")  # type: ignore[operator]
    for spec in (text, f"cached(path={str(tmp_path / 'cache')!r})"):
        if told is None:
            assert isinstance(model(family, tmp_path / family, spec).dit, DiffusersDenoiser)
            continue
        with pytest.raises(SoraError, match=told) as refused:
            model(family, tmp_path / family, spec)
        assert "\n" not in str(refused.value)


def test_an_encoder_that_learns_with_it_begins_anew_in_any_case(tmp_path: Path) -> None:
    for family in ("cogvideox", "wan"):
        model(family, tmp_path / family, f"bytes(dim={TEXT}, max_bytes=10)")


def test_weights_that_are_fresh_were_trained_on_no_text(encoders: dict[str, Path], tmp_path: Path) -> None:
    made = model("cogvideox", tmp_path / "host", f"hf(name={str(encoders['t5'])!r}, max_tokens=12, padded=True)")
    spec = made.config["denoiser"]  # type: ignore[index]
    text = f"hf(name={str(encoders['t5'])!r}, max_tokens=12)"
    assert not LatentDiffusion.create("identity", text, denoiser=spec, objective="v").dit.pretrained
