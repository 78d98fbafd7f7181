"""Denoisers by spec: the package's own named as one, attention asked for beside it, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.lit.dit import LitDiT
from lightning_sora.lit.older import grouped
from lightning_sora.models import memory_estimate
from lightning_sora.models.configs import DiTConfig
from lightning_sora.models.denoisers import DENOISERS, Denoiser, DenoiserFacts, DiT
from lightning_sora.models.denoisers.base import asked_denoiser
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.spacetime import TokenGrid, TokenLayout

SHAPE = {"patch_size": (1, 8, 8), "dim": 32, "depth": 2, "num_heads": 2}
NAMED = "dit(patch_size=(1, 8, 8), dim=32, depth=2, num_heads=2)"
TEXT = "bytes(dim=16)"


def test_the_dit_that_is_named_as_a_denoiser_is_the_one_of_its_options(tmp_path: Path) -> None:
    named = LatentDiffusion.create("identity", TEXT, denoiser=NAMED)
    described = LatentDiffusion.create("identity", TEXT, dit=SHAPE)
    assert named.fingerprint() == described.fingerprint()
    assert LatentDiffusion.load(named.save(tmp_path / "named")).fingerprint() == described.fingerprint()


def test_attention_is_asked_for_beside_the_denoiser() -> None:
    module = LitDiT("identity", text=TEXT, denoiser=NAMED, attention=["temporal", "full"])
    assert isinstance(module.model.dit, DiT)
    kinds = [type(block.attention).__name__ for block in module.model.dit.blocks]  # type: ignore[union-attr]
    assert kinds == ["TemporalAttention", "FullAttention"]
    assert asked_denoiser(NAMED, None) == NAMED
    assert asked_denoiser(None, None) is None


def test_a_recipe_whose_parser_fills_in_the_options_of_the_other_one_describes_none() -> None:
    module = LitDiT("identity", text=TEXT, denoiser=NAMED, dit=DiTConfig(patch_size=[1, 1, 1]))
    assert isinstance(module.model.dit, DiT)
    assert tuple(module.model.dit.patch_size) == (1, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "full"}, "it is model.dit.attention"),
        ({"denoiser": NAMED[:-1] + ", attention='full')", "attention": "temporal"}, "both name attention; drop one"),
        ({"denoiser": NAMED, "dit": {"dim": 64}}, "model.denoiser=.* names another"),
        ({"denoiser": "dti(dim=32)"}, "unknown denoiser 'dti'; did you mean 'dit'"),
        ({"denoiser": "dit(dim=32)"}, "needs 'depth', 'num_heads'"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(SoraError, match=words):
        LitDiT("identity", text=TEXT, **options)  # type: ignore[arg-type]


class Cautious(DiT):
    """Takes clips of one size, and one timestep for each, and is shown two channels beside."""

    facts = DenoiserFacts(objective="velocity", packs=False, token_times=False)
    condition_channels = 2


def test_what_its_facts_rule_out_is_refused_before_anything_is_computed() -> None:
    dit = Cautious(3, 16, dim=32, depth=1, num_heads=2)
    text = LatentDiffusion.create("identity", TEXT, dit=SHAPE).text(["a", "b"])
    grids = [TokenGrid(1, 2, 2), TokenGrid(2, 2, 2)]
    uniform, packed = TokenLayout.uniform(grids[0], 2), TokenLayout.pack(grids)
    with pytest.raises(SoraError, match=r"packs 2 sizes; set data\.sizes"):
        dit(torch.zeros(1, 12, 3), torch.zeros(2), text, packed)
    with pytest.raises(SoraError, match="one timestep per clip, and not one per token, as known"):
        dit(torch.zeros(2, 4, 3), torch.zeros(2, 4), text, uniform)
    with pytest.raises(SoraError, match=r"is to be shown rows of shape \(2, 4, 2\) beside .* is shown nothing"):
        dit(torch.zeros(2, 4, 3), torch.zeros(2), text, uniform)
    with DENOISERS.temporary():
        DENOISERS.register("cautious")(Cautious)
        with pytest.raises(SoraError, match=r"weights predict 'velocity', .* set diffusion.objective=velocity"):
            LatentDiffusion.create("identity", TEXT, objective="x", denoiser="cautious(dim=32, depth=1, num_heads=2)")


def test_every_parameter_is_fresh_where_nothing_is_pretrained() -> None:
    dit: Denoiser = DENOISERS.create(NAMED, 3, 16)
    assert dit.fresh() == {name for name, _ in dit.named_parameters()}
    with pytest.raises(SoraError, match="a DiT is no model of diffusers"):
        dit.diffusers_key("embed.weight")


def test_a_checkpoint_keeps_the_attention_beside_its_groups() -> None:
    given = {"vae": "identity", "dit": {"dim": 8}, "denoiser": NAMED, "attention": "temporal"}
    assert grouped(given, LitDiT.groups) == given
    assert grouped({"dim": 8, "attention": "full"}, LitDiT.groups) == {"dit": {"dim": 8, "attention": "full"}}


LARGE = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "text_dim": 4096}


@pytest.mark.parametrize(
    ("spec", "billions"),
    [
        (f"wan(config={ {'_class_name': 'WanTransformer3DModel', **LARGE} })", r"14\.\d"),
        (f"diffusers(path='none', config={ {'_class_name': 'WanTransformer3DModel', **LARGE} })", r"14\.\d"),
        ("dit(dim=8192, depth=80, num_heads=64)", r"64\.\d"),
    ],
)
def test_weights_that_cannot_be_held_are_refused_before_they_are_made(
    spec: str, billions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimate, "available_memory", lambda device: 8 * 2**30)
    with pytest.raises(SoraError, match=rf"of {billions} billion parameters, needs .* this machine has 8\.0 GiB free"):
        DENOISERS.create(spec, 16, 4096)
