"""A local vision-language model as a captioner: the real loading and generating code, on a tiny random model."""

from pathlib import Path

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.jobs.engines import ENGINES
from lightning_sora.lit.captioners import create_captioner
from lightning_sora.models.captioner_hf import VisionLanguageModel
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenLayout
from lightning_sora.spacetime.grid import TokenGrid
from tests.toys import InThisProcess

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand weights, saved as such models are."""
    folder = tmp_path_factory.mktemp("llava")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    special = ["<eos>", "<image>", "<pad>"]
    alphabet = [chr(i) for i in range(32, 127)]
    words.train_from_iterator(
        ["describe"], tokenizers.trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    image = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        image_processor=image,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=0,
        pad_token_id=2,
        bos_token_id=0,
    )
    torch.manual_seed(0)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=1, image_token_id=1)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def batch(value: int) -> SpacetimeBatch:
    patch = PatchSize(1, 8, 8)
    video = torch.full((3, 16, 16, 3), value, dtype=torch.uint8)
    return SpacetimeBatch.of(
        [video],
        layout=TokenLayout.uniform(TokenGrid(3, 2, 2), 1),
        patch=patch,
        captions=("",),
        ids=("a",),
        visits=(0,),
        fps=(8.0,),
    )


def test_it_captions_with_a_confidence_and_a_fingerprint(model: Path) -> None:
    made = create_captioner(f"hf:{model}")
    ((text, confidence, whole),) = made.caption(batch(200))
    assert text == made.caption(batch(200))[0].text
    assert 0 < confidence < 1
    assert isinstance(whole, bool)
    ((cut, _, ended),) = create_captioner(f"hf(name={str(model)!r}, max_tokens=3)").caption(batch(200))
    assert not ended
    assert text.startswith(cut)
    assert made.fingerprint() == create_captioner(f"hf:{model}").fingerprint()
    assert made.fingerprint() != create_captioner(f"hf(name={str(model)!r}, frames=2)").fingerprint()


@pytest.mark.slow
def test_it_sees_whole_pictures_from_the_first_frame_to_the_last(model: Path, tmp_path: Path) -> None:
    """The command as documented, with no size given: clips of their own aspect, spread over their length."""
    import pyarrow.parquet

    from lightning_sora import media
    from lightning_sora.cli import main

    seen: list[torch.Tensor] = []
    real = VisionLanguageModel.caption

    def caption(self: VisionLanguageModel, video: torch.Tensor) -> tuple[str, float, bool]:
        seen.append(video)
        return real(self, video)

    shades = torch.arange(15, dtype=torch.uint8)[:, None, None, None] * 16
    media.write_mp4(tmp_path / "clips" / "wide.mp4", shades.expand(15, 32, 64, 3).contiguous(), 5)
    media.write_image(tmp_path / "clips" / "still.png", torch.zeros((48, 32, 3), dtype=torch.uint8))
    with pytest.MonkeyPatch.context() as patch, ENGINES.temporary():
        patch.setattr(VisionLanguageModel, "caption", caption)
        ENGINES.register("inline")(InThisProcess)
        out = tmp_path / "captions.parquet"
        arguments = ["caption", str(tmp_path / "clips"), "--captioner", f"hf:{model}", "--engine", "inline"]
        assert main([*arguments, "--out", str(out)]) == 0
    sizes = {tuple(video.shape) for video in seen}
    assert sizes == {(8, 32, 64, 3), (1, 48, 32, 3)}
    wide = next(video for video in seen if len(video) == 8)
    assert (wide.float().mean(dim=(1, 2, 3)) - 32 * torch.arange(8)).abs().max() < 6
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(out).to_pylist()}
    assert rows["wide.mp4"]["fps"] == 2.5
    assert (rows["still.png"]["frames"], rows["still.png"]["height"]) == (1, 48)
    assert rows["wide.mp4"]["captioner"] == f"hf:{model}"


def test_what_is_no_such_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="cannot load the captioner"):
        create_captioner(f"hf:{tmp_path}")
    with pytest.raises(SoraError, match="no such directory"):
        create_captioner(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(SoraError, match="no such directory"):  # no hub is asked for one word
        create_captioner("hf:LOCAL_MODEL")
