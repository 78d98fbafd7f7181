"""Guidance: limits in which one kind is another, and how often the network is asked."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_sora.diffusion.guidance import GUIDANCE, classifier_free, guidance_of
from lightning_sora.errors import SoraError


def draw(seed: int) -> Tensor:
    return torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PREDICTIONS = {"conditional": draw(0), "unconditional": draw(1), "weak": draw(2)}
X = draw(3)


def asker() -> tuple[Callable[..., list[Tensor]], list[str]]:
    asked: list[str] = []

    def predict(*kinds: str) -> list[Tensor]:
        asked.extend(kinds)
        return [PREDICTIONS[kind] for kind in kinds]

    return predict, asked


def guided(spec: str, t: float = 0.5) -> Tensor:
    return guidance_of(spec).start()(asker()[0], X, t)


PLAIN = classifier_free(PREDICTIONS["conditional"], PREDICTIONS["unconditional"], 3.0)


@pytest.mark.parametrize(
    "spec",
    ["3.0", "cfg(scale=3.0)", "interval(scale=3.0)", "rescaled(scale=3.0, rescale=0.0)", "apg(scale=3.0, eta=1.0)"],
)
def test_each_has_plain_guidance_as_its_limit(spec: str) -> None:
    torch.testing.assert_close(guided(spec), PLAIN)


@pytest.mark.parametrize("name", [n for n in GUIDANCE.list() if n != "autoguidance"])
def test_a_scale_of_one_is_the_conditional_for_one_call(name: str) -> None:
    predict, asked = asker()
    found = guidance_of(f"{name}(scale=1.0)").start()(predict, X, 0.5)
    assert torch.equal(found, PREDICTIONS["conditional"])
    assert asked == ["conditional"]


def test_outside_its_interval_the_network_is_asked_once() -> None:
    guide = guidance_of("interval(scale=3.0, low=0.2, high=0.6)").start()
    for t, calls in ((0.1, 1), (0.2, 1), (0.4, 2), (0.6, 2), (0.7, 1)):
        predict, asked = asker()
        guide(predict, X, t)
        assert len(asked) == calls


def test_full_rescaling_restores_the_deviation_of_each_clip() -> None:
    found = guided("rescaled(scale=3.0, rescale=1.0)")
    torch.testing.assert_close(found.std(dim=(1, 2)), PREDICTIONS["conditional"].std(dim=(1, 2)))


def test_projected_guidance_pulls_at_right_angles() -> None:
    pull = guided("apg(scale=3.0, eta=0.0)") - PREDICTIONS["conditional"]
    along = (pull * PREDICTIONS["conditional"]).sum(dim=(1, 2))
    torch.testing.assert_close(along, torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_projected_guidance_limits_the_pull() -> None:
    pull = guided("apg(scale=2.0, eta=1.0, threshold=0.5)") - PREDICTIONS["conditional"]
    torch.testing.assert_close(torch.linalg.vector_norm(pull, dim=(1, 2)), torch.full((2,), 0.5).double())


def test_momentum_is_of_one_sampling() -> None:
    guidance = guidance_of("apg(scale=2.0, eta=1.0, momentum=-0.5)")
    guide, predict = guidance.start(), asker()[0]
    first, second = guide(predict, X, 0.9), guide(predict, X, 0.8)
    pull = PREDICTIONS["conditional"] - PREDICTIONS["unconditional"]
    torch.testing.assert_close(second - PREDICTIONS["conditional"], pull - 0.5 * pull)
    assert torch.equal(guidance.start()(predict, X, 0.9), first)


def test_autoguidance_leads_away_from_the_weak_model() -> None:
    expected = classifier_free(PREDICTIONS["conditional"], PREDICTIONS["weak"], 2.0)
    torch.testing.assert_close(guided("autoguidance(scale=2.0, checkpoint='weak.ckpt')"), expected)
    assert guidance_of("autoguidance(checkpoint='weak.ckpt')").weak == "weak.ckpt"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nan", "finite"),
        ("cfg(scale=1e999)", "finite"),
        ("interval(low=0.7, high=0.3)", "low < high"),
        ("rescaled(rescale=2.0)", r"\[0, 1\]"),
        ("apg(threshold=0.0)", "positive"),
        ("autoguidance(scale=2.0)", "PATH.ckpt"),
        ("cfgg(scale=2.0)", "did you mean 'cfg'"),
    ],
)
def test_impossible_guidance_is_refused(spec: str, said: str) -> None:
    with pytest.raises(SoraError, match=said):
        guidance_of(spec)
