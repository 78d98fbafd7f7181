"""Optimizers and schedules by name."""

import math

import pytest
import timm.optim
import torch
from torch import nn

from lightning_sora.errors import SoraError
from lightning_sora.lit.optimizers import MATRIX_OPTIMIZERS, SCHEDULES, UNSUITABLE, create_optimizer

LEFT_OUT = ("bnb", "fused", "kron")  # these need a GPU, and the last compiles for half a minute
NAMES = [
    name
    for name in [*timm.optim.list_optimizers(), *(n for n in dir(torch.optim) if n[0].isupper())]
    if name not in UNSUITABLE and not name.startswith(LEFT_OUT)
]


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Linear(4, 4), "inner": nn.Linear(4, 4), "conv": nn.Conv2d(2, 2, 3)})


def step(optimizer: torch.optim.Optimizer, gradient: float = 1.0) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_trains(name: str) -> None:
    model = net()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = create_optimizer(f"{name}(lr=1e-2, weight_decay=0.1)", model.named_parameters())
    step(optimizer)
    step(optimizer, gradient=0.5)  # the first step of some only measures
    for n, p in model.named_parameters():
        assert torch.isfinite(p).all()
        assert not torch.equal(p, before[n]), n


@pytest.mark.parametrize("name", ["adamw", "AdamW", "SGD", "muon"])
def test_weight_decay_spares_vectors(name: str) -> None:
    model = net()
    model["inner"].bias.data.fill_(1.0)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = create_optimizer(f"{name}(lr=0.1, weight_decay=0.5)", model.named_parameters())
    step(optimizer, gradient=0.0)
    for n, p in model.named_parameters():
        if p.ndim < 2:
            assert torch.equal(p, before[n]), n
        else:  # decoupled or not, one step without a gradient shrinks by lr * weight_decay
            torch.testing.assert_close(p, before[n] * (1 - 0.1 * 0.5), msg=n)


@pytest.mark.parametrize("name", MATRIX_OPTIMIZERS)
def test_both_ends_and_vectors_are_left_to_adamw(name: str) -> None:
    model = net()
    optimizer = create_optimizer(f"{name}(lr=0.02)", model.named_parameters(), boundary=("embed.*",))
    routed = {p: group.get("use_fallback", False) for group in optimizer.param_groups for p in group["params"]}
    fallback = {n for n, p in model.named_parameters() if routed[p]}
    assert fallback == {"embed.weight", "embed.bias", "inner.bias", "conv.bias"}


def test_what_muon_leaves_to_adamw_moves_at_its_rate() -> None:
    model = net()
    before = model["embed"].weight.clone()
    step(create_optimizer("muon(lr=0.02, adamw_lr=3e-3)", model.named_parameters(), boundary=("embed.*",)))
    # Adam's first step is its rate times the sign of the gradient.
    torch.testing.assert_close(before - model["embed"].weight, torch.full((4, 4), 3e-3), rtol=1e-3, atol=1e-6)


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model["embed"].requires_grad_(False)
    optimizer = create_optimizer("adamw", model.named_parameters())
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 4 * 4 + 4 + 2 * 2 * 9 + 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("adamv", "did you mean"),
        ("adamw(learning=1)", "does not accept 'learning'"),
        ("adamw(adamw_lr=1e-3)", "does not accept 'adamw_lr'"),
        ("adamw(lr='high')", "lr='high' must be"),
        ("adamw(lr=-1.0)", "lr=-1.0 must be a number of 0 or more"),
        ("adamw(lr=1e38)", "lr=1e+38 must be at most 1e+34"),
        ("adamw(lr=1e999)", "lr=inf must be at most 1e+34"),
        ("muon(lr=0.1, adamw_lr=1e999)", "adamw_lr=inf must be at most"),
        ("adamw(lr=0)", "lr=0 trains nothing"),
        ("adamw(weight_decay='some')", "weight_decay='some' must be"),
        ("adamw(betas=(0.9, 1.5))", "cannot be made: Invalid beta"),
        ("AdamW(betas=0.9)", "betas=0.9 must be"),
        ("muon(adamw_lr='a')", "adamw_lr='a' must be"),
        ("muon(lr=0, adamw_lr=1e-3)", "lr=0 trains nothing"),
        ("muon(dtype='half')", "dtype='half' must be one of 'float32'"),
        ("adamw(dtype='float32')", "does not accept 'dtype'"),
        *((name, f"{name!r} {reason}") for name, reason in UNSUITABLE.items()),
    ],
)
def test_a_bad_optimizer_is_told(spec: str, told: str) -> None:
    with pytest.raises(SoraError) as caught:
        create_optimizer(spec, net().named_parameters())
    assert told in str(caught.value)


def test_schedules_are_their_closed_forms() -> None:
    flat = SCHEDULES.create("constant(warmup=3)", 10)
    assert [flat(s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = SCHEDULES.create("cosine(warmup=4, final=0.1)", 24)
    for s in range(4, 30):
        angle = math.pi * min(1, (s - 4) / 20)
        assert cosine(s) == pytest.approx(0.1 + 0.9 * math.cos(angle / 2) ** 2)
    assert cosine(1) == pytest.approx(2 / 5)
    trapezoid = SCHEDULES.create("trapezoid(warmup=1, cooldown=0.4, final=0.5)", 10)
    assert [trapezoid(s) for s in range(11)] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5])
    assert SCHEDULES.create("trapezoid(cooldown=0)", 10)(9) == 1


@pytest.mark.parametrize(
    "spec",
    ["constant(warmup=-1)", "cosine(warmup=0.5)", "cosine(final=-0.1)", "trapezoid(cooldown=1.5)",
     "trapezoid(cooldown=-0.1)", "trapezoid(cooldown='a')"],
)  # fmt: skip
def test_a_bad_schedule_is_told(spec: str) -> None:
    option = spec.split("(")[1].split("=")[0]
    with pytest.raises(SoraError, match=f"{option}="):
        SCHEDULES.create(spec, 10)
