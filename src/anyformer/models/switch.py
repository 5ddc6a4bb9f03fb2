"""Switch Transformer (Fedus et al., 2021; arXiv:2101.03961). T5 with many experts, one of them for each token.

Differs from T5 by: in every second block the MLP is a router and E experts; a token's output is its likeliest expert's,
times the router's probability. An expert takes `capacity` tokens of a sequence; the residual alone carries the others.

```
source ── token ──┬─ RMSNorm ─ attention + bias ─(+)─┬─ RMSNorm ─ MLP | router ─ 1 of E MLPs ─(+)── … RMSNorm ── memory
                  └─────────────────────────────┘   └───────────────────────────────────┘                       │
target ── token ──┬─ RMSNorm ─ attention + bias ─(+)─┬─ RMSNorm ─ cross ─(+)─┬─ RMSNorm ─ MLP | … ─(+)── … ── logits
                  └─────────────────────────────┘   └──────────────────┘    └────────────────────┘
```
Losses: for each stack the mean over its sparse layers of `balance` E sum f P and of `z` logsumexp^2. `transformers`
counts padding in both and in the capacity, which restarts in each call of a decoder with a cache; ours does not.
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import ACTS, key, keys, must, quiet
from anyformer.hub.tables.t5 import CONFIG, NO_BIAS, mlp_rows, stack_rows
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._first import t5_sizes
from anyformer.parts import MLP, Attention, Block, Logits, MoE, RelativeBias, RMSNorm, Tokens, TopK
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Switch:
    dim: int = 768
    depth: int = 12
    decoder_depth: int = 12
    sparse: int = 6  # blocks of the encoder with experts
    decoder_sparse: int = 6
    heads: int = 12
    head_dim: int = 64
    hidden: int = 3072
    experts: int = 8
    capacity: int = 64  # tokens of a sequence that an expert takes
    router_bias: bool = False
    jitter: float = 0.0
    balance: float = 0.001
    z: float = 0.001
    vocab: int = 32128
    act: str = "relu"
    buckets: int = 32
    far: int = 128
    eps: float = 1e-6
    dropout: float = 0.0
    begin_id: int = 0


def switch(c: Switch) -> Recipe:
    norm = RMSNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, head_dim=c.head_dim, bias=False, scale=1.0, dropout=c.dropout)
    mlp = MLP.of(hidden=c.hidden, act=c.act, bias=False, dropout=c.dropout)
    bias = RelativeBias.of(heads=c.heads, buckets=c.buckets, far=c.far)

    def stack(block: Recipe, depth: int, sparse: int, bias: Recipe) -> Recipe:
        sparse_layers = _sparse(depth, sparse)
        router = TopK.of(
            experts=c.experts,
            capacity=c.capacity,
            jitter=c.jitter,
            bias=c.router_bias,
            balance=c.balance / len(sparse_layers),  # the sum of these is the mean over layers
            z=c.z / len(sparse_layers),
        )
        many = block.but(ffn=MoE.of(router=router, expert=mlp))
        blocks = [many if i in sparse_layers else block for i in range(depth)]
        return Stack.of(blocks, norm=norm, bias=bias, dropout=c.dropout)

    block = Block.of(mixer=mixer, ffn=mlp, norm=norm, dropout=c.dropout)
    encoder = stack(block, c.depth, c.sparse, bias)
    both = block.but(cross=mixer.but(cross=True))
    decoder = stack(both, c.decoder_depth, c.decoder_sparse, bias.but(causal=True))
    head = Logits.of(vocab=c.vocab, tied=True, scale=c.dim**-0.5)
    embed = Tokens.of(vocab=c.vocab, dropout=c.dropout)
    return EncoderDecoder.of(c.dim, embed, encoder, decoder, head, begin_id=c.begin_id)


def _sparse(depth: int, count: int) -> list[int]:
    """The blocks with experts: one in each `depth // count`, the second of them."""
    if not 1 <= count <= depth:
        raise ValueError(
            f"of {depth} blocks, sparse (decoder_sparse) have experts: at least 1, got {count}; without any it is t5"
        )
    step = depth // count
    return [i for i in range(depth) if i % step == min(1, step - 1)]


_small = Switch(dim=32, heads=4, head_dim=6, hidden=24, experts=3, vocab=128, buckets=8, far=20)
SIZES = {
    "tiny": replace(_small, depth=2, decoder_depth=3, sparse=1, decoder_sparse=1),
    "mini": Switch(
        dim=192, depth=4, decoder_depth=4, sparse=2, decoder_sparse=2, heads=4, head_dim=48, hidden=384, vocab=1024
    ),
    **{f"base-{n}": Switch(experts=n) for n in (8, 16, 32, 64, 128, 256)},
    "large-128": Switch(
        dim=1024, depth=24, decoder_depth=24, sparse=12, decoder_sparse=12, heads=16, hidden=4096, experts=128
    ),
}
PARAMETERS = {
    "tiny": 43_232,
    "mini": 7_285_120,
    "base-8": 619_339_008,
    "base-16": 1_072_397_568,
    "base-32": 1_978_514_688,
    "base-64": 3_790_748_928,
    "base-128": 7_415_217_408,
    "base-256": 14_664_154_368,
    "large-128": 26_309_291_008,
}
CASES = {
    "few places": {"capacity": 2, "router_bias": True, "experts": 2},
    "every block": {"sparse": 2, "decoder_sparse": 3, "act": "gelu"},
    "odd": {
        "dim": 30,
        "heads": 3,
        "head_dim": 8,
        "act": "silu",
        "vocab": 101,
        "buckets": 32,
        "far": 99,
        "capacity": 5,
        "experts": 2,
    },
}


def first_weights(c: Switch) -> dict[str, float]:
    """The sizes of T5; experts' outputs by the width of the stream, and a router with the std of the tokens."""
    sizes = t5_sizes(c.dim, c.heads, c.head_dim, c.hidden)
    return sizes | {"**.ffn.experts.*.*": c.dim**-0.5, "**.ffn.router.proj": 1.0}


