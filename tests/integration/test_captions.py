"""From a captioner to samples of expanded prompts, by the commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet
import pytest
import torch

import lightning_sora as ls
from lightning_sora.cli import main
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.data.sources import SOURCES
from lightning_sora.errors import SoraError
from lightning_sora.jobs.shards import Shard, claim
from lightning_sora.lab import caption as captioning
from lightning_sora.lit import LitCaptioner, LitExpander
from lightning_sora.testbench.prompts import PromptDataModule
from tests.integration.conftest import make_dit

SOURCE = "world(level='tiny', captions='alt', clips=10, heldout_clips=4)"


def fitted(module: pl.LightningModule, data: pl.LightningDataModule, folder: Path, **options: Any) -> Path:
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=folder,
        **options,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    path = folder / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A captioner, an expander and a DiT, trained for two steps."""
    root = tmp_path_factory.mktemp("runs")
    size: dict[str, Any] = {"frames": 5, "height": 16, "width": 16, "fps": 8.0, "batch_size": 4}
    small = {"dim": 24, "num_heads": 2, "longest": 8, "schedule": "constant", "optimizer": "adamw(lr=1e-3)"}
    clips = SpacetimeDataModule(SOURCE.replace("alt", "dense"), patch=[4, 8, 8], **size)
    captioner = LitCaptioner(depth=1, decoder_depth=1, patch=[4, 8, 8], **small)  # type: ignore[arg-type]
    expander = LitExpander(depth=1, **small)  # type: ignore[arg-type]
    dit = SpacetimeDataModule(SOURCE, **size)
    return {
        "captioner": fitted(captioner, clips, root / "captioner"),
        "expander": fitted(expander, PromptDataModule(clips=16, heldout_clips=8, batch_size=8), root / "expander"),
        "dit": fitted(make_dit(), dit, root / "dit"),
    }


class InProcess:
    """An engine that runs shards here; stops after some."""

    def __init__(self, count: int = 99) -> None:
        self.left = count

    def __call__(self, shards: Any, function: str, *, intact: Any, **_: Any) -> int:
        for shard in shards:
            if shard.path.is_file() and intact(shard.path):
                continue
            if not self.left:
                raise SoraError("interrupted")
            self.left -= 1
            captioning.caption_shard(shard.work, shard.path)
        return 0


def caption(monkeypatch: Any, out: Path, *arguments: str, engine: Any = None) -> int:
    monkeypatch.setattr(captioning, "run_shards", engine or InProcess())
    return main(["caption", "--source", SOURCE, "--out", str(out), "--shard-clips", "3", *arguments])


def test_captions_of_every_clip_whatever_the_interruptions(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    by = ("--captioner", str(runs["captioner"].parents[1]))
    assert caption(monkeypatch, tmp_path / "whole.parquet", *by) == 0
    assert caption(monkeypatch, tmp_path / "broken.parquet", *by, engine=InProcess(2)) == 2
    assert not (tmp_path / "broken.parquet").exists()
    again = InProcess()
    assert caption(monkeypatch, tmp_path / "broken.parquet", *by, engine=again) == 0
    assert again.left == 99 - 6  # of 4 + 2 + 2 shards two were done
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "broken.parquet").read_bytes()
    rows = pyarrow.parquet.read_table(tmp_path / "whole.parquet").to_pylist()
    infos = {s: SOURCES.create(SOURCE, root=None, split=s, seed=0).infos for s in ("train", "val", "test")}
    assert [row["id"] for row in rows] == [info.id for split in infos.values() for info in split]
    assert all(0 < row["confidence"] <= 1 and not row["error"] and row["original"] for row in rows)
    assert len({row["captioner_hash"] for row in rows}) == 1


