"""What image-to-video denoisers are shown: against diffusers' own pipelines, and through training and sampling."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.lit.dit import LitDiT
from lightning_sora.lit.given import first_frame_of, first_frame_shown
from lightning_sora.models.conditioning import condition_of
from lightning_sora.models.denoisers import DENOISERS, DiT
from lightning_sora.models.frozen_parts import check_answers
from lightning_sora.models.given import Given
from lightning_sora.models.image import ImageEncoder
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.pixels import from_uint8
from lightning_sora.models.vae import VAES
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout, unpatchify

TEXT = "bytes(dim=16)"
FRAMES, SIDE = 9, 16


def video(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (FRAMES, SIDE, SIDE, 3), generator=coarse_generator(seed, "clip"), dtype=torch.uint8)


class _Shown(DiT):
    """Adds what it is shown to the rows that it embeds."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__(channels, text_dim, dim=32, depth=1, num_heads=2, patch_size=(1, 2, 2))
        self.see = nn.Linear(self.patch_size.volume * self.condition_channels, self.in_dim)

    def forward(
        self, x: Tensor, t: Tensor, text: Any, layout: Any, stretch: Any = None, condition: Any = None
    ) -> Tensor:
        self.check(x, t, text, layout, condition)
        self.condition_channels, before = 0, self.condition_channels
        try:
            return super().forward(x + self.see(condition.rows), t, text, layout, stretch)
        finally:
            self.condition_channels = before


class MaskAndClip(_Shown):
    condition_channels = 4 + 16


class FirstFrame(_Shown):
    condition_channels = 16


class Odd(_Shown):
    condition_channels = 7


class Attending(MaskAndClip):
    image_dim = 32


@pytest.fixture(autouse=True)
def named() -> Iterator[None]:
    with DENOISERS.temporary():
        for name, kind in (("mask", MaskAndClip), ("first", FirstFrame), ("odd", Odd), ("attending", Attending)):
            DENOISERS.register(name)(kind)
        yield


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.save_pretrained(folder)
    return str(folder)


def model(wan: str, name: str, **options: Any) -> LatentDiffusion:
    sampling = {"steps": 2, "guidance": 2.0}
    return LatentDiffusion.create(f"diffusers(path='{wan}')", TEXT, denoiser=name, sampling=sampling, **options)


def channels(rows: Tensor, layout: TokenLayout) -> Tensor:
    """[clips channels t h w] of rows."""
    parts = [unpatchify(row, layout.grids[0], PatchSize(1, 2, 2)) for row in layout.split(rows)]
    return torch.stack(parts).permute(0, 4, 1, 2, 3)


def first_and_maybe_last(layout: TokenLayout, last: bool) -> Tensor:
    strength = torch.ones(layout.shape).view(layout.clips, layout.grids[0].frames, -1)
    strength[:, 0] = 0.0
    if last:
        strength[:, -1] = 0.0
    return strength.flatten(1)


@pytest.mark.parametrize("last", [False, True])
def test_a_mask_and_a_clip_are_those_of_wans_own_pipeline(wan: str, last: bool) -> None:
    made, layout = model(wan, "mask"), TokenLayout.uniform(TokenGrid(3, 1, 1), 2)
    clips = [video(0), video(1)]
    shown = channels(condition_of(made, layout, clips, first_and_maybe_last(layout, last)).rows, layout)
    pipeline = diffusers.WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, transformer=None, image_encoder=None, image_processor=None,
        vae=diffusers.AutoencoderKLWan.from_pretrained(wan), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    for clip, found in zip(clips, shown, strict=True):
        image, end = (from_uint8([clip[at : at + 1]], torch.float32)[:, :, 0] for at in (0, FRAMES - 1))
        _, expected = pipeline.prepare_latents(
            image, 1, height=SIDE, width=SIDE, num_frames=FRAMES, dtype=torch.float32, device=torch.device("cpu"),
            last_image=end if last else None,
        )  # fmt: skip
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=0)


