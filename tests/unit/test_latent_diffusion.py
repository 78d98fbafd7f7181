"""LatentDiffusion without Lightning: its terms, its costs, its folder, and its steps."""

import inspect
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sora import load
from lightning_sora.errors import SoraError
from lightning_sora.lit.callbacks.summary import summary
from lightning_sora.lit.pretrained import load_vae
from lightning_sora.models.denoiser import SampleOptions
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.seen_sizes import SeenSizes
from lightning_sora.models.vae import VAES, ClipVAE
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout

VAE = "causal_conv(stride=(4, 8, 8), latent_channels=4, dim=8, front_end_patch=(4, 8, 8), decoder_blocks=1)"
DIT: dict[str, Any] = {"dim": 16, "depth": 2, "num_heads": 2}
TEXT = "bytes(dim=8, depth=1, num_heads=1)"
SIZE = (5, 16, 16)


def made(**changes: Any) -> LatentDiffusion:
    model = LatentDiffusion.create(
        **{"vae": VAE, "text": TEXT, "dit": DIT, "objective": "x", "sampling": {"steps": 2}, **changes}
    )
    with torch.no_grad():
        for parameter in model.dit.parameters():  # what starts at zero would hide the rest
            if not parameter.any():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


def test_flops_are_a_function_of_their_arguments() -> None:
    """Whatever was asked, sampled or trained before."""
    grids = [TokenGrid(2, 2, 2), TokenGrid(1, 3, 2)]
    asked = [
        (TokenLayout.pack(grids) if packed else TokenLayout.uniform(grids[0], 3), tokens, pixels)
        for packed, tokens in ((True, 8), (True, 24), (False, 24))
        for pixels in (True, False)
    ]
    expected = [made().flops(layout, text_tokens=tokens, pixels=pixels) for layout, tokens, pixels in asked]
    assert len(set(expected)) == len(asked)
    model = made()
    for seed in range(3):
        for place in random.Random(seed).sample(range(len(asked)), len(asked)):
            layout, tokens, pixels = asked[place]
            assert model.flops(layout, text_tokens=tokens, pixels=pixels) == expected[place]
            model.text(["a caption of another length" * (place % 4)])
        model.sample("a red cube", *SIZE)
        model.train(seed % 2 == 0)


def test_each_clip_costs_its_own_share() -> None:
    model, grid = made(), TokenGrid(2, 2, 2)
    one, three = (model.flops(TokenLayout.uniform(grid, n), text_tokens=16) for n in (1, 3))
    assert three == 3 * one


def test_a_saved_model_makes_the_same_clips(tmp_path: Path) -> None:
    model = made(dit=DIT | {"attention": "spatial, temporal"}, seed=4, sampling={"steps": 3, "guidance": 2.0})
    model.seen_sizes.add([SIZE, (1, 16, 16)], fps=12.0)
    folder = model.save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "dit.safetensors", "text.safetensors", "vae.safetensors",
    ]  # fmt: skip
    again = load(folder, "cpu")
    assert isinstance(again, LatentDiffusion)
    assert again.vae_hash == again.vae.fingerprint() == model.vae_hash
    assert (again.seen_sizes.native, again.seen_sizes.fps) == (SIZE, 12.0)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for prompt in ("a red cube", ""):
        assert torch.equal(again.sample(prompt, seed=1), model.sample(prompt, *SIZE, seed=1))
    assert json.loads((folder / "config.json").read_text())["config"]["dit"]["attention"] == "spatial, temporal"


