"""LoRA: adapters in a denoiser, and their files, against diffusers and peft themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.adapted import without_adapters
from lightning_sora.models.denoisers import DENOISERS, Denoiser
from lightning_sora.models.denoisers.contract import predicted as of_contract
from lightning_sora.models.denoisers.wan_keys import to_original
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.lora import (
    Adapter,
    adapters,
    add_lora,
    fill,
    inject,
    linear_layers,
    merged,
)
from lightning_sora.models.lora_files import load_lora, read_lora, write_lora
from lightning_sora.models.text_base import TextContext
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout
from tests.host_toys import FAMILIES, TEXT, channels_of, host_folder

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
PRETRAINED = [name for name in DENOISERS.list() if name in ("wan", "diffusers")]
SHAPE = {"patch_size": (1, 8, 8), "dim": 32, "depth": 2, "num_heads": 2}


class Hosted(Denoiser):
    """A network of diffusers, under the names that a host gives its parts."""

    pretrained = True
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, network: nn.Module) -> None:
        super().__init__(16, 16, PatchSize(1, 2, 2))
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def flops(self, *args: Any, **kwargs: Any) -> int:
        raise NotImplementedError

    def diffusers_key(self, name: str) -> str:
        return name.removeprefix("network.")


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32, "text_dim": 16}
    return diffusers.WanTransformer3DModel(**{**shape, "freq_dim": 16, **options}).eval()


@torch.no_grad()
def output(wan: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    rows, text = torch.randn(1, 16, 2, 4, 4, generator=draw), torch.randn(1, 5, 16, generator=draw)
    return wan(rows, torch.tensor([500.0]), text, return_dict=False)[0]


def trained(denoiser: Denoiser, **options: Any) -> Denoiser:
    """With adapters that do something."""
    add_lora(denoiser, **options)
    draw = torch.Generator().manual_seed(2)
    for adapter in adapters(denoiser).values():
        adapter.up.copy_(torch.randn(adapter.up.shape, generator=draw))
    return denoiser


def loaded(path: Path, **options: Any) -> tuple[Any, Any]:
    """What diffusers' own pipeline makes of a file: the pipeline, and its network."""
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=diffusers.UniPCMultistepScheduler(),
        transformer=network(**options),
    )  # fmt: skip
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipe, pipe.transformer


def test_at_the_start_nothing_is_changed_and_adapters_alone_learn() -> None:
    before = output(network())
    host = Hosted(network())
    names = add_lora(host, rank=4)
    assert len(names) == 2 * 2 * 4  # layers, attentions, projections
    assert torch.equal(output(host.network), before)
    learns = {name for name, p in host.named_parameters() if p.requires_grad}
    assert learns == {f"{name}.lora_{m}.default.weight" for name in names for m in "AB"}


def test_initial_values_depend_on_the_seed_and_the_names_of_layers_alone() -> None:
    few, many, other = (Hosted(network()) for _ in range(3))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    add_lora(few, rank=4, targets=["attn2.to_v"])
    add_lora(many, rank=4)
    add_lora(other, rank=4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    name = "network.blocks.1.attn2.to_v"
    first, second, third = (adapters(one)[name].down for one in (few, many, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert first.abs().max() <= 24**-0.5
    assert float(first.std()) == pytest.approx((24 * 3) ** -0.5, rel=0.2)


def test_without_adapters_is_the_base_and_merged_is_the_whole() -> None:
    before = output(network())
    host = trained(Hosted(network()), rank=4, alpha=8.0)
    whole = output(host.network)
    assert float((whole - before).abs().max()) > 0.1
    learns = [p.requires_grad for p in host.parameters()]
    with without_adapters(host):
        assert torch.equal(output(host.network), before)
    assert [p.requires_grad for p in host.parameters()] == learns
    plain = merged(host)
    assert set(plain.network.state_dict()) == set(network().state_dict())
    torch.testing.assert_close(output(plain.network), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(output(host.network), whole)  # which is as it was
    assert plain.network.patch_embedding.weight is host.network.patch_embedding.weight  # not copied


@pytest.mark.parametrize(("rank", "alpha"), [(4, None), (4, 8.0), (4, 3.0)])
def test_what_is_written_for_diffusers_its_pipeline_loads_as_it_is(tmp_path: Path, rank: int, alpha: float) -> None:
    host = trained(Hosted(network()), rank=rank, alpha=alpha)
    file = write_lora(host, tmp_path)
    assert file == tmp_path / "pytorch_lora_weights.safetensors"
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in load_file(file)
    _, theirs = loaded(file)
    assert torch.equal(output(theirs), output(host.network))


def test_what_is_written_for_comfyui_diffusers_loads_too(tmp_path: Path) -> None:
    host = trained(Hosted(network()), rank=4, alpha=8.0, targets=["to_q", "to_out.0", "ffn.net.0.proj", "ffn.net.2"])
    file = write_lora(host, tmp_path / "mine.safetensors", "comfyui")
    written = load_file(file)
    assert float(written["diffusion_model.blocks.0.self_attn.q.alpha"]) == 8.0
    assert "diffusion_model.blocks.1.ffn.0.lora_down.weight" in written
    _, theirs = loaded(file)  # of a power of two, alpha over rank is exact wherever it is multiplied
    assert torch.equal(output(theirs), output(host.network))
    again = Hosted(network())
    load_lora(again, file)
    assert torch.equal(output(again.network), output(host.network))


def test_what_diffusers_writes_is_read_as_it_is(tmp_path: Path) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    theirs = network()
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "attn2.to_v"], init_lora_weights=False))
    diffusers.WanPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs),
        **_collate_lora_metadata({"transformer": theirs}),
    )
    host = Hosted(network())
    names = load_lora(host, tmp_path)
    assert len(names) == 2 * 3
    assert {one.size for one in adapters(host).values()} == {(3, 5.0)}
    assert torch.equal(output(host.network), output(theirs))


