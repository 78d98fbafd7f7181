"""Muon against timm's, and orthogonalisation against the singular values that it is to replace."""

import copy

import pytest
import timm.optim
import torch
from timm.optim.muon import _COEFFICIENTS as PRESETS
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn

from lightning_sora.lit import muon
from lightning_sora.lit.muon import Muon, orthogonalize
from lightning_sora.lit.optimizers import MATRIX_OPTIMIZERS, create_optimizer

SHAPES = [(8, 8), (8, 20), (40, 8), (3, 8, 30), (3, 8, 9), (129, 129), (130, 300)]


def triples(preset: str, steps: int) -> list[tuple[float, float, float]]:
    listed = [tuple(t) for t in PRESETS[preset]]
    return (listed + listed[-1:] * steps)[:steps]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("scale_eps", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_timms_up_to_rounding(shape: tuple[int, ...], scale_eps: bool, preset: str) -> None:
    matrix, steps = draw(*shape), 5
    expected = zeropower_via_newtonschulz(
        matrix, steps, triples(preset, steps), safety_factor=1.02, dtype=torch.float64, scale_eps=scale_eps
    )
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found = orthogonalize(matrix, triples(preset, steps), dtype, safety_factor=1.02, scale_eps=scale_eps)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("steps", [1, 5, 8])
def test_matrices_of_low_rank_stay_exact_in_float32(preset: str, steps: int) -> None:
    """The Gram matrix squares what is small: then it must not be used, or do no harm."""
    u, _ = torch.linalg.qr(draw(16, 16))
    v, _ = torch.linalg.qr(draw(64, 16, seed=1))
    for singular in (10.0 ** -torch.arange(16).double(), torch.tensor([1.0] + [0.0] * 15, dtype=torch.float64)):
        matrix = u * singular @ v.T
        expected = orthogonalize(matrix, triples(preset, steps), torch.float64)
        found = orthogonalize(matrix, triples(preset, steps), torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)


def test_both_forms_are_used_where_they_cost_less(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, int]] = []
    for name in ("_plainly", "_on_gram_matrix"):
        form = getattr(muon, name)
        monkeypatch.setattr(muon, name, lambda x, c, n=name, f=form: used.append((n, x.shape[-1])) or f(x, c))
    for columns in (8, 16, 24):
        orthogonalize(draw(8, columns), triples("original", 5), torch.float32)
    orthogonalize(draw(8, 24), triples("original", 5), torch.bfloat16)  # too coarse for a Gram matrix
    orthogonalize(draw(8, 24), triples("polar_express", 8), torch.float32)  # amplifies rounding a million times
    plain, gram = "_plainly", "_on_gram_matrix"
    assert used == [(plain, 8), (gram, 16), (gram, 24), (plain, 24), (plain, 24)]


def test_singular_values_become_one() -> None:
    found = orthogonalize(draw(12, 30), triples("polar_express", 8), torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(found), torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-3)


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    parts = {"inner": nn.Linear(24, 8), "conv": nn.Conv2d(4, 8, 3), "deep": nn.Linear(8, 8), "frozen": nn.Linear(4, 4)}
    return nn.ModuleDict(parts)


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int = 3) -> None:
    for index in range(steps):
        for place, (name, parameter) in enumerate(model.named_parameters()):
            if not name.startswith("frozen"):
                parameter.grad = draw(*parameter.shape, seed=100 * index + place).float()
        optimizer.step()


@pytest.mark.parametrize("name", MATRIX_OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"conv_mode": "batched"}, {"adjust_lr_fn": "rms_to_rms"}, {"ns_coefficients": "original", "scale_eps": True}],
    ids=str,
)
def test_steps_are_timms_in_float32(name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = net(), net()
    spec = f"{name}(lr=0.02, weight_decay=0.1{''.join(f', {k}={v!r}' for k, v in options.items())})"
    train(create_optimizer(spec, mine.named_parameters()), mine)

    def in_float32(*given: object, **named: object) -> Tensor:
        return zeropower_via_newtonschulz(*given, **{**named, "dtype": torch.float32})

    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", in_float32)
    parameters = list(theirs.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, "use_fallback": True},
    ]
    train(timm.optim.create_optimizer_v2(groups, opt=name, filter_bias_and_bn=False, lr=0.02, **options), theirs)
    for (key, found), expected in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        # AdaMuon divides by entries that may be near zero, and so by their rounding.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if "ada" in name else 2e-6, msg=key)


def test_bfloat16_is_timms_up_to_its_rounding() -> None:
    mine, theirs = net(), net()
    train(Muon(mine.parameters(), dtype="bfloat16"), mine)
    train(timm.optim.Muon(theirs.parameters()), theirs)
    for found, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_on_a_cpu_it_orthogonalises_in_float32_whatever_the_cpu() -> None:
    by_default, asked = net(), net()
    train(Muon(by_default.parameters()), by_default)
    train(Muon(asked.parameters(), dtype="float32"), asked)
    assert all(torch.equal(a, b) for a, b in zip(by_default.parameters(), asked.parameters(), strict=True))


@pytest.mark.parametrize("algo", ["muon", "adamuon"])
def test_states_of_timms_go_on(algo: str) -> None:
    """A checkpoint written with timm's optimizer is resumed."""
    model = net()
    theirs = timm.optim.Muon(model.parameters(), algo=algo)
    train(theirs, model, steps=2)
    other = copy.deepcopy(model)
    mine = Muon(other.parameters(), algo=algo, dtype="bfloat16")
    mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(theirs, model)
    train(mine, other)
    for found, expected in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert copy.deepcopy(mine).defaults["dtype"] == "bfloat16"


def test_gradients_are_left_as_they_were() -> None:
    model = net()
    optimizer = Muon(model.parameters())
    train(optimizer, model, steps=1)
    assert model["inner"].weight.grad is not None
    torch.testing.assert_close(model["inner"].weight.grad, draw(8, 24, seed=0).float())
    assert model["frozen"].weight.grad is None
