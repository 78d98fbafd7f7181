"""Tunings: what learns of a model, what it was before, and what a training begins with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError
from lightning_sora.lit.dit import LitDiT
from lightning_sora.lit.older import grouped
from lightning_sora.lit.optimizers import create_optimizer
from lightning_sora.lit.tuned import clip_distance
from lightning_sora.models.configs import DiTConfig
from lightning_sora.models.denoisers import DENOISERS
from lightning_sora.models.denoisers.contract import TEXT_TOKENS, predicted
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.learning_flops import LearningFlops
from lightning_sora.models.lora import adapters, add_lora
from lightning_sora.models.lora_files import write_lora
from lightning_sora.spacetime import TokenGrid, TokenLayout
from tests.host_toys import FAMILIES, channels_of, host_folder
from tests.host_toys import TEXT as HOST_TEXT
from tests.tuning_toys import SHAPE, Kept, write_kept

pytest.importorskip("peft")
pytest.importorskip("diffusers")
TEXT = "bytes(dim=8, depth=1, num_heads=1)"
SIZE = (5, 16, 16)


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with DENOISERS.temporary():
        DENOISERS.register("kept")(Kept)
        yield


def make(denoiser: str, **options: Any) -> LitDiT:
    return LitDiT("identity", text=TEXT, denoiser=denoiser, sampling={"steps": 2}, **options)


def own(**options: Any) -> LitDiT:
    return LitDiT("identity", text=TEXT, sampling={"steps": 2}, **{"dit": SHAPE, **options})


def learning(module: LitDiT) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def moved(module: LitDiT) -> LitDiT:
    """With other values of all that learns."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return module


def test_all_learns_where_nothing_is_said(tmp_path: Path) -> None:
    module = make(write_kept(tmp_path))
    assert learning(module) == {name for name, _ in module.named_parameters()}


def test_of_lora_the_adapters_alone_learn_and_have_averages_and_states(tmp_path: Path) -> None:
    module = make(write_kept(tmp_path), tuning="lora(rank=2)", optimizer="adamw(lr=1e-3)")
    assert learning(module)
    assert all(".lora_" in name for name in learning(module))
    optimizer = create_optimizer("adamw(lr=1e-3)", module.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learning(module))
    assert module.ema is not None
    module.ema.update(module)
    assert set(module.ema.shadow) == learning(module)


def test_of_fresh_the_block_that_was_put_in_alone_learns(tmp_path: Path) -> None:
    spec = write_kept(tmp_path)
    module = make(spec, attention="gated, full", tuning="fresh")
    names = {f"model.dit.{name}" for name in module.model.dit.fresh()}
    assert names
    assert learning(module) == names
    both = make(spec, attention="gated, full", tuning="lora(rank=2)")
    assert names < learning(both)
    assert all(".lora_" in name for name in learning(both) - names)


@pytest.mark.parametrize("tuning", ["lora(rank=2)", "fresh"])
def test_the_base_is_what_the_model_was_before_it_learnt(tmp_path: Path, tuning: str) -> None:
    module = make(write_kept(tmp_path), attention="gated, full", tuning=tuning, prompts=["a red cube"])
    module.seen_sizes.add([SIZE], 8.0)
    before = module.sample("a red cube", *SIZE)
    versions, prompts = module.gallery()
    assert list(versions) == ["base", "generated"]
    assert prompts == ["a red cube"]
    assert clip_distance(versions["generated"], versions["base"]) == 0.0
    moved(module)
    after = module.model.sample("a red cube", *SIZE)
    with module.tuned.base():
        assert torch.equal(module.model.sample("a red cube", *SIZE), before)
    assert torch.equal(module.model.sample("a red cube", *SIZE), after)
    assert not torch.equal(after, before)
    versions, _ = module.gallery()
    expected = ((versions["generated"][0].float() - before.float()) / 255).square().mean().sqrt()
    assert clip_distance(versions["generated"], versions["base"]) == pytest.approx(float(expected))
    assert torch.equal(versions["base"][0], before)