def test_the_marks_of_further_frames_are_of_the_frames_that_they_cover(wan: str) -> None:
    made, layout = model(wan, "mask"), TokenLayout.uniform(TokenGrid(3, 1, 1), 1)
    strength = 1 - first_and_maybe_last(layout, True)
    strength[:, 0] = 0.0  # of two latent frames, and not of the last
    shown = channels(condition_of(made, layout, [video()], strength).rows, layout)
    marks = shown[0, :4, :, 0, 0]
    assert marks.tolist() == [[1.0, 1.0, 0.0]] * 4
    seen = from_uint8([video()], torch.float32)
    seen[:, :, 5:] = 0.0
    torch.testing.assert_close(shown[:, 4:], made.vae.encode_latent(seen), atol=1e-5, rtol=0)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_first_frame_is_the_one_of_cogvideoxs_own_pipeline(tmp_path: Path, inverted: bool) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=16, layers_per_block=1, norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        scaling_factor=0.7, invert_scale_latents=inverted,
    )  # fmt: skip
    vae.save_pretrained(tmp_path)
    made, layout = model(str(tmp_path), "first"), TokenLayout.uniform(TokenGrid(3, 1, 1), 1)
    shown = channels(condition_of(made, layout, [video()], first_and_maybe_last(layout, False)).rows, layout)
    raw = vae.eval().encode(from_uint8([video()[:1]], torch.float32)).latent_dist.mode()[0, :, 0]
    # pipeline_cogvideox_image2video.py: times the factor, or once more divided by it
    torch.testing.assert_close(shown[0, :, 0], raw / 0.7 if inverted else raw * 0.7, atol=1e-5, rtol=0)
    assert not shown[0, :, 1:].any()


@pytest.mark.slow
def test_a_clip_is_made_of_its_first_frame_and_saved_models_still_do(wan: str, tmp_path: Path) -> None:
    made = model(wan, "mask")
    nn.init.normal_(made.dit.unembed.weight, std=0.5)  # which starts at zero
    strength = torch.ones(FRAMES, SIDE, SIDE)
    strength[0] = 0.0
    first, second = (
        made.sample("a", FRAMES, SIDE, SIDE, given=Given(video(seed), strength), seed=1) for seed in (0, 1)
    )
    assert not torch.equal(first, second)
    changed = video(0)
    changed[1:] = 7  # which is not looked at
    assert torch.equal(first, made.sample("a", FRAMES, SIDE, SIDE, given=Given(changed, strength), seed=1))
    again = LatentDiffusion.load(made.save(tmp_path / "model"))
    assert torch.equal(first, again.sample("a", FRAMES, SIDE, SIDE, given=Given(video(0), strength), seed=1))
    with pytest.raises(SoraError, match="from its first frame, and of a prompt none is given"):
        made.sample("a", FRAMES, SIDE, SIDE)
    with pytest.raises(SoraError, match="whole frames as they are, the first among them"):
        made.sample("a", FRAMES, SIDE, SIDE, given=Given(video(), 1 - strength))


def test_training_shows_the_frames_that_the_task_gives(wan: str) -> None:
    module = LitDiT(
        f"diffusers(path='{wan}')", text=TEXT, denoiser="mask",
        diffusion={"tasks": {"image_to_video": 1.0}, "val_timesteps": 1},
    )  # fmt: skip
    nn.init.normal_(module.model.dit.unembed.weight, std=0.5)
    layout = TokenLayout.uniform(TokenGrid(3, 1, 1), 2)

    def batch(clips: list[Tensor]) -> SpacetimeBatch:
        known = {"captions": ("a", "b"), "ids": ("x", "y"), "visits": (0, 0), "fps": (8.0, 8.0)}
        return SpacetimeBatch.of(clips, layout=layout, patch=module.patch, **known)

    other = [clip.clone() for clip in (video(0), video(1))]
    for clip in other:
        clip[0] = 255 - clip[0]
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    losses = [float(module.training_step(batch(clips), 0)) for clips in ([video(0), video(1)], other)]
    assert losses[0] != losses[1]
    assert module.training_flops(batch(other)) > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mask", {}, "text_to_video gives none; set diffusion.tasks"),
        ("mask", {"diffusion": {"tasks": {"image_to_video": 1.0}}, "prompts": ["a"]}, "prompts give none"),
        ("odd", {}, r"shown 7 channels .* could be 16 \(the first frame\) or 20 \(a mask and a clip\)"),
        ("attending", {}, "name the encoder that makes them"),
    ],
)
def test_what_cannot_be_shown_is_refused(wan: str, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SoraError, match=words):
        LitDiT(f"diffusers(path='{wan}')", text=TEXT, denoiser=name, **options)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(folder / "image_encoder")
    size = {"shortest_edge": 16}
    CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16}).save_pretrained(folder / "image_processor")
    return str(folder / "image_encoder")


