"""Text embeddings of a cache, without the encoder that made them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lightning_sora as ls
from lightning_sora.errors import SoraError
from lightning_sora.models.safetensors_files import read_header
from lightning_sora.models.text import TEXT_ENCODERS, TextEncoder
from lightning_sora.models.text_contract import CAPTIONS, CONTRACT
from lightning_sora.models.text_files import read_embedding
from tests.unit.test_text import folders, hf, tokenizer_in  # noqa: F401

#: What the laws ask for beside.
MORE = ["   \n", "another caption"]


def stored(encoder: TextEncoder, at: Path, captions: list[str] | None = None) -> Path:
    encoder.store([*CAPTIONS, *MORE] if captions is None else captions, at / "text")  # type: ignore[operator]
    return at


def cached(path: Path, **options: object) -> TextEncoder:
    return TEXT_ENCODERS.create(
        "cached(" + ", ".join(f"{k}={v!r}" for k, v in {"path": str(path), **options}.items()) + ")"
    )


@pytest.fixture(scope="module")
def cache(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return stored(hf(folders["t5"]), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("law", CONTRACT.laws)
def test_a_cache_keeps_the_contract(law: str, cache: Path) -> None:
    CONTRACT.laws[law](f"cached(path={str(cache)!r})")


def test_it_gives_what_the_encoder_gives_and_holds_no_weights(cache: Path, folders: dict[str, Path]) -> None:  # noqa: F811
    full = hf(folders["t5"])
    for path in (cache, cache / "text", cache / "text" / full.fingerprint()):  # type: ignore[operator]
        encoder = cached(path)
        expected, found = full(CAPTIONS), encoder(CAPTIONS)
        assert torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-5, rtol=0)
        assert encoder.length(CAPTIONS) == full.length(CAPTIONS)
        assert (encoder.dim, encoder.fingerprint()) == (full.dim, full.fingerprint())  # type: ignore[operator]
    assert not list(encoder.parameters())
    assert sum(value.numel() for value in encoder.state_dict().values()) < 100


def test_a_checkpoint_of_the_encoder_is_one_of_its_cache_and_the_other_way_round(
    cache: Path,
    folders: dict[str, Path],  # noqa: F811
) -> None:
    full, other = hf(folders["t5"]), hf(folders["t5"], max_tokens=7)
    cached(cache).load_state_dict(full.state_dict(), strict=True)
    full.load_state_dict(cached(cache).state_dict(), strict=True)
    with pytest.raises(SoraError, match=f"trained with the text encoder {other.fingerprint()}, but "):  # type: ignore[operator]
        cached(cache).load_state_dict(other.state_dict(), strict=True)
    with pytest.raises(SoraError, match="use the same weights"):
        other.load_state_dict(cached(cache).state_dict(), strict=True)


def test_a_caption_that_is_not_there_is_named_with_the_command_that_adds_it(cache: Path) -> None:
    encoder = cached(cache)
    long = "a caption of which nobody thought " * 4
    with pytest.raises(SoraError, match=re.escape(f"the caption {long[:60]!r}")) as refused:
        encoder(["a", long])
    assert long[:70] not in str(refused.value)
    assert "lightning-sora data cache" in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(SoraError, match="and 1 more"):
        encoder.check_captions(["a", "one", "two"])
    encoder.check_captions(CAPTIONS)


def test_the_empty_caption_is_asked_for_at_once(folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(SoraError, match="no embedding of the empty caption"):
        cached(stored(hf(folders["t5"]), tmp_path, ["a"]))


def test_the_encoder_is_loaded_when_a_caption_is_lacking_and_must_be_the_one(
    cache: Path,
    folders: dict[str, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = f"hf(name={str(folders['t5'])!r}, max_tokens=8)"
    encoder = cached(cache, encoder=spec)
    create, made = TEXT_ENCODERS.create, []
    monkeypatch.setattr(TEXT_ENCODERS, "create", lambda asked, *given: made.append(asked) or create(asked, *given))
    encoder(CAPTIONS)
    assert not made
    found, expected = encoder(["a red circle moves", "a"]), hf(folders["t5"])(["a red circle moves", "a"])
    assert made[0] == spec
    torch.testing.assert_close(found.embeddings * found.mask[..., None], expected.embeddings * expected.mask[..., None])
    assert not list(encoder.parameters())
    wrong = cached(cache, encoder=spec.replace("max_tokens=8", "max_tokens=7"))
    with pytest.raises(SoraError, match="is not the one that made"):
        wrong(["a red circle moves"])


def test_what_is_no_cache_of_one_encoder_is_refused(
    cache: Path,
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(SoraError, match="no text embeddings at"):
        cached(tmp_path)
    both = Path(shutil.copytree(cache, tmp_path / "both"))
    stored(hf(folders["bert"]), both)
    with pytest.raises(SoraError, match="holds embeddings of 2 text encoders; name one by path="):
        cached(both)
    (file,) = sorted((both / "text").glob("*/shard-*.safetensors"))[:1]
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(SoraError, match=r"is cut short: [\d,]+ of [\d,]+ bytes are there; download or copy it again"):
        cached(file.parent)
    file.write_bytes(content[:-4] + bytes(4))
    damaged = cached(file.parent)
    with pytest.raises(SoraError, match="is damaged"):
        damaged(CAPTIONS)
    file.write_bytes(b"no tensors")
    with pytest.raises(SoraError, match="is no safetensors file"):
        cached(file.parent)


def test_captions_that_are_added_leave_the_others_as_they_are(
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    encoder = hf(folders["bert"])
    asked: list[str] = []
    encode = encoder._encode  # type: ignore[attr-defined]
    encoder._encode = lambda captions: asked.extend(captions) or encode(captions)  # type: ignore[attr-defined]
    assert encoder.store(["", "a", "red"], tmp_path, per_shard=2) == 3  # type: ignore[operator]
    assert encoder.store(["", "a", "a", "circle", "red"], tmp_path, per_shard=2) == 4  # type: ignore[operator]
    assert asked == ["", "a", "red", "circle"]
    first = min(tmp_path.glob("*/shard-*.safetensors"))
    first.write_bytes(first.read_bytes()[:-4] + bytes(4))
    assert encoder.store(["", "a", "red"], tmp_path) == 3  # type: ignore[operator]
    assert asked[4:] == ["", "a"]
    found = cached(tmp_path)(["", "a", "red", "circle"])
    torch.testing.assert_close(found.embeddings, hf(folders["bert"])(["", "a", "red", "circle"]).embeddings)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline, with the encoder of UMT5 alone, as Wan has it."""
    from transformers import UMT5Config, UMT5EncoderModel

    root = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(root / "text_encoder")
    tokenizer_in(root / "tokenizer")
    (root / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return root


def test_the_encoder_of_a_pipeline_is_found_with_its_tokenizer(pipeline: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, UMT5EncoderModel

    encoder = hf(pipeline)
    assert encoder.fingerprint() == hf(pipeline / "text_encoder").fingerprint()  # type: ignore[operator]
    words = AutoTokenizer.from_pretrained(pipeline / "tokenizer")(["a red circle"], return_tensors="pt")
    network = UMT5EncoderModel.from_pretrained(pipeline / "text_encoder")
    with torch.no_grad():
        expected = network(**{name: words[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    torch.testing.assert_close(encoder(["a red circle"]).embeddings, expected, atol=1e-5, rtol=0)
    lacking = Path(shutil.copytree(pipeline, tmp_path / "lacking"))
    shutil.rmtree(lacking / "tokenizer")
    with pytest.raises(SoraError, match=r"is of a pipeline without tokenizer/"):
        hf(lacking)


def test_no_decoder_is_loaded_and_the_fingerprint_is_that_of_the_whole_model(
    folders: dict[str, Path],  # noqa: F811
    pipeline: Path,
) -> None:
    from transformers import AutoModel, AutoTokenizer

    from lightning_sora.models.text_hf import fingerprint_of

    own = hf(folders["t5"])
    whole = AutoModel.from_pretrained(folders["t5"])
    told = fingerprint_of(whole.get_encoder(), AutoTokenizer.from_pretrained(folders["t5"]), "8 float32")
    assert own.fingerprint() == told  # type: ignore[operator]
    assert not [name for name, _ in own._hidden[0].named_modules() if "decoder" in name]  # type: ignore[index]


def test_an_encoder_that_lacks_weights_is_refused(pipeline: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(pipeline, tmp_path / "broken"))
    file = broken / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SoraError, match="lacks weights of the UMT5EncoderModel that its config"):
        hf(broken)


def test_a_header_tells_what_a_file_holds(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(())}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"made": "here"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: (one.shape, one.bytes) for name, one in header.tensors.items()} == {
        name: (tuple(value.shape), value.numel() * value.element_size()) for name, value in tensors.items()
    }
    assert header.metadata == {"made": "here"}


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is no safetensors file"),
    (b"<!doctype html><html>not found</html>", "is no safetensors file"),
    (bytes([90, 0, 0, 0, 0, 0, 0, 0]) + b"{", "is cut short: 9 of 98 bytes"),
    (bytes([4, 0, 0, 0, 0, 0, 0, 0]) + b"[12]", "is no safetensors file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "is a pointer of git-lfs"),
])  # fmt: skip
def test_a_file_that_is_no_safetensors_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(SoraError, match=words):
        read_header(tmp_path / "x.safetensors")


def test_a_fit_refuses_captions_and_prompts_that_are_not_in_the_cache(cache: Path, tmp_path: Path) -> None:
    import lightning.pytorch as pl

    from lightning_sora.lit import LitDiT

    data = ls.SpacetimeDataModule(
        "world(level='tiny', clips=4, heldout_clips=2)", patch=(1, 8, 8), frames=3, height=16, width=16, batch_size=2
    )
    module = LitDiT(
        "identity", text=f"cached(path={str(cache)!r})", prompts=["a prompt that is new"],
        dit=ls.DiTConfig(patch_size=(1, 8, 8), dim=16, depth=1, num_heads=2),
    )  # fmt: skip
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, default_root_dir=tmp_path, max_steps=1)  # fmt: skip
    with pytest.raises(SoraError, match="no embedding of the caption 'a prompt that is new'"):
        trainer.fit(module, data)
    module.prompts = []  # captions of pixels are asked for too, though the world draws them as clips are made
    module.on_fit_start = lambda: pytest.fail("it began to train")  # type: ignore[method-assign]
    own = next(data.source("train").told_captions())
    with pytest.raises(SoraError, match=re.escape(f"no embedding of the caption {own[:60]!r}") + " and [1-5] more"):
        trainer.fit(module, data)


@pytest.mark.parametrize("kind", ["world", "folder", "mixture"])
def test_data_of_pixels_tell_every_caption_that_they_read(kind: str, tmp_path: Path) -> None:
    from lightning_sora.media import write_mp4

    for i in range(6):
        write_mp4(tmp_path / f"{i}.mp4", torch.full((3, 16, 16, 3), 40 * i, dtype=torch.uint8), 8.0)
        (tmp_path / f"{i}.txt").write_text(f"clip number {i}")
    world = "world(level='tiny', clips=4, heldout_clips=2, alternatives=('tags',))"
    source, root = {
        "world": (world, None), "folder": ("folder", str(tmp_path)),
        "mixture": (f"mixture(sources={{'world': {world!r}, 'own': \"folder(root='{tmp_path}')\"}})", None),
    }[kind]  # fmt: skip
    data = ls.SpacetimeDataModule(source, root=root, patch=(1, 8, 8), frames=3, height=16, width=16, batch_size=2)
    read = {caption for split in ("train", "val") for batch in data.loader(split) for caption in batch.captions}
    captions = data.describe().captions
    assert captions is not None
    told = set(captions())
    assert read <= told
    assert len(read) >= 4
    assert told <= read or kind != "folder"


def test_an_embedding_without_a_digest_is_taken_as_it_is(tmp_path: Path) -> None:
    """As earlier versions wrote them, some with the name of the encoder."""
    rows = torch.randn(3, 4)
    for index, metadata in enumerate((None, {"encoder": "0123"}, {"format": "pt"})):
        save_file({"key": rows}, tmp_path / f"{index}.safetensors", metadata=metadata)
        assert torch.equal(read_embedding(tmp_path / f"{index}.safetensors", "key").rows, rows)


def test_an_encoder_that_cannot_be_held_says_so_and_nothing_else(
    folders: dict[str, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_sora.models.memory_estimate.available_memory", lambda device: 1000)
    with pytest.raises(SoraError) as refused:
        hf(next(iter(folders.values())))
    assert "needs in float32, for its weights alone" in str(refused.value)
    assert str(refused.value).endswith("'cached(path=...)' keeps the embeddings alone")
