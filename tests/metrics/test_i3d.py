"""I3D: the official graph's outputs, checksums that let one network pass, and each protocol's resizing."""

import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.metrics.extractors.base import EXTRACTORS
from lightning_sora.metrics.extractors.i3d import PRESETS, I3DExtractor
from lightning_sora.metrics.extractors.i3d_network import I3D, same_padding
from lightning_sora.metrics.extractors.i3d_weights import (
    PREFIX,
    crc32c,
    crc_table,
    load_i3d,
    published_table,
    tf_name,
)

FLIPPED = "RGB/inception_i3d/Mixed_4d/Branch_1/Conv3d_0b_3x3/conv_3d/w"


def variables() -> dict[str, np.ndarray]:
    """The weights that the golden outputs were made with, in TensorFlow's layout."""
    found = {}
    for name, row in sorted(published_table().items()):
        random, shape = np.random.RandomState(zlib.crc32(name.encode())), row["shape"]
        if name.endswith("/w"):
            value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif name.endswith("moving_variance"):
            value = 0.5 + random.rand(*shape)
        else:
            value = random.standard_normal(shape) * 0.1
        found[name] = value.astype(np.float32)
    return found


def in_torch(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value.transpose(4, 3, 0, 1, 2) if value.ndim == 5 else value))


def piergiaj(name: str) -> str:
    """The name of piergiaj's network for a TensorFlow variable."""
    parts = name.removeprefix(PREFIX).split("/")
    leaf = {
        "conv_3d/w": "conv3d.weight",
        "conv_3d/b": "conv3d.bias",
        "batch_norm/beta": "bn.bias",
        "batch_norm/moving_mean": "bn.running_mean",
        "batch_norm/moving_variance": "bn.running_var",
    }["/".join(parts[-2:])]
    if parts[0] == "Logits":
        return f"logits.{leaf}"
    if not parts[0].startswith("Mixed"):
        return f"{parts[0]}.{leaf}"
    branch = parts[1][-1]
    letter = "" if branch == "0" else "b" if branch == "3" or "3x3" in parts[2] else "a"
    return f"{parts[0]}.b{branch}{letter}.{leaf}"


