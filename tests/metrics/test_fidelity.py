"""LPIPS and FID of frames: torchmetrics' own, on weights by path."""

from pathlib import Path

import pytest
import torch
import torchvision
from lightning_sora.metrics.perceptual import LPIPS, FrameFID, lpips_network
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_sora.errors import SoraError
from lightning_sora.metrics.frechet import Moments, frechet_distance


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alex") / "alex.pth"
    torch.save(torchvision.models.alexnet().state_dict(), path)
    return path


def clips(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (4, 64, 72, 3), generator=generator, dtype=torch.uint8) for _ in range(count)]


def test_lpips_is_torchmetrics_own_with_weights_from_a_file(backbone: Path) -> None:
    network = lpips_network("alex", backbone)
    first, second = clips(0), clips(1)
    metric = LPIPS(network)
    metric.update(first, second)
    reference = _LPIPS(net="alex", pnet_rand=True)
    features = torchvision.models.alexnet()
    features.load_state_dict(torch.load(backbone))
    parts = [m for s in (reference.net.slice1, reference.net.slice2, reference.net.slice3, reference.net.slice4,
                         reference.net.slice5) for m in s]  # fmt: skip
    for mine, theirs in zip(parts, features.features[: len(parts)], strict=True):
        mine.load_state_dict(theirs.state_dict())
    pairs = [
        reference(*(c.permute(0, 3, 1, 2).float() / 127.5 - 1 for c in (a, b))).mean()
        for a, b in zip(first, second, strict=True)
    ]
    assert float(metric.compute()["lpips"]) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)


def test_lpips_is_zero_of_equal_clips_and_symmetric(backbone: Path) -> None:
    network = lpips_network("alex", backbone)

    def of(a: list, b: list) -> float:
        metric = LPIPS(network)
        metric.update(a, b)
        return float(metric.compute()["lpips"])

    assert of(clips(0), clips(0)) == 0
    assert of(clips(0), clips(1)) == pytest.approx(of(clips(1), clips(0)), rel=1e-6)
    assert not LPIPS(network).state_dict()


def test_what_lpips_cannot_use_is_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=r"alexnet-owt-7be5be79\.pth"):
        lpips_network("alex", tmp_path / "none.pth")
    with pytest.raises(SoraError, match="not the backbone squeeze"):
        lpips_network("squeeze", backbone)
    with pytest.raises(SoraError, match="unknown LPIPS backbone"):
        lpips_network("resnet", backbone)
    with pytest.raises(SoraError, match="no pairs"):
        LPIPS(lpips_network("alex", backbone)).update(clips(0), clips(0, 2))


class Means(torch.nn.Module):
    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((-1, -2))


def test_fid_takes_the_same_frames_of_every_clip() -> None:
    real, generated = clips(0, 12), [c // 2 for c in clips(1, 12)]
    metric = FrameFID(Means(), frames=2)
    metric.update(real[:5], real=True)
    metric.update(real[5:], real=True)
    metric.update(generated, real=False)
    chosen = [torch.cat([c[[1, 3]] for c in side]).permute(0, 3, 1, 2) for side in (real, generated)]
    own = frechet_distance(*(Moments.of(Means()(frames)) for frames in chosen))
    assert float(metric.compute()) == pytest.approx(float(own), rel=1e-5)
    theirs = FrechetInceptionDistance(Means())
    theirs.update(chosen[0], real=True)
    theirs.update(chosen[1], real=False)
    assert float(metric.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert FrameFID(Means()).orig_dtype == torch.float32  # a rank without clips computes too


def test_fid_says_what_is_missing() -> None:
    with pytest.raises(SoraError, match="pip install torch-fidelity"):
        FrameFID()
