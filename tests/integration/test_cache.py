"""``data cache``: encode once, train as from pixels."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import yaml

import lightning_sora as ls
from lightning_sora import media
from lightning_sora.cli import main
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.errors import SoraError
from lightning_sora.jobs.engines import ENGINES
from lightning_sora.lit import LitVAE
from lightning_sora.models.text import TEXT_ENCODERS
from lightning_sora.spacetime import Crop, VideoSize
from tests.integration.conftest import VAE, make_dit, make_vae
from tests.toys import InThisProcess
from tests.unit.test_text import folders  # noqa: F401

DATA = {
    "source": "world(level='tiny', clips=8, heldout_clips=4)",
    "patch": [4, 8, 8], "frames": 9, "height": 16, "width": 16, "fps": 8.0, "batch_size": 4, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside the checkpoint of its VAE, which is scaled but hardly trained."""
    root = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=root,
    )  # fmt: skip
    trainer.fit(make_vae(), SpacetimeDataModule(**DATA))  # type: ignore[arg-type]
    trainer.save_checkpoint(root / "vae.ckpt")
    content = {
        "model": {"class_path": "LitDiT", "init_args": {"vae": str(root / "vae.ckpt")}},
        "data": {"class_path": "SpacetimeDataModule", "init_args": DATA},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(content))
    return root / "recipe.yaml"


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [
        "data",
        "cache",
        "--config",
        str(recipe),
        "--out",
        str(out),
        "--shard-clips",
        "3",
        "--engine",
        "inline",
        *more,
    ]


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with ENGINES.temporary():
        ENGINES.register("inline")(InThisProcess)
        yield


