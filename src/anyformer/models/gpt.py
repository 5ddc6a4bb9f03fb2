"""GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners"). A pre-norm decoder.

Differs from the 2017 Transformer's decoder by: no encoder, norms before the branches, learned positions, GELU.

```
ids ── token + place ──┬─ LayerNorm ─ attention, causal ─(+)─┬─ LayerNorm ─ MLP, GELU ─(+)── … x depth ── LayerNorm ─┐
                       └────────────────────────────────┘   └─────────────────────┘   logits, by the token table ── ┘
```
Its files hold q, k and v in one matrix, and every matrix transposed.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import key, keys
from anyformer.hub.tables.gpt2 import layer_config, layer_rows, stored_masks
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import choose
from anyformer.parts import MLP, Attention, Block, LayerNorm, Learned, Logits, Tokens
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class GPT:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None  # 4 x dim
    vocab: int = 50257
    context: int = 1024
    act: str = "gelu_tanh"
    eps: float = 1e-5
    tied: bool = True
    dropout: float = 0.0  # after each branch
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    task: str = "lm"  # or none: hidden states only


def gpt(c: GPT) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    embed = Tokens.of(vocab=c.vocab, positions=Learned.of(context=c.context), dropout=c.embed_dropout)
    head = choose("gpt", "task", c.task, {"lm": Logits.of(vocab=c.vocab, tied=c.tied), "none": None})
    return CausalLM.of(c.dim, embed, [block] * c.depth, norm=norm, head=head, context=c.context)


SIZES = {
    "tiny": GPT(dim=32, depth=2, heads=4, vocab=128, context=64),
    "mini": GPT(dim=192, depth=4, heads=4, vocab=1024, context=256),
    "small": GPT(),
    "medium": GPT(dim=1024, depth=24, heads=16),
    "large": GPT(dim=1280, depth=36, heads=20),
    "xl": GPT(dim=1600, depth=48, heads=25),
}
PARAMETERS = {
    "tiny": 31_616,
    "mini": 2_025_600,
    "small": 124_439_808,
    "medium": 354_823_168,
    "large": 774_030_080,
    "xl": 1_557_611_200,
}
CASES = {
    "untied": {"tied": False},
    "bare": {"task": "none"},
    "odd": {"dim": 30, "heads": 3, "hidden": 50, "vocab": 101, "depth": 3},
}


def _weights(c: GPT) -> list:
    return [
        under("transformer", "", row("wte", "embed.tokens"), row("wpe", "embed.positions")),
        *layer_rows("transformer"),
        *([row("lm_head", "head.proj", tied="embed.tokens")] if c.task == "lm" else []),
    ]


HUBS = (
    Hub(
        "gpt2",
        architectures={"GPT2LMHeadModel": {"task": "lm"}, "GPT2Model": {"task": "none"}},
        base="transformer.",
        bare=("GPT2Model",),
        ignore=stored_masks("transformer"),
        weights=_weights,
        config=(
            *keys(n_embd="dim", vocab_size="vocab"),
            key("n_positions", "context", also=("n_ctx",)),
            key("tie_word_embeddings", "tied", default=True),
            *layer_config("gelu_new"),
        ),
    ),
)