def test_with_an_average_the_base_is_still_the_base(tmp_path: Path) -> None:
    module = make(write_kept(tmp_path), attention="gated, full", tuning="fresh", prompts=["a red cube"])
    module.seen_sizes.add([SIZE], 8.0)
    before = module.sample("a red cube", *SIZE)
    assert module.ema is not None
    moved(module)
    module.ema.update(module)
    versions, _ = module.gallery()
    assert torch.equal(versions["base"][0], before)
    assert not torch.equal(versions["generated"][0], before)


def test_full_tuning_keeps_no_base(tmp_path: Path) -> None:
    module = make(write_kept(tmp_path), prompts=["a red cube"])
    module.seen_sizes.add([SIZE], 8.0)
    assert list(module.gallery()[0]) == ["generated"]
    with pytest.raises(SoraError, match="keeps nothing of what the model began as"):
        module.tuned.base().__enter__()


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        ("lora(rank=0)", "rank=0 of LoRA must be at least 1"),
        ("lora(targets='to_q')", "targets='to_q' must be"),
        ("lora(targets=('cross.quer',))", "ends in 'cross.quer', .* did you mean 'cross.query'"),
        ("lora(rnk=4)", "does not accept 'rnk'; it accepts: rank, alpha, targets, dropout, init"),
        ("lora(rank='4')", "rank='4' must be int or None"),
        ("lroa", "unknown tuning 'lroa'; did you mean 'lora'"),
        ("fresh", "finds nothing to train in this Kept: all of its parameters are pretrained; put in a block"),
        ("lora(init='nowhere')", "no LoRA at nowhere"),
    ],
)
def test_tunings_that_cannot_be_are_refused(tmp_path: Path, tuning: str, words: str) -> None:
    with pytest.raises(SoraError, match=words):
        make(write_kept(tmp_path), tuning=tuning)


def test_fresh_is_refused_where_nothing_is_pretrained() -> None:
    with pytest.raises(SoraError, match=r"begins with no weights of another; name such by model.denoiser or"):
        own(tuning="fresh")


# A LoRA to begin with.
def test_a_training_begins_with_a_lora(tmp_path: Path) -> None:
    spec = write_kept(tmp_path)
    first = moved(make(spec, tuning="lora(rank=3, alpha=6.0, targets=('cross.query',))"))
    file = write_lora(first.model.dit, tmp_path / "lora", "own")
    second = make(spec, tuning=f"lora(init={str(file)!r})")
    assert learning(second) == learning(first)
    found, wanted = adapters(second.model.dit), adapters(first.model.dit)
    assert all(found[name].size == (3, 6.0) and torch.equal(found[name].up, wanted[name].up) for name in wanted)
    assert second.tuned.tuning.spec_of_its_own() == first.tuned.tuning.spec_of_its_own()
    for option, words in (
        ("rank=4", "rank=4 and alpha=6 are asked"),
        ("targets=('cross.out',)", "other layers than the"),
    ):
        with pytest.raises(SoraError, match=words):
            make(spec, tuning=f"lora(init={str(file)!r}, {option})")


# Checkpoints.
def checkpoint_of(module: LitDiT) -> dict[str, Any]:
    checkpoint = {
        "state_dict": dict(module.state_dict()),
        "hyper_parameters": {"tuning": "full"},
    }
    module.tuned.leave_out(checkpoint)
    return checkpoint


def test_a_checkpoint_holds_what_is_trained_and_not_the_frozen_base(tmp_path: Path) -> None:
    module = make(write_kept(tmp_path), attention="gated, full", tuning="lora(rank=2)")
    stored = checkpoint_of(module)
    assert {name for name in stored["state_dict"] if name.startswith("model.dit.")} == learning(module)
    assert stored["base"]["fingerprint"] == module.tuned.fingerprint
    again = make(write_kept(tmp_path), attention="gated, full", tuning="lora(rank=2)")
    again.tuned.check(stored)
    again.tuned.put_back(stored)
    assert set(stored["state_dict"]) == set(module.state_dict())


