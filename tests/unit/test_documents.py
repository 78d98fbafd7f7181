"""What is nested or refers to itself without end, in recipes, specs, flags and headers: refused in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from lightning_sora import documents
from lightning_sora.ablation.plan import read_plan
from lightning_sora.data.latents import read_header
from lightning_sora.documents import parse_yaml, refuse_unbounded
from lightning_sora.errors import SoraError
from lightning_sora.jobs.shards import claim
from lightning_sora.metrics.reference import FORMAT, ReferenceStatistics
from lightning_sora.recipe.files import read_recipe, with_quoted_specs
from lightning_sora.registry import Spec
from lightning_sora.sealing import read_json

DEEP = "[" * 5000 + "]" * 5000
NINE = ",".join(["*{0}"] * 9)
BOMB = "a0: &a0 [" + ",".join("x" * 9) + "]\n"
BOMB += "".join(f"a{n}: &a{n} [{NINE.format(f'a{n - 1}')}]\n" for n in range(1, 10))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000))

WRONG = {
    f"model: {DEEP}": "nested more than 100 deep",
    "".join(f"{'  ' * n}k:\n" for n in range(1000)): "nested more than 100 deep",
    CHAIN: "nested more than 100 deep",
    BOMB: "more than 100,000 parts",
    "model: &a {x: *a}": "refers to itself",
    "model: &a [[*a]]": "refers to itself",
    "a: &a {<<: *a}": "refers to itself",
    f"a: {'1' * 5000}": "4300 digits",
    "a: 2020-13-45": "month must be",
    "a: !!bool maybe": "not readable YAML",
    "a: !!timestamp x": "not readable YAML",
    "a: [": "not readable YAML",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_a_recipe_that_cannot_be_read_is_refused_by_every_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    for read in (read_recipe, read_plan):
        with pytest.raises(SoraError, match=rf"recipe.yaml .*{WRONG[text]}"):
            read(path)


@pytest.mark.parametrize("content", [b"model: \xff", b"model: \xe4"])
def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(SoraError, match="not UTF-8 text"):
        read_recipe(tmp_path / "recipe.yaml")


def test_recipes_are_read_as_yaml_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    assert len(recipes) > 10
    texts = [path.read_text() for path in recipes[::3]]
    texts += ["base: &b {x: [1, 2], y: null}\nother: {<<: *b, z: *b}", "\ufeffa: 1", "x", ""]
    monkeypatch.setattr(documents, "LARGEST", 1000)
    texts += ["a: [" + ", ".join(["b"] * 1200) + "]"]  # long, but written out
    for text in texts:
        assert parse_yaml(text, "it") == yaml.safe_load(text)


def test_flags_are_within_bounds() -> None:
    for flag in (
        f"--vars={DEEP[4500:-4500]}",
        DEEP[4500:-4500],
        "--vars=&a {b: *a}",
        "--vars={" + BOMB.strip().replace("\n", ", ") + "}",
    ):
        with pytest.raises(SoraError, match="write it plainly"):
            with_quoted_specs(["fit", flag])
    plain = ["--data.source=world(level='tiny', overrides={'a': [1]})", "--x=[1, {a: b}]", "--note=[unclosed", "*.mp4"]
    for flag in plain:
        refuse_unbounded(flag.partition("=")[2] or flag, flag)


@pytest.mark.parametrize(
    "value", ["-" * 10_000 + "1", "not " * 10_000 + "1", "a" + ".b" * 10_000, "1+" * 10_000 + "1", DEEP, "2**" * 10_000]
)
def test_a_spec_of_any_depth_is_read_or_refused_in_a_line(value: str) -> None:
    for spec in (f"part(x={value})", value):
        with pytest.raises(SoraError, match="cannot read the spec") as told:
            Spec.parse(spec)
        assert len(str(told.value)) < 1000


# Headers.


@pytest.mark.parametrize("content", ["[]", "5", "null", '"x"', DEEP, ""])
def test_a_header_of_another_kind_is_told_as_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(SoraError, match=r"cache.json is damaged"):
        read_header(str(tmp_path))
    with pytest.raises(SoraError, match="is damaged"):
        read_json(content.encode(), "it", "copy it again")
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(SoraError, match="is damaged; delete it"):
        claim(tmp_path, {"vae": "v"}, "delete it")


@pytest.mark.parametrize("change", [{"splits": []}, {"vae_stride": 5}, {"vae_stride": [1, 2, "x"]}, {"clips": 3}])
def test_a_header_whose_parts_are_of_another_kind_is_told_as_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    header = {"schema": 1, "vae_hash": "v", "vae_stride": [4, 8, 8], "dtype": "float32", "splits": {}, "clips": {}}
    (tmp_path / "cache.json").write_text(json.dumps(header))
    assert read_header(str(tmp_path)) == header
    (tmp_path / "cache.json").write_text(json.dumps(header | change))
    with pytest.raises(SoraError, match=f"damaged: {next(iter(change))} cannot be"):
        read_header(str(tmp_path))


WHOLE = {
    "counts": torch.tensor([12]),
    "totals": torch.zeros(1, 4, dtype=torch.float64),
    "outers": torch.eye(4, dtype=torch.float64)[None],
    "ids": torch.arange(12),
}


def kept(folder: Path, tensors: Mapping[str, torch.Tensor], fields: object) -> Path:
    """Statistics in a file whose name has the digest of its content."""
    header = {"lightning_sora": json.dumps({"format": FORMAT, "fields": fields}, sort_keys=True)}
    content = safetensors.torch.save(dict(tensors), header)
    path = folder / f"kept-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, []),
        ({}, {"clip": 5}),
        ({}, {"extractor": ["x"]}),
        ({"ids": torch.arange(11)}, {}),
        ({"ids": torch.arange(12)[None]}, {}),
        ({"ids": torch.arange(12.0)}, {}),
        ({"counts": torch.tensor([-12])}, {}),
        ({"counts": torch.tensor(12)}, {}),
        ({"outers": torch.zeros(1, 3, 3, dtype=torch.float64)}, {}),
        ({"totals": torch.zeros(1, 4)}, {}),
        ({"totals": torch.full((1, 4), torch.nan, dtype=torch.float64)}, {}),
        ({name: tensor[:0] for name, tensor in WHOLE.items()}, {}),
    ],
)
def test_statistics_that_cannot_be_are_refused_though_their_digest_is_right(
    tmp_path: Path, change: dict[str, torch.Tensor], fields: object
) -> None:
    assert len(ReferenceStatistics.load(kept(tmp_path, WHOLE, {})).ids) == 12
    with pytest.raises(SoraError, match="cannot be read as reference statistics"):
        ReferenceStatistics.load(kept(tmp_path, WHOLE | change, fields))
