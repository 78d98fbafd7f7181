"""Text encoders: bytes in any language, and frozen transformers beside the checkpoint."""

from __future__ import annotations

import builtins
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_sora.errors import SoraError
from lightning_sora.models.text import TEXT_ENCODERS, TextEncoder, WordsEncoder
from lightning_sora.models.text_contract import CONTRACT
from lightning_sora.randomness import initialize

CAPTIONS = ["a red circle moves right", "", "Ein roter Kreis 向右移动 🔴", "a"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "moves", "right"]


def tokenizer_in(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT (encoder) and a T5 (encoder and decoder), tiny and random."""
    from transformers import BertConfig, BertModel, T5Config, T5Model

    torch.manual_seed(0)
    made = {}
    bert = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    t5 = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    for name, model in (("bert", BertModel(bert)), ("other", BertModel(bert)), ("t5", T5Model(t5))):
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        tokenizer_in(made[name])
    return made


def hf(folder: Path, **options: object) -> TextEncoder:
    written = "".join(f", {k}={v!r}" for k, v in {"max_tokens": 8, **options}.items())
    return TEXT_ENCODERS.create(f"hf(name={str(folder)!r}{written})")


@pytest.fixture(params=["bytes", "bert", "t5"])
def encoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> TextEncoder:
    if request.param == "bytes":
        encoder = TEXT_ENCODERS.create("bytes(dim=16, depth=2, num_heads=2)")
        initialize(encoder, 1)
        return encoder
    return hf(folders[request.param])


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_frozen_transformer_keeps_the_contract(name: str, law: str, folders: dict[str, Path]) -> None:
    CONTRACT.laws[law](f"hf(name={str(folders[name])!r}, max_tokens=32)")


@torch.no_grad()
def test_captions_are_encoded_alike_alone_and_together(encoder: TextEncoder) -> None:
    together = encoder(CAPTIONS)
    assert together.embeddings.shape == (*together.mask.shape, encoder.dim)
    assert together.embeddings.dtype == torch.float32
    assert together.mask.any(dim=1).all()
    for i, caption in enumerate(CAPTIONS):
        alone = encoder([caption])
        expected = alone.embeddings[0, alone.mask[0]]
        torch.testing.assert_close(together.embeddings[i, together.mask[i]], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bytes_tell_the_order_of_letters() -> None:
    encoder = TEXT_ENCODERS.create("bytes(dim=16, depth=2, num_heads=2)")
    context = encoder(["ab", "ba"])
    assert int(context.mask[0].sum()) == 4
    assert context.mask.shape[1] == 8
    assert not torch.allclose(context.embeddings[0].sum(0), context.embeddings[1].sum(0), atol=1e-3)


def test_gradient_reaches_every_parameter_of_the_byte_encoder() -> None:
    encoder = TEXT_ENCODERS.create("bytes(dim=16, depth=2, num_heads=2)")
    assert encoder.trainable
    context = encoder(CAPTIONS)
    context.embeddings[context.mask].square().sum().backward()
    context = encoder(CAPTIONS)
    (context.embeddings[context.mask] * torch.linspace(0, 1, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_a_long_caption_is_cut_between_characters_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = TEXT_ENCODERS.create("bytes(dim=16, depth=1, num_heads=2, max_bytes=8)")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        cut = encoder(["向右移动"])  # three bytes each: two fit
        exact = encoder(["向右"])
        encoder(["123456789"])
    assert torch.equal(cut.mask, exact.mask)
    assert torch.equal(cut.embeddings, exact.embeddings)
    assert [record.getMessage()[:38] for record in caplog.records] == ["a caption of length 12 is cut to max_b"]


def test_a_frozen_encoder_equals_transformers_own_output(folders: dict[str, Path]) -> None:
    from transformers import BertModel, T5EncoderModel

    ids = torch.tensor([[2, 4, 5, 6, 3]])
    for name, reference in (("bert", BertModel), ("t5", T5EncoderModel)):
        with torch.no_grad():
            expected = reference.from_pretrained(folders[name]).eval()(ids).last_hidden_state
        context = hf(folders[name])(["a red circle"])
        torch.testing.assert_close(context.embeddings, expected, atol=1e-5, rtol=0)


def test_a_frozen_encoder_stays_out_of_the_state_but_its_fingerprint_is_in(folders: dict[str, Path]) -> None:
    encoder, same, other = hf(folders["bert"]), hf(folders["bert"]), hf(folders["other"])
    assert not encoder.trainable
    assert not list(encoder.parameters())
    state = encoder.state_dict()
    assert sum(value.numel() for value in state.values()) < 100
    same.load_state_dict(state, strict=True)
    with pytest.raises(SoraError, match=encoder.fingerprint()):
        other.load_state_dict(state, strict=True)
    with pytest.raises(SoraError, match="max_tokens"):
        hf(folders["bert"], max_tokens=7).load_state_dict(state, strict=True)


def test_each_caption_is_encoded_once_in_memory_and_across_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(encoder: TextEncoder) -> TextEncoder:
        encode = encoder._encode  # type: ignore[attr-defined]
        encoder._encode = lambda captions: calls.append(len(captions)) or encode(captions)  # type: ignore[attr-defined]
        return encoder

    first = counted(hf(folders["bert"], cache=str(tmp_path)))
    before = first(["a red circle", "", "a red circle"])
    first(["", "a"])
    assert calls == [2, 1]
    second = counted(hf(folders["bert"], cache=str(tmp_path)))
    after = second(["a red circle", "", "a red circle"])
    assert calls == [2, 1]
    assert torch.equal(before.embeddings, after.embeddings)
    other = counted(hf(folders["other"], cache=str(tmp_path)))
    assert not torch.allclose(other(["a red circle"]).embeddings, before.embeddings[:1])
    small = counted(hf(folders["bert"], memory=1))
    small(["a", "red", "a"])
    assert len(small._known) == 1  # type: ignore[attr-defined]


def test_a_caption_costs_what_encoding_it_costs_also_where_it_is_known(folders: dict[str, Path]) -> None:
    encoder = hf(folders["bert"])

    def flops(run: Callable[[], object]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    expected = flops(lambda: encoder(["a red circle"]))  # five tokens
    assert expected > 0
    assert flops(lambda: encoder(["a red circle"])) == 0  # known by now
    assert flops(lambda: encoder.probe(5)) == expected


def test_a_caption_of_too_many_tokens_is_cut_with_one_warning(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = hf(folders["bert"], max_tokens=4)
    with caplog.at_level(logging.WARNING, logger="lightning_sora"):
        assert encoder(["a red circle moves right", "right circle moves a red"]).mask.sum(dim=1).tolist() == [4, 4]
    assert sum("max_tokens=4" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("spec", "known", "unknown", "told"),
    [
        ("words(dim=16)", "A red circle", "a red cube مكعب", "not trained on 'cube', 'مكعب', which"),
        ("bytes(dim=16)", "moves left", "vers le مك", "not trained on 'م', 'ك', which"),
    ],
)
def test_what_an_encoder_was_never_trained_on_is_told_once(
    spec: str, known: str, unknown: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained, loaded = TEXT_ENCODERS.create(spec), TEXT_ENCODERS.create(spec)
    initialize(trained, 3)
    initialize(loaded, 3)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(20):
        loss = trained(["a red circle moves left", "a green circle moves over there, veers"]).embeddings.sum(-1).sin()
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    trained.eval()([unknown])
    assert not caplog.records  # of an encoder at hand nothing is known
    loaded.load_state_dict(trained.state_dict())
    loaded.train()([unknown])
    loaded.eval()([known])
    assert not caplog.records
    loaded([unknown, unknown])
    loaded([unknown])
    (record,) = caplog.records
    assert told in record.getMessage()
    rounded = TEXT_ENCODERS.create(spec)
    initialize(rounded, 3)
    rounded.load_state_dict({name: value.half() for name, value in trained.state_dict().items()})
    rounded.eval()([known, unknown])
    assert [told in each.getMessage() for each in caplog.records] == [True, True]
    untrained = TEXT_ENCODERS.create(spec)
    initialize(untrained, 3)
    untrained.load_state_dict(untrained.state_dict())
    untrained.eval()([unknown])
    assert len(caplog.records) == 2


def test_a_word_that_a_tokenizer_does_not_know_is_told(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    hf(folders["bert"])(["a red circle", "a red مكعب"])
    (record,) = caplog.records
    assert "does not know all of the words of 'a red مكعب'" in record.getMessage()


def test_what_cannot_be_loaded_says_why(folders: dict[str, Path], tmp_path: Path) -> None:
    for folder, options, words in (
        (tmp_path / "nowhere", {}, "nowhere"),
        (tmp_path, {}, "cannot load the text encoder"),
        (folders["bert"], {"dtype": "float8"}, "float8"),
        (folders["bert"], {"max_tokens": 64}, "32 positions"),
    ):
        with pytest.raises(SoraError, match=words):
            hf(folder, **options)
    with pytest.raises(SoraError, match="max_bytes=0"):
        TEXT_ENCODERS.create("bytes(max_bytes=0)")


def test_an_encoder_that_this_machine_cannot_hold_is_refused_before_it_is_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForTextEncoding, T5Model

    whole = T5Model.from_pretrained(folders["t5"])
    encoder = sum(p.numel() for p in whole.get_encoder().parameters())
    whole.save_pretrained(tmp_path, max_shard_size="8KB")  # with a decoder, which is left where it is
    tokenizer_in(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for place in (tmp_path, folders["t5"]):
        for dtype, size in (("float32", 4), ("bfloat16", 2)):
            with monkeypatch.context() as patch:
                available = "lightning_sora.models.memory_estimate.available_memory"
                patch.setattr(available, lambda device, enough=encoder * size: enough)
                hf(place, dtype=dtype)
                patch.setattr(available, lambda device, short=encoder * size - 1: short)
                patch.setattr(
                    AutoModelForTextEncoding, "from_pretrained", lambda *args, **_: pytest.fail("the weights were read")
                )
                with pytest.raises(SoraError, match=rf"of {encoder / 1e3:.1f} thousand parameters, needs in {dtype}"):
                    hf(place, dtype=dtype)


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(SoraError, match=r"pip install 'lightning-sora\[hf\]'"):
        TEXT_ENCODERS.create("hf(name='anything')")


def test_an_ideograph_is_a_word_of_its_own_and_other_words_are_as_they_were() -> None:
    encoder = TEXT_ENCODERS.create("words(dim=16, depth=0, num_heads=2)")
    assert isinstance(encoder, WordsEncoder)
    names = [name for name, _ in encoder.parts("一个红色的小球体向左移动，3D立方体 moves")][1:]
    assert names == [*"一个红色的小球体向左移动，", "3d", *"立方体", "moves"]
    for caption in (
        "A medium-sized, red cube; it's 3d.",
        "una cámara pequeñ\u0061",
        "الكرة الحمراء، لا",
        "かな 한국어 x_1",
        "",
    ):
        words = re.findall(r"\w+|[^\w\s]", caption.lower())
        assert [name for name, _ in encoder.parts(caption)][1:] == words
