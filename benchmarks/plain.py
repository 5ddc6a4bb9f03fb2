"""A GPT in plain PyTorch, as short training scripts have it (nanoGPT): one product for q, k and v, PyTorch's fused
attention, GELU, LayerNorm, the table of tokens as head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)). Shape: (B, T, D) -> same."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.into, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.into(self.norms[0](x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)  # (B, H, T, K)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        hidden: Tensor = self.down(F.gelu(self.up(self.norms[1](x))))
        return x + hidden


class GPT(nn.Module):
    """Ids (B, T) to logits (B, T, V)."""

    def __init__(self, layers: int, heads: int, dim: int, vocab: int, context: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for p in (self.tokens.weight, self.places.weight):
            nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)
