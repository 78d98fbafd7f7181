"""A causal transformer that writes text, looking at a memory where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import SelfProjection, head_norm, head_width
from lightning_sora.nn.layers import GatedMLP
from lightning_sora.nn.rope import Rope, axis_pairs, rotary


@dataclass(frozen=True)
class Memory:
    """What a text is about: the tokens of a clip.

    Attributes:
        rows: padded at the end.
        mask: True where there is a token; at least once per text.
    """

    rows: Float[Tensor, "texts memory_tokens dim"]
    mask: Bool[Tensor, "texts memory_tokens"]

    def select(self, texts: Int[Tensor, " chosen"]) -> Memory:
        return Memory(self.rows[texts], self.mask[texts])


@dataclass(frozen=True)
class Written:
    """A text as tokens.

    Attributes:
        ids: without marks.
        log_probability: mean over the tokens, the end mark included.
        ended: whether it came to its end within the length that it had.
    """

    ids: list[int]
    log_probability: float
    ended: bool


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the memory, gated MLP; pre-norm."""

    def __init__(self, dim: int, num_heads: int, memory: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.out = SelfProjection(dim, num_heads), nn.Linear(dim, dim, bias=False)
        self.mlp = GatedMLP(dim, ratio=2.67)
        if memory:
            self.memory_norm = nn.LayerNorm(dim)
            self.query, self.keys_values = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
            self.q_norm, self.k_norm = (head_norm(head_width(dim, num_heads)) for _ in range(2))
            self.memory_out = nn.Linear(dim, dim, bias=False)
        self.sees = memory

    def forward(
        self, x: Float[Tensor, "texts tokens dim"], rope: Rope, memory: Memory | None
    ) -> Float[Tensor, "texts tokens dim"]:
        q, k, v = (rearrange(part, "b n h d -> b h n d") for part in self.project(self.norm(x), rope))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        if self.sees and memory is not None:
            x = x + self._look(self.memory_norm(x), memory)
        return x + self.mlp(self.mlp_norm(x))

    def _look(self, x: Tensor, memory: Memory) -> Tensor:
        heads = {"h": self.num_heads}
        q = self.q_norm(rearrange(self.query(x), "b n (h d) -> b h n d", **heads))
        k, v = rearrange(self.keys_values(memory.rows), "b n (two h d) -> two b h n d", two=2, **heads)
        mixed = F.scaled_dot_product_attention(q, self.k_norm(k), v, attn_mask=memory.mask[:, None, None])
        return self.memory_out(rearrange(mixed, "b h n d -> b n (h d)"))


class TextDecoder(nn.Module):
    """Predicts the next token (Vaswani et al. 2017, arXiv:1706.03762, decoder; RoPE and SwiGLU in place of theirs).

    Args:
        vocabulary: number of token ids.
        dim, depth, num_heads: width, layers, heads.
        memory: whether it looks at a memory of width ``dim``.

    Raises:
        SoraError: widths that do not divide, or no layer.
    """

    def __init__(self, vocabulary: int, *, dim: int, depth: int, num_heads: int, memory: bool) -> None:
        super().__init__()
        if depth < 1:
            raise SoraError(f"depth={depth} of a text decoder must be at least 1")
        self.head_dim = head_width(dim, num_heads)
        axis_pairs(self.head_dim, axes=1)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, memory) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocabulary)

    def forward(
        self, ids: Int[Tensor, "texts tokens"], memory: Memory | None = None
    ) -> Float[Tensor, "texts tokens vocabulary"]:
        """Logits of the token after each; padding comes at the end and is not seen by what precedes it."""
        rope = rotary(torch.arange(ids.shape[1], device=ids.device)[:, None], self.head_dim)
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, rope, memory)
        return self.output(self.norm(x))

    @torch.no_grad()
    def write(
        self,
        prompts: list[list[int]],
        memory: Memory | None = None,
        *,
        end: int,
        longest: int,
        forbidden: tuple[int, ...] = (),
        temperature: float = 0.0,
        generators: list[torch.Generator] | None = None,
    ) -> list[Written]:
        """Continues each prompt to its end mark.

        Args:
            prompts: token ids to begin with, at least one each.
            longest: tokens to write at most.
            forbidden: tokens that are never written.
            temperature: 0 takes the likeliest token.
            generators: of each text, where the temperature is above 0; a text does not depend on the others.

        Raises:
            SoraError: a temperature above 0 without generators.
        """
        if temperature < 0 or (temperature > 0 and generators is None):
            raise SoraError(f"temperature={temperature} must be 0, or positive with a generator for each text")
        device = self.output.weight.device
        found: list[Written | None] = [None] * len(prompts)
        rows, scores = [list(prompt) for prompt in prompts], [0.0] * len(prompts)
        for _ in range(longest):
            going = [i for i, one in enumerate(found) if one is None]
            if not going:
                break
            lengths = [len(rows[i]) for i in going]
            ids = torch.zeros(len(going), max(lengths), dtype=torch.int64)
            for place, i in enumerate(going):
                ids[place, : len(rows[i])] = torch.tensor(rows[i])
            seen = None if memory is None else memory.select(torch.tensor(going, device=device))
            logits = self(ids.to(device), seen)[torch.arange(len(going)), torch.tensor(lengths) - 1].float().cpu()
            logits[:, list(forbidden)] = -torch.inf
            logs = logits.log_softmax(dim=-1)
            for place, i in enumerate(going):
                token = int(logs[place].argmax())
                if temperature > 0 and generators is not None:
                    token = int(
                        torch.multinomial((logits[place] / temperature).softmax(-1), 1, generator=generators[i])
                    )
                scores[i] += float(logs[place, token])
                if token == end:
                    count = len(rows[i]) - len(prompts[i])
                    found[i] = Written(rows[i][len(prompts[i]) :], scores[i] / (count + 1), True)
                else:
                    rows[i].append(token)
        return [one or Written(rows[i][len(prompts[i]) :], scores[i] / longest, False) for i, one in enumerate(found)]


def next_token_loss(
    logits: Float[Tensor, "texts tokens vocabulary"], targets: Int[Tensor, "texts tokens"], ignored: int
) -> Float[Tensor, " texts"]:
    """Mean cross-entropy over each text's own tokens: texts weigh the same, whatever their length."""
    losses = F.cross_entropy(logits.transpose(1, 2).float(), targets, ignore_index=ignored, reduction="none")
    weight = (targets != ignored).float()
    return (losses * weight).sum(dim=1) / weight.sum(dim=1)