def test_weights_may_be_stored_in_half_the_room(tmp_path: Path) -> None:
    model = made(seed=4)
    whole, half = model.save(tmp_path / "whole"), model.save(tmp_path / "half", stored="float16")
    sizes = [(folder / "dit.safetensors").stat().st_size for folder in (whole, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    read = load(half, "cpu")
    for (name, value), own in zip(read.dit.named_parameters(), model.dit.parameters(), strict=True):
        assert value.dtype == torch.float32, name
        assert torch.equal(value, own.half().float())
    assert read.vae_hash == read.vae.fingerprint() != model.vae_hash
    assert read.sample("a red cube", *SIZE).shape == (*SIZE, 3)
    assert load_vae(str(half), seed=0)[0].fingerprint() == read.vae_hash
    with pytest.raises(SoraError, match="cannot be stored as 'int8'; choose float16, bfloat16 or float32"):
        model.save(tmp_path / "c", stored="int8")


def test_a_weak_model_may_lie_in_a_folder_too(tmp_path: Path) -> None:
    weak = made(dit=DIT | {"depth": 1}).save(tmp_path / "weak")
    model = made()
    spec = f"autoguidance(scale=3.0, checkpoint='{weak}')"
    guided, plain = (model.sample("a red cube", *SIZE, guidance=guidance) for guidance in (spec, 1.0))
    assert not torch.equal(guided, plain)
    assert not any("weak" in name for name, _ in model.named_modules())
    other = made(seed=9)
    with pytest.raises(SoraError, match="two models of one VAE"):
        other.sample("a red cube", *SIZE, guidance=spec)


def test_a_saved_vae_encodes_as_before(tmp_path: Path) -> None:
    vae = VAES.create(VAE)
    initialize(vae, 5)
    vae.latent_std.fill_(2.0)
    clips = ClipVAE(vae, VAE)
    again = load(clips.save(tmp_path / "vae"), "cpu")
    clip = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latent = again.encode(clip)
    assert torch.equal(latent, clips.encode(clip))
    assert torch.equal(again.decode(latent), clips.decode(latent))
    assert again.vae.fingerprint() == vae.fingerprint()


def test_a_model_with_another_decoder_is_saved_as_what_it_is(tmp_path: Path) -> None:
    model, deeper = made(), VAES.create(VAE.replace("decoder_blocks=1", "decoder_blocks=3"))
    initialize(deeper, 5)
    deeper.adopt_latents(model.vae)
    clip = torch.zeros((*SIZE, 3), dtype=torch.uint8)
    before = model.encode_videos([clip])
    model.replace_vae(deeper)
    read = load(model.save(tmp_path / "model"), "cpu")
    assert read.vae_hash == read.vae.fingerprint() == deeper.fingerprint()
    assert torch.equal(read.encode_videos([clip]), before)
    assert torch.equal(read.sample("a red cube", *SIZE), model.sample("a red cube", *SIZE))
    # Options that shape no weight make other latents, too.
    other = VAES.create(VAE.replace("decoder_blocks=1", "front_end='wavelet'"))
    other.load_state_dict(made().vae.state_dict(), strict=False)
    with pytest.raises(SoraError, match="their encoders differ in front_end"):
        other.adopt_latents(model.vae)
    with pytest.raises(SoraError, match=r"are not those of .*: they differ in front_end"):
        made().replace_vae(other)


def test_a_folder_that_is_no_whole_model_is_refused(tmp_path: Path) -> None:
    folder, other = made().save(tmp_path / "a"), made(seed=1).save(tmp_path / "b")
    good = (folder / "dit.safetensors").read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    told = json.loads((folder / "config.json").read_text())
    for content, words in (
        (bytes(flipped), "is damaged"),
        ((other / "dit.safetensors").read_bytes(), "of another model"),
        (None, r"lacks dit\.safetensors"),
    ):
        (folder / "dit.safetensors").unlink(missing_ok=True)
        if content is not None:
            (folder / "dit.safetensors").write_bytes(content)
        with pytest.raises(SoraError, match=words):
            LatentDiffusion.load(folder)
    (folder / "dit.safetensors").write_bytes(good)
    for change, words in (
        ({"schema": 99}, "schema 99"),
        ({"kind": "vae"}, "holds a model of kind 'vae'"),
        ({"config": told["config"] | {"objective": "mine"}}, "unknown objective 'mine'.*plugin"),
        ({"config": told["config"] | {"dit": {"dim": 24, "num_heads": 2}}}, "does not hold the dit"),
    ):
        (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "_sha256"} | change))
        with pytest.raises(SoraError, match=words):
            LatentDiffusion.load(folder)
    with pytest.raises(SoraError, match="no model at"):
        LatentDiffusion.load(tmp_path / "none")


def test_a_model_of_parts_made_by_hand_says_how_to_be_saved(tmp_path: Path) -> None:
    whole = made()
    model = LatentDiffusion(whole.vae, whole.text, whole.dit, whole.objective)
    with pytest.raises(SoraError, match="create"):
        model.save(tmp_path / "model")
    with pytest.raises(SoraError, match=r"a denoiser of channels=.* and text_dim=8 does not fit"):
        LatentDiffusion(VAES.create("vit"), whole.text, whole.dit, whole.objective)
    for wrong, words in (
        ({"dit": {"dims": 8}}, "no option 'dit.dims'; did you mean dit.dim"),
        ({"dit": {"dim": "wide"}}, "dim='wide' must be int"),
        ({"sampling": {"steps": 0}}, "steps=0"),
        ({"sampling": "euler"}, "must be a SamplingConfig"),
    ):
        with pytest.raises(SoraError, match=words):
            made(**wrong)


