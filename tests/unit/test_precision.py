"""Who asks for bfloat16 on a CPU without it is told what it costs."""

import logging

import pytest

from lightning_sora.lit import precision


@pytest.fixture(autouse=True)
def forgotten() -> None:
    precision.warn_of_slow_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("asked", "device", "ratio", "told"),
    [
        ("bf16-mixed", "cpu", 41.23, 1),
        ("bf16-true", "cpu", 41.23, 1),
        ("bf16-mixed", "cpu", 0.5, 0),
        ("bf16-mixed", "cuda", 41.23, 0),
        ("32-true", "cpu", 41.23, 0),
        ("16-mixed", "cpu", 41.23, 0),
    ],
)
def test_it_is_told_once_with_the_ratio(
    asked: str, device: str, ratio: float, told: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda: ratio)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            precision.warn_of_slow_bfloat16(asked, device)
    assert len(caplog.records) == told
    assert all(asked in r.getMessage() and "41.2 times" in r.getMessage() for r in caplog.records)


def test_the_ratio_is_measured_once_per_process() -> None:
    ratio = precision.bfloat16_slowdown(32)
    assert 0 < ratio < float("inf")
    assert precision.bfloat16_slowdown(32) == ratio
