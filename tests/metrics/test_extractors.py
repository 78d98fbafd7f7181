"""Extractors on random weights of local files: widths, preprocessing, what is refused. Nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, get_model_weights

from lightning_sora.errors import SoraError
from lightning_sora.metrics.extractors import clip, dino, random, torchvision_video, videomae  # noqa: F401
from lightning_sora.metrics.extractors.base import EXTRACTORS, Extractor

TORCHVISION = {"r3d_18": "r3d_18", "mvit": "mvit_v2_s", "s3d": "s3d", "swin3d": "swin3d_t"}
WIDTHS = {"r3d_18": 512, "mvit": 768, "s3d": 1024, "swin3d": 768}
CARD = {"title", "width", "name", "weights", "verified", "resize", "antialias", "crop", "range"}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def tiny_clip(path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 9, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(path)


def tiny_vit(path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(path)


def tiny_timm(path: Path) -> None:
    import timm

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    torch.save(network.state_dict(), path / "pytorch_model.bin")
    pretrained = {"input_size": [3, 32, 32], "num_classes": 0, "classifier": "head", "first_conv": "patch_embed.proj"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "num_features": 16}
    (path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": pretrained, "model_args": options}))


def tiny_videomae(path: Path, **options: object) -> None:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        **options,
    )
    network = VideoMAEForVideoClassification(config)
    if network.fc_norm is not None:
        torch.nn.init.normal_(network.fc_norm.weight)
    network.save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny random model, made at the first call."""
    makers = {"clip": tiny_clip, "dino": tiny_vit, "timm": tiny_timm, "videomae": tiny_videomae}
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name != "timm":
            pytest.importorskip("transformers")
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            makers[name](made[name])
        return made[name]

    return get


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The state_dict of a random video classifier of torchvision."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            with torch.device("meta"):
                shapes = get_model(TORCHVISION[name], weights=None).state_dict()
            generator = torch.Generator().manual_seed(0)
            state = {key: drawn(key, value, generator) for key, value in shapes.items()}
            made[name] = tmp_path_factory.mktemp(name) / "mine.pth"
            torch.save(state, made[name])
        return made[name]

    return get


