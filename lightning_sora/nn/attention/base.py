"""AttentionBlock: self-attention among the tokens of each clip, whatever the layout.

The base projects, normalises, rotates and projects back; a block says who attends to whom: by a partition of the
tokens (:class:`PartitionBlock`), by a rule for pairs of tokens (:class:`MaskedBlock`), or by its own ``attend``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.kernels import kernel_for
from lightning_sora.nn.rope import Rope, rotate
from lightning_sora.registry import Registry, Spec
from lightning_sora.spacetime import TokenLayout

Heads = Float[Tensor, "batch tokens heads head_dim"]


def head_width(dim: int, num_heads: int) -> int:
    """``dim / num_heads``.

    Raises:
        SoraError: it is no whole number.
    """
    if num_heads < 1 or dim % num_heads:
        raise SoraError(f"dim={dim} does not divide into num_heads={num_heads}; choose a divisor of {dim}")
    return dim // num_heads


def head_norm(head_dim: int) -> nn.LayerNorm:
    """QK-norm: keeps the logits bounded (ViT-22B, Dehghani et al. 2023, arXiv:2302.05442, section 2.1).

    A layer norm without bias is an RMS norm of centred heads; torch fuses it on every device, which for
    the RMS norm it does not on CPUs (two to three times slower there).
    """
    return nn.LayerNorm(head_dim, eps=1e-6, bias=False)


class SelfProjection(nn.Module):
    """Queries, keys and values of one sequence."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = head_width(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm, self.k_norm = head_norm(self.head_dim), head_norm(self.head_dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"], rope: Rope | None) -> tuple[Heads, Heads, Heads]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> b n three h d", three=3, d=self.head_dim).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q.type_as(v), k.type_as(v), v  # autocast on CUDA normalises in float32


@dataclass(frozen=True)
class TextKeys:
    """What each clip's text offers to joint attention: keys and values beside those of the tokens.

    Attributes:
        k, v: keys normalised, not rotated.
        mask: True where there is text; at least once per clip.
    """

    k: Float[Tensor, "clips text_tokens heads head_dim"]
    v: Float[Tensor, "clips text_tokens heads head_dim"]
    mask: Bool[Tensor, "clips text_tokens"]


def with_text(
    k: Heads, v: Heads, text: TextKeys | None, clips: Int[Tensor, " batch"] | None
) -> tuple[Tensor, Tensor, Bool[Tensor, "batch keys"] | None]:
    """Keys and values with those of the text appended, and which of them count.

    Args:
        clips: the clip of each row; may be None where there is no text.
    """
    if text is None or clips is None:
        return k, v, None
    tokens = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
    keys = torch.cat([k, text.k.index_select(0, clips).to(k.dtype)], dim=1)
    values = torch.cat([v, text.v.index_select(0, clips).to(v.dtype)], dim=1)
    return keys, values, torch.cat([tokens, text.mask.index_select(0, clips)], dim=1)


