"""Tasks on a real model: what is given is kept, what is trained counts, and bad input is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given, GivenRows
from lightning_sora.models.pixels import from_uint8, to_uint8
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout, VideoSize
from lightning_sora.tasks import TASKS, TaskMixture, sample_task
from tests.unit.test_latent_diffusion import made

SIZE = VideoSize(9, 16, 16)


def clip(seed: int = 0, frames: int = SIZE.frames) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, *SIZE[1:], 3), generator=draw, dtype=torch.uint8)


def vae_gives_back(model: Any, video: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return to_uint8(model.vae.decode_latent(model.vae.encode_latent(from_uint8([video]))))[0]


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("objective", ["x", "velocity", "eps", "v", "edm"])
def test_what_is_kept_comes_out_as_the_vae_gives_it_back(sampler: str, objective: str) -> None:
    model = made(objective=objective, sampling={"sampler": sampler, "steps": 3, "guidance": 2.0})
    image = clip(frames=1)
    out = sample_task(model, "image_to_video", ["a"], SIZE, {"image": image})[0]
    # The VAE is causal: the first frame is an image's.
    assert torch.equal(out[0], vae_gives_back(model, image)[0])
    assert not torch.equal(out[1], out[0])


def test_all_that_is_kept_is_the_reconstruction() -> None:
    model = made()
    given = Given(clip(), torch.zeros(SIZE))
    assert torch.equal(model.sample(["a"], *SIZE, given=given)[0], vae_gives_back(model, clip()))


def test_pixels_are_kept_exactly() -> None:
    model = made(vae="identity", dit={"dim": 16, "depth": 1, "num_heads": 2, "patch_size": (1, 8, 8)})
    mask = torch.zeros(1, *SIZE[1:], 3, dtype=torch.uint8)
    mask[:, :8, 8:] = 255
    out = sample_task(model, "inpaint", ["a"], SIZE, {"video": clip(), "mask": mask})[0]
    changed = (out != clip()).any(dim=-1).any(dim=0)
    assert bool(changed[:8, 8:].any())
    changed[:8, 8:] = False
    assert not bool(changed.any())


def test_strengths_between_are_the_forward_process_then_the_solver() -> None:
    """A perfect denoiser of one point, asked from a level on, is SDEdit from there: before, the model is not called."""
    model = made()
    called: list[float] = []
    model.dit.register_forward_pre_hook(lambda _, args: called.append(float(args[1].max())))
    given = Given(clip(), torch.full(SIZE, 0.5))
    model.sample(["a"], *SIZE, given=given, steps=10, guidance=1.0)
    assert called == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1], abs=1e-6)
    # At strength 1 nothing is given.
    free = model.sample(["a"], *SIZE, given=Given(clip(), torch.ones(SIZE)), steps=4)[0]
    assert torch.equal(free, model.sample(["a"], *SIZE, steps=4)[0])
    changes = []
    for strength in (0.0, 0.3, 0.6, 0.9):
        out = sample_task(model, "edit", ["a"], SIZE, {"video": clip(), "strength": strength}, steps=10)[0]
        changes.append(float((out.float() - vae_gives_back(model, clip()).float()).square().mean()))
    assert changes[0] == 0
    assert min(changes[1:]) > 0


def test_rows_are_noised_to_their_own_level() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, noise = torch.randn(2, 1, 4, 3, generator=draw).unbind(0)
    given = GivenRows(rows, torch.tensor([[0.0, 0.3, 0.7, 1.0]]), noise)
    x_t = 0.5 * rows + 0.5 * noise
    assert torch.equal(given.levels(0.5), torch.tensor([[0.0, 0.3, 0.5, 0.5]]))
    seen = given.noised(x_t, 0.5)[0]
    assert torch.equal(seen[0], rows[0, 0])
    torch.testing.assert_close(seen[1], 0.7 * rows[0, 1] + 0.3 * noise[0, 1])
    assert torch.equal(seen[2:], x_t[0, 2:])


def test_the_vae_sees_the_nearest_frame_that_is_given() -> None:
    video = clip(frames=6)
    strength = torch.ones(6, *SIZE[1:])
    strength[1], strength[4] = 0.0, 0.0
    filled = Given(video, strength).filled()
    for frame, source in enumerate((1, 1, 1, 4, 4, 4)):
        assert torch.equal(filled[frame], video[source])
    assert (Given(video, torch.ones(6, *SIZE[1:])).filled() == 128).all()


def test_a_token_is_kept_only_if_all_of_it_is_given() -> None:
    strength = torch.ones(SIZE)
    strength[:3] = 0.0  # the first frame is a token of its own; frames 1 to 4 are the next
    tokens = Given(clip(), strength).tokens(PatchSize(4, 8, 8)).view(3, 2, 2)
    assert torch.equal(tokens[:, 0, 0], torch.tensor([0.0, 1.0, 1.0]))


def test_the_loss_is_of_what_is_made() -> None:
    model = made()
    layout = TokenLayout.pack([TokenGrid(2, 2, 2), TokenGrid(3, 2, 2)])
    draw = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, *layout.shape, model.latent_dim, generator=draw).unbind(0)
    strength = torch.ones(layout.shape)
    strength[0, :4] = 0.0  # the first frame of the first clip
    strength[0, 8:12] = 0.2
    t = torch.tensor([0.6, 0.9])
    terms = model.terms(layout, x_0, t, noise, ["a", "b"], strength)
    squares = (terms.x_0 - x_0).square().mean(dim=-1)[0]  # objective x: the error of x_0
    torch.testing.assert_close(terms.error, torch.stack([squares[4:8].mean(), squares[12:].mean()]))
    # What is kept reaches the network without noise.
    other = model.terms(layout, x_0, t, noise + (strength == 0)[..., None], ["a", "b"], strength)
    assert torch.equal(other.error, terms.error)
    # One timestep for all tokens of a clip is a timestep of the clip.
    whole = model.terms(layout, x_0, t, noise, ["a", "b"], torch.ones(layout.shape))
    torch.testing.assert_close(whole.error, model.terms(layout, x_0, t, noise, ["a", "b"]).error)


def test_tasks_of_a_clip_are_its_own() -> None:
    tasks = TaskMixture({"text_to_video": 2, "image_to_video": 1, "inpaint": 1, "text_to_image": 1})
    grids = [TokenGrid(3, 2, 2), TokenGrid(2, 3, 1), TokenGrid(1, 2, 2)] * 8
    keys = [(f"clip{i}", i % 3) for i in range(len(grids))]
    drawn = tasks.draw(TokenLayout.pack(grids), 0, keys)
    assert set(drawn.names) == set(tasks.tasks)
    assert drawn.strength is not None
    strengths = drawn.layout.split(drawn.strength)
    rows = TokenLayout.pack(grids).join([torch.full((g.tokens, 1), float(i)) for i, g in enumerate(grids)])
    parts = drawn.layout.split(drawn.rows(rows, TokenLayout.pack(grids)))
    for i, grid in enumerate(grids):
        alone = tasks.draw(TokenLayout((grid,)), 0, keys[i : i + 1])
        assert alone.names == drawn.names[i : i + 1]
        if alone.strength is None:
            assert bool((strengths[i] == 1).all())
        else:
            assert torch.equal(alone.strength[0], strengths[i])
        assert bool((parts[i] == i).all())
        assert len(parts[i]) == (grid.height * grid.width if alone.names == ("text_to_image",) else grid.tokens)


def test_shares_are_kept_over_many_clips() -> None:
    tasks = TaskMixture({"text_to_video": 3, "image_to_video": 1})
    layout = TokenLayout.uniform(TokenGrid(2, 1, 1), 4000)
    names = tasks.draw(layout, 0, [(str(i), 0) for i in range(4000)]).names
    assert names.count("image_to_video") / 4000 == pytest.approx(0.25, abs=0.03)


def test_an_extension_sees_all_that_fits_beside_what_is_to_be_made() -> None:
    """So that it is the clip that text alone would make, with its first frames given."""
    model = made(vae="identity", dit={"dim": 16, "depth": 1, "num_heads": 2, "patch_size": (1, 8, 8)})
    shown = clip(frames=7)
    strength = torch.ones(SIZE)
    strength[:7] = 0.0
    whole = Given(torch.cat([shown, shown[:2]]), strength)
    expected = model.sample(["a"], *SIZE, given=whole, keys=[(0, 0)])[0]
    made_on = sample_task(model, "extend_forward", ["a"], SIZE, {"video": shown, "extra": 2})[0]
    assert torch.equal(made_on[7:], expected[7:])
    whole = Given(torch.cat([shown[:2], shown]), strength.flip(0))
    expected = model.sample(["a"], *SIZE, given=whole, keys=[(0, 0)])[0]
    made_before = sample_task(model, "extend_backward", ["a"], SIZE, {"video": shown, "extra": 2})[0]
    assert torch.equal(made_before[:2], expected[:2])


def test_a_model_that_is_saved_knows_its_tasks(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = made()
    model.tasks = ("text_to_video", "image_to_video")
    again = type(model).load(model.save(tmp_path / "model"))
    assert again.tasks == model.tasks
    sample_task(again, "image_to_video", ["a"], SIZE, {"image": clip(frames=1)}, steps=1)
    assert "was not trained" not in caplog.text
    sample_task(again, "extend_forward", ["a"], SIZE, {"video": clip()}, steps=1)
    assert "this model was not trained on extend_forward (trained on text_to_video, image_to_video)" in caplog.text


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("image_to_video", {}, r"needs image \(a still, of one frame\)"),
    ("image_to_video", {"image": clip()}, "image has 9 frames; give a still"),
    ("image_to_video", {"image": clip(frames=1), "video": clip()}, "does not take video; it takes image"),
    ("image_to_video", {"image": clip(frames=1)[:, :8]}, "image is 8x16 and the clip 16x16"),
    ("image_to_video", {"image": clip(frames=1).float()}, "is no uint8"),
    ("edit", {"video": clip(), "strength": 1.5}, r"strength=1.5 must lie in \[0, 1\]"),
    ("edit", {"video": clip(frames=5)}, "the video has 5 frames and the clip 9"),
    ("extend_forward", {"video": clip(), "extra": 0}, "extra=0 must be a whole number of at least 1"),
    ("extend_backward", {"video": clip(frames=3)}, "3 frames is shorter than a token of 4"),
    ("interpolate", {"video": clip(frames=1), "times": 2}, "nothing between the frames of a video of one"),
    ("interpolate", {"video": clip(), "times": 20}, "times=20 puts more frames between two than a clip of 9 has"),
    ("inpaint", {"video": clip(), "mask": clip(frames=4)}, "the mask has 4 frames and the video 9"),
    ("inpaint", {"video": clip(), "mask": torch.zeros_like(clip())}, "black everywhere"),
    ("inpante", {}, "did you mean 'inpaint'"),
]


@pytest.mark.parametrize(("task", "inputs", "said"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_told_before_anything_is_sampled(task: str, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(SoraError, match=said):
        sample_task(made(), task, ["a"], SIZE, inputs)


def test_what_is_given_is_checked() -> None:
    with pytest.raises(SoraError, match="do not agree"):
        Given(clip(), torch.ones(3, 16, 16))
    with pytest.raises(SoraError, match=r"lie in \[0, 1\]"):
        Given(clip(), torch.full(SIZE, 2.0))
    with pytest.raises(SoraError, match="9x16x16 large and the clip 5x16x16"):
        made().sample(["a"], 5, 16, 16, given=Given(clip(), torch.ones(SIZE)))
    with pytest.raises(SoraError, match="1 clips are given for 2 prompts"):
        made().sample(["a", "b"], *SIZE, given=[None])
    for weights in ({}, {"image_to_video": 0.0}, {"image_to_video": True}):
        with pytest.raises(SoraError, match="must give a positive share"):
            TaskMixture(weights)
    assert TASKS.create("interpolate(hold=0.2)").hold == 0.2  # type: ignore[attr-defined]
    with pytest.raises(SoraError, match=r"hold=2.0 must lie"):
        TASKS.create("interpolate(hold=2.0)")