def test_steps_are_told_as_they_are_made() -> None:
    model, told = made(), []
    video = model.sample("a red cube", *SIZE, steps=3, on_step=lambda t, x_0: told.append((t, x_0)))
    assert [t for t, _ in told] == pytest.approx([1, 2 / 3, 1 / 3])
    # The last guided prediction is the clip.
    assert torch.equal(model.decode(told[-1][1], TokenGrid(2, 2, 2))[0], video)


def test_terms_are_those_of_the_equation() -> None:
    model, layout = made(), TokenLayout.uniform(TokenGrid(2, 2, 2), 2)
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn((*layout.shape, model.latent_dim), generator=generator) for _ in range(2))
    t = torch.tensor([0.25, 0.75])
    terms = model.terms(layout, x_0, t, noise, ["a", "b"])
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * noise
    predicted = model.dit(x_t, t, model.text(["a", "b"]), layout)
    torch.testing.assert_close(terms.x_0, predicted)
    torch.testing.assert_close(terms.error, (predicted - x_0).square().mean(dim=(1, 2)))


def test_a_summary_tells_parts_with_parameters_and_no_flops() -> None:
    model = made(vae=VAE)
    model.dit.requires_grad_(True)
    text = summary(torch.nn.ModuleDict({"model": model, "empty": torch.nn.Identity()}))
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["model.vae", "CausalConvVAE"], ["model.text", "BytesEncoder"], ["model.dit", "DiT"],
    ]  # fmt: skip
    assert [line.endswith("frozen") for line in lines[1:4]] == [True, False, False]
    assert "FLOPs" not in text


def test_what_a_sample_takes_is_named_alike_wherever_it_is_passed_on() -> None:
    parameters = inspect.signature(LatentDiffusion.sample).parameters.values()
    named = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert named == set(SampleOptions.__annotations__)


def test_an_image_is_what_it_is_however_long_clips_were() -> None:
    model = made(sampling={"steps": 3})
    model.seen_sizes.add([SIZE], fps=8.0)
    assert torch.equal(model.sample("a cube", 1, rope="interpolate"), model.sample("a cube", 1))


def test_larger_clips_are_placed_and_timed_as_asked() -> None:
    model, large = made(sampling={"steps": 3, "shift": 2.0}), (9, 32, 16)
    model.seen_sizes.add([SIZE, (1, 16, 16)], fps=8.0)
    options: dict[str, dict[str, Any]] = {
        "none": {}, "interpolate": {"rope": "interpolate"}, "ntk": {"rope": "ntk"}, "shift": {"shift_by_size": True},
    }  # fmt: skip
    native, larger = (
        {name: model.sample("a red cube", *size, **option) for name, option in options.items()}
        for size in (SIZE, large)
    )
    assert all(torch.equal(clip, native["none"]) for clip in native.values())
    clips = list(larger.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(clips) for b in clips[:i])
    by_recipe = made(sampling={"steps": 3, "shift": 2.0, "rope": "ntk"})
    by_recipe.seen_sizes = model.seen_sizes
    assert torch.equal(by_recipe.sample("a red cube", *large), larger["ntk"])
    # 3 * 4 * 2 tokens, and 2 * 2 * 2 as trained.
    shifted = made(sampling={"steps": 3, "shift": 2.0 * 3**0.5})
    assert torch.equal(shifted.sample("a red cube", *large), larger["shift"])
    unknown = made(sampling={"steps": 3, "shift": 2.0, "rope": "interpolate", "shift_by_size": True})
    assert torch.equal(unknown.sample("a red cube", *large), larger["none"])
    with pytest.raises(SoraError, match="rope='yarn' must be 'none', 'interpolate' or 'ntk'"):
        model.sample("a red cube", *SIZE, rope="yarn")


def test_positions_are_stretched_by_what_is_beyond_all_sizes_seen() -> None:
    """In time from the first frame on, which a token holds alone."""
    seen, patch = SeenSizes(), PatchSize(4, 8, 8)
    seen.add([(17, 16, 64), (9, 64, 16)], fps=8.0)
    grids = [TokenGrid.of(*size, patch) for size in ((33, 64, 64), (5, 96, 128), (13, 8, 16), (13, 32, 16))]
    stretch = seen.stretch(grids, patch, "ntk")
    assert stretch is not None
    assert stretch.factors.tolist() == [[2.0, 1.0, 1.0], [0.5, 1.5, 2.0], [1.0, 0.5, 1.0], [1.0, 1.0, 1.0]]
    assert seen.stretch(grids[3:], patch, "ntk") is None
    assert seen.stretch(grids, patch, "none") is None
    assert SeenSizes().stretch(grids, patch, "ntk") is None