def drawn(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights of any network that keep activations finite."""
    if like.dtype == torch.int64:
        return torch.arange(like.numel()).reshape(like.shape) % 64
    if key.endswith("running_var") or (like.ndim == 1 and key.endswith("weight")):
        return torch.ones(like.shape)
    fan = max(1, like[0].numel()) if like.ndim > 1 else 100
    return torch.randn(like.shape, generator=generator) * fan**-0.5


def same_alone_and_together(extractor: Extractor, clips: list[Tensor]) -> None:
    together = extractor(clips)
    assert together.shape == (len(clips), extractor.width)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, torch.cat([extractor([one]) for one in clips]), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-4
    assert extractor([]).shape == (0, extractor.width)


# Random.


def test_random_is_the_same_for_a_seed_and_never_called_fvd() -> None:
    state = torch.random.get_rng_state()
    one, two = EXTRACTORS.create("random(width=24)"), EXTRACTORS.create("random(width=24)")
    other = EXTRACTORS.create("random(width=24, seed=1)")
    clips = [noise(5, 40, 60), noise(5, 40, 60, seed=1), noise(9, 16, 16), noise(1, 8, 8)]
    same_alone_and_together(one, clips)
    assert torch.equal(one(clips), two(clips))
    assert one.card() == two.card()
    assert one.card()["weights"] != other.card()["weights"]
    assert set(one.card()) >= CARD
    assert one.title == "random-FD (not FVD)"
    assert torch.equal(two([clips[0].flip(0)]), two([clips[0].flip(0)]))
    assert not torch.equal(two([clips[0].flip(0)]), two(clips[:1]))
    one.train()
    one(clips[:1])
    assert not one.training
    with torch.random.fork_rng():
        torch.random.set_rng_state(state)
        with pytest.raises(SoraError, match="width=0"):
            EXTRACTORS.create("random(width=0)")


# Transformers and timm.


@pytest.mark.parametrize(
    ("name", "source", "width", "title"),
    [("clip", "clip", 12, "CLIP-FD"), ("dino", "dino", 16, "DINO-FD"), ("dino", "timm", 16, "DINO-FD")],
)
def test_features_of_frames(folder: Callable[[str], Path], name: str, source: str, width: int, title: str) -> None:
    options = ", side=32" if name == "dino" else ""
    extractor = EXTRACTORS.create(f"{name}(weights={str(folder(source))!r}{options})")
    assert (extractor.width, extractor.title) == (width, title)
    same_alone_and_together(extractor, [noise(3, 40, 60), noise(3, 40, 60, seed=1), noise(2, 32, 32), noise(1, 90, 50)])
    # Blind to the order of frames.
    given = noise(4, 32, 48)
    torch.testing.assert_close(extractor([given]), extractor([given.flip(0)]))
    assert set(extractor.card()) >= CARD
    assert extractor.card()["verified"] is False
    pinned = f"{name}(weights={str(folder(source))!r}{options}, sha256={extractor.card()['weights']!r})"
    assert EXTRACTORS.create(pinned).card()["verified"] is True
    with pytest.raises(SoraError, match="digest"):
        EXTRACTORS.create(pinned.replace("sha256:", "sha256:0"))


@pytest.mark.parametrize("source", ["dino", "timm"])
def test_dino_is_the_class_token_of_the_whole_frame(folder: Callable[[str], Path], source: str) -> None:
    """At the network's own size nothing is resized: the normed class token, by the library's own forward."""
    frames = noise(2, 32, 32)
    extractor = EXTRACTORS.create(f"dino(weights={str(folder(source))!r}, side=32)")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        if source == "dino":
            from transformers import ViTModel

            network = ViTModel.from_pretrained(folder(source), add_pooling_layer=False).eval()
            wanted = network(pixel_values=images).last_hidden_state[:, 0]
        else:
            import timm

            wanted = timm.create_model(f"local-dir:{folder(source)}", pretrained=True).eval().forward_features(images)
            wanted = wanted[:, 0]
    torch.testing.assert_close(extractor.embed_images(frames), wanted)


def test_dino_sees_whole_patches_of_the_short_side(folder: Callable[[str], Path]) -> None:
    extractor = EXTRACTORS.create(f"dino(weights={str(folder('dino'))!r}, side=32)")
    assert extractor.prepare(noise(2, 64, 110)).shape == (3, 2, 32, 48)  # of 32 x 55
    with pytest.raises(SoraError, match=r"side=30 .* patch, 8"):
        EXTRACTORS.create(f"dino(weights={str(folder('dino'))!r}, side=30)")


def test_clip_is_the_mean_of_embeddings(folder: Callable[[str], Path]) -> None:
    spec = f"clip(weights={str(folder('clip'))!r})"
    extractor, given = EXTRACTORS.create(spec), noise(3, 40, 60)
    torch.testing.assert_close(
        extractor([given])[0], extractor.encoder.embed_images(given).mean(dim=0).double(), rtol=1e-5, atol=1e-6
    )
    blunt = EXTRACTORS.create(spec.replace(")", ", antialias=False)"))
    assert blunt.card()["antialias"] is False
    assert not torch.allclose(blunt([given]), extractor([given]))


def test_videomae_is_the_norm_of_the_mean_over_tokens(folder: Callable[[str], Path]) -> None:
    pytest.importorskip("transformers")
    from transformers import VideoMAEForVideoClassification

    extractor = EXTRACTORS.create(f"videomae(weights={str(folder('videomae'))!r})")
    clips = [noise(16, 32, 32), noise(16, 32, 32, seed=1), noise(16, 50, 70)]
    same_alone_and_together(extractor, clips)
    network = VideoMAEForVideoClassification.from_pretrained(folder("videomae")).eval()
    with torch.no_grad():
        tokens = network.videomae(clips[0][None].permute(0, 1, 4, 2, 3) / 255).last_hidden_state
        wanted = network.fc_norm(tokens.mean(1))
    torch.testing.assert_close(extractor(clips[:1]), wanted.double(), rtol=1e-5, atol=1e-6)
    assert extractor.title == "VideoMAE-FD"
    assert set(extractor.card()) >= CARD
    assert extractor.prepare(torch.full((16, 8, 8, 3), 255, dtype=torch.uint8)).unique().tolist() == [1.0]
    with pytest.raises(SoraError, match="exactly 16"):
        extractor([noise(15, 32, 32)])
    other = EXTRACTORS.create(f"videomae(weights={str(folder('videomae'))!r}, normalise=True)")
    assert "ImageNet" in other.card()["range"]
    assert not torch.allclose(other(clips), extractor(clips))


@pytest.mark.parametrize("pooled", [False, True])
def test_videomae_without_a_norm_of_the_mean_norms_it_all_the_same(tmp_path: Path, pooled: bool) -> None:
    """By the norm of its tokens, or where it has none either, to mean 0 and variance 1."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tiny_videomae(tmp_path / "whole", use_mean_pooling=pooled)
    transformers.VideoMAEModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path)
    found = EXTRACTORS.create(f"videomae(weights={str(tmp_path)!r})")([noise(16, 32, 32)])
    torch.testing.assert_close(found.mean(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(found.square().mean()) == pytest.approx(1, abs=1e-3)


def test_only_vit_g_in_its_range_is_called_cd_fvd() -> None:
    transformers = pytest.importorskip("transformers")
    giant = transformers.VideoMAEConfig(hidden_size=1408, num_hidden_layers=40, num_attention_heads=16, patch_size=14)
    assert videomae.title_of(giant, normalise=False) == "CD-FVD"
    assert videomae.title_of(giant, normalise=True) == "VideoMAE-FD"
    assert videomae.title_of(transformers.VideoMAEConfig(), normalise=False) == "VideoMAE-FD"


def test_models_that_are_not_there_or_of_another_kind_are_refused(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("clip", "dino", "videomae"):
        with pytest.raises(SoraError, match="cannot load"):
            EXTRACTORS.create(f"{name}(weights={str(tmp_path / 'absent')!r})")
    with pytest.raises(SoraError, match="cannot load"):
        EXTRACTORS.create(f"videomae(weights={str(folder('dino'))!r})")
    with pytest.raises(SoraError, match="would be random"):
        EXTRACTORS.create(f"clip(weights={str(folder('dino'))!r})")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    with pytest.raises(SoraError, match=r"cannot load .* with timm"):
        EXTRACTORS.create(f"dino(weights={str(tmp_path)!r})")


# Torchvision.


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.release] if name == "mvit" else []) for name in TORCHVISION]
)
def test_penultimate_features_of_torchvision(classifier: Callable[[str], Path], name: str) -> None:
    extractor = EXTRACTORS.create(f"{name}(weights={str(classifier(name))!r})")
    assert extractor.width == WIDTHS[name]
    frames = extractor.min_frames
    clips = [noise(frames, 60, 80), noise(frames, 60, 80, seed=1)]
    same_alone_and_together(extractor, clips)
    if name == "r3d_18":  # the cheapest: the last layer on the features is torchvision's own answer
        weights = get_model_weights(TORCHVISION[name]).DEFAULT
        network = get_model(TORCHVISION[name], weights=None).eval()
        network.load_state_dict(torch.load(classifier(name), weights_only=True))
        with torch.no_grad():
            wanted = network(torch.stack([weights.transforms()(one.permute(0, 3, 1, 2)) for one in clips]))
            found = network.fc(extractor(clips).float())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    if frames > 1:
        with pytest.raises(SoraError, match="takes"):
            extractor([clips[0][:-1]])
    assert extractor.title.endswith("-FD, unpublished weights")
    assert set(extractor.card()) >= CARD
    assert extractor.card()["verified"] is False


