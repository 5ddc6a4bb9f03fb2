"""Mixtral (Jiang et al., 2024; arXiv:2401.04088). A decoder with eight feed-forward parts a block; a token uses two.

Differs from LLaMA by: in each block a router sends a token to its two likeliest experts, gated MLPs, and adds their
outputs with weights that sum to 1. So 13 of its 47 billion parameters work on a token. No token is dropped.

```
ids ── token ──┬─ RMSNorm ─ attention, rotary, causal ─(+)─┬─ RMSNorm ─┬─ router ── 2 of 8 ─┬─(+)── … x depth ── RMSNorm
               └──────────────────────────────────────┘   │           └─ gated MLP 0 … 7 ──┘  │                   │
                                                           └──────────────────────────────────┘                 logits
```
The training loss grows by `balance` times the mean over layers of E sum f P; `transformers`, with router logits in its
output, pools all layers before the product, which lets one layer's imbalance hide another's.
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import key, keys, quiet
from anyformer.hub.tables.llama import llama_config, llama_rows, window_config
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import choose
from anyformer.parts import Attention, Block, GatedMLP, Logits, MoE, RMSNorm, Rotary, Tokens, TopK, Window
from anyformer.parts.positions import Linear, Scaling, longest
from anyformer.skeletons.decoder import CausalLM


@dataclass(frozen=True)
class Mixtral:
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_dim: int | None = None  # dim / heads
    hidden: int = 14336  # of one expert
    experts: int = 8
    top: int = 2  # experts a token
    balance: float = 0.02  # weight of the load-balance loss
    jitter: float = 0.0
    act: str = "silu"
    vocab: int = 32000
    context: int = 32768
    eps: float = 1e-5
    theta: float = 1000000.0
    scaling: Scaling | None = None
    window: int | None = None  # tokens in the window, the query included
    tied: bool = False
    attention_dropout: float = 0.0
    task: str = "lm"  # or none: hidden states only


def mixtral(c: Mixtral) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    window = None if c.window is None else Window(c.window - 1)
    mixer = Attention.of(
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        bias=False,
        mask=window,
        dropout=c.attention_dropout,
        positions=Rotary.of(theta=c.theta, scaling=c.scaling),
    )
    router = TopK.of(
        experts=c.experts, top=c.top, renormalise=True, balance=c.balance / max(1, c.depth), jitter=c.jitter
    )
    ffn = MoE.of(router=router, expert=GatedMLP.of(hidden=c.hidden, act=c.act))
    block = Block.of(mixer=mixer, ffn=ffn, norm=norm)
    head = choose("mixtral", "task", c.task, {"lm": Logits.of(vocab=c.vocab, tied=c.tied), "none": None})
    context = longest(c.context, c.scaling)
    return CausalLM.of(c.dim, Tokens.of(vocab=c.vocab), [block] * c.depth, norm=norm, head=head, context=context)


_tiny = Mixtral(dim=32, depth=2, heads=4, kv_heads=2, hidden=24, experts=4, vocab=128, context=64)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, heads=4, kv_heads=4, hidden=256, vocab=1024, context=256, tied=True),
    "8x7b": Mixtral(),
    "8x22b": Mixtral(dim=6144, depth=56, heads=48, hidden=16384, balance=0.001, context=65536),
}
PARAMETERS = {"tiny": 33_184, "mini": 3_150_528, "8x7b": 46_702_792_704, "8x22b": 140_620_634_112}
CASES = {
    "top 1": {"top": 1, "tied": True, "act": "gelu_tanh"},
    "all experts": {"top": 3, "experts": 3, "dim": 33, "head_dim": 12, "heads": 3, "kv_heads": 1, "vocab": 101},
    "window": {"window": 7, "experts": 5, "top": 3},
    "linear": {"scaling": Linear(4.0), "head_dim": 6},
    "bare": {"task": "none"},
}


def _weights(c: Mixtral) -> list:
    experts = under("experts.{e}", "experts.{e}", row("w1", "gate"), row("w3", "up"), row("w2", "down"))
    return llama_rows(c.task, ffn=under("block_sparse_moe", "ffn", row("gate", "router.proj"), experts))


HUBS = (
    Hub(
        "mixtral",
        architectures={"MixtralForCausalLM": {"task": "lm"}, "MixtralModel": {"task": "none"}},
        base="model.",
        bare=("MixtralModel",),
        ignore={"model.layers.{i}.self_attn.rotary_emb.inv_freq": "computed from rope_theta"},
        weights=_weights,
        config=(
            *llama_config(theta=1000000.0),
            *keys(num_local_experts="experts", num_experts_per_tok="top"),
            key("num_key_value_heads", "kv_heads", default=8),
            key("head_dim", "head_dim", default=None),
            key("router_aux_loss_coef", "balance", default=0.001),
            key("router_jitter_noise", "jitter", default=0.0),
            window_config(None),
            quiet("output_router_logits", why="there it also switches the load-balance loss on; here `balance` does"),
        ),
    ),
)