def test_the_first_frame_is_embedded_as_wans_own_pipeline_does(wan: str, tower: str) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModel

    made, layout = model(wan, "attending", image=tower), TokenLayout.uniform(TokenGrid(3, 1, 1), 2)
    clips = [video(0), video(1)]
    found = condition_of(made, layout, clips, first_and_maybe_last(layout, False)).image
    processor = CLIPImageProcessor.from_pretrained(f"{tower}/../image_processor")
    pixels = processor(images=[clip[0].numpy() for clip in clips], return_tensors="pt")
    with torch.no_grad():
        states = CLIPVisionModel.from_pretrained(tower)(**pixels, output_hidden_states=True).hidden_states
    assert found is not None
    torch.testing.assert_close(found, states[-2], atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        shown = condition_of(made, layout, clips, first_and_maybe_last(layout, False))
    assert shown.image is not None
    torch.testing.assert_close(shown.image, found, atol=0, rtol=0)
    with pytest.raises(SoraError, match=r"attends to no image embeddings; leave out model\.image"):
        model(wan, "mask", image=tower)


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A transformer of Wan that attends to the first and the last frame."""
    folder = tmp_path_factory.mktemp("between")
    torch.manual_seed(0)
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=40, text_dim=16, num_layers=2, in_channels=36,
        image_dim=32, added_kv_proj_dim=24, pos_embed_seq_len=10,
    )  # fmt: skip
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    network.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_wan_of_first_and_last_frames_is_shown_both_hosted_and_native(wan: str, tower: str, between: str) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModel

    layout, strength = TokenLayout.uniform(TokenGrid(3, 1, 1), 2), torch.ones(FRAMES, SIDE, SIDE)
    strength[0] = strength[-4:] = 0.0
    pipeline = diffusers.WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, transformer=None, vae=None, scheduler=None,
        image_encoder=CLIPVisionModel.from_pretrained(tower),
        image_processor=CLIPImageProcessor.from_pretrained(f"{tower}/../image_processor"),
    )  # fmt: skip
    clips, found = [video(0), video(1)], []
    other = video(0)
    other[-1] = 255 - other[-1]
    for name in ("diffusers", "wan"):
        made = model(wan, f"{name}(path='{between}')", image=tower)
        assert made.dit.flops(layout, 5) > 0
        image = condition_of(made, layout, clips, first_and_maybe_last(layout, True)).image
        assert image is not None
        for clip, row in zip(clips, image, strict=True):
            expected = pipeline.encode_image([clip[0].numpy(), clip[-1].numpy()], torch.device("cpu"))
            torch.testing.assert_close(row, expected.flatten(0, 1), atol=1e-6, rtol=0)
        with pytest.raises(SoraError, match="take the task first_and_last, and clips of three latent frames"):
            condition_of(made, layout, clips, first_and_maybe_last(layout, False))
        found.append(made.sample("a", FRAMES, SIDE, SIDE, given=Given(video(0), strength), seed=1))
        assert not torch.equal(made.sample("a", FRAMES, SIDE, SIDE, given=Given(other, strength), seed=1), found[-1])
    assert (found[0].int() - found[1].int()).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusers", "wan"])
def test_a_wan_of_first_and_last_frames_is_trained_on_both(wan: str, tower: str, between: str, name: str) -> None:
    def module(task: str) -> LitDiT:
        diffusion = {"tasks": {task: 1.0}, "val_timesteps": 1}
        return LitDiT(
            f"diffusers(path='{wan}')", text=TEXT, denoiser=f"{name}(path='{between}')", image=tower,
            diffusion=diffusion,
        )  # fmt: skip

    with pytest.raises(SoraError, match=r"image_to_video does not give both; set diffusion\.tasks=\{first_and_last"):
        module("image_to_video")
    trained = module("first_and_last")
    trained.log = lambda *args, **options: None  # type: ignore[method-assign]
    layout, losses = TokenLayout.uniform(TokenGrid(3, 1, 1), 1), []
    for seed in (0, 1):
        clip = video(0)
        clip[-1] = video(seed)[-1]
        batch = SpacetimeBatch.of(
            [clip], layout=layout, patch=trained.patch, captions=("a",), ids=("x",), visits=(0,), fps=(8.0,)
        )
        losses.append(float(trained.training_step(batch, 0)))
        assert trained.training_flops(batch) > 0
    assert losses[0] != losses[1]
    assert first_frame_shown(trained.model, batch) is not None
    given = first_frame_of(clip, trained.model)
    assert trained.model.sample("a", FRAMES, SIDE, SIDE, given=given, seed=1).shape == (FRAMES, SIDE, SIDE, 3)


def test_what_makes_clips_between_two_frames_says_so_on_its_card_and_serves_no_prompts(
    wan: str, tower: str, between: str, tmp_path: Path
) -> None:
    made = model(wan, f"wan(path='{between}')", image=tower)
    assert made.tasks == ("first_and_last",)
    card = (made.save_pretrained(tmp_path / "model") / "README.md").read_text()
    assert "pipeline_tag: image-to-video" in card
    assert 'ls.sample_task(model, "first_and_last"' in card
    with pytest.raises(SoraError, match=r"run makes clips between a first and a last frame, .* by --to pretrained"):
        check_answers(made, "run")


def test_an_image_encoder_of_other_tokens_than_places_is_refused(wan: str, tower: str, tmp_path: Path) -> None:
    config = {
        "_class_name": "WanTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40,
        "text_dim": 16, "num_layers": 1, "in_channels": 36, "image_dim": 32, "added_kv_proj_dim": 24,
        "pos_embed_seq_len": 14,
    }  # fmt: skip
    with pytest.raises(SoraError, match="makes 5 embeddings of a frame, and this denoiser has 14 places"):
        model(wan, f"wan(config={config})", image=tower)


def test_an_image_encoder_is_held_in_float32_or_refused_before_it_is_read(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPVisionModel

    half = Path(shutil.copytree(Path(tower).parent, tmp_path / "half")) / "image_encoder"
    CLIPVisionModel.from_pretrained(tower).half().save_pretrained(half)
    assert ImageEncoder(str(half))([video()[0]]).dtype == torch.float32
    monkeypatch.setattr("lightning_sora.models.memory_estimate.available_memory", lambda device: 1000)
    monkeypatch.setattr(CLIPVisionModel, "from_pretrained", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(SoraError, match=r"of \d+\.\d thousand parameters, needs in float32"):
        ImageEncoder(tower)


def test_another_image_encoder_is_refused(tower: str, tmp_path: Path) -> None:
    encoder = ImageEncoder(tower)
    assert list(encoder.parameters()) == []
    state = encoder.state_dict()
    ImageEncoder(tower).load_state_dict(state)
    state["_extra_state"] = torch.tensor(list(b"0" * 16), dtype=torch.uint8)
    with pytest.raises(SoraError, match="was trained with the image encoder 0000"):
        encoder.load_state_dict(state)
    with pytest.raises(SoraError, match="cannot load the image encoder"):
        ImageEncoder(str(tmp_path))


def test_latents_of_a_cache_have_no_frames_to_show(wan: str) -> None:
    assert VAES.create(f"diffusers(path='{wan}')").latent_channels == 16
    layout = TokenLayout.uniform(TokenGrid(3, 1, 1), 1)
    latents = SpacetimeBatch.of(
        [torch.zeros(3, 2, 2, 16)], layout=layout, patch=PatchSize(1, 2, 2), captions=("a",), ids=("x",), visits=(0,),
        fps=(8.0,), space="latent", vae_hash="v",
    )  # fmt: skip
    with pytest.raises(SoraError, match="which cached latents do not have"):
        first_frame_shown(model(wan, "mask"), latents)
