"""LLaMA (Touvron et al., 2023; arXiv:2302.13971), and with a window Mistral (Jiang et al., 2023; arXiv:2310.06825).
A pre-norm decoder.

Differs from GPT-2 by: RMSNorm, rotary positions, a gated MLP, keys and values shared by groups of heads, no biases.

```
ids ── token ──┬─ RMSNorm ─ attention, rotary, causal ─(+)─┬─ RMSNorm ─ down(silu(gate) * up) ─(+)── … x depth ──┐
               └──────────────────────────────────────┘   └──────────────────────────────┘    logits ── RMSNorm ┘
```
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Same, key, keys, quiet
from anyformer.hub.tables.gguf import decoder_config, decoder_rows
from anyformer.hub.tables.llama import llama_config, llama_rows, window_config
from anyformer.hub.tables.weights import Hub, RotaryOrder
from anyformer.models._tasks import choose
from anyformer.parts import Attention, Block, GatedMLP, Logits, RMSNorm, Rotary, Tokens, Window
from anyformer.parts.positions import Dynamic, Linear, Llama3, LongRope, Scaling, YaRN, longest
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Llama:
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int | None = None  # dim / heads
    hidden: int = 11008
    act: str = "silu"
    vocab: int = 32000
    context: int = 4096
    eps: float = 1e-5
    theta: float = 10000.0
    scaling: Scaling | None = None
    window: int | None = None  # tokens in the window, the query included (Mistral)
    bias: bool = False  # in attention
    ffn_bias: bool = False
    tied: bool = False
    attention_dropout: float = 0.0
    task: str = "lm"  # or none: hidden states only


def llama(c: Llama) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    window = None if c.window is None else Window(c.window - 1)
    mixer = Attention.of(
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        bias=c.bias,
        mask=window,
        dropout=c.attention_dropout,
        positions=Rotary.of(theta=c.theta, scaling=c.scaling),
    )
    block = Block.of(mixer=mixer, ffn=GatedMLP.of(hidden=c.hidden, act=c.act, bias=c.ffn_bias), norm=norm)
    head = choose("llama", "task", c.task, {"lm": Logits.of(vocab=c.vocab, tied=c.tied), "none": None})
    context = longest(c.context, c.scaling)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), [block] * c.depth, norm=norm, head=head, context=context)


_llama3 = Llama(kv_heads=8, hidden=14336, vocab=128256, context=8192, theta=500000.0)
_far = Llama3(factor=8.0, low=1.0, high=4.0, trained=8192)
_llama31 = replace(_llama3, context=131072, scaling=_far)
_tiny = Llama(dim=32, depth=2, heads=4, kv_heads=2, hidden=48, vocab=128, context=64)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, heads=4, kv_heads=4, hidden=512, vocab=1024, context=256, tied=True),
    "7b": Llama(),
    "13b": Llama(dim=5120, depth=40, heads=40, kv_heads=40, hidden=13824),
    "70b": Llama(dim=8192, depth=80, heads=64, kv_heads=8, hidden=28672),
    "3-8b": _llama3,
    "3.1-8b": _llama31,
    "3.1-70b": replace(_llama31, dim=8192, depth=80, heads=64, hidden=28672),
    "3.2-1b": replace(_llama31, dim=2048, depth=16, hidden=8192, tied=True, scaling=replace(_far, factor=32.0)),
    "mistral-7b": Llama(kv_heads=8, hidden=14336, context=32768, window=4096),
    "smollm2-135m": Llama(
        dim=576, depth=30, heads=9, kv_heads=3, hidden=1536, vocab=49152, context=8192, theta=100000.0, tied=True
    ),
}
PARAMETERS = {
    "tiny": 23_712,
    "mini": 1_967_808,
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
    "3-8b": 8_030_261_248,
    "3.1-8b": 8_030_261_248,
    "3.1-70b": 70_553_706_496,
    "3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "smollm2-135m": 134_515_008,
}
CASES = {
    "tied": {"tied": True, "act": "gelu_tanh"},
    "wide heads": {"dim": 33, "head_dim": 12, "heads": 3, "kv_heads": 1, "vocab": 101, "bias": True, "ffn_bias": True},
    "window": {"window": 7},
    "linear": {"scaling": Linear(4.0)},
    "dynamic": {"scaling": Dynamic(2.0, 64)},
    "yarn": {"scaling": YaRN(4.0, 16)},
    "yarn, DeepSeek": {
        "head_dim": 16,
        "scaling": YaRN(
            factor=4.0, trained=512, fast=16.0, slow=2.0, attention=None, mscale=0.7, mscale_all=0.3, truncate=False
        ),
    },
    "longrope": {"scaling": LongRope(short=(1.0, 1.1, 1.3, 2.0), long=(1.5, 2.0, 4.0, 8.0), trained=8, attention=1.2)},
    "llama3": {"scaling": Llama3(factor=8.0, low=1.0, high=4.0, trained=16)},
    "bare": {"task": "none"},
}


HUBS = (
    Hub(
        "llama",
        architectures={"LlamaForCausalLM": {"task": "lm"}, "LlamaModel": {"task": "none"}},
        base="model.",
        bare=("LlamaModel",),
        ignore={"model.layers.{i}.self_attn.rotary_emb.inv_freq": "computed from rope_theta"},
        weights=lambda c: llama_rows(c.task),
        config=(
            *llama_config(),
            key("num_key_value_heads", "kv_heads", default=Same("heads")),
            key("head_dim", "head_dim", default=None),
            key("attention_bias", "bias", default=False),
            key("mlp_bias", "ffn_bias", default=False),
            quiet("pretraining_tp", why="splits the same sums over devices"),
        ),
    ),
    Hub(
        "mistral",
        architectures={"MistralForCausalLM": {"task": "lm"}, "MistralModel": {"task": "none"}},
        base="model.",
        bare=("MistralModel",),
        weights=lambda c: llama_rows(c.task),
        config=(
            *llama_config(),
            *keys(num_key_value_heads="kv_heads"),
            key("head_dim", "head_dim", default=None),
            window_config(4096),
        ),
    ),
    Hub(
        "llama",
        format="gguf",
        weights=lambda c: decoder_rows(q=RotaryOrder(c.heads), k=RotaryOrder(c.kv_heads)),
        config=decoder_config("llama"),
    ),
)