def test_another_captioner_or_size_is_refused_beside_what_is_there(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    out, size = tmp_path / "t.parquet", ("--frames", "1", "--height", "16", "--width", "16")
    assert caption(monkeypatch, out, "--captioner", "facts(style='dense')", *size) == 0
    assert caption(monkeypatch, out, "--captioner", "facts(style='short')", *size) == 2
    assert "another captioner" in capsys.readouterr().err
    assert caption(monkeypatch, out, "--captioner", "facts(style='dense')", *size[:4], "--width", "24") == 2
    assert "another size" in capsys.readouterr().err
    for arguments, words in (
        (("--captioner", str(runs["captioner"]), "--frames", "6"), "frames"),
        (("--captioner", "facts(style='dense')", "--engine", "lokal"), "did you mean"),
        (("--captioner", str(tmp_path / "x.ckpt")), "no checkpoint at"),
        (("--captioner", "facts(styl='x')", *size), "does not accept 'styl'"),
    ):
        assert caption(monkeypatch, tmp_path / "u.parquet", *arguments) == 2
        assert words in capsys.readouterr().err


def test_the_oracle_tells_the_world_s_own_captions_and_training_takes_them(tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "dense.parquet"
    assert (
        caption(
            monkeypatch, out, "--captioner", "facts(style='dense')", "--frames", "1", "--height", "16", "--width", "16"
        )
        == 0
    )
    data = SpacetimeDataModule(SOURCE, frames=5, height=16, width=16, batch_size=10, captions=str(out))
    batch = next(iter(data.loader("train")))
    source: Any = data.source("train")
    own = {info.id: index for index, info in enumerate(source.infos)}
    assert [*batch.captions] == [source.recaption(own[name], "dense") for name in batch.ids]
    other = SpacetimeDataModule(SOURCE, frames=5, height=16, width=16, batch_size=10, captions=str(out), source_seed=1)
    with pytest.raises(SoraError, match="other clips of the same names"):
        other.loader("train")
    # Validation keeps the source's own.
    assert not any(text.endswith(".") for text in next(iter(data.loader("val"))).captions)
    assert data.fingerprint("train") != SpacetimeDataModule(SOURCE).fingerprint("train")
    assert data.fingerprint("val") == SpacetimeDataModule(SOURCE).fingerprint("val")


def test_a_notebook_is_told_what_a_table_holds(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(captioning, "run_shards", InProcess())
    table = ls.caption(source=SOURCE, captioner="facts(style='dense')", out=tmp_path / "t.parquet", split="val")
    clips = len(SOURCES.create(SOURCE, root=None, split="val", seed=0).infos)
    assert (table.captions, table.confidence, table.failed, table.cut) == (clips, 1.0, 0, 0)
    assert f"{clips} captions, mean confidence 1.000" in str(table)
    assert "<pre" in table._repr_html_()
    with pytest.raises(SoraError, match="nothing to caption"):
        ls.caption(captioner="facts", out=tmp_path / "u.parquet")


def test_clips_that_cannot_be_read_have_a_row_with_the_reason(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from lightning_sora import media

    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        media.write_mp4(folder / f"{name}.mp4", torch.zeros((8, 16, 16, 3), dtype=torch.uint8), 8.0)
    whole = (folder / "b.mp4").read_bytes()
    monkeypatch.setattr(captioning, "run_shards", InProcess())
    real = captioning._source

    def breaking(*arguments: Any) -> Any:
        source = real(*arguments)
        (folder / "b.mp4").write_bytes(whole[: len(whole) // 2])  # after it was probed
        return source

    monkeypatch.setattr(captioning, "_source", breaking)
    out = tmp_path / "t.parquet"
    assert main(["caption", str(folder), "--captioner", str(runs["captioner"]), "--out", str(out)]) == 0
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(out).to_pylist()}
    assert set(rows) == {"a.mp4", "b.mp4", "c.mp4", "d.mp4"}
    assert rows["b.mp4"]["caption"] == ""
    assert "b.mp4" in rows["b.mp4"]["error"]
    told = capsys.readouterr()
    assert "1 clips could not be read" in told.out
    assert told.err.splitlines()[-1] == (
        f"next: lightning-sora fit --config RECIPE.yaml --data.root={folder} --data.captions={out}"
    )


def test_sampling_from_expanded_prompts_keeps_both(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    common = ["sample", "--ckpt", str(runs["dit"]), "--prompt", "a red cube", "--out", str(tmp_path / "s")]
    assert main([*common, "--expand", str(runs["expander"])]) == 0
    told = json.loads((tmp_path / "s" / "000_a-red-cube_seed0.json").read_text())
    asked = told["request"]
    assert (asked["expand"], asked["seeds"], told["steps"]) == (str(runs["expander"]), [0], 2)
    assert (asked["model"], asked["prompts"]) == (str(runs["dit"]), ["a red cube"])
    assert told["expanded"] != "a red cube"
    assert (tmp_path / "s" / "000_a-red-cube_seed0.mp4").exists()
    assert f"a red cube -> {told['expanded']}" in capsys.readouterr().out
    assert main([*common, "--expand", str(tmp_path / "none.ckpt")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_a_folder_of_shards_belongs_to_one_piece_of_work(tmp_path: Path) -> None:
    claim(tmp_path / "a", {"x": 1, "y": [2]}, "begin anew")
    claim(tmp_path / "a", {"x": 1, "y": [2]}, "begin anew")
    with pytest.raises(SoraError, match="another y"):
        claim(tmp_path / "a", {"x": 1, "y": [3]}, "begin anew")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("")
    with pytest.raises(SoraError, match="other files"):
        claim(tmp_path / "b", {"x": 1}, "begin anew")
    shutil.rmtree(tmp_path / "a")
    assert Shard(tmp_path / "a", {}).path == tmp_path / "a"


def test_inspect_tells_what_a_plan_would_use(tmp_path: Path, capsys: Any) -> None:
    source = "world(clips=20, heldout_clips=2, native=((9,16,16),(5,32,16),(1,4,16)))"
    asked = ["data", "inspect", "--source", source, "--patch", "4,8,8", "--height", "32", "--width", "32"]
    out = tmp_path / "i.png"
    assert main([*asked, "--sizes", "packed", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    clips = SOURCES.create(source, root=None, split="train", seed=0).infos
    flat = sum(info.height == 4 for info in clips)
    assert f"{flat} of 20 left out" in told
    assert "smaller than a patch" in told
    assert "train 20, val 2, test 2" in told
    from PIL import Image

    with Image.open(out) as sheet:
        assert sheet.size == (1210, 660)
    assert main([*asked, "--sizes", "bucketed(frames=(49,))", "--out", str(out)]) == 2
    assert "none of 20 clips" in capsys.readouterr().err
    assert main(["data", "inspect", "--source", source, "--patch", "4,x"]) == 2
    assert "three whole numbers" in capsys.readouterr().err


def test_a_process_that_captions_twice_sees_what_has_changed(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    from lightning_sora import media

    folder = tmp_path / "clips"
    folder.mkdir()
    monkeypatch.setattr(captioning, "run_shards", InProcess())
    told = []
    for wording in ("before", "after"):
        for name in ("a", "b", "c", "d"):
            media.write_mp4(folder / f"{name}.mp4", torch.zeros((8, 16, 16, 3), dtype=torch.uint8), 8.0)
            (folder / f"{name}.txt").write_text(wording)
        out = tmp_path / f"{wording}.parquet"
        assert main(["caption", str(folder), "--captioner", str(runs["captioner"]), "--out", str(out)]) == 0
        told.append({row["original"] for row in pyarrow.parquet.read_table(out).to_pylist()})
    assert told == [{"before"}, {"after"}]
