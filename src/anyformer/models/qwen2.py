"""Qwen2 and Qwen2.5 (Yang et al., 2024; arXiv:2407.10671). A pre-norm decoder.

Differs from LLaMA by: q, k and v have biases (o has none); the upper layers can have a window, the lower ones have
full attention; the small sizes share the token table with the head.

```
                        q, k, v with bias; o without
ids ── token ──┬─ RMSNorm ─ attention, rotary, causal ─(+)─┬─ RMSNorm ─ down(silu(gate) * up) ─(+)── … x depth ──┐
               └──────────────────────────────────────┘   └──────────────────────────────┘    logits ── RMSNorm ┘

layer 0 … window_from - 1   ■ ■ ■ ■ ■ ■    all earlier tokens
layer window_from …         · · · ■ ■ ■    the last `window` tokens, itself included
```
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import keys, must
from anyformer.hub.tables.gguf import decoder_config, decoder_rows
from anyformer.hub.tables.llama import llama_config, llama_rows
from anyformer.hub.tables.qwen2 import HEAD_DIM, WINDOW
from anyformer.hub.tables.weights import Hub
from anyformer.models._tasks import choose
from anyformer.parts import Attention, Block, GatedMLP, Logits, RMSNorm, Rotary, Tokens, Window
from anyformer.parts.positions import Dynamic, Linear, Scaling, YaRN, longest
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Qwen2:
    dim: int = 3584
    depth: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int | None = None  # dim / heads
    hidden: int = 18944
    act: str = "silu"
    vocab: int = 152064
    context: int = 131072
    eps: float = 1e-6
    theta: float = 1000000.0
    scaling: Scaling | None = None
    window: int | None = None  # tokens in the window, the query included, in the layers from `window_from` on
    window_from: int = 28
    tied: bool = False
    attention_dropout: float = 0.0
    task: str = "lm"  # or none: hidden states only


def qwen2(c: Qwen2) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    window = None if c.window is None else Window(c.window - 1)
    mixer = Attention.of(
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        bias=True,
        out_bias=False,
        dropout=c.attention_dropout,
        positions=Rotary.of(theta=c.theta, scaling=c.scaling),
    )
    wide = Block.of(mixer=mixer, ffn=GatedMLP.of(hidden=c.hidden, act=c.act), norm=norm)
    near = wide.but(mixer=mixer.but(mask=window))
    blocks = [wide if i < c.window_from else near for i in range(c.depth)]
    head = choose("qwen2", "task", c.task, {"lm": Logits.of(vocab=c.vocab, tied=c.tied), "none": None})
    context = longest(c.context, c.scaling)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), blocks, norm=norm, head=head, context=context)


_tiny = Qwen2(dim=32, depth=2, heads=4, kv_heads=2, hidden=48, vocab=128, context=64, theta=10000.0, window_from=1)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, kv_heads=4, hidden=512, vocab=1024, context=256, window_from=2, tied=True),
    "0.5b": Qwen2(dim=896, depth=24, heads=14, kv_heads=2, hidden=4864, vocab=151936, window_from=24, tied=True),
    "1.5b": Qwen2(dim=1536, heads=12, kv_heads=2, hidden=8960, vocab=151936, tied=True),
    "7b": Qwen2(),
}
PARAMETERS = {"tiny": 23_840, "mini": 1_970_112, "0.5b": 494_032_768, "1.5b": 1_543_714_304, "7b": 7_615_616_512}
CASES = {
    "tied": {"tied": True, "act": "gelu_tanh"},
    "wide heads": {"dim": 33, "head_dim": 12, "heads": 3, "kv_heads": 1, "vocab": 101},
    "upper layers see a window": {"depth": 3, "window": 7},
    "every layer sees a window": {"window": 5, "window_from": 0},
    "bare": {"task": "none"},
    "linear": {"scaling": Linear(4.0)},
    "dynamic": {"scaling": Dynamic(2.0, 64)},
    "yarn": {"scaling": YaRN(4.0, 16)},
    "yarn, every parameter": {
        "head_dim": 16,
        "scaling": YaRN(
            factor=4.0, trained=512, fast=16.0, slow=2.0, attention=None, mscale=0.7, mscale_all=0.3, truncate=False
        ),
    },
}


HUBS = (
    Hub(
        "qwen2",
        architectures={"Qwen2ForCausalLM": {"task": "lm"}, "Qwen2Model": {"task": "none"}},
        base="model.",
        bare=("Qwen2Model",),
        weights=lambda c: llama_rows(c.task),
        config=(
            *llama_config(),
            *keys(num_key_value_heads="kv_heads"),
            WINDOW,
            must("use_mrope", False),
            HEAD_DIM,
        ),
    ),
    Hub("qwen2", format="gguf", weights=lambda c: decoder_rows(), config=decoder_config("qwen2")),
)
