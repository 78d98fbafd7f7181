"""Text in and out: the vocabulary, the decoder, what captions say, the captioner and the expander."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sora.data.blend import CaptionBlend
from lightning_sora.data.recaptions import read_captions
from lightning_sora.data.sources import ClipInfo
from lightning_sora.errors import SoraError
from lightning_sora.lit.expander import LitExpander
from lightning_sora.models.captioner import Captioner
from lightning_sora.models.text_decoder import Memory, TextDecoder, next_token_loss
from lightning_sora.models.vocabulary import Vocabulary
from lightning_sora.randomness import initialize
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout
from lightning_sora.testbench.caption_facts import FACTS, is_rich, kept, read_caption, recovered, tell
from lightning_sora.testbench.prompts import PromptDataModule
from lightning_sora.world import LEVELS, World

STYLES = ("tags", "short", "dense", "alt")


@pytest.mark.parametrize("name", ["world", "bytes"])
@pytest.mark.parametrize("text", ["", "a red cube", "  Two  spaces\n", "naïve 视频 ☃", "A'b-c: 3.14!", "\x00\t"])
def test_any_text_is_told_and_read_back(name: str, text: str) -> None:
    words = Vocabulary.named(name)
    assert words.decode(words.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_the_shipped_words_are_the_world_s(level: str) -> None:
    words, world = Vocabulary.named("world"), World(level, split="all", seed=11)
    for index in range(60):
        for style in STYLES:
            text = world.caption(world.facts(index), style, key=index + 1).replace("3d", "")
            ids = words.encode(text)
            assert words.decode(ids) == text
            # Letters that are spelled out would be words that are missing.
            assert not [i for i in ids if i < 256 and chr(i).isalpha() and chr(i) not in "aA"], text


def test_a_file_of_words_needs_no_last_line_break(tmp_path: Path) -> None:
    for ending in ("", "\n"):
        (tmp_path / "words.txt").write_text(f" red\n blue{ending}")
        assert Vocabulary.named(str(tmp_path / "words.txt")).words == (" red", " blue")
    (tmp_path / "words.txt").write_bytes(b" caf\xe9\n")
    with pytest.raises(SoraError, match="not UTF-8"):
        Vocabulary.named(str(tmp_path / "words.txt"))


def test_impossible_vocabularies_are_refused(tmp_path: Path) -> None:
    for words in (["two words"], ["red", "red"], [""]):
        with pytest.raises(SoraError):
            Vocabulary(words)
    with pytest.raises(SoraError, match="nowhere"):
        Vocabulary.named(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", ["tags", "short", "dense"])
def test_what_a_caption_says_is_read_back_exactly(level: str, style: str) -> None:
    world = World(level, split="all", seed=3)
    for index in range(80):
        facts = world.facts(index)
        text = world.caption(facts, style, key=index + 1)
        told = read_caption(text)
        true = {(o.color, o.shape, o.size, o.motion) for o in facts.objects}
        assert {(o.color, o.shape, o.size, o.motion) for o in told.objects} == true, text
        assert (told.camera or "static") == facts.camera.motion
        assert recovered(text, facts.as_dict()) == dict.fromkeys((*FACTS, "all"), 1.0)


def test_a_wrong_word_costs_its_fact_and_no_other() -> None:
    world = World("tiny", split="all")
    facts = world.facts(0)
    thing = facts.objects[0]
    text = world.caption(facts, "dense", key=1)
    for name, other in (("color", "pink"), ("shape", "cube" if thing.shape != "cube" else "cone")):
        found = recovered(text.replace(f" {getattr(thing, name)}", f" {other}"), facts.as_dict())
        assert {k for k, v in found.items() if v < 1} == {name, "all"}
    assert recovered("", facts.as_dict())["all"] == 0
    assert recovered("", facts.as_dict())["camera"] == 1  # at rest, it may go unsaid
    twice = recovered(f"{text} {text}", facts.as_dict())
    assert {k for k, v in twice.items() if v < 1} == {"count", "all"}
    assert tell(facts.as_dict(), "dense") == world.caption(facts, "dense", key=facts.index)


def test_kept_is_about_what_the_prompt_tells() -> None:
    rich = "A grey ground carries one object. A big, shiny red cube in the middle slides to the left at a steady pace."
    assert kept("a cube", rich)
    assert kept("a red thing", rich)
    assert kept("a big red cube moves left", rich)
    assert not kept("a small red cube", rich)
    assert not kept("a red cube moves right", rich)
    assert not kept("a red cube, a blue cone", rich)
    assert not kept("a cube, the camera pans left", rich)


def decoder(memory: bool = True) -> TextDecoder:
    made = TextDecoder(40, dim=24, depth=2, num_heads=2, memory=memory).eval()
    initialize(made, 0)
    return made


def test_no_token_sees_what_comes_after_it_nor_what_is_masked() -> None:
    model = decoder()
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(0))
    memory = Memory(torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)), torch.ones(2, 5).bool())
    memory.mask[:, 3:] = False
    with torch.no_grad():
        before = model(ids, memory)
        ids[:, 6:] = 7
        memory.rows[:, 3:] = 99.0
        after = model(ids, memory)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-5)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


def test_writing_follows_the_probabilities_and_no_text_depends_on_another() -> None:
    model = decoder()
    memory = Memory(torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(2)), torch.ones(3, 4).bool())
    prompts = [[1], [2, 3, 4], [5, 6]]
    together = model.write(prompts, memory, end=0, longest=6)
    for i, prompt in enumerate(prompts):
        (alone,) = model.write([prompt], memory.select(torch.tensor([i])), end=0, longest=6)
        assert alone.ids == together[i].ids
        # The score is what a forward pass over the whole text gives.
        whole = torch.tensor([prompt + alone.ids + ([0] if alone.ended else [])])
        logs = model(whole[:, :-1], memory.select(torch.tensor([i]))).detach().log_softmax(-1)[0, len(prompt) - 1 :]
        tokens = whole[0, len(prompt) :]
        assert logs.argmax(-1).tolist() == tokens.tolist()
        mean = logs.gather(1, tokens[:, None]).mean()
        assert alone.log_probability == pytest.approx(mean.item(), abs=1e-4)
    keyed = lambda: [torch.Generator().manual_seed(k) for k in range(3)]  # noqa: E731
    drawn = model.write(prompts, memory, end=0, longest=6, temperature=3.0, generators=keyed())
    assert drawn == model.write(prompts, memory, end=0, longest=6, temperature=3.0, generators=keyed())
    assert [d.ids for d in drawn] != [d.ids for d in together]
    assert all(9 not in one.ids for one in model.write(prompts, memory, end=0, longest=20, forbidden=(9,)))
    with pytest.raises(SoraError, match="temperature"):
        model.write(prompts, memory, end=0, longest=2, temperature=1.0)


def test_texts_weigh_the_same_whatever_their_length() -> None:
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3, 4], [5, 6, 6, 6]])
    found = next_token_loss(logits, targets, ignored=6)
    logs = logits.log_softmax(-1)
    first = -torch.stack([logs[0, i, t] for i, t in enumerate([1, 2, 3, 4])]).mean()
    torch.testing.assert_close(found, torch.stack([first, -logs[1, 0, 5]]))


@pytest.mark.parametrize("attention", ["full", "spatial, temporal"])
def test_a_captioner_sees_each_clip_alone_packed_or_not(attention: str) -> None:
    patch = PatchSize(2, 4, 4)
    model = Captioner(
        patch, vocabulary="bytes", dim=24, depth=2, decoder_depth=1, num_heads=2, attention=attention
    ).eval()
    initialize(model, 0)
    grids = [TokenGrid(2, 2, 3), TokenGrid(1, 2, 2), TokenGrid(3, 1, 2)]
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(256, (g.tokens, 96), generator=draw, dtype=torch.uint8) for g in grids]
    packed = model.look(torch.cat(rows)[None], TokenLayout.pack(grids))
    texts = model.write(torch.cat(rows)[None], TokenLayout.pack(grids), longest=4)
    for i, (grid, row) in enumerate(zip(grids, rows, strict=True)):
        alone = model.look(row[None], TokenLayout.uniform(grid, 1))
        torch.testing.assert_close(packed.rows[i, packed.mask[i]], alone.rows[0], atol=1e-5, rtol=1e-4)
        assert model.write(row[None], TokenLayout.uniform(grid, 1), longest=4)[0].ids == texts[i].ids
    with pytest.raises(SoraError, match="96"):
        model.look(rows[0][None, :, :50], TokenLayout.uniform(grids[0], 1))


def test_form_tokens_know_no_hue() -> None:
    """A clip whose hues are swapped has the same tokens of form, and others of hue."""
    model = Captioner(PatchSize(1, 4, 4), vocabulary="bytes", dim=24, depth=1, decoder_depth=1, num_heads=2).eval()
    initialize(model, 0)
    rows = torch.randint(256, (1, 6, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    swapped = rows.unflatten(-1, (16, 3))[..., [2, 0, 1]].flatten(-2)
    layout = TokenLayout.uniform(TokenGrid(1, 2, 3), 1)
    with torch.no_grad():
        one, other = model.look(rows, layout).rows[0], model.look(swapped, layout).rows[0]
    torch.testing.assert_close(one[:6], other[:6])
    assert (one[6:] - other[6:]).abs().max() > 1e-3


def test_expansions_are_keyed_by_prompt_and_seed(tmp_path: Path) -> None:
    module = LitExpander(dim=24, depth=1, num_heads=2, longest=12, temperature=2.0).eval()
    both = module.expand(["a red cube", "a cone"], seed=1)
    assert module.expand(["a cone"], seed=1) == both[1:]
    assert module.expand(["a red cube", "a cone"], seed=2) != both


def test_pairs_are_of_the_same_clip_and_held_out_apart() -> None:
    data = PromptDataModule(clips=40, heldout_clips=30, batch_size=8)
    train, held = data.pairs("train")[tuple(range(40))], data.pairs("test")[tuple(range(30))]
    for batch in (train, held):
        assert all(kept(p, c) for p, c in zip(batch.prompts, batch.captions, strict=True))
        assert all(is_rich(c) for c in batch.captions)
    pairs = [{(o.color, o.shape) for c in b.captions for o in read_caption(c).objects} for b in (train, held)]
    assert not pairs[0] & pairs[1]
    # The second time round, the same clips in other words.
    again = data.pairs("train")[tuple(range(40, 80))]
    assert [read_caption(c) for c in again.captions] == [read_caption(c) for c in train.captions]
    assert again.captions != train.captions
    with pytest.raises(SoraError, match="levels"):
        PromptDataModule(levels=["huge"])


def table(path: Path, **columns: list[Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_captions_of_a_table_stand_in_at_their_share_of_visits(tmp_path: Path) -> None:
    ids = [f"c{i}" for i in range(400)]
    path = table(tmp_path / "t.parquet", id=ids, caption=[f"new {i}" for i in ids], confidence=[0.5] * 400)
    assert read_captions(path)["c3"] == ("new c3", 0.5, "", "")
    always, often = CaptionBlend(str(path), 1.0), CaptionBlend(str(path), 0.9)
    assert all(always.caption(i, 0, 0) == f"new {i}" for i in ids)
    drawn = [often.caption(i, visit, 0) for i in ids for visit in range(5)]
    share = sum(text is not None for text in drawn) / len(drawn)
    assert abs(share - 0.9) < 5 * (0.09 / 2000) ** 0.5
    assert often.fingerprint() != always.fingerprint()
    clips = [ClipInfo(name, 9, 16, 16, 8.0, content="700 bytes") for name in ("c1", "c2", "unknown")]
    with pytest.raises(SoraError, match="no caption for 1 of 2"):
        always.check(clips[1:])
    always.check(clips[:2])  # nothing is told of what was captioned
    contents = ["700 bytes", "", "800 bytes"]
    path = table(tmp_path / "u.parquet", id=["c1", "c2", "unknown"], caption=["x"] * 3, confidence=[1.0] * 3,
                 content=contents)  # fmt: skip
    CaptionBlend(str(path), 1.0).check(clips[:2])
    with pytest.raises(SoraError, match="other clips of the same names: 1 of 3 have changed since, such as 'unknown'"):
        CaptionBlend(str(path), 1.0).check(clips)
    for share in (0.0, 1.5):
        with pytest.raises(SoraError, match="caption_share"):
            CaptionBlend(str(path), share)


def test_tables_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="no table of captions"):
        read_captions(tmp_path / "nowhere.parquet")
    with pytest.raises(SoraError, match="needed are id, caption, confidence"):
        read_captions(table(tmp_path / "a.parquet", id=["x"], text=["y"]))
    with pytest.raises(SoraError, match="2 rows for 1 clips"):
        read_captions(table(tmp_path / "b.parquet", id=["x", "x"], caption=["y", "z"], confidence=[1.0, 1.0]))
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    with pytest.raises(SoraError, match="not a Parquet file"):
        read_captions(tmp_path / "c.parquet")


def test_learning_to_write_works(tmp_path: Path) -> None:
    """A few texts are learned by heart: the whole path from words to words carries gradients."""
    words = Vocabulary.named("world")
    model = TextDecoder(len(words), dim=32, depth=1, num_heads=2, memory=False)
    initialize(model, 0)
    texts = ["a red cube moves left", "a big cone spins", "the camera pans right"]
    rows = [torch.tensor([words.bos, 65 + k, *words.encode(t), words.eos]) for k, t in enumerate(texts)]
    ids: Tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=words.pad)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        next_token_loss(model(ids[:, :-1]), ids[:, 1:], words.pad).mean().backward()
        optimizer.step()
    written = model.eval().write([[words.bos, 65 + k] for k in range(3)], end=words.eos, longest=12)
    assert [words.decode(one.ids) for one in written] == texts
    assert all(one.ended for one in written)


@pytest.mark.parametrize(("pairs", "ranks"), [(5, 2), (3, 3), (130, 3), (64, 1)])
def test_every_rank_has_pairs_to_evaluate_and_each_pair_is_judged_once(pairs: int, ranks: int) -> None:
    dealt = []
    for rank in range(ranks):
        data = PromptDataModule(clips=4, heldout_clips=pairs, batch_size=64)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
        dealt.append([batch.ids for batch in data.val_dataloader()])
        assert len(data.val_dataloader()) == len(dealt[-1]) > 0
    ids = [name for batches in dealt for batch in batches for name in batch]
    assert len(ids) == len(set(ids)) == pairs
    data.trainer.world_size = pairs + 1
    with pytest.raises(SoraError, match=f"set trainer.devices to at most {pairs}"):
        data.val_dataloader()
