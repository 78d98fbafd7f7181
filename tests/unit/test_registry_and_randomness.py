"""Specs, registries and keyed streams."""

import pytest
import torch
from torch import nn

from lightning_sora.errors import SoraError
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
