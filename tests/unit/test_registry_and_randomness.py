"""Specs, registries and keyed streams."""

import ast
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sora.diffusion.timesteps import TIMESTEPS
from lightning_sora.errors import SoraError
from lightning_sora.models.text import TEXT_ENCODERS
from lightning_sora.randomness import generator, initialize, normal_per_clip, stream_seed, uniform_per_clip
from lightning_sora.registry import Registry, Spec


def shelf() -> Registry:
    registry: Registry = Registry("thing")

    @registry.register("window")
    class Window:
        def __init__(self, dim: int, *, size: tuple[int, ...] = (2, 4, 4), shift: bool = True) -> None:
            self.dim, self.size, self.shift = dim, size, shift

    @registry.register("needy")
    class Needy:
        def __init__(self, dim: int, *, k: int) -> None:
            self.k = k

    return registry


def test_a_spec_carries_options_and_reads_back() -> None:
    made = shelf().create("window(size=(1, 2, 3), shift=False)", 8)
    assert (made.dim, made.size, made.shift) == (8, (1, 2, 3), False)
    spec = Spec.parse("window(size=(1, 2, 3), shift=False)")
    assert Spec.parse(str(spec)) == spec
    assert str(Spec.parse("  window ")) == "window"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("windw", ["unknown thing 'windw'", "did you mean 'window'"]),
        ("window(sze=3)", ["does not accept 'sze'", "size, shift"]),
        ("window(dim=3)", ["does not accept 'dim'"]),
        ("needy", ["needs 'k'"]),
        ("window(size=print(1))", ["cannot read the spec"]),
        ("window(3)", ["by name"]),
        ("window(", ["cannot read the spec"]),
        ("a.b(c=1)", ["cannot read the spec"]),
    ],
)
def test_bad_specs_say_what_would_work(spec: str, words: list[str]) -> None:
    with pytest.raises(SoraError) as caught:
        shelf().create(spec, 8)
    assert all(word in str(caught.value) for word in words), caught.value


def typed(
    *,
    count: int = 1,
    rate: float = 1.0,
    name: str | None = None,
    on: bool = False,
    sizes: Sequence[int] = (),
    pair: tuple[int, float] = (1, 2.0),
    other: torch.Tensor | None = None,
) -> dict[str, Any]:
    return locals()


@pytest.mark.parametrize(
    "option",
    ["count=2", "rate=2", "rate=1e-3", "name='a'", "name=None", "on=True", "sizes=[1, 2]", "sizes=(1, 2)", "sizes=()",
     "pair=[1, 2]", "other='whatever cannot be checked'"],
)  # fmt: skip
def test_options_of_their_type_are_taken(option: str) -> None:
    registry: Registry = Registry("thing")
    registry.register("typed")(typed)
    name, value = option.split("=", 1)
    assert registry.create(f"typed({option})")[name] == ast.literal_eval(value)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("count=1.5", "int"),
        ("count=True", "int"),
        ("count='1'", "int"),
        ("rate='1e-3'", "float"),
        ("name=3", "str or None"),
        ("on=1", "bool"),
        ("sizes=3", "Sequence[int]"),
        ("sizes=(1, 2.5)", "Sequence[int]"),
        ("sizes='12'", "Sequence[int]"),
        ("pair=(1, 2, 3)", "tuple[int, float]"),
    ],
)
def test_options_of_another_type_are_told(option: str, expected: str) -> None:
    registry: Registry = Registry("thing")
    registry.register("typed")(typed)
    with pytest.raises(SoraError) as caught:
        registry.create(f"typed({option})")
    assert str(caught.value) == f"thing 'typed': {option} must be {expected}"


def test_fields_of_dataclasses_are_checked_too() -> None:
    with pytest.raises(SoraError, match="mean='a' must be float"):
        TIMESTEPS.create("logit_normal(mean='a')")


def test_a_text_encoder_of_no_heads_is_refused() -> None:
    with pytest.raises(SoraError, match="num_heads=0"):
        TEXT_ENCODERS.create("bytes(num_heads=0)")