def test_the_fingerprint_is_of_the_base_and_not_of_what_is_trained_on_it(tmp_path: Path) -> None:
    spec = write_kept(tmp_path / "a")
    few, many = (make(spec, tuning=f"lora(rank=2, targets={targets})") for targets in (("cross.out",), ("mlp.up",)))
    other = make(write_kept(tmp_path / "b", seed=1), tuning="lora(rank=2, targets=('cross.out',))")
    assert few.tuned.fingerprint == many.tuned.fingerprint != other.tuned.fingerprint


def test_another_base_or_tuning_than_a_checkpoints_is_refused(tmp_path: Path) -> None:
    spec = write_kept(tmp_path / "a")
    stored = checkpoint_of(make(spec, tuning="lora(rank=2)"))
    with pytest.raises(SoraError, match=r"upon frozen weights \w{16}, .* name here are \w{16}; give them as they were"):
        make(write_kept(tmp_path / "b", seed=1), tuning="lora(rank=2)").tuned.check(stored)
    with pytest.raises(SoraError, match=r'was trained by model.tuning="lora\(.*rank=2.*\)", and "lora\(.*rank=3'):
        make(spec, tuning="lora(rank=3)").tuned.check(stored)
    with pytest.raises(SoraError, match="and 'full' is asked for; resume it as it was"):
        make(spec).tuned.check(stored)


def test_of_a_base_that_lies_nowhere_all_is_kept() -> None:
    module = own(tuning="lora(rank=2)")
    stored = checkpoint_of(module)
    assert set(stored["state_dict"]) == set(module.state_dict())
    assert "base" not in stored


# Weights to begin with.
def test_what_fits_is_taken_and_what_does_not_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved(own()).model.save(tmp_path / "first")
    dit = {**SHAPE, "depth": 3, "attention": "gated, full", "mlp_ratio": 2.0}
    with pytest.raises(SoraError, match=r"dit\.\S+ is .*strict=False.* takes what fits"):
        own(dit=dit, init_from=str(tmp_path / "first"))
    with caplog.at_level(logging.WARNING):
        module = own(dit=dit, init_from=f"weights(path={str(tmp_path / 'first')!r}, strict=False)")
    assert module.taken is not None
    told = [record.getMessage() for record in caplog.records if "taken over" in record.getMessage()]
    assert len(told) == 1
    assert f"{len(module.taken.missing)} missing: " in told[0]
    assert "reshaped: dit.blocks.0.mlp." in told[0]
    assert all(name.startswith(("dit.blocks.0.attention.", "dit.blocks.2.")) for name in module.taken.missing)
    state, first = module.model.dit.state_dict(), LatentDiffusion.load(tmp_path / "first").dit.state_dict()
    assert all(torch.equal(state[name], first[name]) for name in module.taken.of("dit"))
    fresh = own(dit=dit).model.dit.state_dict()
    assert all(torch.equal(state[name], fresh[name]) for name in state if name not in module.taken.of("dit"))
    assert module.lineage()["init_from.differences"] == module.taken.differences()


def test_what_was_not_taken_can_be_trained_alone(tmp_path: Path) -> None:
    moved(own()).model.save(tmp_path / "first")
    dit = {**SHAPE, "attention": "gated, full"}
    asked = f"weights(path={str(tmp_path / 'first')!r}, strict=False)"
    module = own(dit=dit, init_from=asked, tuning="fresh")
    assert learning(module)
    assert all("blocks.0.attention" in name for name in learning(module))


@pytest.mark.parametrize("strict", [True, False])
def test_of_another_kind_nothing_is_taken_strict_or_not(tmp_path: Path, strict: bool) -> None:
    own().model.save(tmp_path / "first")
    asked = f"weights(path={str(tmp_path / 'first')!r}, strict={strict})"
    with pytest.raises(SoraError, match=r"objective is Velocity\(\) \(here Noise\(\)\)"):
        own(init_from=asked, diffusion={"objective": "eps"})
    with pytest.raises(SoraError, match="patch_size is"):
        own(init_from=asked, dit={**SHAPE, "patch_size": (1, 8, 8)})


