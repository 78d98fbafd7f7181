"""PSNR, SSIM and LPIPS to the real clip of the same id: against formulas and against torchmetrics' own network."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS

from lightning_sora.errors import SoraError
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.fidelity import LPIPS, PSNR, SSIM, lpips_network
from tests.metrics.toys import scored


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alex") / "alex.pth"
    # Without the classifier, which is 200 MB.
    torch.save(torchvision.models.alexnet().features.state_dict(prefix="features."), path)
    return path


def clips(seed: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (4, 64, 72, 3), generator=generator, dtype=torch.uint8) for _ in range(count)]


def lpips(backbone: Path, made: Sequence[Tensor], real: Sequence[Tensor]) -> float:
    return scored(LPIPS(str(backbone)), made, real=real).value


def test_psnr_and_ssim_are_their_formulas() -> None:
    made, real = clips(0), clips(1)
    wanted = [20 * math.log10(255) - 10 * math.log10(float((a.double() - b.double()).square().mean()))
              for a, b in zip(made, real, strict=True)]  # fmt: skip
    assert scored(PSNR(), made, real=real).value == pytest.approx(sum(wanted) / 3, rel=1e-5)
    frames = [[clip.permute(0, 3, 1, 2).float() / 255 for clip in side] for side in (made, real)]
    theirs = [float(structural_similarity_index_measure(a, b, data_range=1.0)) for a, b in zip(*frames, strict=True)]
    assert scored(SSIM(), made, real=real).value == pytest.approx(sum(theirs) / 3, abs=1e-4)
    assert scored(PSNR(), real, real=real).value == 100
    assert scored(SSIM(), real, real=real).value == pytest.approx(1)


def test_lpips_is_torchmetrics_own_with_weights_from_a_file(backbone: Path) -> None:
    first, second = clips(0), clips(1)
    reference = _LPIPS(net="alex", pnet_rand=True)
    features = torchvision.models.alexnet().features
    features.load_state_dict({name.removeprefix("features."): v for name, v in torch.load(backbone).items()})
    parts = [m for s in (reference.net.slice1, reference.net.slice2, reference.net.slice3, reference.net.slice4,
                         reference.net.slice5) for m in s]  # fmt: skip
    for mine, theirs in zip(parts, features[: len(parts)], strict=True):
        mine.load_state_dict(theirs.state_dict())
    pairs = [
        reference(*(c.permute(0, 3, 1, 2).float() / 127.5 - 1 for c in (a, b))).mean()
        for a, b in zip(first, second, strict=True)
    ]
    assert lpips(backbone, first, second) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)


def test_lpips_is_zero_of_equal_clips_and_symmetric(backbone: Path) -> None:
    assert lpips(backbone, clips(0), clips(0)) == 0
    assert lpips(backbone, clips(0), clips(1)) == pytest.approx(lpips(backbone, clips(1), clips(0)), rel=1e-6)
    assert LPIPS(str(backbone)).card()["net"] == "alex"
    assert LPIPS(str(backbone)).card()["verified"] is False


def test_lpips_takes_the_layers_of_squeezenet_too(tmp_path: Path) -> None:
    layers = torchvision.models.squeezenet1_1().features.state_dict(prefix="features.")
    torch.save(layers, tmp_path / "net.pth")
    network = lpips_network("squeeze", tmp_path / "net.pth")
    for mine, theirs in zip(network.net.state_dict().values(), layers.values(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_lpips_cannot_use_is_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match=r"alexnet-owt-7be5be79\.pth"):
        lpips_network("alex", tmp_path / "none.pth")
    with pytest.raises(SoraError, match="not the backbone squeeze"):
        lpips_network("squeeze", backbone)
    with pytest.raises(SoraError, match="unknown LPIPS backbone"):
        lpips_network("resnet", backbone)


@pytest.mark.parametrize("kind", [PSNR, SSIM])
def test_pairs_have_one_size(kind: type) -> None:
    with pytest.raises(SoraError, match=rf"{kind.name} compares clips pixel by pixel.*give pairs of equal sizes"):
        scored(kind(), clips(0), real=[clip[:3] for clip in clips(1)])
    with pytest.raises(SoraError, match="of='real' must be 'generated' or 'reconstructed'"):
        kind(of="real")


def test_each_clip_is_compared_with_the_real_one_of_its_id() -> None:
    made, real = clips(0), clips(1)
    evaluation = Evaluation(["psnr", "ssim(of='reconstructed')"])
    each = evaluation.update(list("abc"), generated=made, reconstructed=real, real=real)
    found = evaluation.compute()
    assert found["psnr"].value == pytest.approx(scored(PSNR(), made, real=real).value)
    assert each["ssim"] == pytest.approx(dict.fromkeys("abc", 1.0))
    with pytest.raises(SoraError, match="psnr needs the real clips of the same ids"):
        Evaluation(["psnr"]).update(list("abc"), generated=made)