def _weights(c: Switch) -> list:
    mlp = mlp_rows(gated=False)
    experts = under("experts.expert_{e}", "experts.{e}", *mlp)
    ffn = [*mlp, row("router.classifier", "router.proj"), *experts]
    return [
        row("shared", "embed.tokens"),
        row("lm_head", (), tied="embed.tokens"),
        stack_rows("encoder", "encoder", "mlp", ffn),
        stack_rows("decoder", "decoder", "mlp", ffn),
    ]


HUBS = (
    Hub(
        "switch_transformers",
        architectures={"SwitchTransformersForConditionalGeneration": {}},
        ignore=NO_BIAS,
        weights=_weights,
        config=(
            *CONFIG,
            *keys(num_sparse_encoder_layers="sparse", num_sparse_decoder_layers="decoder_sparse"),
            *keys(num_decoder_layers="decoder_depth", num_experts="experts", expert_capacity="capacity"),
            key("router_bias", "router_bias", default=False),
            key("router_jitter_noise", "jitter", default=0.01),
            key("router_aux_loss_coef", "balance", default=0.001),
            key("router_z_loss_coef", "z", default=0.001),
            key("dense_act_fn", "act", ACTS, "relu"),
            must("tie_word_embeddings", True),
            must("router_dtype", "float32"),
            must("router_type", "tokens_masked"),
            must("is_gated_act", False),
            must("feed_forward_proj", "relu"),
            must("add_cross_attention", False),
            must("is_encoder_decoder", True),
            quiet("router_ignore_padding_tokens", why="ours always ignores padding; transformers never does"),
            quiet("encoder_sparse_step", "decoder_sparse_step", why="follows from the numbers of blocks"),
            quiet("add_router_probs", why="requests outputs, not other numbers"),
        ),
    ),
)