def test_what_peft_writes_is_read_as_it_is(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], rank_pattern={"blocks.1.attn1.to_q": 2}, use_rslora=True,
        alpha_pattern={"attn2.to_k": 3}, init_lora_weights=False,
    )  # fmt: skip
    theirs = get_peft_model(network(), config)
    theirs.save_pretrained(tmp_path)
    host = Hosted(network())
    load_lora(host, tmp_path)
    assert {one.size.rank for one in adapters(host).values()} == {2, 4}
    torch.testing.assert_close(output(host.network), output(theirs), rtol=1e-5, atol=1e-5)  # alpha * sqrt(r) / r


def test_what_musubi_writes_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    host = trained(
        Hosted(network()), rank=4, alpha=2.0, targets=["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
    )
    weights: dict[str, Tensor] = {}
    for name, one in adapters(host).items():
        stem = f"lora_unet_{to_original(host.diffusers_key(name)).replace('.', '_')}"
        weights |= {f"{stem}.lora_down.weight": one.down, f"{stem}.lora_up.weight": one.up}
        weights[f"{stem}.alpha"] = torch.tensor(one.alpha)
    save_file({key: value.clone() for key, value in weights.items()}, tmp_path / "musubi.safetensors")
    again = Hosted(network())
    load_lora(again, tmp_path)
    _, theirs = loaded(tmp_path / "musubi.safetensors")
    assert torch.equal(output(again.network), output(host.network))
    assert torch.equal(output(theirs), output(host.network))


def test_of_ranks_that_differ_each_is_kept(tmp_path: Path) -> None:
    host = trained(Hosted(network()), rank=4)
    values = adapters(host)
    values["network.blocks.0.attn1.to_q"] = Adapter(torch.randn(2, 24), torch.randn(24, 2), 1.0)
    mixed = Hosted(network())
    inject(mixed, {name: one.size for name, one in values.items()})
    fill(mixed, values)
    file = write_lora(mixed, tmp_path)
    _, theirs = loaded(file)
    assert torch.equal(output(theirs), output(mixed.network))
    again = Hosted(network())
    load_lora(again, file)
    assert torch.equal(output(again.network), output(mixed.network))


def test_the_packages_own_transformer_keeps_its_own_form(tmp_path: Path) -> None:
    model = LatentDiffusion.create("identity", "bytes(dim=16)", dit=SHAPE)
    trained(model.dit, rank=4)
    with pytest.raises(SoraError, match="a DiT is no model of diffusers"):
        write_lora(model.dit, tmp_path)
    file = write_lora(model.dit, tmp_path, "own")
    again = LatentDiffusion.create("identity", "bytes(dim=16)", dit=SHAPE)
    load_lora(again.dit, file)
    theirs, own = adapters(again.dit), adapters(model.dit)
    assert all(torch.equal(theirs[name].up, own[name].up) and theirs[name].size == own[name].size for name in own)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank=0 of LoRA must be at least 1"),
        ({"alpha": 0.0}, "alpha=0.0 of LoRA must be above 0"),
        ({"dropout": 1.0}, r"dropout=1.0 of LoRA must lie in \[0, 1\)"),
        ({"targets": ["attn1.to_kw"]}, "ends in 'attn1.to_kw', .* did you mean 'attn1.to_k'"),
        ({"targets": ["o_q"]}, "ends in 'o_q'"),  # an end is of whole words
        ({"targets": []}, "name some by targets"),
    ],
)
def test_adapters_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SoraError, match=words):
        add_lora(Hosted(network()), **options)


