"""The task of languages: prompts of the same clips from the same noise, and a model of one language is found out."""

import pytest

from benchmarks.sora_tasks import capabilities  # noqa: F401  (they register themselves)
from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.protocol import rolled
from benchmarks.sora_tasks.running import capability, judged, lines
from benchmarks.sora_tasks.scene import Scene
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import PatchSize, VideoSize

CLIPS, LANGUAGES = 6, ("en", "es", "zh", "ar")


def scene(frames: int = 17, side: int = 48) -> Scene:
    return Scene({"simple": {"level": "simple"}}, VideoSize(frames, side, side), PatchSize(4, 8, 8), seed=3)


def test_each_clip_is_asked_for_in_each_language_from_one_noise() -> None:
    what = capability("language(world='simple')", CLIPS)
    cases = what.cases(scene(1, 8))
    turns = [cases[place::CLIPS] for place in range(CLIPS)]
    assert len(cases) == CLIPS * len(LANGUAGES)
    for turn in turns:
        assert [case.group for case in turn] == list(LANGUAGES)
        assert len({case.key for case in turn}) == len({case.facts for case in turn}) == 1
        assert len({case.prompt for case in turn}) == len(LANGUAGES)
    assert what.contrasts == [("es", "en"), ("zh", "en"), ("ar", "en")]
    for options in ("languages=('en',)", "languages=('en', 'en')"):
        with pytest.raises(SoraError, match="must name at least two to compare, each once"):
            capability(f"language({options})", None)
    with pytest.raises(SoraError, match="unknown caption language 'fr'"):
        capability("language(world='simple', languages=('en', 'fr'))", 2).cases(scene(1, 8))


@pytest.mark.slow
def test_a_model_that_understands_english_alone_is_found_out() -> None:
    what, judge = capability("language(world='simple', languages=('en', 'es', 'zh'))", CLIPS), Judge()
    cases = what.cases(scene())
    true = [case.truth for case in cases]
    # Right in English and Spanish; in Chinese it shows the clips of other prompts.
    others = rolled(cases, true)
    made = [other if case.group == "zh" else clip for case, clip, other in zip(cases, true, others, strict=True)]
    of = {"score": judged(what, judge, cases, made), "ceiling": judged(what, judge, cases, true)}
    found = {(line["group"], line["measure"]): line for line in lines(what, cases, of, "language")}
    for fact in ("color", "shape", "motion", "camera", "mean"):
        assert found["en", fact]["score"]["mean"] == found["es", fact]["score"]["mean"] > 0.9, fact
        same = found["es less en", fact]["score"]
        # No clip of six differs: nor may more than 46 % of all.
        assert (same["mean"], same["high"]) == (0, pytest.approx(1 - 0.025 ** (1 / CLIPS))), fact
        assert same["low"] == -same["high"], fact
        assert found["zh less en", fact]["score"]["high"] < 0, fact
        assert found["zh less en", fact]["ceiling"]["mean"] == 0, fact
        assert found["zh less en", fact]["unit"] == "points"
