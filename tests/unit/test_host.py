"""Transformers of diffusers as denoisers, against diffusers itself, on folders of random ones that it wrote."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor

from lightning_sora.diffusion.paths import OBJECTIVES
from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers import DENOISERS, Condition, DiffusersDenoiser
from lightning_sora.models.denoisers.contract import CONTRACT
from lightning_sora.models.diffusers_folder import quiet_on_cpu
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.learning_flops import LearningFlops
from lightning_sora.models.lora import add_lora
from lightning_sora.models.text_base import TextContext
from lightning_sora.nn.rope import Stretch
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.host_toys import FAMILIES, HOSTS, TEXT, channels_of, host_folder, transformer

Folder = Callable[..., Path]
CLIPS, WORDS, POOLED, IMAGE = 2, 7, 8, (5, 8)
GRID = TokenGrid(3, 2, 4)
LENGTHS = torch.tensor([5, 7])


@pytest.fixture(scope="session")
def of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folders of random transformers, each written once."""
    made: dict[str, Path] = {}

    def written(family: str, **options: Any) -> Path:
        key = f"{family} {sorted(options.items())}"
        if key not in made:
            made[key] = host_folder(family, tmp_path_factory.mktemp("host"), **options)
        return made[key]

    return written


def make(path: Path, family: str = "wan", further: str = "") -> DiffusersDenoiser:
    denoiser = DENOISERS.create(f"diffusers(path={str(path)!r}{further})", channels_of(family), TEXT)
    assert isinstance(denoiser, DiffusersDenoiser)
    denoiser.draw(0)
    return denoiser.eval()


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


class Given:
    """What a network is given, as latents, and as rows of ours."""

    def __init__(self, family: str, denoiser: DiffusersDenoiser, grid: TokenGrid = GRID, clips: int = CLIPS) -> None:
        p, more = denoiser.patch_size, denoiser.condition_channels
        self.sizes = {"pt": p.frames, "ph": p.height, "pw": p.width}
        size = (grid.frames * p.frames, grid.height * p.height, grid.width * p.width)
        self.latents = draw(clips, channels_of(family), *size)
        self.beside = draw(clips, more, *size, seed=1) if more else None
        self.image = draw(clips, *IMAGE, seed=2) if denoiser.image_dim else None
        self.layout = TokenLayout.uniform(grid, clips)
        self.t = torch.linspace(0.2, 0.9, clips)
        lengths = LENGTHS.repeat(clips)[:clips]
        mask = torch.arange(WORDS) < lengths[:, None]
        self.text = TextContext(draw(clips, WORDS, TEXT, seed=3), mask, draw(clips, POOLED, seed=4))

    def rows(self, latents: Tensor) -> Tensor:
        return rearrange(latents, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", **self.sizes)

    def condition(self) -> Condition | None:
        return None if self.beside is None else Condition(self.rows(self.beside), self.image)

    def through(self, denoiser: DiffusersDenoiser, t: Tensor | None = None) -> Tensor:
        time = self.t if t is None else t
        return denoiser(self.rows(self.latents), time, self.text, self.layout, condition=self.condition())

    def padded(self, length: int) -> Tensor:
        """Each caption as it is, with zeros behind."""
        rows = [row[:n] for row, n in zip(self.text.embeddings, self.text.mask.sum(dim=1).tolist(), strict=True)]
        return torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows])


# As the pipelines of diffusers call their transformers.
def as_wan(net: Any, given: Given, t: Tensor) -> Tensor:
    latents = given.latents if given.beside is None else torch.cat([given.latents, given.beside], dim=1)
    made: Tensor = net(
        hidden_states=latents, timestep=t * 1000, encoder_hidden_states=given.padded(512),
        encoder_hidden_states_image=given.image, return_dict=False,
    )[0]  # fmt: skip
    return made


def as_cogvideox(net: Any, given: Given, t: Tensor) -> Tensor:
    """``t`` is the step of its DDPM."""
    from diffusers import CogVideoXPipeline

    parts = [given.latents] if given.beside is None else [given.latents, given.beside]
    latents = torch.cat([part.permute(0, 2, 1, 3, 4) for part in parts], dim=2)
    rotary = None
    if net.config.use_rotary_positional_embeddings:
        pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=net)
        height, width = 8 * latents.shape[-2], 8 * latents.shape[-1]
        rotary = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            pipeline, height, width, latents.shape[1], torch.device("cpu")
        )
    made: Tensor = net(
        hidden_states=latents, encoder_hidden_states=given.padded(12), timestep=t, image_rotary_emb=rotary,
        ofs=None if net.config.ofs_embed_dim is None else torch.full((1,), 2.0), return_dict=False,
    )[0]  # fmt: skip
    return made.permute(0, 2, 1, 3, 4)