def test_a_second_set_is_refused() -> None:
    host = trained(Hosted(network()), rank=2)
    with pytest.raises(SoraError, match="has LoRA adapters already"):
        add_lora(host)


def test_without_peft_the_line_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SoraError, match=r"needs peft, .*: pip install 'lightning-sora\[peft\]'"):
        add_lora(Hosted(network()))


def test_a_lora_of_another_family_is_refused_by_the_names_of_its_layers(tmp_path: Path) -> None:
    pair = {"A": torch.zeros(2, 24), "B": torch.zeros(24, 2)}
    layers = [f"transformer.transformer_blocks.{i}.attn1.to_q" for i in range(5)]
    save_file(
        {f"{layer}.lora_{m}.weight": pair[m].clone() for layer in layers for m in "AB"}, tmp_path / "ltx.safetensors"
    )
    with pytest.raises(
        SoraError, match=r"another model: .*'transformer\.transformer_blocks\..*, .* and 2 more"
    ) as told:
        load_lora(Hosted(network()), tmp_path / "ltx.safetensors")
    assert "but such as 'transformer." in str(told.value)
    assert "\n" not in str(told.value)


def test_a_lora_of_another_size_is_refused_by_its_shapes(tmp_path: Path) -> None:
    file = write_lora(trained(Hosted(network(attention_head_dim=24)), rank=2), tmp_path)
    with pytest.raises(SoraError, match=r"other widths: .*shape \(48, 48\) .* the layer has \(24, 24\)"):
        load_lora(Hosted(network()), file)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"transformer.proj_out.weight": (4, 4)}, "'transformer.proj_out.weight' is no pair"),
        ({"x.lora_A.weight": (4, 4)}, "'x' is no pair"),
        ({"x.lora_A.weight": (4, 4), "x.lora_B.weight": (4, 4), "x.dora_scale": (4,)}, "'x.dora_scale' is no pair"),
        ({"x.lora_down.weight": (4, 4, 1, 1), "x.lora_up.weight": (4, 4, 1, 1)}, "'x' is no pair"),
    ],
)
def test_what_is_more_or_less_than_lora_is_refused(tmp_path: Path, weights: dict[str, Any], words: str) -> None:
    save_file({key: torch.zeros(shape) for key, shape in weights.items()}, tmp_path / "a.safetensors")
    with pytest.raises(SoraError, match=words):
        read_lora(tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="no LoRA at"):
        read_lora(tmp_path / "none")
    with pytest.raises(SoraError, match="has not one file of LoRA but none"):
        read_lora(tmp_path)
    (tmp_path / "lora.bin").write_bytes(b"x")
    with pytest.raises(SoraError, match="is a pickle"):
        read_lora(tmp_path / "lora.bin")
    (tmp_path / "lora.safetensors").write_bytes(b"x")
    with pytest.raises(SoraError, match="is no safetensors"):
        read_lora(tmp_path)
    file = write_lora(trained(Hosted(network()), rank=2), tmp_path / "whole")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(SoraError, match="damaged"):
        read_lora(file)


def test_adapters_of_dora_are_refused(tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}
    pair = {"transformer.a.lora_A.weight": torch.zeros(2, 2), "transformer.a.lora_B.weight": torch.zeros(2, 2)}
    save_file(pair, tmp_path / "a.safetensors", metadata)
    with pytest.raises(SoraError, match="trained with use_dora"):
        read_lora(tmp_path)


def test_blocks_that_were_put_in_are_not_left_out_of_a_file(tmp_path: Path) -> None:
    class Swapped(Hosted):
        def fresh(self) -> frozenset[str]:
            return frozenset({"network.gate.weight"})

    with pytest.raises(SoraError, match=r"has 1 parameters of blocks that were put in, such as 'network.gate.weight'"):
        write_lora(trained(Swapped(network()), rank=2), tmp_path)


def predicted(denoiser: Denoiser) -> Tensor:
    """Of one clip, timestep and text."""
    draw, layout = torch.Generator().manual_seed(3), TokenLayout.uniform(TokenGrid(2, 2, 2), 1)
    text = TextContext(torch.randn(1, 5, denoiser.text_dim, generator=draw), torch.ones(1, 5, dtype=torch.bool))
    rows = torch.randn(1, layout.total, denoiser.in_dim, generator=draw)
    return denoiser(rows, torch.tensor([0.5]), text, layout)


