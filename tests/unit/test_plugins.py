"""Plugins: files that register parts of their own."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

import lightning_sora as ls
from lightning_sora import plugins
from lightning_sora.cli import main
from lightning_sora.errors import SoraError
from lightning_sora.nn.attention import ATTENTION, register_attention
from lightning_sora.nn.attention.full import FullAttention
from lightning_sora.recipe.files import plugin_files, with_plugins

HEAD = (
    "from lightning_sora.nn.attention import register_attention\n"
    "from lightning_sora.nn.attention.full import FullAttention\n"
)


def block(folder: Path, name: str, body: str = "    pass\n") -> Path:
    file = folder / f"{name}.py"
    file.write_text(
        f"{HEAD}\n\n@register_attention('{name}')\nclass Made(FullAttention):\n    '''Made here.'''\n\n{body}"
    )
    return file


def test_a_file_is_run_once_and_remembered(tmp_path: Path) -> None:
    file = block(tmp_path, "once")
    (first,), (second,) = plugins.load_plugins([file]), plugins.load_plugins([str(file)])
    assert first is second
    assert plugins.loaded()["once.py"].source == file.read_text()
    assert "once" in ATTENTION.list()


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    file = block(tmp_path, "moving")
    plugins.load_plugins([file])
    file.write_text(file.read_text() + "\n# edited\n")
    with pytest.raises(SoraError, match="has changed"):
        plugins.load_plugins([file])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError.*line 1"),
        ("x = 1\ny = (\n", "SyntaxError"),
        ("x = 1\n\nraise ValueError('no')\n", "ValueError: no in line 3"),
        ("import sys\n\nsys.exit(3)\n", "SystemExit: 3 in line 3"),
        ("x = 1\n\ny = '\udcff'\n", "cannot be read: UnicodeDecodeError"),
        ("# coding: nonsense\n", "cannot be read: SyntaxError"),
        (f"{HEAD}register_attention('full')(FullAttention)\n", "registered already"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SoraError, match=said):
        plugins.load_plugins([file])
    assert plugins.loaded() == {}


def test_a_file_may_tell_its_encoding(tmp_path: Path) -> None:
    file = tmp_path / "latin.py"
    file.write_bytes("# coding: latin-1\nname = 'caf\xe9'\n".encode("latin-1"))
    (plugin,) = plugins.load_plugins([file])
    assert plugin.source == "# coding: latin-1\nname = 'caf\xe9'\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for name in ("gone.py", "note.txt"):
        with pytest.raises(SoraError, match=r"no plugin at .*my_block\.py"):
            plugins.load_plugins([tmp_path / name])


def test_packages_offer_plugins_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value, dist = "mine", "a_package.blocks", None

        def load(self) -> None:
            raise ImportError("it is broken")

    monkeypatch.setattr(plugins, "_offered", lambda: (Entry(),))
    monkeypatch.setattr(plugins, "_PACKAGES", set())
    with pytest.raises(
        SoraError, match=r"'mine' of an installed package cannot be loaded.*it is broken.*; mend or uninstall an"
    ):
        ATTENTION.list()
    monkeypatch.setattr(Entry, "value", "lightning_sora.of_another_version")
    with pytest.raises(SoraError, match=r"it is broken\); install it anew"):
        ATTENTION.list()
    monkeypatch.setattr(Entry, "load", lambda self: register_attention("of_a_package")(FullAttention))
    assert "of_a_package" in ATTENTION.list()
    plugins.load_packages()  # once: a second time would be refused
    assert ATTENTION.builder("of_a_package") is FullAttention


def test_what_takes_long_to_import_waits_until_its_kind_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "patient.py").write_text("PARTS = {'attention': ['patient_blocks'], 'class': ['patient_classes']}\n")
    (tmp_path / "patient_blocks.py").write_text(f"{HEAD}register_attention('patient')(FullAttention)\n")
    (tmp_path / "patient_classes.py").write_text("raise ImportError('it is broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = metadata.EntryPoint("mine", "patient", plugins.GROUP)
    monkeypatch.setattr(plugins, "_offered", lambda: (entry,))
    monkeypatch.setattr(plugins, "_PACKAGES", set())
    monkeypatch.setattr(plugins, "_PARTS", {})
    ls.SAMPLERS.list()
    assert "patient_blocks" not in sys.modules
    assert ATTENTION.builder("patient") is FullAttention
    with pytest.raises(SoraError, match=r"'mine' of an installed package cannot be loaded.*it is broken"):
        plugins.load_packages()


def test_an_unknown_part_of_a_package_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_offered", lambda: ())
    with pytest.raises(SoraError, match=r"unknown source 'wurld'.*not installed: `pip install -e \.`"):
        ls.SOURCES.builder("wurld")


def test_recipes_and_flags_name_plugins(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("plugins: [a.py]\n")
    arguments = with_plugins(["fit", "--plugins", "b.py", "--plugins=c.py", "--model.dim=3"])
    assert arguments == ["fit", "--plugins+=b.py", "--plugins+=c.py", "--model.dim=3"]
    assert plugin_files([recipe], arguments) == ["a.py", "b.py", "c.py"]
    recipe.write_text("plugins: a.py\n")
    with pytest.raises(SoraError, match="list of paths"):
        plugin_files([recipe], [])
    with pytest.raises(SoraError, match="needs a file"):
        with_plugins(["fit", "--plugins"])


def test_a_block_of_ones_own_is_listed_and_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = block(tmp_path, "good")
    assert main(["list", "attention", "good", "--plugins", str(good)]) == 0
    assert "Made here." in capfd.readouterr().out


def test_a_block_that_breaks_the_contract_fails_its_check(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_sora.nn.attention import contract

    chosen = ("counts_its_flops", "state_loads_strictly")
    monkeypatch.setattr(contract.CONTRACT, "laws", {name: contract.CONTRACT.laws[name] for name in chosen})
    bad = block(tmp_path, "bad", "    def flops(self, layout, text_tokens=0):\n        return 1\n")
    assert main(["list", "attention", "--check", str(bad)]) == 1
    printed = " ".join(capfd.readouterr().out.split())
    assert "flops() says 1, torch counts" in printed
    assert "bad: 2 checks" in printed


def test_a_sampler_of_ones_own_is_checked_with_its_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import lightning_sora as ls\n\n\n@ls.SAMPLERS.register('shortened')\n"
        "def shortened(denoise, noise, times, progress=iter, *, by: float):\n"
        "    for t, s in progress(list(zip(times, times[1:]))):\n"
        "        noise = noise + (1 - by) * (s - t) / t * (noise - denoise(noise, t))\n"
        "    return noise\n"
    )
    with ls.SAMPLERS.temporary():
        assert main(["list", "sampler", "--check", str(file), "shortened(by=0)"]) == 0
        assert main(["list", "sampler", "--check", "shortened(by=0.5)"]) == 1
        assert main(["list", "sampler", "--check", "shortened"]) == 2
    said = capfd.readouterr()
    assert "shortened(by=0): 7 checks" in said.out
    assert "it does not end at the point" in " ".join(said.out.split())
    assert "needs 'by'; write 'shortened(by=...)'" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attention", "--check", "nothing_like_it"], "unknown attention block"),
        (["guidance", "--check", "cfg"], "have no contract; those that do: attention"),
        (["guidence"], "did you mean 'guidance'"),
        (["attention", "--check", "zzz*"], "no attention block matches"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *arguments]) == 2
    assert said in capfd.readouterr().err


def test_a_file_without_a_block_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    assert main(["list", "attention", "--check", str(empty)]) == 2
    assert "registers no attention block; decorate one with @register_attention('NAME')" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["kernel", "weighting", "guidance", "schedule", "engine", "sampler", "objective"])
def test_every_kind_can_be_listed(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    printed = capfd.readouterr().out
    assert printed
    assert "(not documented)" not in printed
