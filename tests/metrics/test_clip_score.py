"""The CLIP score: closed forms with a stub, and a real (random) CLIP against transformers' own preprocessing."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_score import ChanceCLIPScore, CLIPScore, text_extractor
from lightning_sora.metrics.evaluation import Evaluation
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.metrics.extractors.base import Clip
from lightning_sora.metrics.extractors.clip import CLIPEncoder
from lightning_sora.metrics.outputs import spaced_frames
from tests.metrics.toys import Angle, scored

WORDS = ["<start>", "<end>", "[UNK]", "a", "red", "blue", "circle", "moves", "right"]
LIMIT = 6


def clip_of(*degrees: int) -> Tensor:
    return torch.tensor(degrees, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 3, 3).contiguous()


def score(clips: Sequence[Tensor], captions: Sequence[str], **options: Any) -> dict[str, float]:
    return scored(CLIPScore("angle", **options), clips, Angle(), caption=captions).as_dict()


@pytest.mark.parametrize(("caption", "wanted"), [("30", 100.0), ("120", 0.0), ("210", -100.0), ("90", 50.0)])
def test_it_is_a_hundred_cosines(caption: str, wanted: float) -> None:
    assert score([clip_of(30, 30)], [caption])["value"] == pytest.approx(wanted, abs=1e-9)


def test_clips_weigh_the_same_whatever_their_length() -> None:
    found = score([clip_of(0), clip_of(90, 90, 90)], ["0", "0"])
    assert found["value"] == pytest.approx(50)
    assert found["stderr"] == pytest.approx(50)


def test_the_papers_scale_cuts_each_frame_below_zero() -> None:
    assert score([clip_of(0, 180)], ["0"], paper=True)["value"] == pytest.approx(1.25)
    assert score([clip_of(0, 180)], ["0"])["value"] == pytest.approx(0, abs=1e-9)


def test_frames_are_spaced_evenly() -> None:
    clip = clip_of(*range(8))
    assert spaced_frames(clip, 2)[:, 0, 0, 0].tolist() == [2, 6]
    assert spaced_frames(clip, 1)[:, 0, 0, 0].tolist() == [4]
    assert torch.equal(spaced_frames(clip, 8), clip)
    assert torch.equal(spaced_frames(clip, None), clip)
    with pytest.raises(SoraError, match="at most 8"):
        spaced_frames(clip, 9)
    found = score([clip_of(0, 0, 60, 60)], ["60"], frames=2)
    assert found["value"] == pytest.approx(75)


def test_only_the_frames_that_are_scored_are_embedded() -> None:
    seen: list[int] = []

    class Looking(Angle):
        def outputs(self, clips: Sequence[Clip], *args: Any, **options: Any) -> list[Any]:
            seen.extend(map(len, clips))
            return super().outputs(clips, *args, **options)

    with EXTRACTORS.temporary():
        EXTRACTORS.register("looking")(Looking)
        evaluation = Evaluation(["clip_score(frames=2)"], clip_model="looking")
        evaluation.update(["a", "b"], generated=[clip_of(0, 0, 60, 60, 90), clip_of(0)], captions=["60", "60"])
    assert seen == [2]  # the other is too short
    assert evaluation.compute()["clip_score"].value == pytest.approx(75)


def test_chance_is_that_of_the_captions_of_other_clips() -> None:
    degrees, captions = (0, 40, 170), ("10", "95", "200")
    clips = [clip_of(first, first + 5) for first in degrees]
    wanted = [
        (math.cos(math.radians(first - float(text))) + math.cos(math.radians(first + 5 - float(text)))) / 2
        for i, first in enumerate(degrees)
        for j, text in enumerate(captions)
        if i != j
    ]
    assert score(clips, captions)["shuffled"] == pytest.approx(100 * sum(wanted) / len(wanted), abs=1e-9)
    assert "shuffled" not in score(clips, captions, paper=True)
    assert "shuffled" not in score(clips[:1], captions[:1])


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(SoraError, match="frames=0"):
        CLIPScore("angle", frames=0)
    with pytest.raises(SoraError, match=r"clip_score needs a model: write clip_score\(model='PATH'\)"):
        CLIPScore()
    with pytest.raises(SoraError, match="embeds no captions; give clip_score a CLIP"):
        CLIPScore("random").bind(EXTRACTORS.create("random"))
    assert CLIPScore("angle", frames=3).needs.min_frames == 3
    with pytest.raises(SoraError, match="embeds clips as wholes, of which frames=2 chooses none"):
        CLIPScore("world", frames=2).bind(EXTRACTORS.create("world"))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_clips_give_no_score() -> None:
    metric = CLIPScore("angle")
    assert metric.compute() is None
    metric.bind(Angle())
    assert metric.add([], "generated") == {}
    assert metric.compute() is None


def test_the_card_names_the_frames_and_the_scale() -> None:
    card = CLIPScore("angle", frames=4).card()
    assert (card["frames"], card["scale"]) == (4, "100 cos")
    card = CLIPScore("angle", paper=True).card()
    assert (card["frames"], card["scale"]) == ("all", "2.5 max(cos, 0)")


def test_a_model_is_a_part_or_the_place_of_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_extractor("world") == "world"
    assert text_extractor("clip") == "clip(captions=True)"
    assert text_extractor("clip(weights='x', captions=True)") == "clip(weights='x', captions=True)"
    assert text_extractor("openai/clip-vit-base-patch32") == (
        "clip(captions=True, weights='openai/clip-vit-base-patch32')"
    )
    assert text_extractor("spec:clip") == "clip(captions=True)"
    with pytest.raises(SoraError, match=r"'clip:x': .*write 'clip\(weights=...\)'"):
        text_extractor("clip:x")
    (tmp_path / "world").mkdir()  # a folder of that name is meant
    monkeypatch.chdir(tmp_path)
    assert text_extractor("world") == "clip(captions=True, weights='world')"


# A real architecture.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP with a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": len(WORDS),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": LIMIT,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=12,
    )
    transformers.CLIPModel(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<end>", unk_token="[UNK]", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(path)
    return path


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def reference_images(folder: Path, clip: Tensor, pil: bool) -> Tensor:
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    if pil:  # resized by PIL, as OpenAI's CLIP was
        height, width = clip.shape[1:3]
        size = (32 * width // height, 32) if height <= width else (32, 32 * height // width)
        frames: list[Any] = [Image.fromarray(f.numpy()).resize(size, Image.Resampling.BICUBIC) for f in clip]
    else:
        frames = [frame.permute(2, 0, 1) for frame in clip]
    return processor(images=frames, return_tensors="pt")["pixel_values"]


# Of tall images Pillow 13 rounds after the columns, and everything before it after the rows, as we do.
@pytest.mark.parametrize(
    ("size", "pil"),
    [((32, 32), False), ((48, 64), False), ((100, 48), False), ((20, 28), False), ((48, 64), True), ((20, 28), True)],
)
def test_images_are_prepared_as_by_clips_own_processor(folder: Path, size: tuple[int, int], pil: bool) -> None:
    """To one display value, which the resizing in integers of either library may round the other way."""
    clip = noise(2, *size)
    wanted = reference_images(folder, clip, pil)
    made = CLIPEncoder(str(folder), captions=False).prepare(clip)
    one = 1.001 / 255 / 0.261  # of the least deviation
    torch.testing.assert_close(made, wanted, rtol=0, atol=one)
    assert (made - wanted).abs().mean() < one / 20


def test_the_score_is_that_of_transformers(folder: Path) -> None:
    """Within 0.05 of 100, the effect of that rounding."""
    from transformers import AutoTokenizer, CLIPModel

    captions = ["a red circle moves", "blue circle"]
    clips = [noise(3, 48, 64), 255 - noise(2, 40, 40)]
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    wanted = []
    for clip, caption in zip(clips, captions, strict=True):
        tokens = tokenizer([caption], return_tensors="pt")
        with torch.no_grad():
            found = model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=reference_images(folder, clip, pil=False),
            )
        wanted.append(float(100 * F.cosine_similarity(found.image_embeds, found.text_embeds).mean()))
    assert abs(wanted[0] - wanted[1]) > 0.5
    evaluation = Evaluation(["clip_score"], clip_model=str(folder))
    each = evaluation.update(["a", "b"], generated=clips, captions=captions)
    found = evaluation.compute()
    assert found["clip_score"].value == pytest.approx(sum(wanted) / 2, abs=0.05)
    assert each["clip_score"] == pytest.approx(dict(zip("ab", wanted, strict=True)), abs=0.05)
    assert found.card.fields["extractors"]["clip"]["model"] == folder.name
    assert found.card.fields["metrics"]["clip_score"]["extractor"] == "clip"


def test_embeddings_do_not_depend_on_the_batch(folder: Path) -> None:
    encoder, clip = CLIPEncoder(str(folder)), noise(3, 40, 40)
    assert encoder.width == 12
    alone = torch.cat([encoder.embed_images(frame[None]) for frame in clip])
    torch.testing.assert_close(encoder.embed_images(clip), alone)
    captions = ["a", "a red circle moves", "blue"]
    alone = torch.cat([encoder.embed_texts([caption]) for caption in captions])
    torch.testing.assert_close(encoder.embed_texts(captions), alone)


def test_captions_beyond_the_limit_are_counted(folder: Path) -> None:
    evaluation = Evaluation(["clip_score"], clip_model=str(folder))
    captions = ["a red circle moves", "a red circle moves right", "a"]
    evaluation.update(["0", "1", "2"], generated=[clip_of(0)] * 3, captions=captions)
    evaluation.update(["3"], generated=[clip_of(0)], captions=[captions[1]])
    found = evaluation.compute()["clip_score"]
    assert found.figures["truncated"] == 2
    assert math.isfinite(found.value)


def test_autocast_and_train_mode_around_it_change_nothing(folder: Path) -> None:
    encoder, clip = CLIPEncoder(str(folder)), noise(2, 32, 32)
    wanted = encoder.embed_images(clip)
    encoder.train()
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.embed_images(clip)
        assert encoder.embed_texts(["a"]).dtype == torch.float32
    assert not encoder.training
    assert torch.equal(found, wanted)


def test_pinned_weights_are_verified(folder: Path) -> None:
    encoder = CLIPEncoder(str(folder))
    assert encoder.describe()["verified"] is False
    pinned = CLIPEncoder(str(folder), sha256=encoder.describe()["weights"])
    assert pinned.describe()["verified"] is True
    with pytest.raises(SoraError, match="digest"):
        CLIPEncoder(str(folder), sha256="0" * 64)


def test_it_says_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="local directory that holds a CLIPModel"):
        CLIPEncoder(str(tmp_path / "absent"))
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(SoraError, match="a tokenizer"):
        CLIPEncoder(str(tmp_path))
    with pytest.raises(SoraError, match="captions=True"):
        CLIPEncoder(str(tmp_path), captions=False).embed_texts(["a"])


def test_parameters_that_the_files_lack_are_not_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SoraError, match=r"visual_projection.*would be random"):
        CLIPEncoder(str(tmp_path), captions=False)


def test_chance_is_the_mean_over_all_pairs_of_a_clip_and_anothers_caption() -> None:
    drawn = torch.randn((2, 23, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clips, captions = F.normalize(drawn, dim=2)
    cosines = 100 * clips @ captions.T
    wanted = float(cosines[~torch.eye(23, dtype=torch.bool)].mean())
    for batch, order in ((23, range(23)), (1, range(23)), (4, range(22, -1, -1))):
        ranks = [ChanceCLIPScore(6) for _ in range(3)]
        for i in range(0, 23, batch):
            some = list(order)[i : i + batch]
            ranks[i % 2].update(clips[some], captions[some])  # the third has none
        whole = ranks[0]
        for name in ("clips", "captions", "own", "count"):
            setattr(whole, name, sum(getattr(rank, name) for rank in ranks))
        assert float(whole.compute()["clip_score_shuffled"]) == pytest.approx(wanted, abs=1e-10)


def test_one_clip_has_no_others_caption() -> None:
    chance = ChanceCLIPScore(2)
    chance.update(torch.eye(2)[:1], torch.eye(2)[:1])
    assert chance.compute() == {}
    with pytest.raises(SoraError, match="one caption for each"):
        chance.update(torch.eye(2), torch.eye(2)[:1])
