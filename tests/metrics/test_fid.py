"""FID: Inception-v3 as the archive of 2015 has it, and the distance between single frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.models import inception

from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.metrics.distances import FrechetFrameDistance
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.extractors.inception import inception_network

RANDOM = "random(width=4, side=16)"


def frechet(real: np.ndarray, generated: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, as everybody computes it."""
    apart = real.mean(0) - generated.mean(0)
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    return float(apart @ apart + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real))


def noise(count: int, seed: int) -> list[torch.Tensor]:
    """Clips of 1 to 5 frames."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [1 + int(torch.randint(5, (), generator=draw)) for _ in range(count)]
    return [torch.randint(0, 120 + 60 * seed, (n, 16, 20, 3), generator=draw, dtype=torch.uint8) for n in sizes]


def test_it_is_the_frechet_distance_of_all_frames_whatever_clips_they_are_in() -> None:
    extractor = EXTRACTORS.create(RANDOM)
    metric = FrechetFrameDistance(extractor)
    rows = []
    for real, clips in ((True, noise(40, 0)), (False, noise(37, 1))):
        for first in range(0, len(clips), 7):
            some = clips[first : first + 7]
            metric.update(some, [f"{real} {first + place}" for place in range(len(some))], real=real)
        rows.append(extractor([frame[None] for clip in clips for frame in clip]).numpy())
    found = metric.compute()
    assert float(found["value"]) == pytest.approx(frechet(*rows), rel=1e-6)
    assert (int(found["real"]), int(found["generated"])) == (len(rows[0]), len(rows[1]))
    assert metric.check_ids("real") == 40  # clips
    metric.update(noise(1, 0), ["True 0"], real=True)
    with pytest.raises(SoraError, match="more than once"):
        metric.compute()


def test_the_frames_of_a_clip_are_in_one_group() -> None:
    metric = FrechetFrameDistance(EXTRACTORS.create(RANDOM))
    metric.update([torch.zeros((n, 16, 16, 3), dtype=torch.uint8) for n in (3, 4)], ["a", "b"], real=True)
    assert sorted(group.count for group in metric.groups("real") if group.count) == [3, 4]


def test_it_stands_beside_other_distances_and_calls_itself_fid_with_inception_alone() -> None:
    evaluation = Evaluation(["fvd", "fid"], extractor=RANDOM)
    clips = {real: [clip.repeat(4, 1, 1, 1)[:4] for clip in noise(24, int(real))] for real in (True, False)}
    evaluation.update([str(n) for n in range(24)], real=clips[True], generated=clips[False])
    found = evaluation.compute()
    assert found.titles["fid"] == "random Fréchet distance of frames (not FID)"
    assert found.card.fields["clips"] == {"real": 24, "generated": 24}
    assert found["fid"].value != found["fvd"].value
    network = evaluation.metrics["fvd"].network
    assert network is not None
    rows = [network([frame[None] for clip in clips[real] for frame in clip]).numpy() for real in (True, False)]
    assert found["fid"].value == pytest.approx(frechet(*rows), rel=1e-6)


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SoraError, match=r"finds no weights at .*pt_inception-2015-12-05-6726825d\.pth.*6726825d"):
        EXTRACTORS.create(f"inception(weights={str(tmp_path / 'pt_inception-2015-12-05-6726825d.pth')!r})")
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"x")
    with pytest.raises(SoraError, match="not 6726825d: the download is damaged"):
        EXTRACTORS.create(f"inception(weights={str(tmp_path / 'pt_inception-2015-12-05-6726825d.pth')!r})")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SoraError, match="are not those of Inception-v3 with 1008 classes"):
        EXTRACTORS.create(f"inception(weights={str(tmp_path / 'other.pth')!r})")


def test_pools_are_those_of_the_archive() -> None:
    """As in pytorch-fid and torch-fidelity, whose features these were seen to equal bit by bit."""
    torch.manual_seed(0)
    network = inception_network().eval()
    x = torch.rand(1, 192, 5, 5)
    block = network.Mixed_5b
    inside = torch.stack([
        x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((2, 3)) for i in range(5) for j in range(5)
    ], dim=-1).unflatten(-1, (5, 5))  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(block(x)[:, -32:], block.branch_pool(inside))
        assert not torch.allclose(block(x), _plain(block, x))
        y = torch.rand(1, 2048, 5, 5)
        last = network.Mixed_7c
        torch.testing.assert_close(last(y)[:, -192:], last.branch_pool(F.max_pool2d(F.pad(y, [1] * 4), 3, 1)))
        first = network.Mixed_7b(torch.rand(1, 1280, 5, 5))
    assert first.shape == (1, 2048, 5, 5)


def _plain(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Torchvision's own block with these weights."""
    plain = inception.InceptionA(192, 32).eval()
    plain.load_state_dict(block.state_dict())
    return plain(x)


def test_images_alone_are_scored_each_by_itself(tmp_path: Path) -> None:
    for side, gain in (("real", 1.0), ("fake", 0.5)):
        for number in range(20):
            (tmp_path / side / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3)) * gain
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / side / f"class{number % 2}" / f"{number}.png")
    folders = ["--real", str(tmp_path / "real"), "--generated", str(tmp_path / "fake")]
    options = ["--metrics", "fid", "--extractor", RANDOM, "--out", str(tmp_path / "s.json")]
    assert main(["score", *folders, *options]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    extractor = EXTRACTORS.create(RANDOM)
    rows = []
    for side in ("real", "fake"):
        images = [np.array(Image.open(path)) for path in (tmp_path / side).rglob("*.png")]
        rows.append(extractor([torch.from_numpy(image)[None] for image in images]).numpy())
    assert found["scores"]["fid"]["value"] == pytest.approx(frechet(*rows), rel=1e-6)
    assert found["protocol"]["clips"] == {"real": 20, "generated": 20}