def test_duplicates_raise_and_temporary_undoes() -> None:
    registry = shelf()
    with pytest.raises(SoraError, match="registered already"):
        registry.register("window")(dict)
    with registry.temporary():
        registry.register("brief")(dict)
        assert "brief" in registry.list()
    assert registry.list() == ["needy", "window"]
    assert registry.list("w*") == ["window"]


def test_streams_differ_by_every_part_of_their_key() -> None:
    seeds = [
        stream_seed(0, "noise", "a", 1),
        stream_seed(1, "noise", "a", 1),
        stream_seed(0, "order", "a", 1),
        stream_seed(0, "noise", "b", 1),
        stream_seed(0, "noise", "a", 2),
        stream_seed(0, "noise", "a", "1"),
        stream_seed(0, "noise", "a1"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert stream_seed(0, "noise", "a", 1) == 4349507231061279164, "streams are a promise: recipes quote their results"


def test_draws_do_not_depend_on_the_rest_of_the_batch() -> None:
    keys = [("a", 0), ("b", 0), ("c", 3)]
    together = normal_per_clip([(4, 2)] * 3, 7, "noise", keys)
    alone = [normal_per_clip([(4, 2)], 7, "noise", [k])[0] for k in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert torch.equal(uniform_per_clip(7, "t", keys)[1:], uniform_per_clip(7, "t", keys[1:]))
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


@pytest.mark.slow
def test_streams_whose_seeds_agree_in_32_bits_are_others() -> None:
    """Of 300,000 clips some ten pairs have such seeds, and torch seeds its generators from 32 bits."""
    seen: dict[int, int] = {}
    pairs = []
    for clip in range(300_000):
        low = stream_seed(0, "noise", f"clip-{clip}", 0) & 0xFFFFFFFF
        if low in seen:
            pairs.append((seen[low], clip))
        seen[low] = clip
    assert len(pairs) > 3
    for pair in pairs:
        one, other = normal_per_clip([(64,)] * 2, 0, "noise", [(f"clip-{clip}", 0) for clip in pair])
        assert not torch.isin(one, other).any()


def test_neighbouring_streams_are_independent_and_normal() -> None:
    drawn = torch.stack(normal_per_clip([(256,)] * 2000, 0, "noise", [(f"clip-{i}", 0) for i in range(2000)])).double()
    error = drawn.numel() ** -0.5  # standard error of the means below
    assert abs(drawn.mean()) < 4 * error
    assert abs(drawn.square().mean() - 1) < 4 * 2**0.5 * error
    assert abs((drawn[1:] * drawn[:-1]).mean()) < 4 * error
    assert abs((drawn[:, 1:] * drawn[:, :-1]).mean()) < 4 * error
    uniform = uniform_per_clip(0, "timestep", [(f"clip-{i}", 0) for i in range(4096)])
    counts = torch.histc(uniform, 16, 0, 1)
    assert float(((counts - 256).square() / 256).sum()) < 37.7  # chi squared of 15 degrees, 0.1 %


def test_keyed_draws_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    net = nn.Linear(3, 3)
    torch.set_rng_state(before)
    normal_per_clip([(4,)], 0, "noise", [("a", 0)])
    initialize(net, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_are_initialised_by_name_not_by_order() -> None:
    small = nn.ModuleDict({"a": nn.Linear(4, 4), "c": nn.Conv2d(2, 2, 3)})
    large = nn.ModuleDict(
        {"new": nn.Linear(9, 9), "a": nn.Linear(4, 4), "b": nn.Embedding(5, 2), "c": nn.Conv2d(2, 2, 3)}
    )
    initialize(small, 5)
    initialize(large, 5)
    for name, value in small.state_dict().items():
        assert torch.equal(value, large.state_dict()[name])
    inner = nn.Linear(4, 4)
    initialize(inner, 5, "a.")
    assert torch.equal(inner.weight, small["a"].weight)
    initialize(small, 6)
    assert not torch.equal(inner.weight, small["a"].weight)
    bound = 4**-0.5
    assert small["a"].weight.abs().max() <= bound


def test_a_parameter_without_reset_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

    with pytest.raises(SoraError, match="Bare at 'x' owns parameters"):
        initialize(nn.ModuleDict({"x": Bare()}), 0)