def test_what_was_called_start_is_understood_in_a_checkpoint() -> None:
    assert grouped({"start": "a.ckpt", "dim": 8}, {"dit": DiTConfig}) == {"init_from": "a.ckpt", "dit": {"dim": 8}}


# Costs.
@pytest.mark.parametrize("conditioning", ["cross", "joint"])
@pytest.mark.parametrize("per_token", [False, True])
def test_flops_of_what_learns_are_those_that_torch_counts_within_a_tenth(conditioning: str, per_token: bool) -> None:
    shape = {**SHAPE, "dim": 32, "depth": 3, "conditioning": conditioning}
    layout = TokenLayout.uniform(TokenGrid(3, 4, 4), 2)
    shares = []
    for tuning in ("full", "lora(rank=4)"):
        module = own(dit=shape, tuning=tuning)
        model = module.model
        text = model.text(["a red cube moves left", "two"])
        text = type(text)(text.embeddings.detach(), text.mask)
        t = torch.rand(layout.shape if per_token else (2,))
        rows = torch.randn(*layout.shape, model.dit.in_dim)
        with FlopCounterMode(display=False) as counter:
            model.dit(rows, t, text, layout).square().sum().backward()
        of_text = model.flops(layout, text_tokens=text.embeddings.shape[1], pixels=False, per_token=per_token)
        of_text -= _text_alone(model, tuning, layout, text.embeddings.shape[1])
        shares.append(of_text / counter.get_total_flops())
    assert shares == pytest.approx([1.0, 1.0], abs=0.1)


def _text_alone(model: LatentDiffusion, tuning: str, layout: TokenLayout, tokens: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.text.probe(tokens)
    return int(counter.get_total_flops()) * layout.clips * (3 if tuning == "full" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_adapters_in_diffusers_are_as_near_to_torchs_count_as_those_of_all(
    tmp_path: Path, family: str
) -> None:
    spec = f"diffusers(path={str(host_folder(family, tmp_path / 'net'))!r})"
    layout, shares = TokenLayout.uniform(TokenGrid(3, 4, 4), 2), []
    for tuned in (False, True):
        denoiser = DENOISERS.create(spec, channels_of(family), HOST_TEXT)
        spared = 0
        if tuned:
            add_lora(denoiser, rank=4)
            spared = LearningFlops(denoiser, per_token=False)(layout, TEXT_TOKENS)
        with FlopCounterMode(display=False) as counter:
            predicted(denoiser, layout).square().sum().backward()
        declared = 3 * denoiser.flops(layout, TEXT_TOKENS) + spared
        shares.append(declared / counter.get_total_flops())
    assert spared < 0
    assert shares[1] == pytest.approx(shares[0], abs=0.05)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_host_and_its_native_twin_declare_the_same_with_adapters_in_them(tmp_path: Path, per_token: bool) -> None:
    folder = str(host_folder("wan", tmp_path / "net"))
    layout, found = TokenLayout.uniform(TokenGrid(3, 4, 4), 2), []
    for name in ("diffusers", "wan"):
        denoiser = DENOISERS.create(f"{name}(path={folder!r})", channels_of("wan"), HOST_TEXT)
        before = denoiser.flops(layout, TEXT_TOKENS, per_token)
        tuned = DENOISERS.create(f"{name}(path={folder!r})", channels_of("wan"), HOST_TEXT)
        add_lora(tuned, rank=4)
        assert tuned.flops(layout, TEXT_TOKENS, per_token) == before
        step = 3 * before + LearningFlops(tuned, per_token)(layout, TEXT_TOKENS)
        t = torch.rand(layout.shape if per_token else (2,))
        with FlopCounterMode(display=False) as counter:
            predicted(tuned, layout, t).square().sum().backward()
        counted = {operator.__name__: flops for operator, flops in counter.get_flop_counts()["Global"].items()}
        attended = {name: flops for name, flops in counted.items() if "attention" in name}
        # Torch's counter has the scores, which flash attention computes again in the backward pass, in it.
        again = sum(attended.values()) - 3 * min(attended.values())
        assert len(attended) == 2
        assert step == sum(counted.values()) - again
        found.append((before, step))
    assert found[0] == found[1]
