"""One evaluation, three doors: a test, `score` and a notebook say the same of the same clips, under one protocol."""

import json
from collections.abc import Callable
from pathlib import Path

import av
import lightning.pytorch as pl
import pytest
import torch

import lightning_sora as ls
from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.lab.score import score
from lightning_sora.lit.callbacks import ClipScores, Evaluate
from tests.integration.conftest import make_dit

METRICS = ["fvd", "kvd(paired=True)", "jedi", "temporal_flickering", "motion_smoothness", "psnr"]
EXTRACTOR = "random(width=4, side=16)"
CLIPS, FRAMES = 20, 5


def write(folder: Path, clips: list[torch.Tensor], names: list[str]) -> Path:
    """Films without loss, at 8 frames per second."""
    for name, clip in zip(names, clips, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(folder / name), "w") as film:
            stream = film.add_stream("ffv1", rate=8)
            stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "bgr0"
            for picture in clip.numpy():
                film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")))
            film.mux(stream.encode())
    return folder


@pytest.fixture
def real(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randint(0, 256, (FRAMES, 16, 16, 3), generator=draw, dtype=torch.uint8) for _ in range(CLIPS)]
    return write(tmp_path / "real", clips, [f"test/{i:02d}.mkv" for i in range(CLIPS)])


def test_a_test_a_command_and_a_notebook_say_the_same(
    real: Path, tmp_path: Path, make_trainer: Callable[..., pl.Trainer]
) -> None:
    data = SpacetimeDataModule(
        "folder", root=str(real), frames=FRAMES, height=16, width=16, fps=8.0, batch_size=8, num_workers=0
    )
    module = make_dit()
    evaluate = Evaluate(METRICS, extractor=EXTRACTOR)
    make_trainer(callbacks=[evaluate, ClipScores()]).test(module, data, verbose=False)
    assert evaluate.results is not None
    by_test = json.loads((tmp_path / "evaluation/test.json").read_text())

    batches = list(data.test_dataloader())
    made = [clip for batch in batches for clip in module.generate(batch)]
    ids = [name for batch in batches for name in batch.ids]
    generated = write(tmp_path / "generated", made, ids)
    by_score = score(generated, real, metrics=METRICS, extractor=EXTRACTOR, frames=FRAMES, out=tmp_path / "score.json")
    assert by_score is not None

    evaluation = ls.Evaluation(METRICS, extractor=EXTRACTOR)
    clips = [clip for batch in batches for clip in batch.videos()]
    for first in range(0, CLIPS, 7):  # in other batches, backwards
        some = range(CLIPS)[::-1][first : first + 7]
        evaluation.update(
            [ids[i] for i in some], real=[clips[i] for i in some], generated=[made[i] for i in some], fps=8.0
        )
    by_notebook = evaluation.compute()

    assert by_test["scores"].keys() == by_score.keys() == by_notebook.keys() == {
        "fvd", "kvd", "jedi", "temporal_flickering", "motion_smoothness", "psnr"
    }  # fmt: skip
    for name, wanted in by_notebook.as_dict().items():
        assert by_score.as_dict()[name] == pytest.approx(wanted, rel=1e-9), name
        by_module = {key: value for key, value in by_test["scores"][name].items() if key != "title"}
        assert by_module == pytest.approx(wanted, rel=1e-9), name
    assert by_test["protocol_id"] == by_score.card.id == by_notebook.card.id
    assert json.loads((tmp_path / "protocol/test.json").read_text())["evaluation"] == by_test["protocol"]
    assert score(
        generated, real, metrics=METRICS, extractor=EXTRACTOR, frames=FRAMES,
        compare=tmp_path / "evaluation/test.json",
    ).before["fvd"] == pytest.approx(by_score["fvd"].value)  # type: ignore[union-attr]  # fmt: skip


def test_other_real_clips_cuts_and_metrics_have_other_cards(real: Path, tmp_path: Path) -> None:
    still = torch.zeros(FRAMES + 1, 16, 16, 3, dtype=torch.uint8)
    made = write(tmp_path / "made", [still + i for i in range(CLIPS)], [f"test/{i:02d}.mkv" for i in range(CLIPS)])

    def card(**options: object) -> str:
        given: dict = {"metrics": ["kvd"], "extractor": EXTRACTOR, "frames": FRAMES, **options}
        found = score(made, given.pop("real", real), **given)
        assert found is not None
        return found.card.id

    first = card()
    others = [
        card(offset="center"),
        card(metrics=["kvd(paired=True)"]),
        card(frames=4),
        card(fps=16.0),
        card(real=made),
    ]
    assert card() == first
    assert len({first, *others}) == 6