def silent(denoiser: Denoiser) -> list[str]:
    """The adapters that what is predicted does not depend on."""
    predicted(denoiser).square().sum().backward()
    learns = [(name, p) for name, p in denoiser.named_parameters() if p.requires_grad]
    return [name for name, p in learns if p.grad is None or not float(p.grad.abs().sum()) > 0]


@pytest.mark.parametrize("conditioning", ["cross", "joint"])
def test_every_adapter_has_a_say_in_what_a_denoiser_predicts(conditioning: str) -> None:
    model = LatentDiffusion.create("identity", "bytes(dim=16)", dit={**SHAPE, "conditioning": conditioning})
    for parameter in model.dit.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert not silent(trained(model.dit, rank=2, targets=list(linear_layers(model.dit))))


@pytest.mark.parametrize("kind", PRETRAINED)
@pytest.mark.parametrize("attention", ["full", "window(size=(1, 2, 2))"])
def test_of_a_pretrained_wan_too_whatever_its_attention(tmp_path: Path, kind: str, attention: str) -> None:
    network().save_pretrained(tmp_path / "wan")
    denoiser = DENOISERS.create(f"{kind}(path={str(tmp_path / 'wan')!r}, attention={attention!r})", 16, 16).eval()
    before = predicted(denoiser).detach()
    assert not silent(trained(denoiser, rank=2, targets=[*denoiser.lora_targets, "ffn.net.0.proj", "ffn.net.2"]))
    after = predicted(denoiser).detach()
    assert not torch.equal(after, before)
    with without_adapters(denoiser):
        assert torch.equal(predicted(denoiser), before)
    torch.testing.assert_close(predicted(merged(denoiser)), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PRETRAINED)
@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_adapters_of_a_pretrained_wan_go_to_diffusers_and_back(tmp_path: Path, kind: str, form: str) -> None:
    network().save_pretrained(tmp_path / "wan")
    spec = f"{kind}(path={str(tmp_path / 'wan')!r})"
    denoiser, again = (DENOISERS.create(spec, 16, 16).eval() for _ in range(2))
    file = write_lora(trained(denoiser, rank=4, alpha=8.0), tmp_path / form, form)
    _, theirs = loaded(file)
    state = theirs.state_dict()
    for name, one in adapters(denoiser).items():
        scale = 2.0 if form == "comfyui" else 1.0  # which diffusers multiplies in
        key = denoiser.diffusers_key(name)
        assert torch.equal(state[f"{key}.lora_A.default_0.weight"], one.down * scale)
        assert torch.equal(state[f"{key}.lora_B.default_0.weight"], one.up)
    load_lora(again, file)
    assert torch.equal(predicted(again), predicted(denoiser))
    host = Hosted(network())
    load_lora(host, file)
    assert torch.equal(output(theirs), output(host.network))


LOADERS = {
    "wan": "Wan",
    "cogvideox": "CogVideoX",
    "hunyuan_video": "HunyuanVideo",
    "ltx": "LTXVideo",
    "mochi": "Mochi1",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_each_family_go_to_diffusers_and_back(tmp_path: Path, family: str) -> None:
    import diffusers.loaders

    spec = f"diffusers(path={str(host_folder(family, tmp_path / 'net'))!r})"
    ours, theirs, again = (DENOISERS.create(spec, channels_of(family), TEXT).eval() for _ in range(3))
    layout = TokenLayout.uniform(TokenGrid(2, 2, 2), 2)
    base = of_contract(ours, layout).detach()
    trained(ours, rank=4, alpha=6.0)
    made = of_contract(ours, layout)
    made.square().sum().backward()
    learns = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in learns.items() if gradient is None or not gradient.abs().sum() > 0]
    file = write_lora(ours, tmp_path / "lora")
    loader = getattr(diffusers.loaders, f"{LOADERS[family]}LoraLoaderMixin")
    weights, metadata = loader.lora_state_dict(str(file.parent), weight_name=file.name, return_lora_metadata=True)
    loader.load_lora_into_transformer(weights, theirs.network, metadata=metadata)
    load_lora(again, file)
    assert not torch.equal(made, base)
    assert torch.equal(of_contract(theirs, layout), made)
    assert torch.equal(of_contract(again, layout), made)


def test_without_adapters_within_itself_leaves_them_off() -> None:
    host = trained(Hosted(network()))
    base, tuned = output(network()), output(host.network)  # type: ignore[arg-type]
    with without_adapters(host):
        with without_adapters(host):
            assert torch.equal(output(host.network), base)  # type: ignore[arg-type]
        assert torch.equal(output(host.network), base)  # type: ignore[arg-type]
    assert torch.equal(output(host.network), tuned)  # type: ignore[arg-type]