def as_hunyuan_video(net: Any, given: Given, t: Tensor) -> Tensor:
    made: Tensor = net(
        hidden_states=given.latents, timestep=t * 1000, encoder_hidden_states=given.text.embeddings,
        encoder_attention_mask=given.text.mask, pooled_projections=given.text.pooled,
        guidance=torch.tensor([6.0] * len(t), dtype=net.dtype) * 1000.0, return_dict=False,
    )[0]  # fmt: skip
    return made


def as_ltx(net: Any, given: Given, t: Tensor) -> Tensor:
    from diffusers import LTXPipeline

    frames, height, width = given.latents.shape[2:]
    packed = LTXPipeline._pack_latents(given.latents, 1, 1)
    made = net(
        hidden_states=packed, encoder_hidden_states=given.padded(128), timestep=t * 1000,
        encoder_attention_mask=torch.arange(128) < given.text.mask.sum(dim=1)[:, None], num_frames=frames,
        height=height, width=width, rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False,
    )[0]  # fmt: skip
    unpacked: Tensor = LTXPipeline._unpack_latents(made, frames, height, width, 1, 1)
    return unpacked


def as_mochi(net: Any, given: Given, t: Tensor) -> Tensor:
    with quiet_on_cpu():
        made: Tensor = net(
            hidden_states=given.latents, encoder_hidden_states=given.padded(256), timestep=(1 - t) * 1000,
            encoder_attention_mask=torch.arange(256) < given.text.mask.sum(dim=1)[:, None], return_dict=False,
        )[0]  # fmt: skip
    return made


PIPELINES: dict[str, Callable[[Any, Given, Tensor], Tensor]] = {
    "wan": as_wan, "wan_i2v": as_wan, "cogvideox": as_cogvideox, "cogvideox_2b": as_cogvideox,
    "cogvideox_15_i2v": as_cogvideox, "hunyuan_video": as_hunyuan_video, "ltx": as_ltx, "mochi": as_mochi,
}  # fmt: skip


def ddpm(family: str) -> Any:
    """CogVideoX's own scheduler, as it is published: of the 2B noise is shifted, of those with rotary positions not."""
    from diffusers import CogVideoXDDIMScheduler

    shift = 3.0 if family == "cogvideox_2b" else 1.0
    return CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, snr_shift_scale=shift, prediction_type="v_prediction", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip


def times(family: str, steps: Tensor) -> Tensor:
    """The ``t`` of ours at which the straight path is as noisy as a step of CogVideoX."""
    kept = ddpm(family).alphas_cumprod[steps].double()
    ratio = ((1 - kept) / kept).sqrt()
    return (ratio / (1 + ratio)).float()