def tree(tensors: dict[str, Tensor]) -> nn.Module:
    """A module whose state_dict has these names; its forward uses none of them."""

    class Node(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    root = Node()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        node: nn.Module = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_buffer(leaf, tensor)
    return root


def save_script(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.trace(module, torch.zeros(1)), path)


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    return variables()


@pytest.fixture(scope="module")
def network(values: dict[str, np.ndarray]) -> I3D:
    made = I3D()
    made.load_state_dict({key: in_torch(values[tf_name(key)]) for key in made.state_dict()})
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def table(network: I3D) -> Any:
    return crc_table(network)


@pytest.fixture(scope="module")
def named(values: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {piergiaj(name): in_torch(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def data_file(values: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TensorFlow data file of the synthetic weights."""
    path = tmp_path_factory.mktemp("i3d") / "model.ckpt.data-00000-of-00001"
    path.write_bytes(b"".join(values[name].tobytes() for name in sorted(values)))
    return path


@pytest.fixture(scope="module")
def extractor(data_file: Path, table: Any) -> I3DExtractor:
    return I3DExtractor(str(data_file), table=table)


@pytest.fixture(scope="module")
def golden() -> Any:
    root = os.environ.get("LIGHTNING_SORA_TEST_DATA")
    if not root:
        pytest.skip("LIGHTNING_SORA_TEST_DATA is unset: the outputs of the official graph are not at hand")
    with np.load(Path(root) / "i3d" / "golden_outputs.npz") as file:
        return dict(file)


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def relative(found: Tensor, wanted: np.ndarray) -> float:
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("frames", [10, 15, 16, 17])
def test_logits_are_those_of_the_official_graph(
    frames: int, network: I3D, extractor: I3DExtractor, golden: Any
) -> None:
    noise = np.random.RandomState(frames).rand(1, frames, 224, 224, 3).astype(np.float32) * 2 - 1
    clips = torch.from_numpy(noise).permute(0, 4, 1, 2, 3)
    trunk = network.trunk(clips)
    assert relative(trunk.mean(dim=(2, 3, 4)), golden[f"m{frames}"]) < 1e-5
    assert relative(network(clips), golden[f"y{frames}"]) < 1e-5
    with torch.no_grad():
        assert relative(extractor.features(clips), golden[f"y{frames}"]) < 1e-5, "with batch norms folded"


@pytest.mark.parametrize("frames", [10, 16])
def test_black_and_white_clips_give_the_official_logits(frames: int, extractor: I3DExtractor, golden: Any) -> None:
    for name, level in (("black", 0), ("white", 255)):
        clip = torch.full((frames, 64, 64, 3), level, dtype=torch.uint8)
        assert relative(extractor([clip]), golden[f"{name}{frames}"]) < 1e-5


def test_the_names_of_the_network_are_those_of_the_checkpoint(table: Any) -> None:
    assert {k: v["shape"] for k, v in table.items()} == {k: v["shape"] for k, v in published_table().items()}


@pytest.mark.parametrize(("size", "kernel", "stride"), [(224, 7, 2), (9, 7, 2), (112, 3, 2), (7, 3, 1), (5, 2, 2)])
def test_same_padding_gives_one_output_for_each_stride_begun(size: int, kernel: int, stride: int) -> None:
    (before,), (after,) = same_padding([size], [kernel], [stride])
    assert (size + before + after - kernel) // stride + 1 == math.ceil(size / stride)
    assert after - before in (0, 1)


def bitwise_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksums_are_castagnolis() -> None:
    """RFC 3720, appendix B.4, and every length against the definition."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    data = np.random.RandomState(0).bytes(300)
    for length in (0, 1, 2, 3, 4, 5, 7, 8, 31, 63, 64, 65, 255, 300):
        assert crc32c(data[:length]) == bitwise_crc32c(data[:length])


def test_a_tensorflow_data_file_loads(data_file: Path, network: I3D, table: Any) -> None:
    assert same(load_i3d(data_file, table), network)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_archive_of_known_names_loads(
    tmp_path: Path, named: dict[str, Tensor], network: I3D, table: Any
) -> None:
    save_script(tree(named), tmp_path / "i3d_torchscript.pt")
    assert same(load_i3d(tmp_path / "i3d_torchscript.pt", table), network)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_archive_of_unknown_names_loads_by_its_checksums(
    tmp_path: Path, values: dict[str, np.ndarray], network: I3D, table: Any
) -> None:
    """Half of the kernels in torch's layout, half in TensorFlow's."""
    tensors = {
        f"part{i}.value": in_torch(value) if i % 2 else torch.from_numpy(value)
        for i, value in enumerate(reversed(values.values()))
    }
    save_script(tree(tensors), tmp_path / "any.pt")
    assert same(load_i3d(tmp_path / "any.pt", table), network)


def test_state_dicts_load(tmp_path: Path, named: dict[str, Tensor], network: I3D, table: Any) -> None:
    ones = {name.replace("running_mean", "weight"): torch.ones_like(v) for name, v in named.items() if "_mean" in name}
    counters = {"Conv3d_1a_7x7.bn.num_batches_tracked": torch.tensor(3)}
    wrapped = {f"module.{name}": value for name, value in {**named, **ones, **counters}.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "piergiaj.pt")
    assert same(load_i3d(tmp_path / "piergiaj.pt", table), network)
    save_file(network.state_dict(), tmp_path / "ours.safetensors")
    assert same(load_i3d(tmp_path / "ours.safetensors", table), network)


def test_one_flipped_bit_is_refused_by_name(tmp_path: Path, data_file: Path, table: Any) -> None:
    data, offset = bytearray(data_file.read_bytes()), 0
    for name in sorted(table):
        if name == FLIPPED:
            break
        offset += 4 * math.prod(table[name]["shape"])
    data[offset + 1001] ^= 4
    (tmp_path / "variables.data-00000-of-00001").write_bytes(data)
    with pytest.raises(SoraError, match=f"1 of 230 tensors are not the published ones, the first '{FLIPPED}'"):
        load_i3d(tmp_path / "variables.data-00000-of-00001", table)


def test_a_data_file_cut_short_is_refused(tmp_path: Path, data_file: Path, table: Any) -> None:
    (tmp_path / "variables.data-00000-of-00001").write_bytes(data_file.read_bytes()[:-4])
    with pytest.raises(SoraError, match="has 50818172 bytes, and the weights of I3D are 50818176"):
        load_i3d(tmp_path / "variables.data-00000-of-00001", table)


@pytest.mark.parametrize("known", [True, False])
def test_another_network_is_refused_as_such(known: bool, tmp_path: Path, named: dict[str, Tensor]) -> None:
    """The synthetic weights have the names and shapes of FVD's network, and are not it."""
    tensors = named if known else {f"part{i}": tensor for i, tensor in enumerate(named.values())}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(SoraError, match=r"this is another network .*ImageNet.* download either the TF-Hub module"):
        load_i3d(tmp_path / "other.safetensors")


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path, named: dict[str, Tensor], table: Any) -> None:
    save_file({k: v for k, v in named.items() if k != piergiaj(FLIPPED)}, tmp_path / "less.safetensors")
    with pytest.raises(SoraError, match=f"lacks 1 of the 230 tensors of I3D, the first '{FLIPPED}'"):
        load_i3d(tmp_path / "less.safetensors", table)


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path: Path, named: dict[str, Tensor], table: Any) -> None:
    save_file({**named, "logits.conv3d.bias": torch.zeros(157)}, tmp_path / "charades.safetensors")
    with pytest.raises(SoraError, match=r"Logits/Conv3d_0c_1x1/conv_3d/b' has the shape \[157\].* must have \[400\]"):
        load_i3d(tmp_path / "charades.safetensors", table)


def test_a_batch_norm_scale_is_refused(tmp_path: Path, named: dict[str, Tensor], table: Any) -> None:
    scales = {"Mixed_3b.b0.bn.weight": torch.full((64,), 1.01)}
    save_file({**named, **scales}, tmp_path / "scaled.safetensors")
    with pytest.raises(SoraError, match=r"batch-norm scale 'Mixed_3b\.b0\.bn\.weight' that is not all ones"):
        load_i3d(tmp_path / "scaled.safetensors", table)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    (tmp_path / "noise.pt").write_bytes(np.random.RandomState(0).bytes(1000))
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name in ("trap.pt", "noise.pt", "noise.safetensors"):
        with pytest.raises(SoraError, match="cannot be read as weights of I3D"):
            load_i3d(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_absent_weights_say_what_to_download_and_where_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = r"deepmind/i3d-kinetics-400/1.*50818176 bytes.*fa7df95674dbf3579e7fccd954e51e706b4734c1.*i3d_torchscript"
    with pytest.raises(SoraError, match=rf"no file '.*nowhere\.pt'.*{wanted}"):
        EXTRACTORS.create(f"i3d(weights='{tmp_path / 'nowhere.pt'}')")
    monkeypatch.delenv("LIGHTNING_SORA_I3D", raising=False)
    with pytest.raises(SoraError, match=rf"none are named: .*{wanted}.*LIGHTNING_SORA_I3D"):
        EXTRACTORS.create("i3d")
    monkeypatch.setenv("LIGHTNING_SORA_I3D", str(tmp_path / "elsewhere.pt"))
    with pytest.raises(SoraError, match=r"no file '.*elsewhere\.pt'"):
        EXTRACTORS.create("i3d")


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(SoraError, match=r"unknown protocol 'tf' .*known: cd-fvd, center-crop, stylegan-v, tf-original"):
        EXTRACTORS.create("i3d(protocol='tf')")


def test_the_card_says_what_was_done(extractor: I3DExtractor, table: Any, network: I3D, tmp_path: Path) -> None:
    card = extractor.card()
    assert (card["name"], card["preset"], card["antialias"], card["width"]) == ("i3d", "tf-original", False, 400)
    assert not card["verified"], "the table is not the published one"
    assert card["title"] != I3DExtractor.title == "FVD"
    save_file(network.state_dict(), tmp_path / "ours.safetensors")
    other = I3DExtractor(str(tmp_path / "ours.safetensors"), "center-crop", table)
    assert other.card()["weights"] == card["weights"], "one digest for the weights, whatever the file"
    assert (other.card()["preset"], other.card()["crop"]) == ("center-crop", "centre 224x224")


def test_features_do_not_depend_on_the_batch_and_keep_the_order(extractor: I3DExtractor, network: I3D) -> None:
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randint(256, (9, 224, 224, 3), dtype=torch.uint8, generator=generator) for _ in range(2)]
    together = extractor(clips)
    assert together.shape == (2, 400)
    assert together.dtype == torch.float64
    assert relative(extractor(clips[1:])[0], together[1].numpy()) < 1e-5
    plain = network((2 * clips[0].permute(3, 0, 1, 2).float() / 255 - 1)[None])
    assert relative(plain[0].double(), together[0].numpy()) < 1e-5


def test_a_clip_of_eight_frames_is_refused(extractor: I3DExtractor) -> None:
    with pytest.raises(SoraError, match=r"clips of 8 frames are given to .* at least 9"):
        extractor([torch.zeros((8, 32, 32, 3), dtype=torch.uint8)])


def weights_of(size: int, out: int, legacy: bool) -> np.ndarray:
    """The [out, size] matrix of bilinear resampling, one pixel at a time."""
    matrix = np.zeros((out, size))
    for i in range(out):
        at = np.float32(i) * np.float32(size / out) if legacy else max((i + 0.5) * size / out - 0.5, 0.0)
        low = min(math.floor(at), size - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, size - 1)] += at - low
    return matrix


def expected(frame: np.ndarray, protocol: str) -> np.ndarray:
    height, width = frame.shape[:2]
    rows, columns = 224, 224
    if protocol == "center-crop":
        short = min(height, width)
        rows, columns = math.ceil(height * 224 / short), math.ceil(width * 224 / short)
    legacy = protocol == "tf-original"
    made = weights_of(height, rows, legacy) @ frame.transpose(2, 0, 1) @ weights_of(width, columns, legacy).T
    top, left = (rows - 224) // 2, (columns - 224) // 2
    return 2 * made[:, top : top + 224, left : left + 224] / 255 - 1


@pytest.mark.parametrize("protocol", sorted(PRESETS))
@pytest.mark.parametrize("size", [(5, 7), (64, 64), (256, 340), (341, 230)])
def test_frames_are_resized_as_the_protocol_says(
    protocol: str, size: tuple[int, int], extractor: I3DExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractor, "protocol", protocol)
    clip = np.random.RandomState(1).randint(0, 256, (2, *size, 3)).astype(np.uint8)
    found = extractor.prepare(torch.from_numpy(clip))
    assert found.shape == (3, 2, 224, 224)
    assert found.dtype == torch.float32
    for index, frame in enumerate(clip):
        assert np.abs(found[:, index].numpy() - expected(frame.astype(np.float64), protocol)).max() < 1e-4


def test_protocols_leave_frames_of_their_size_alone_and_keep_the_ends_of_the_range(
    extractor: I3DExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.randint(256, (1, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    wanted = (2 * clip.permute(3, 0, 1, 2).float() / 255) - 1
    for protocol in PRESETS:
        monkeypatch.setattr(extractor, "protocol", protocol)
        assert torch.equal(extractor.prepare(clip), wanted)
        for level, end in ((0, -1.0), (255, 1.0)):
            flat = extractor.prepare(torch.full((1, 40, 60, 3), level, dtype=torch.uint8))
            torch.testing.assert_close(flat, torch.full_like(flat, end), rtol=0, atol=1e-6)
