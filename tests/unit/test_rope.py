"""Rotary positions: rotations that only differences of coordinates see."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.nn.rope import SCALINGS, Stretch, axis_pairs, rotary, rotate
from lightning_sora.spacetime import TokenGrid, TokenLayout


def heads(tokens: int, head_dim: int, seed: int) -> torch.Tensor:
    return torch.randn(1, tokens, 2, head_dim, generator=torch.Generator().manual_seed(seed))


def test_scores_do_not_change_when_all_coordinates_shift() -> None:
    coordinates = TokenLayout.uniform(TokenGrid(3, 4, 2), 1).coordinates()[:, 1:]
    q, k = heads(24, 16, 1), heads(24, 16, 2)
    scores = []
    for shift in ([0, 0, 0], [5, -3, 11], [-40, 7, 2]):
        rope = rotary(coordinates + torch.tensor(shift), 16)
        scores.append(torch.einsum("bqhd,bkhd->bhqk", rotate(q, rope), rotate(k, rope)))
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], atol=1e-4, rtol=0)


def test_a_pair_turns_by_its_coordinate_times_its_frequency() -> None:
    """Against a rotation matrix written out, on each axis alone."""
    head_dim, theta = 12, 100.0
    for axis in range(3):
        coordinate = torch.zeros(1, 3, dtype=torch.long)
        coordinate[0, axis] = 3
        x = heads(1, head_dim, 3)
        turned = rotate(x, rotary(coordinate, head_dim, theta)).unflatten(-1, (3, 2, 2))
        original = x.unflatten(-1, (3, 2, 2))
        for other in {0, 1, 2} - {axis}:
            assert torch.equal(turned[..., other, :, :], original[..., other, :, :])
        for pair in range(2):
            angle = 3 * theta ** (-pair / 2)
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            expected = original[..., axis, pair, :] @ matrix.T
            torch.testing.assert_close(turned[..., axis, pair, :], expected, atol=1e-6, rtol=0)


def test_interpolation_puts_positions_between_those_of_training() -> None:
    """Twice as wide, every second token is where a trained one was; the other axes stay."""
    wide, trained = (TokenLayout.uniform(TokenGrid(2, 3, width), 1).coordinates()[:, 1:] for width in (8, 4))
    found = rotary(wide, 24, stretch=Stretch("interpolate", torch.tensor([[1.0, 1.0, 2.0]])))
    assert torch.equal(found[:, wide[:, 2] % 2 == 0], rotary(trained, 24))


def test_a_changed_base_is_that_of_the_paper() -> None:
    """theta * s ** (d / (d - 2)), d being twice the pairs of an axis: the fastest pair turns as before, the slowest as
    interpolated."""
    at, s = torch.arange(18).reshape(6, 3), 2.5
    found = rotary(at, 24, 100.0, Stretch("ntk", torch.full((1, 3), s)))
    torch.testing.assert_close(found, rotary(at, 24, 100.0 * s ** (8 / (8 - 2))))
    interpolated = rotary(at, 24, 100.0, Stretch("interpolate", torch.full((1, 3), s)))
    by_axis, plain, squeezed = (one.unflatten(-2, (3, 4)) for one in (found, rotary(at, 24), interpolated))
    assert torch.equal(by_axis[..., 0, :], plain[..., 0, :])
    torch.testing.assert_close(by_axis[..., -1, :], squeezed[..., -1, :])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim", [6, 20])
def test_no_stretch_changes_no_bit(scaling: str, head_dim: int) -> None:
    at = torch.arange(18).reshape(6, 3)
    assert torch.equal(rotary(at, head_dim, stretch=Stretch(scaling, torch.ones(1, 3))), rotary(at, head_dim))


def test_lengths_are_kept() -> None:
    x = heads(6, 18, 4)
    rope = rotary(torch.arange(18).reshape(6, 3), 18)
    torch.testing.assert_close(rotate(x, rope).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize(("head_dim", "pairs"), [(64, (12, 10, 10)), (32, (6, 5, 5)), (6, (1, 1, 1)), (20, (4, 3, 3))])
def test_every_axis_owns_some_pairs_and_together_all(head_dim: int, pairs: tuple[int, ...]) -> None:
    assert axis_pairs(head_dim, 3) == pairs
    assert 2 * sum(pairs) == head_dim


@pytest.mark.parametrize("head_dim", [4, 7, 33])
def test_a_head_that_cannot_be_split_is_refused(head_dim: int) -> None:
    with pytest.raises(SoraError, match=f"head_dim={head_dim}"):
        axis_pairs(head_dim, 3)


def test_real_products_are_the_complex_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, to rounding: what is compiled, what runs eagerly, and the complex product by NumPy."""
    x = heads(6, 18, 5).double()
    rope = rotary(torch.arange(18).reshape(6, 3), 18).double()
    expected = x.numpy().view("complex128") * rope.numpy().view("complex128")[..., 0]
    eager = rotate(x, rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for found in (eager, rotate(x, rope)):
        torch.testing.assert_close(found, torch.from_numpy(expected.view("float64")), atol=1e-15, rtol=1e-15)


def test_nothing_complex_is_compiled() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x, rope = heads(6, 18, 6), rotary(torch.arange(18).reshape(6, 3), 18)
    function = inspect.unwrap(rotate)  # without the checks of shapes, which are not compiled
    compiled = torch.compile(function, backend=keep, fullgraph=True)(x, rope)
    torch.compiler.reset()
    torch.testing.assert_close(compiled, rotate(x, rope))
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("mul" in name for name in names)
    assert not any("complex" in name for name in names)