@pytest.mark.parametrize("name", TORCHVISION)
def test_missing_weights_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    choice = get_model_weights(TORCHVISION[name]).DEFAULT
    file = choice.url.rpartition("/")[2]
    with pytest.raises(SoraError) as caught:
        EXTRACTORS.create(name)
    for word in (str(choice), file, file[-12:-4], str(tmp_path / "checkpoints" / file)):
        assert word in str(caught.value)


def test_weights_are_verified_by_the_hash_in_the_published_name(
    classifier: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = "s3d-d76dad2f.pth"
    fake = tmp_path / "checkpoints" / published
    fake.parent.mkdir()
    fake.symlink_to(classifier("s3d"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(SoraError, match="not d76dad2f: the download is damaged"):
        EXTRACTORS.create("s3d")
    monkeypatch.setattr(
        "lightning_sora.metrics.extractors.pretrained.file_sha256", lambda path: "d76dad2f".ljust(64, "0")
    )
    extractor = EXTRACTORS.create("s3d")
    assert extractor.title == "S3D-FD"
    assert extractor.card()["verified"] is True


def test_weights_of_another_network_are_refused(classifier: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="not those of torchvision's r3d_18"):
        EXTRACTORS.create(f"r3d_18(weights={str(classifier('s3d'))!r})")
    path = tmp_path / "odd.pth"
    torch.save({"weights": [1, 2]}, path)
    with pytest.raises(SoraError, match="no plain state_dict"):
        EXTRACTORS.create(f"s3d(weights={str(path)!r})")


def test_evaluation_mode_is_forced(classifier: Callable[[str], Path]) -> None:
    extractor = EXTRACTORS.create(f"s3d(weights={str(classifier('s3d'))!r})")
    given = [noise(13, 40, 40), noise(13, 40, 40, seed=1)]
    wanted = extractor(given)
    extractor.train()
    assert torch.equal(extractor(given), wanted)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