@pytest.mark.parametrize("family", HOSTS)
@torch.no_grad()
def test_it_predicts_what_its_pipeline_would_have_it_predict(family: str, of: Folder) -> None:
    denoiser, net = make(of(family), family), transformer(family)
    given = Given(family, denoiser)
    asked = given.t
    if family.startswith("cogvideox"):
        asked = torch.tensor([100, 700])
        given.t = times(family, asked)
    theirs = PIPELINES[family](net, given, asked)
    expected = given.rows(-theirs if family == "mochi" else theirs)
    torch.testing.assert_close(given.through(denoiser), expected, rtol=0, atol=1e-6 if "cog" not in family else 2e-5)
    assert denoiser.condition_channels == {"wan_i2v": 8, "cogvideox_15_i2v": 4}.get(family, 0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_step_of_ours_is_a_step_of_its_scheduler(family: str, of: Folder) -> None:
    """The direction of the prediction, and what it is fed at which time."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    denoiser, net = make(of(family), family), transformer(family)
    given = Given(family, denoiser)
    x_t = given.latents.clone()
    predicts: Any = OBJECTIVES.create(denoiser.facts.objective or "")
    if family == "cogvideox":
        scheduler = ddpm(family)
        scheduler.set_timesteps(10)
        steps = scheduler.timesteps[4:6]
        t, later = times(family, steps).tolist()
        vp = x_t / ((1 - t) ** 2 + t**2) ** 0.5
        given.latents = vp
        made = PIPELINES[family](net, given, steps[:1].expand(CLIPS))
        theirs = scheduler.step(made, int(steps[0]), vp, return_dict=False)[0] * ((1 - later) ** 2 + later**2) ** 0.5
        given.latents = x_t
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=family == "mochi")
        t, later = 0.7, 0.6
        scheduler.set_timesteps(sigmas=[1 - t, 1 - later] if family == "mochi" else [t, later])
        if family == "mochi":  # whose pipeline inverts what it gives
            scheduler.set_timesteps(sigmas=[t, later])
        made = PIPELINES[family](net, given, torch.full((CLIPS,), t))
        theirs = scheduler.step(made, scheduler.timesteps[0], x_t, return_dict=False)[0]
    spread, rows = torch.full((CLIPS, 1, 1), t), given.rows(x_t)
    prediction = denoiser(predicts.input(rows, spread), torch.full((CLIPS,), t), given.text, given.layout)
    x_0 = predicts.x_0(prediction, rows, spread)
    ours = (1 - later) * x_0 + later * (rows - (1 - t) * x_0) / t
    torch.testing.assert_close(ours, given.rows(theirs), rtol=0, atol=2e-4 if family == "cogvideox" else 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_step_in_it_is_one_of_diffusers_own(family: str, of: Folder) -> None:
    denoiser, net = make(of(family), family).train(), transformer(family).train()
    given = Given(family, denoiser)
    asked = given.t
    if family == "cogvideox":
        asked = torch.tensor([100, 700])
        given.t = times(family, asked)
    target = draw(*given.latents.shape, seed=9)
    sign = -1 if family == "mochi" else 1
    F.mse_loss(given.through(denoiser), given.rows(target)).backward()
    F.mse_loss(sign * PIPELINES[family](net, given, asked), target).backward()
    own = dict(denoiser.network.named_parameters())
    for module in (denoiser, net):
        torch.optim.SGD(module.parameters(), lr=1.0).step()
    moved = 0.0
    before = dict(transformer(family).named_parameters())
    for name, theirs in net.named_parameters():
        torch.testing.assert_close(own[name], theirs, rtol=1e-4, atol=1e-5, msg=name)
        moved = max(moved, float((theirs - before[name]).abs().max()))
    assert moved > 1e-2


@pytest.mark.parametrize("family", ["wan", "ltx"])
@torch.no_grad()
def test_known_frames_are_at_a_time_of_their_own(family: str, of: Folder) -> None:
    denoiser, net = make(of(family), family), transformer(family)
    given = Given(family, denoiser)
    t = given.t[:, None].repeat(1, GRID.tokens)
    t[:, : GRID.height * GRID.width] = 0.0
    expected = given.rows(PIPELINES[family](net, given, t))
    torch.testing.assert_close(given.through(denoiser, t), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, given.through(denoiser))


@torch.no_grad()
def test_first_and_last_image_of_wan_are_two_of_a_clip(tmp_path: Path) -> None:
    path = host_folder("wan_i2v", tmp_path, pos_embed_seq_len=2 * IMAGE[0])
    denoiser, net = make(path, "wan_i2v"), transformer("wan_i2v", pos_embed_seq_len=2 * IMAGE[0])
    given = Given("wan_i2v", denoiser)
    both = draw(2 * CLIPS, *IMAGE, seed=5)
    given.image = both
    expected = given.rows(as_wan(net, given, given.t))
    given.image = both.reshape(CLIPS, 2 * IMAGE[0], IMAGE[1])
    torch.testing.assert_close(given.through(denoiser), expected, rtol=0, atol=1e-6)


# Times of CogVideoX.
def test_steps_of_cogvideox_are_as_noisy_as_the_straight_path(of: Folder) -> None:
    from lightning_sora.models.denoisers.host_steps import noise_angles, step_of

    for family in ("cogvideox", "cogvideox_2b"):
        angles = make(of(family), family).family.angles  # type: ignore[attr-defined]
        steps = torch.tensor([1, 250, 900, 998])
        torch.testing.assert_close(step_of(times(family, steps), angles), steps.float(), rtol=0, atol=2e-2)
        assert step_of(torch.tensor([0.0, 1.0]), angles).tolist() == [0.0, 999.0]
    between = step_of(times("cogvideox", torch.tensor([500, 501])).mean()[None], noise_angles({
        "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0
    }))  # fmt: skip
    assert 500.4 < float(between) < 500.6


def pipeline(tmp_path: Path, **betas: Any) -> Path:
    host_folder("cogvideox", tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    (tmp_path / "scheduler").mkdir()
    told = {"_class_name": "CogVideoXDPMScheduler", "prediction_type": "v_prediction", "steps_offset": 0, **betas}
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(told))
    return tmp_path


def test_a_pipeline_brings_its_own_betas(tmp_path: Path) -> None:
    from lightning_sora.models.denoisers.host_steps import noise_angles

    betas = {"beta_schedule": "linear", "beta_end": 0.02, "snr_shift_scale": 2.0, "rescale_betas_zero_snr": False}
    folder = pipeline(tmp_path, **betas)
    for place in (folder, folder / "transformer"):
        denoiser = make(place, "cogvideox")
        assert torch.equal(denoiser.family.angles, noise_angles(betas))  # type: ignore[attr-defined]
    own = denoiser.spec_of_its_own(f"diffusers(path={str(folder)!r})")
    rebuilt = DENOISERS.create(own, 4, TEXT)
    assert torch.equal(rebuilt.family.angles, denoiser.family.angles)  # type: ignore[attr-defined, union-attr]
    asked = make(folder, "cogvideox", ", scheduler={'snr_shift_scale': 5.0}")
    assert torch.equal(asked.family.angles, noise_angles({"snr_shift_scale": 5.0}))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("betas", "told"),
    [({"prediction_type": "epsilon"}, "prediction_type='epsilon'"), ({"beta_schedule": "odd"}, "no schedule")],
)
def test_betas_that_are_not_its_own_are_refused(betas: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=told):
        make(pipeline(tmp_path, **betas), "cogvideox")


# Text.
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_a_mask_leaves_out_of_a_text_has_no_say(family: str, of: Folder) -> None:
    denoiser = make(of(family), family)
    given = Given(family, denoiser)
    found = given.through(denoiser)
    noise = torch.where(given.text.mask[..., None], given.text.embeddings, torch.nan if family == "wan" else 5.0)
    given.text = TextContext(noise, given.text.mask, given.text.pooled)
    torch.testing.assert_close(given.through(denoiser), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "most"), [("wan", 512), ("cogvideox", 12)])
def test_a_text_that_is_too_long_is_refused(family: str, most: int, of: Folder) -> None:
    denoiser = make(of(family), family)
    given = Given(family, denoiser)
    long = torch.zeros(CLIPS, most + 1, TEXT)
    given.text = TextContext(long, torch.ones(long.shape[:2], dtype=torch.bool))
    with pytest.raises(SoraError, match=f"max_tokens={most}"):
        given.through(denoiser)


def test_hunyuan_video_asks_for_a_vector_of_the_caption(of: Folder) -> None:
    denoiser = make(of("hunyuan_video"), "hunyuan_video")
    given = Given("hunyuan_video", denoiser)
    for pooled, told in ((None, "gives none"), (torch.zeros(CLIPS, 5), "one of 5")):
        given.text = TextContext(given.text.embeddings, given.text.mask, pooled)
        with pytest.raises(SoraError, match=told):
            given.through(denoiser)
    assert denoiser.pooled_dim == POOLED


# Options.
@torch.no_grad()
def test_options_of_a_family_change_what_it_is_told(of: Folder) -> None:
    for family, option in (("ltx", "fps=12"), ("ltx", "stride=(4, 16, 16)"), ("hunyuan_video", "guidance=1.0")):
        own, asked = make(of(family), family), make(of(family), family, f", {option}")
        given = Given(family, own)
        assert not torch.allclose(given.through(own), given.through(asked)), option
    same = make(of("ltx"), "ltx", ", fps=25, stride=(8, 32, 32)")
    given = Given("ltx", same)
    assert torch.equal(given.through(same), given.through(make(of("ltx"), "ltx")))


@pytest.mark.parametrize(
    ("family", "option", "told"),
    [
        ("wan", "fps=24", "fps=24 has no meaning for a WanTransformer3DModel"),
        ("mochi", "guidance=6.0", "guidance=6.0 has no meaning"),
        ("hunyuan_video", "stride=(4, 8, 8)", "has no meaning"),
        ("ltx", "scheduler={}", "has no meaning"),
        ("ltx", "fps=0", "must be above 0"),
        ("wan", "kernel='matmul'", "kernel='matmul' is of attention"),
        ("cogvideox", "scheduler={'clip_sample': True}", "says nothing of betas"),
        ("wan", "attention='windoww'", "window"),
        ("wan", "attention='window*3'", "depth=2"),
        ("wan", "attention='full', kernel='odd'", "odd"),
        ("wan", "attention='causal', kernel='varlen'", "cannot run on kernel"),
    ],
)
def test_options_that_it_does_not_have_are_refused(family: str, option: str, told: str, of: Folder) -> None:
    with pytest.raises(SoraError, match=told) as caught:
        make(of(family), family, f", {option}")
    assert "\n" not in str(caught.value)


# Folders.
@pytest.mark.parametrize(
    ("family", "options", "told"),
    [
        ("hunyuan_video", {"image_condition_type": "token_replace"}, "image_condition_type='token_replace'"),
        ("hunyuan_video", {"in_channels": 8}, "in_channels=8 and out_channels=4"),
        ("ltx", {"in_channels": 16}, "in_channels=16"),
    ],
)
def test_variants_that_are_not_known_are_refused(
    family: str, options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(SoraError, match=told):
        make(host_folder(family, tmp_path, **options), family)


def test_guidance_is_of_models_distilled_from_it(tmp_path: Path) -> None:
    path = host_folder("hunyuan_video", tmp_path, guidance_embeds=False)
    given = Given("hunyuan_video", denoiser := make(path, "hunyuan_video"))
    assert given.through(denoiser).isfinite().all()
    with pytest.raises(SoraError, match="guidance_embeds=True"):
        make(path, "hunyuan_video", ", guidance=6.0")


def test_what_is_no_video_transformer_is_refused(tmp_path: Path, of: Folder) -> None:
    for name, told in (("FluxTransformer2DModel", "makes images"), ("WanTransformer3dModel", "did you mean")):
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(SoraError, match=told) as caught:
            make(tmp_path)
        assert "LTXVideoTransformer3DModel" in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(SoraError, match=r"has no config\.json"):
        make(tmp_path)


def test_a_folder_that_was_not_downloaded_whole_is_refused(tmp_path: Path) -> None:
    transformer("wan").save_pretrained(tmp_path, max_shard_size="20kB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert Given("wan", denoiser := make(tmp_path)).through(denoiser).isfinite().all()
    shards[0].unlink()
    with pytest.raises(SoraError, match="not downloaded whole"):
        make(tmp_path)


def test_another_vae_or_text_encoder_is_told_before_weights_are_read(tmp_path: Path, of: Folder) -> None:
    (tmp_path / "config.json").write_text((of("wan") / "config.json").read_text())  # and nothing else
    for channels, text, told in ((16, TEXT, "out_channels=4"), (4, 32, "text_dim=16")):
        with pytest.raises(SoraError, match=told):
            DENOISERS.create(f"diffusers(path={str(tmp_path)!r})", channels, text)
    assert DiffusersDenoiser.widths(path=str(tmp_path)) == (4, TEXT)


# What a forward pass refuses.
def test_what_it_cannot_take_is_refused(of: Folder) -> None:
    denoiser = make(of("wan_i2v"), "wan_i2v")
    given = Given("wan_i2v", denoiser)
    rows, shown = given.rows(given.latents), given.condition()
    assert shown is not None
    packed = TokenLayout.pack([GRID, GRID])
    with pytest.raises(SoraError, match="takes clips of one size"):
        denoiser(rows, given.t, given.text, packed, condition=shown)
    with pytest.raises(SoraError, match="takes clips of one size"):
        denoiser.flops(packed, WORDS)
    with pytest.raises(SoraError, match="condition_channels=8"):
        denoiser(rows, given.t, given.text, given.layout)
    with pytest.raises(SoraError, match="image_dim=8"):
        denoiser(rows, given.t, given.text, given.layout, condition=Condition(shown.rows))
    stretch = Stretch("ntk", torch.ones(CLIPS, 3))
    with pytest.raises(SoraError, match="not stretched"):
        denoiser(rows, given.t, given.text, given.layout, stretch, shown)
    cog = make(of("cogvideox"), "cogvideox")
    given = Given("cogvideox", cog)
    with pytest.raises(SoraError, match="one timestep per clip"):
        given.through(cog, torch.zeros(given.layout.shape))


def test_positions_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    short = make(host_folder("wan", tmp_path / "wan", rope_max_seq_len=3))
    with pytest.raises(SoraError, match="rope_max_seq_len=3"):
        Given("wan", short).through(short)
    path = host_folder("cogvideox", tmp_path / "cog", use_learned_positional_embeddings=True)
    learned = make(path, "cogvideox")
    with pytest.raises(SoraError, match="learned positions"):
        Given("cogvideox", learned).through(learned)
    given = Given("cogvideox", learned, TokenGrid(3, 4, 8))
    assert given.through(learned).isfinite().all()


# A part among others.
@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("family", HOSTS)
@pytest.mark.slow
def test_contract(family: str, law: str, of: Folder) -> None:
    CONTRACT.laws[law](f"diffusers(path={str(of(family))!r})")


@pytest.mark.slow
def test_a_model_of_it_is_saved_without_its_folder_and_samples(tmp_path: Path) -> None:
    path = host_folder("wan", tmp_path / "wan", in_channels=3, out_channels=3)
    spec = f"diffusers(path={str(path)!r}, attention='gated, full')"
    model = LatentDiffusion.create(
        "identity", text=f"bytes(dim={TEXT})", denoiser=spec, sampling={"steps": 2, "guidance": 2.0}
    )
    expected = model.sample("a cube moves left", 2, 8, 8)
    saved = model.save(tmp_path / "saved")
    path.rename(tmp_path / "gone")
    read = LatentDiffusion.load(saved)
    assert torch.equal(read.sample("a cube moves left", 2, 8, 8), expected)
    assert not isinstance(expected, list)
    assert expected.shape == (2, 8, 8, 3)


@torch.no_grad()
def test_half_precision_is_of_weights_and_not_of_time(tmp_path: Path) -> None:
    """In bfloat16 667 of 1,000 steps would be 668."""
    path = host_folder("wan", tmp_path, in_channels=3, out_channels=3)
    sampling = {"steps": 3, "guidance": 1.0}
    model = LatentDiffusion.create(
        "identity", f"bytes(dim={TEXT})", denoiser=f"diffusers(path={str(path)!r})", sampling=sampling
    ).bfloat16()
    told: list[float] = []
    model.dit.network.register_forward_pre_hook(  # type: ignore[union-attr, operator]
        lambda _, args, given: told.extend(given["timestep"].tolist()), with_kwargs=True
    )
    model.sample("a cube", 2, 8, 8)
    assert told == pytest.approx([1000.0, 2000 / 3, 1000 / 3], abs=1e-3)


@pytest.mark.parametrize("plugin", [False, True])
@pytest.mark.parametrize("family", HOSTS)
def test_cast_to_half_it_keeps_in_float32_what_diffusers_keeps(family: str, plugin: bool, of: Folder) -> None:
    import diffusers

    theirs = getattr(diffusers, HOSTS[family][0]).from_pretrained(of(family), torch_dtype=torch.bfloat16)
    denoiser = make(of(family), family, ", attention='window(size=(2, 2, 2)), gated'")
    given = Given(family, denoiser)
    exact = given.through(denoiser).detach()
    module = torch.nn.ModuleDict({"dit": denoiser})
    if plugin:
        HalfPrecision("bf16-true").convert_module(module)
    else:
        module.to(torch.bfloat16)
    kept = {name for name, value in theirs.named_parameters() if value.dtype == torch.float32}
    assert len(kept) == {"wan": 11, "wan_i2v": 15}.get(family, 0)
    found = {name for name, value in denoiser.named_parameters() if value.dtype == torch.float32}
    assert found == {f"network.{name}" for name in kept}
    buffers = dict(theirs.named_buffers())
    for name, value in denoiser.network.named_buffers():
        assert value.dtype == (buffers[name].dtype if kept else torch.bfloat16)
    assert denoiser.dtype == torch.bfloat16
    given.latents = given.latents.bfloat16()
    made = given.through(denoiser)
    assert made.dtype == torch.bfloat16
    assert not torch.equal(made.float(), exact)
    made.float().square().mean().backward()
    denoiser.to(torch.bfloat16)
    assert all(value.grad is None or value.grad.dtype == value.dtype for value in denoiser.parameters())
    add_lora(denoiser, rank=2)
    assert denoiser.flops(given.layout, WORDS) > 0
    assert LearningFlops(denoiser, per_token=False)(given.layout, WORDS) < 0


@pytest.mark.parametrize("family", HOSTS)
@torch.no_grad()
def test_in_half_precision_it_predicts_what_its_pipeline_would(family: str, of: Folder) -> None:
    """Rounding and all: to a step of bfloat16 at values of this size, and CogVideoX to some, whose time is rounded."""
    import diffusers

    theirs = getattr(diffusers, HOSTS[family][0]).from_pretrained(of(family), torch_dtype=torch.bfloat16)
    denoiser = make(of(family), family, ", attention='full'").to(torch.bfloat16)
    given = Given(family, denoiser)
    asked = given.t
    if family.startswith("cogvideox"):
        asked = torch.tensor([100, 700])
        given.t = times(family, asked)
    given.latents = given.latents.bfloat16()
    given.text = TextContext(given.text.embeddings.bfloat16(), given.text.mask, given.text.pooled.bfloat16())  # type: ignore[union-attr]
    given.beside = None if given.beside is None else given.beside.bfloat16()
    given.image = None if given.image is None else given.image.bfloat16()
    found = given.through(denoiser)
    made = PIPELINES[family](theirs, given, asked)
    expected = given.rows(-made if family == "mochi" else made)
    distance = (found.float() - expected.float()).norm() / expected.float().norm()
    assert distance < 0.01, float(distance)


def test_names_are_those_of_diffusers(of: Folder) -> None:
    denoiser = make(of("wan"), "wan", ", attention='gated, full'")
    theirs = set(transformer("wan").state_dict())
    fresh = denoiser.fresh()
    assert fresh == {"attention.0.gate.weight"}
    own = {denoiser.diffusers_key(name) for name, _ in denoiser.named_parameters() if name not in fresh}
    assert own == theirs
    assert denoiser.diffusers_key("network.blocks.0.attn1.to_q") == "blocks.0.attn1.to_q"
    with pytest.raises(SoraError, match="no name in diffusers"):
        denoiser.diffusers_key("attention.0.gate.weight")
    layers = [name for name, _ in denoiser.named_modules() if name.endswith(denoiser.lora_targets)]
    assert len(layers) == 2 * 2 * 4
    assert all(name.startswith("network.") for name in layers)


def test_its_network_goes_back_to_diffusers(tmp_path: Path, of: Folder) -> None:
    import diffusers

    with pytest.raises(SoraError, match=r"cannot hold attention\.0\.gate\.weight"):
        make(of("wan"), "wan", ", attention='gated, full'").diffusers_module()
    denoiser = make(of("wan"), "wan", ", attention='window'")
    with torch.no_grad():
        denoiser.network.proj_out.weight.add_(1.0)  # type: ignore[operator, union-attr]
    network: Any = denoiser.diffusers_module()
    given = Given("wan", denoiser)
    with pytest.raises(SoraError, match="call the denoiser"):
        as_wan(network, given, given.t)
    network.save_pretrained(tmp_path)
    read = diffusers.WanTransformer3DModel.from_pretrained(tmp_path)
    assert type(network) is type(read)
    expected = {denoiser.diffusers_key(name): value for name, value in denoiser.named_parameters()}
    assert all(torch.equal(value, expected[name]) for name, value in read.named_parameters())


def test_fresh_weights_are_drawn_by_name(of: Folder) -> None:
    path = of("wan")
    denoiser = make(path, "wan", ", attention='gated, full'")
    own = denoiser.spec_of_its_own(f"diffusers(path={str(path)!r}, attention='gated, full')")
    fresh = DENOISERS.create(own, 4, TEXT)
    fresh.draw(3)
    assert fresh.fresh() == {name for name, _ in fresh.named_parameters()}
    first = copy.deepcopy(fresh.state_dict())
    fresh.draw(3)
    assert all(torch.equal(first[name], value) for name, value in fresh.state_dict().items())
    denoiser.draw(3)
    assert torch.equal(denoiser.state_dict()["attention.0.gate.weight"], first["attention.0.gate.weight"])
    assert not torch.equal(
        denoiser.state_dict()["network.blocks.0.attn1.to_q.weight"], first["network.blocks.0.attn1.to_q.weight"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_runs_under_autocast(family: str, of: Folder) -> None:
    denoiser = make(of(family), family, ", attention='full'")
    given = Given(family, denoiser)
    with torch.autocast("cpu", torch.bfloat16):
        found = given.through(denoiser)
    torch.testing.assert_close(found.float(), given.through(denoiser), rtol=0, atol=0.15)