@pytest.fixture(scope="module")
def cached(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "latents"
    assert main(command(recipe, out)) == 0
    return out


def test_a_notebook_makes_what_the_command_makes_and_is_told_what_it_is(recipe: Path, cached: Path) -> None:
    before = contents(cached)
    made = ls.cache_latents(ls.Recipe.load(recipe), cached, shard_clips=3, engine="inline")
    assert (made.folder, made.clips, made.skipped) == (cached, {"train": 8, "val": 4}, {"train": [], "val": []})
    assert contents(cached) == before
    assert "train: 8 clips, 0 unreadable" in made._repr_html_()
    for options, words in (({"dtype": "int8"}, "dtype='int8' must be of"), ({"splits": ("dev",)}, "'dev' must be of")):
        with pytest.raises(SoraError, match=words):
            ls.cache_latents(ls.Recipe.load(recipe), cached, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, str]:
    """Every file but the logs, and what was half written, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts and not path.name.startswith(".")
    }


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def test_training_from_the_cache_is_training_from_pixels(
    recipe: Path, cached: Path, make_trainer: Callable[..., pl.Trainer]
) -> None:
    seen = []
    for source in ({}, {"source": "latents", "root": str(cached)}):
        losses = Losses()
        data = SpacetimeDataModule(**{**DATA, **source})  # type: ignore[arg-type]
        trainer = make_trainer(callbacks=[losses], max_steps=6, limit_val_batches=1.0)
        dit = make_dit(str(recipe.with_name("vae.ckpt")))
        trainer.fit(dit, data)
        trainer.validate(dit, data, verbose=False)
        seen.append((losses.values, float(trainer.callback_metrics["val/loss"]), dit.native_size))
    (pixels, val_pixels, size), (latents, val_latents, size_again) = seen
    assert len(pixels) == 6
    assert latents == pytest.approx(pixels, rel=1e-5)
    assert val_latents == pytest.approx(val_pixels, rel=1e-5)
    assert size == size_again == (9, 16, 16)


def test_another_vae_is_refused_before_any_step(
    cached: Path, make_trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    dit = make_dit(f"spec:{VAE}")
    monkeypatch.setattr(dit, "training_step", lambda *_: pytest.fail("a step was taken"))
    data = SpacetimeDataModule(**{**DATA, "source": "latents", "root": str(cached)})  # type: ignore[arg-type]
    with pytest.raises(SoraError, match="latents of VAE"):
        make_trainer().fit(dit, data)


def test_under_buckets_too_a_cache_has_the_sizes_and_the_order_of_its_pixels(recipe: Path, tmp_path: Path) -> None:
    """Of buckets whose sides are rounded, and clips of which some are left out."""
    changed = {
        "source": "world(clips=12, heldout_clips=4, native=((9,48,16),(5,24,40),(9,33,33),(9,8,8)))",
        "sizes": "bucketed(frames=(5, 9), resolutions=(28,))", "height": 32, "width": 32,
    }  # fmt: skip
    content = yaml.safe_load(recipe.read_text())
    content["data"]["init_args"] |= changed
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(command(tmp_path / "recipe.yaml", tmp_path / "out")) == 0
    seen = []
    for source in ({}, {"source": "latents", "root": str(tmp_path / "out")}):
        data = SpacetimeDataModule(**{**DATA, **changed, **source})  # type: ignore[arg-type]
        plan = data.plan("train")
        infos = data.source("train").infos
        seen.append([
            [(infos[clip].id, grid) for clip, grid in zip(batch.clips, batch.grids, strict=True)]
            for epoch in range(3) for batch in plan.epoch(epoch)
        ])  # fmt: skip
        assert source or plan.usage.dropped_clips
        for batch in data.loader("train"):
            assert len(batch)
    assert seen[0] == seen[1]


def test_a_split_may_be_added_to_a_cache(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(recipe, out, "--splits", "train")) == 0
    assert main(command(recipe, out, "--splits", "test")) == 0
    assert main(command(recipe, tmp_path / "both", "--splits", "train,test")) == 0
    assert contents(out) == contents(tmp_path / "both")


def test_a_cache_keeps_every_caption_of_a_clip(recipe: Path, tmp_path: Path) -> None:
    told = "world(clips=4, heldout_clips=2, languages=['en', 'zh', 'ar'], alternatives=['natural', 'dense'])"
    assert main(command(recipe, tmp_path / "out", f"--data.source={told}")) == 0
    for split, captions in (("train", 5), ("val", 1)):
        pixels, latents = (
            SpacetimeDataModule(**{**DATA, **source}).source(split)  # type: ignore[arg-type]
            for source in ({"source": told}, {"source": "latents", "root": str(tmp_path / "out")})
        )
        for index in range(len(pixels.infos)):
            one, other = (
                source.load(index, Crop(VideoSize(9, 16, 16), 8.0), generator=torch.Generator())
                for source in (pixels, latents)
            )
            assert (one.caption, one.alternatives) == (other.caption, other.alternatives)
            assert len({one.caption, *one.alternatives}) == captions


def test_an_untrained_vae_is_that_of_the_recipe_s_seed(recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["model"]["init_args"] = {"vae": f"spec:{VAE}", "seed": 3}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(command(tmp_path / "recipe.yaml", tmp_path / "out")) == 0
    data = SpacetimeDataModule(**{**DATA, "source": "latents", "root": str(tmp_path / "out")})  # type: ignore[arg-type]
    make_dit(f"spec:{VAE}", seed=3).model.check_latents(data.source("train").vae_hash)


def test_another_size_is_refused_when_the_loader_is_made(cached: Path) -> None:
    data = SpacetimeDataModule(**{**DATA, "frames": 5, "source": "latents", "root": str(cached)})  # type: ignore[arg-type]
    with pytest.raises(SoraError, match="cached as 9x16x16"):
        data.loader("train")


@pytest.mark.release
def test_a_killed_cache_goes_on_to_the_same_bytes(recipe: Path, cached: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    killed = subprocess.Popen(
        [sys.executable, "-m", "lightning_sora.cli", *command(recipe, out, "--engine", "local")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not list(out.glob("shards/*.safetensors")) and killed.poll() is None:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (out / "cache.json").exists()
    with pytest.raises(SoraError, match="run that to the end"):
        SpacetimeDataModule(**{**DATA, "source": "latents", "root": str(out)}).source("train")  # type: ignore[arg-type]
    first = out / "shards" / "train-00000000.safetensors"
    made = first.stat().st_mtime_ns
    assert main(command(recipe, out)) == 0
    assert contents(out) == contents(cached)
    assert first.stat().st_mtime_ns == made


@pytest.mark.parametrize("name", ["shards/train-00000003.safetensors", "train.parquet"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_flipped_bit_is_found_and_made_anew_when_the_cache_is_made_again(
    recipe: Path, cached: Path, tmp_path: Path, name: str, share: float
) -> None:
    out = tmp_path / "latents"
    shutil.copytree(cached, out)
    content = bytearray((out / name).read_bytes())
    content[int(share * len(content))] ^= 4
    (out / name).write_bytes(content)

    def read() -> None:
        source = SpacetimeDataModule(**{**DATA, "source": "latents", "root": str(out)}).source("train")  # type: ignore[arg-type]
        for index in range(len(source.infos)):
            source.load(index, Crop(VideoSize(9, 16, 16), 8.0), generator=torch.Generator())

    with pytest.raises(SoraError, match=rf"{Path(name).name} .*(is damaged|disagree)"):
        read()
    assert main(command(recipe, out)) == 0
    assert contents(out) == contents(cached)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("data.frames=5",), "data.frames"),
        (("--dtype", "bfloat16"), "dtype"),
        (("data.seed=1",), "data.seed"),
        (("data.source_seed=1",), "data.source_seed"),
        (("--vae", f"spec:{VAE}"), "vae"),
    ],
)
def test_a_cache_of_something_else_is_refused_and_left_as_it_is(
    recipe: Path, cached: Path, more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(cached)
    assert main(command(recipe, cached, *more)) == 2
    assert words in capsys.readouterr().err
    assert contents(cached) == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": "mixture(sources={'a': \"world(clips=4)\", 'b': \"world(clips=4)\"})"}, "mixture of caches"),
        ({"sizes": "bucketed(frames=(5, 9), keep={(16, 9): 0.5})"}, "leave keep out"),
        ({"source": "latents"}, "latents already"),
    ],
)
def test_what_a_cache_cannot_keep_is_refused(
    recipe: Path, cached: Path, tmp_path: Path, changed: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["data"]["init_args"] |= {**changed, "root": str(cached) if changed == {"source": "latents"} else None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert main(command(tmp_path / "recipe.yaml", tmp_path / "out")) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_captions_are_encoded_once_and_for_all(
    recipe: Path,
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = f"hf(name={str(folders['bert'])!r}, max_tokens=8)"
    assert main(command(recipe, tmp_path / "c", "--text", spec)) == 0
    cache = str(tmp_path / "c" / "text")
    encoder = TEXT_ENCODERS.create(f"{spec[:-1]}, cache={cache!r})")
    plain = TEXT_ENCODERS.create(spec)
    monkeypatch.setattr(encoder, "_encode", lambda captions: pytest.fail(f"{captions} were encoded"))
    data = SpacetimeDataModule(**{**DATA, "source": "latents", "root": str(tmp_path / "c")})  # type: ignore[arg-type]
    for split in ("train", "val"):
        for batch in data.loader(split):
            captions = [*batch.captions, ""]
            torch.testing.assert_close(encoder(captions).embeddings, plain(captions).embeddings, atol=1e-5, rtol=0)
    kept = TEXT_ENCODERS.create(f"cached(path={str(tmp_path / 'c')!r})")
    torch.testing.assert_close(kept(captions).embeddings, plain(captions).embeddings, atol=1e-5, rtol=0)
    with pytest.raises(SoraError, match="holds embeddings of the text encoder"):
        TEXT_ENCODERS.create(f"hf(name={str(folders['other'])!r}, max_tokens=8, cache={cache!r})")


def test_prompts_of_the_recipe_and_of_a_file_are_kept_too(
    recipe: Path,
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["model"]["init_args"]["prompts"] = ["a red circle"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "prompts.txt").write_text("a circle\n\nmoves right\n")
    spec = f"hf(name={str(folders['bert'])!r}, max_tokens=8)"
    asked = command(tmp_path / "recipe.yaml", tmp_path / "c", "--prompts", str(tmp_path / "prompts.txt"))
    assert main(asked) == 2
    assert "name it by --text" in capsys.readouterr().err
    assert main([*asked, "--text", spec]) == 0
    kept = TEXT_ENCODERS.create(f"cached(path={str(tmp_path / 'c')!r})")
    kept.check_captions(["", "a red circle", "a circle", "moves right"])
    assert main([*command(tmp_path / "recipe.yaml", tmp_path / "d"), "--text", f"cached(path={str(tmp_path / 'c')!r})"])
    assert "name the encoder itself" in capsys.readouterr().err


def test_an_encoder_that_learns_cannot_be_cached(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(recipe, tmp_path / "out", "--text", "bytes(dim=8, depth=1, num_heads=1)")) == 2
    assert "learns with the model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unreadable_clips_are_left_out_and_listed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_sora.data.sources import DecodeError
    from lightning_sora.testbench.source import WorldSource

    load = WorldSource.load

    def failing(self: WorldSource, index: int, *args: Any, **named: Any) -> Any:
        if index == 2 and self.world.split == "train":
            raise DecodeError("clip.mp4: damaged")
        return load(self, index, *args, **named)

    monkeypatch.setattr(WorldSource, "load", failing)
    assert main(command(recipe, tmp_path / "c")) == 0
    out = capsys.readouterr().out
    assert "train: 7 clips, 1 unreadable" in out
    assert "clip.mp4: damaged" in out
    told = json.loads((tmp_path / "c" / "cache.json").read_text())
    assert told["splits"] == {"train": 7, "val": 4}
    assert told["skipped"]["train"][0].endswith("clip.mp4: damaged")
    made = SpacetimeDataModule(**{**DATA, "source": "latents", "root": str(tmp_path / "c")})  # type: ignore[arg-type]
    assert len(made.source("train").infos) == 7


def test_a_process_that_makes_several_caches_sees_what_has_changed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b", "c"):
        media.write_mp4(folder / f"{name}.mp4", torch.zeros((9, 16, 16, 3), dtype=torch.uint8), 8.0)
        (folder / f"{name}.txt").write_text(f"before {name}")
    vae = tmp_path / "vae.ckpt"
    shutil.copy(recipe.parent / "vae.ckpt", vae)

    def make(out: str) -> int:
        given = ("data.source=folder", f"data.root={folder}", "--vae", str(vae), "--splits", "train")
        return main(command(recipe, tmp_path / out, *given))

    def captions(out: str) -> set[str]:
        return {row["caption"] for row in pyarrow.parquet.read_table(tmp_path / out / "train.parquet").to_pylist()}

    assert make("one") == 0
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"after {name}")
    assert make("one") == 2
    assert "data fingerprint" in capsys.readouterr().err
    assert make("two") == 0
    assert {text.split()[0] for text in captions("one")} == {"before"}
    assert captions("two") == {text.replace("before", "after") for text in captions("one")}
    # Another VAE at the same path.
    changed = torch.load(vae, weights_only=True)
    for name, value in changed["state_dict"].items():
        changed["state_dict"][name] = 2 * value if name.endswith("latent_std") else value
    torch.save(changed, vae)
    assert make("three") == 0
    hashes = [json.loads((tmp_path / out / "cache.json").read_text())["vae_hash"] for out in ("two", "three")]
    assert hashes == [LitVAE.load(path).vae.fingerprint() for path in (recipe.parent / "vae.ckpt", vae)]
    latents = [safetensors.torch.load_file(next((tmp_path / out / "shards").glob("*"))) for out in ("two", "three")]
    assert any(not torch.equal(latents[0][name], latents[1][name]) for name in latents[0] if name in latents[1])