class AttentionBlock(nn.Module, ABC):
    """One self-attention layer over spacetime tokens.

    Args:
        dim: width of the tokens.
        num_heads: divides ``dim``.
        layer: which layer this is, from 0; blocks may alternate with it.
        depth: how many layers there are.

    A subclass adds its options as keyword arguments, declares the ``kernels`` that can honour it, and
    implements ``attend``, ``receptive_field`` and ``pairs``. Most need less: a :class:`PartitionBlock` implements
    ``group`` alone, a :class:`MaskedBlock` ``visible`` alone. It leaves ``forward`` as it is: pretrained models bring
    projections of their own, between which they call ``attend`` and ``passed_on`` (see :func:`create_operator`). A
    module with parameters of its own draws their initial values in ``reset_parameters(self)``, from torch's generator:
    it is called once for each of them, under a seed made from the parameter's name. ``lightning-sora list attention
    --check FILE`` tells what a block breaks.

    Attributes:
        softmax: whether the block is softmax attention over its receptive field, no more and no less.

    Example:
        >>> import torch, lightning_sora as ls
        >>> block = ls.create_attention("full", dim=32, num_heads=2)
        >>> layout = ls.TokenLayout.uniform(ls.TokenGrid(2, 4, 4), clips=3)
        >>> block(torch.randn(3, 32, 32), layout).shape
        torch.Size([3, 32, 32])
    """

    kernels: ClassVar[tuple[str, ...]] = ("sdpa", "matmul", "flex", "varlen")
    softmax: ClassVar[bool] = True

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int) -> None:
        super().__init__()
        self.dim, self.num_heads, self.layer, self.depth = dim, num_heads, layer, depth
        self.project = SelfProjection(dim, num_heads)
        self.out = nn.Linear(dim, dim, bias=False)
        self.use_kernel(self.kernels[0])

    def use_kernel(self, name: str) -> None:
        """Chooses the kernel.

        Raises:
            SoraError: unknown, or it cannot honour this block; those that can are named.
        """
        self.kernel = kernel_for(name, self.kernels, type(self).__name__)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        layout: TokenLayout,
        rope: Rope | None = None,
        text: TextKeys | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attends within each clip.

        Args:
            rope: rotations that broadcast against ``[batch, tokens]``; None for no positions.
            text: what every token of a clip sees beside its own group, for joint conditioning.
        """
        q, k, v = self.project(x, rope)
        return self.out(self.passed_on(self.attend(q, k, v, layout, text).flatten(2), x))

    def passed_on(
        self, mixed: Float[Tensor, "batch tokens dim"], x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """What of the mixed values the output projection gets; a block whose input has a say in it, such as a gate,
        says how. Of most it is all."""
        return mixed

    @property
    def plan_name(self) -> tuple[object, ...]:
        """Identifies who attends to whom: layers of equal names share one plan per layout.

        By default the class, the layer and every option; a block that does not depend on the layer may name less.
        """
        idle = ("training", "dim", "num_heads", "kernel", "kernels")
        options = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in idle}
        plain = (int, float, str, tuple)
        return (type(self), *sorted((k, v if isinstance(v, plain) else repr(v)) for k, v in options.items()))

    @property
    def causal(self) -> bool:
        """Whether no token sees a later frame, however many there are; a block that knows so says so.

        Fields of small grids do not tell: reaches may be longer, as of ``dilated(stride=(4, 1, 1))``.
        """
        return False

    @abstractmethod
    def attend(self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, text: TextKeys | None = None) -> Heads:
        """Mixes values between the tokens of a clip, and from its text where there is any.

        Args:
            q, k, v: ``[batch, tokens, heads, head_dim]``; queries and keys are normalised and rotated. Where
                ``layout.packed``, batch is 1 and the tokens are those of all clips, one after the other.
            layout: the grids of the clips. ``layout.split(q)`` is one ``[tokens, heads, head_dim]`` per clip, and
                ``layout.join`` puts such parts together again; ``layout.coordinates()`` is the ``(clip, t, y, x)`` of
                every token, as int64 ``[total, 4]``.
            text: keys and values of each clip's text, seen by every token of the clip; :func:`with_text` appends them.

        Returns:
            ``[batch, tokens, heads, head_dim]``, of the dtype of ``v``. See ``differential.py`` for an example.
        """

    def attend_jointly(
        self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, mask: Bool[Tensor, "batch tokens"] | None, first: int
    ) -> Heads:
        """Mixes one sequence of tokens and text, of a network that has both in it: a token sees its own field and all
        of the text, and text sees everything, by softmax.

        Args:
            q, k, v: of a uniform layout, a sequence per clip.
            mask: which positions are seen, those of all tokens among them; None for all.
            first: where the tokens start: 0 where the text is behind them, else the length of the text.
        """
        total, tokens = q.shape[1], layout.shape[1]
        here = slice(first, first + tokens)
        words = slice(0, first) if first else slice(tokens, total)
        seen = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask
        text = TextKeys(k[:, words], v[:, words], seen[:, words])
        mixed = self.attend(q[:, here], k[:, here], v[:, here], layout, text)
        spoken = self.kernel(q[:, words], k, v, mask)
        return torch.cat([spoken, mixed] if first else [mixed, spoken], dim=1)

    @abstractmethod
    def receptive_field(self, layout: TokenLayout) -> Bool[Tensor, "total total"]:
        """Which token (row) may see which (column), of all tokens of the batch in order, each itself at least.

        The truth that the contract's checks hold ``attend`` to; a training does not call it.
        """

    @abstractmethod
    def pairs(self, layout: TokenLayout) -> int:
        """Query-key pairs that the receptive field holds: what a kernel must compute, and need not exceed."""

    def flops(self, layout: TokenLayout, text_tokens: int = 0) -> int:
        """Forward FLOPs of projections, scores and values, a multiplication and an addition counting as two.

        Args:
            text_tokens: keys of the text, padding included, that every token sees in joint conditioning.
        """
        pairs = self.pairs(layout) + layout.total * text_tokens
        return 8 * layout.total * self.dim**2 + 4 * pairs * self.dim


#: The parameters that every block has, and another network in its own way.
PROJECTIONS = frozenset({"project.qkv.weight", "project.q_norm.weight", "project.k_norm.weight", "out.weight"})

ATTENTION: Registry[AttentionBlock] = Registry(
    "attention block",
    name="attention",
    given=("dim", "num_heads", "layer", "depth"),
    contract="lightning_sora.nn.attention.contract",
)
register_attention = ATTENTION.register
"""Files the class that it decorates under a name: ``@register_attention("mine")`` stands above the class."""
list_attention = ATTENTION.list
"""Returns the registered names that match a shell wildcard such as ``"t*"``, sorted."""


def create_attention(
    spec: str | Spec, dim: int, num_heads: int, *, layer: int = 0, depth: int = 1, kernel: str | None = None
) -> AttentionBlock:
    """Builds the block that a spec such as ``"window(size=(2, 4, 4))"`` asks for.

    Args:
        layer: which layer it is, from 0; blocks may alternate with it.
        depth: how many layers there are.
        kernel: how it is computed; None means the block's own first choice.

    Raises:
        SoraError: unknown name, option or kernel, or widths that do not divide.

    Example:
        >>> import lightning_sora as ls
        >>> ls.create_attention("window(size=(2, 4, 4))", dim=192, num_heads=4).size
        (2, 4, 4)
    """
    block = ATTENTION.create(spec, dim, num_heads, layer=layer, depth=depth)
    if kernel is not None:
        block.use_kernel(kernel)
    return block


def create_operator(
    spec: str | Spec, dim: int, num_heads: int, *, layer: int = 0, depth: int = 1, kernel: str | None = None
) -> AttentionBlock:
    """Builds a block for a network that has projections of its own: ``attend`` and ``passed_on``, with the parameters
    that these have.

    Args:
        layer, depth, kernel: see :func:`create_attention`.

    Raises:
        SoraError: as :func:`create_attention`; or a block with a ``forward`` of its own, of which a part would be lost.
    """
    block = create_attention(spec, dim, num_heads, layer=layer, depth=depth, kernel=kernel)
    if type(block).forward is not AttentionBlock.forward:
        raise SoraError(
            f"attention {spec!s} has a forward of its own, which a network with other projections would not call: "
            f"what {type(block).__name__} does there belongs in attend or passed_on"
        )
    before = dict(block.named_parameters())
    block.project, block.out = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    lost = set(before) - {name for name, _ in block.named_parameters()} - PROJECTIONS
    if lost:
        raise SoraError(
            f"attention {spec!s} has {', '.join(sorted(lost))} within its projections, which would be lost in a "
            "network that has others; such parameters belong beside them"
        )
    return block
