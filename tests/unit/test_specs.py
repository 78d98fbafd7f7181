"""The one grammar by which parts are asked for, and what a registry says of its parts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_sora.ablation.plan import read_plan
from lightning_sora.errors import SoraError
from lightning_sora.lab.parts import HOMES, contract, registries, registry, specs
from lightning_sora.lit.pretrained import load_vae
from lightning_sora.models.configs import DiTConfig
from lightning_sora.models.vae import VAES, IdentityVAE, VideoVAE
from lightning_sora.names import at_home
from lightning_sora.nn.attention import layer_specs
from lightning_sora.plugins import load_plugins
from lightning_sora.recipe.parser import RecipeParser, parsing
from lightning_sora.recipe.recipe import Recipe
from lightning_sora.registry import Registry, Spec, named
from lightning_sora.specs import canonical, is_mapping


def readers() -> Registry[Any]:
    shelf: Registry[Any] = Registry("reader", given=("device",), path="run")

    @shelf.register("run")
    def run(device: str, *, path: str) -> tuple[str, str]:
        """Reads a run.

        Args:
            path: of its folder.
        """
        return device, path

    @shelf.register("hf")
    def hf(device: str, *, name: str, frames: int = 8) -> tuple[str, str, int]:
        return device, name, frames

    @shelf.register("openai")
    def openai(device: str, *, url: str, model: str) -> tuple[str, ...]:
        return device, url, model

    @shelf.register("facts")
    def facts(device: str, *, style: str = "dense", sizes: tuple[int, ...] = ()) -> tuple[Any, ...]:
        return device, style, sizes

    return shelf


WAYS = [
    ("facts", ("cpu", "dense", ())),
    ("facts(style='short')", ("cpu", "short", ())),
    ({"facts": {"style": "short", "sizes": [1, 2]}}, ("cpu", "short", [1, 2])),
    ({"facts": None}, ("cpu", "dense", ())),
    (Spec("facts", {"style": "tags"}), ("cpu", "tags", ())),
    ("spec:facts(style='short')", ("cpu", "short", ())),
    ("hf:models/t5", ("cpu", "models/t5", 8)),
    ("hf:a(b).c", ("cpu", "a(b).c", 8)),
    ("hf(name='models/t5', frames=2)", ("cpu", "models/t5", 2)),
    ("outputs/world_expander", ("cpu", "outputs/world_expander")),
    ("last.ckpt", ("cpu", "last.ckpt")),
    ("run:last", ("cpu", "last")),
]


@pytest.mark.parametrize(("asked", "made"), WAYS, ids=str)
def test_every_way_to_write_a_spec_is_read(asked: Any, made: object) -> None:
    assert readers().create(asked, "cpu") == made


def test_what_is_there_is_a_path_unless_a_part_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("facts", "mine (1)"):
        (tmp_path / name).mkdir()
    assert readers().create("mine (1)", "cpu") == ("cpu", "mine (1)")
    assert readers().create("facts", "cpu") == ("cpu", "dense", ())
    assert readers().create("./facts", "cpu") == ("cpu", "./facts")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("openai:http", "'openai' needs url, model; write 'openai(url=...)'"),
        ("facts:short", "'facts' needs none; write 'facts(style=...)'"),
        ("hff:models/t5", "unknown reader 'hff'; did you mean 'hf'"),
        ("untrained:facts", "'untrained:' is now 'spec:'; write 'spec:facts'"),
        ({"facts": {}, "hf": {}}, "a mapping it is of one name"),
        ({"facts": 3}, "a mapping it is of one name"),
        ({}, "a mapping it is of one name"),
        ({"facts": {"style": {"tags": {}}}}, "style={'tags': {}} must be str"),
        ({"facts": {"device": "cpu"}}, "does not accept 'device'"),
    ],
    ids=str,
)
def test_what_cannot_be_read_says_what_to_write(asked: Any, said: str) -> None:
    shelf = readers()
    shelf.path = None if isinstance(asked, str) else "run"
    with pytest.raises(SoraError) as caught:
        shelf.create(asked, "cpu")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("window( size=[2,4, 4] )", "window(size=(2, 4, 4))"),
        ({"window": {"size": [2, 4, 4]}}, "window(size=(2, 4, 4))"),
        ({"a": {"y": 1, "x": [{"k": [1]}]}}, "a(x=({'k': (1,)},), y=1)"),
        ("a(y=1,x='b')", "a(x='b', y=1)"),
        ({"full": None}, "full"),
        ("spec:window(size=[1])", "spec:window(size=(1,))"),
        ("outputs/vae.ckpt", "outputs/vae.ckpt"),
        ("spatial, temporal*3", "spatial, temporal*3"),
        ("hf:a/b", "hf:a/b"),
        ("2.5", "2.5"),
    ],
    ids=str,
)
def test_all_ways_have_one_text(asked: Any, text: str) -> None:
    assert canonical(asked) == text
    assert canonical(text) == text


def test_specs_that_ask_for_the_same_are_equal() -> None:
    one, other = Spec.parse("a(y=1,x=[2])"), Spec.parse({"a": {"x": (2,), "y": 1}})
    assert one == other
    assert len({one, other, Spec("a")}) == 2
    assert is_mapping({"a": {"b": 1}})
    assert not is_mapping({"model.dim": {}})


def test_a_part_must_take_what_it_is_given() -> None:
    with pytest.raises(SoraError, match="the reader 'new' must take device: every reader is given device"):
        readers().register("new")(lambda where: where)
    readers().register("free")(lambda **anything: anything)
    with pytest.raises(SoraError, match="cannot be named in a spec"):
        readers().register("no-word")(lambda device: device)


def test_a_class_that_lacks_a_method_is_refused_as_it_is_registered() -> None:
    with pytest.raises(SoraError, match="the VAE 'half' does not define decode, encode, as every VAE must"):
        VAES.register("half")(type("Half", (VideoVAE,), {}))


def test_a_bug_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from lightning_sora.diffusion.samplers import SAMPLERS\n"
        "@SAMPLERS.register('mine')\ndef mine(denoise, noise, times, progress=iter):\n"
        "    return noise.nothing\n"
        "@SAMPLERS.register('other')\nclass Other:\n    def __init__(self):\n        1 / 0\n"
        "    def __call__(self, denoise, noise, times, progress): ...\n"
    )
    with registry("sampler").temporary():
        load_plugins([file])
        first, *_ = contract("sampler").findings("mine")
        assert f"{file}, line 4, in mine: AttributeError" in str(first.problem)
        with pytest.raises(
            SoraError, match=r"other cannot be made: .*mine\.py, line 8, in __init__: ZeroDivisionError"
        ):
            list(contract("sampler").findings("other"))


def test_functions_and_what_is_called_like_them_are_parts_too() -> None:
    shelf: Registry[Any] = Registry("sum", given=("a", "b"), functions=True)

    @shelf.register("plain")
    def plain(a: int, b: int = 2, *, times: int = 1) -> int:
        return (a + b) * times

    @shelf.register("made")
    class Made:
        def __init__(self, b: int = 0) -> None:
            self.more = b

        def __call__(self, a: int, b: int = 2) -> int:
            return a + b + self.more

    assert shelf.create("plain") is plain
    assert isinstance(shelf.create("plain(times=3)"), partial)
    assert shelf.create("plain(times=3)")(1) == 9
    assert shelf.create("made(b=5)")(1) == 8
    assert shelf.describe("plain") == ("plain(times=1)", "")
    with pytest.raises(SoraError, match="does not accept 'b'"):
        shelf.create("plain(b=3)")
    with pytest.raises(SoraError, match="must take a, b"):
        shelf.register("factory")(lambda: plain)


def test_a_part_is_described_by_its_options_and_first_paragraph() -> None:
    assert readers().describe("run") == ("run(path=...)", "Reads a run.")
    assert readers().describe("facts")[0] == "facts(style='dense', sizes=())"


def test_home_is_found_behind_a_prefix() -> None:
    assert at_home("hf:~/models").startswith("hf:/")
    assert at_home("spec:~/models") == f"spec:{Path.home()}/models"
    assert at_home("a~/b") == "a~/b"


def test_every_listed_registry_has_its_home() -> None:
    assert set(registries()) == set(named()) == set(HOMES)
    assert all(registry(kind).name == kind for kind in HOMES)


@pytest.mark.parametrize("kind", HOMES)
def test_every_part_of_every_kind_is_documented(kind: str) -> None:
    assert all(registry(kind).describe(part)[1] for part in registry(kind).list())


def test_a_kind_is_told_once() -> None:
    with pytest.raises(SoraError, match="a registry 'attention' is there already, of the kind 'attention block'"):
        Registry("other", name="attention")


def test_a_package_may_add_a_kind_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_sora import registry as module

    monkeypatch.setattr(module, "_REGISTRIES", dict(named()))
    Registry("camera", name="camera").register("still")(dict)
    assert registry("camera").list() == ["still"]
    assert "camera" in registries()
    with pytest.raises(SoraError, match="parts of the kind 'camera' have no contract; those that do: attention"):
        contract("camera")


def test_what_is_to_be_checked_is_found_by_file_spec_or_wildcard(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from lightning_sora.nn.attention import register_attention\n"
        "from lightning_sora.nn.attention.window import WindowAttention\n"
        "@register_attention('mine')\nclass Mine(WindowAttention):\n    pass\n"
        "@register_attention('other')\nclass Other(WindowAttention):\n    pass\n"
    )
    wanted = [str(file), "mine(size=(1, 2, 2))", "win*"]
    assert specs("attention", wanted) == ["other", "mine(size=(1, 2, 2))", "window"]


def test_a_vae_with_weights_of_its_own_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Brought(IdentityVAE):
        pretrained = True

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), 3.0))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "brought").mkdir()  # no path, as there is a VAE of the name
    with VAES.temporary():
        VAES.register("brought")(Brought)
        for source in ("brought", "spec:brought"):
            vae, spec, run = load_vae(source, seed=0)
            assert (vae.weight.item(), spec, run) == (3.0, "brought", None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("causal_conv(dim=8)", "or 'spec:causal_conv(dim=8)' if fresh weights are what you want"),
        ("untrained:identity", "'untrained:' is now 'spec:'; write 'spec:identity'"),
        ("untrained:runs/vae.ckpt", "'untrained:' is now 'spec:'"),
        ("THUDM/CogVideoX-2b", '"diffusers(path=...)" for a model of a hub'),
        ("spec:identty", "did you mean 'identity'"),
    ],
)
def test_a_vae_that_cannot_be_had_says_how(source: str, said: str) -> None:
    with pytest.raises(SoraError) as caught:
        load_vae(source, seed=0)
    assert said in str(caught.value)


RECIPE = """
vars: {n: 8, size: {shapes: [cube]}}
model: {class_path: LitDiT, init_args: {vae: identity, dit: {attention: [full, {window: {size: [1, 2, 2]}}]}}}
data: {class_path: SpacetimeDataModule, init_args: {source: SOURCE, patch: [1, 8, 8], frames: 5}}
"""


@pytest.mark.parametrize(
    "source",
    [
        "{world: {clips: 8, overrides: {shapes: [cube]}}}",
        "\"world( overrides={'shapes': ['cube']}, clips=8)\"",
        '{world: {clips: "${vars.n}", overrides: "${vars.size}"}}',
    ],
)
def test_recipes_that_ask_for_the_same_are_the_same(source: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("SOURCE", source))
    recipe = Recipe.load(file)
    text = "world(clips=8, overrides={'shapes': ('cube',)})"
    assert recipe.options("data")["source"] == text
    assert recipe.identity()["data.source"] == text
    assert recipe.options("model")["dit"]["attention"] == ["full", "window(size=(1, 2, 2))"]
    changes = {"data.sizes": {"bucketed": {"tokens": 3}}, "data.source": {"folder": None}}
    changes |= {"model.optimizer": {"adamw": {"lr": 1e-3}}, "model.sampling.guidance": {"cfg": {"scale": 3.0}}}
    told = Recipe.load(file, changes).identity()
    assert (told["data.sizes"], told["data.source"]) == ("bucketed(tokens=3)", "folder")
    assert (told["model.optimizer"], told["model.sampling.guidance"]) == ("adamw(lr=0.001)", "cfg(scale=3.0)")


def test_what_a_parser_hands_on_is_plain_text_that_checkpoints_can_hold(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("SOURCE", "{world: {clips: 8}}"))
    with parsing():
        read = RecipeParser(["fit", f"--config={file}"]).config["fit"]
    model, data = read.model.init_args, read.data.init_args
    texts = [model.vae, model.optimizer, *model.dit.attention, model.sampling.guidance, data.source, data.sizes]
    assert {type(text) for text in texts} <= {str, float}


def test_a_mapping_of_two_parts_is_refused_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("SOURCE", "{world: {}, folder: {}}"))
    with pytest.raises(SoraError, match=r"^data\.source: cannot read the spec .* of one name to its options"):
        Recipe.load(file)


def test_arms_may_be_mappings(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {}\n")
    file = tmp_path / "plan.yaml"
    plan = "base: base.yaml\nfactor: model.attention\nseeds: [0]\nbudget: {steps: 4}\narms: "
    file.write_text(f"{plan}[full, {{window: {{size: [1, 2, 2]}}}}]\n")
    assert read_plan(file).arms == {name: name for name in ("full", "window(size=(1, 2, 2))")}
    file.write_text(f"{plan}{{a: {{window: {{size: [1]}}}}, b: 'window(size=(1,))'}}\n")
    with pytest.raises(SoraError, match="arms 'a' and 'b' have the same value"):
        read_plan(file)


def test_groups_of_options_take_mappings_and_say_their_types() -> None:
    window = {"window": {"size": [1, 2, 2]}}
    assert DiTConfig(attention=window).attention == "window(size=(1, 2, 2))"
    assert DiTConfig.of({"attention": ["full", window]}).attention == ["full", "window(size=(1, 2, 2))"]
    with pytest.raises(SoraError, match=r"dit: attention=3 must be str or list\[str\]"):
        DiTConfig(attention=3)


def test_a_pattern_of_layers_takes_mappings() -> None:
    window = {"window": {"size": [1, 2, 2]}}
    expected = [Spec.parse("full"), Spec.parse(window)]
    assert layer_specs(["full", window], 2) == expected
    assert layer_specs(window, 1) == expected[1:]
