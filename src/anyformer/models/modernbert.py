"""ModernBERT (Warner et al., 2024; arXiv:2412.13663). BERT for long texts: a window in most layers.

Differs from BERT by: rotary positions; two layers with a window for each one with full attention, each kind with
its own theta; norms before the branches (the first attention has none: the embeddings are already normed) and one
at the end; GELU in a gated MLP; no biases. Classes come from the first token or from the mean of all.

```
ids ── token ── norm ──┬─ norm ─ attention ─(+)─┬─ norm ─ down(gelu(gate) · up) ─(+)── … ── norm ──┬── head ── tokens
                       └────────────────────────┘└─────────────────────────────────┘               └── head ── classes
layer   0  1 2  3  4 5  6 …        q, k ── rotary                       head: norm(gelu(dense))
sees    ■  · ·  ■  · ·  ■          ·  window / 2 on either side, local_theta        ■  everything, theta
```
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Norm
from anyformer.hub.tables.config import ACTS, CLASSES, NO_PAD, key, keys, quiet
from anyformer.hub.tables.rope import layer_kinds, two_ropes
from anyformer.hub.tables.weights import Hub, Split, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import Attention, Block, Classifier, GatedMLP, LayerNorm, Logits, Rotary, Tokens, Window
from anyformer.parts.heads import Dense, First, Mean, Through
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class ModernBert:
    dim: int = 768
    depth: int = 22
    heads: int = 12
    hidden: int = 1152
    act: str = "gelu"
    vocab: int = 50368
    context: int = 8192
    eps: float = 1e-5
    theta: float = 160000.0
    local_theta: float = 10000.0
    window: int = 128  # tokens in most layers' window, half on each side
    every: int = 3  # each layer of this number, from the first, has full attention
    bias: bool = False  # of attention; of the MLP, the norms, the heads' dense layer, the scores of tokens:
    mlp_bias: bool = False
    norm_bias: bool = False
    dense_bias: bool = False
    vocab_bias: bool = True
    tied: bool = True
    dropout: float = 0.0  # of the embeddings; inside the MLP; inside attention and after it; before the classes
    mlp_dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.0
    task: str = "masked"  # masked, classify, tag (a class for each token), none
    classes: int = 2
    pool: str = "cls"  # classify: by the first token, or the "mean"
    head_act: str = "gelu"


POOLS = {"cls": First.of(), "mean": Mean.of()}


class Layer(Block, also="Layer"):
    """Pre-norm, with dropout after attention only, and in the first layer (`opens`) no norm before it."""

    def __init__(
        self,
        dim: int,
        mixer: Recipe[Mixer],
        norm: Recipe[Norm],
        ffn: Recipe[FeedForward],
        dropout: float = 0.0,
        opens: bool = False,
    ):
        super().__init__(dim, mixer, norm, ffn, dropout=dropout)
        if opens:
            self.norm["mixer"] = nn.Identity()

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = x + drop(self, self.mixer(self.norm["mixer"](x), flow))
        return x + self.ffn(self.norm["ffn"](x), flow)


def modernbert(c: ModernBert) -> Recipe:
    norm = LayerNorm.of(eps=c.eps, bias=c.norm_bias)
    far = Attention.of(heads=c.heads, bias=c.bias, positions=Rotary.of(theta=c.theta), dropout=c.attention_dropout)
    near = far.but(positions=Rotary.of(theta=c.local_theta), mask=Window(c.window // 2, c.window // 2))
    ffn = GatedMLP.of(hidden=c.hidden, act=c.act, bias=c.mlp_bias, dropout=c.mlp_dropout)
    wide = Layer.of(mixer=far, norm=norm, ffn=ffn, dropout=c.attention_dropout)
    blocks = [wide.but(mixer=near) if i % c.every else wide.but(opens=not i) for i in range(c.depth)]
    dense = Dense.of(norm=norm, act=c.head_act, bias=c.dense_bias)
    classes = Classifier.of(classes=c.classes, dropout=c.classifier_dropout, each=c.task == "tag")
    tokens = Logits.of(vocab=c.vocab, tied=c.tied, bias=c.vocab_bias)
    first = choose("modernbert", "pool", c.pool, POOLS)
    tasks = {
        "masked": Top({"mlm": Through.of(first=dense, then=tokens)}),
        "classify": Top({"classes": classes}, Through.of(first=first, then=dense)),
        "tag": Top({"classes": Through.of(first=dense, then=classes)}),
        "none": Top({}),
    }
    top = choose("modernbert", "task", c.task, tasks)
    embed = Tokens.of(vocab=c.vocab, norm=norm, dropout=c.dropout)
    return Encoder.of(c.dim, embed, blocks, norm=norm, pool=top.pool, heads=top.heads, context=c.context)


_tiny = ModernBert(
    dim=32, depth=3, heads=4, hidden=48, vocab=128, context=64, theta=1e4, local_theta=1e3, window=8, every=2
)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, hidden=320, vocab=1024, context=512, window=64, every=3),
    "base": ModernBert(),
    "large": ModernBert(dim=1024, depth=28, heads=16, hidden=2624),
}
PARAMETERS = {"tiny": 31_616, "mini": 1_563_520, "base": 149_655_232, "large": 395_881_664}
CASES = {
    "biases": {"bias": True, "mlp_bias": True, "norm_bias": True, "dense_bias": True, "head_act": "relu"},
    "untied": {"tied": False, "vocab_bias": False, "window": 5, "depth": 5, "every": 3},
    "classify": {"task": "classify", "classes": 5, "head_act": "silu"},
    "mean": {"task": "classify", "pool": "mean", "dense_bias": True, "norm_bias": True},
    "tag": {"task": "tag", "classes": 3, "dim": 30, "heads": 3, "every": 1},
    "none": {"task": "none", "vocab": 101, "eps": 1e-3, "act": "silu"},
}


def first_weights(c: ModernBert) -> dict[str, tuple[float, float]]:
    """Megatron's sizes, cut at two standard deviations: by depth for output projections of branches and the inputs of a
    head's scores, by width for the classes."""
    inner, out, classes = (0.02, 2.0), (0.02 / (2 * c.depth) ** 0.5, 2.0), (c.dim**-0.5, 2.0)
    sizes = {"embed.tokens": inner, "blocks.*.mixer.[qkv]": inner, "blocks.*.mixer.o": out}
    sizes |= {"blocks.*.ffn.*": inner, "blocks.*.ffn.down": out, "**.dense": out}
    return sizes | {"heads.mlm.then.proj": out, "heads.classes.proj": classes, "heads.classes.then.proj": classes}


def _weights(c: ModernBert) -> list:
    read = {"masked": "heads.mlm.first", "tag": "heads.classes.first"}.get(c.task, "pool.then")
    classes = "heads.classes.then.proj" if c.task == "tag" else "heads.classes.proj"
    return [
        under("model.embeddings", "embed", row("tok_embeddings", "tokens"), row("norm", "norm")),
        under(
            "model.layers.{i}",
            "blocks.{i}",
            row("attn_norm", "norm.mixer"),
            row("mlp_norm", "norm.ffn"),
            row("attn.Wqkv", ("mixer.q", "mixer.k", "mixer.v"), Split()),
            row("attn.Wo", "mixer.o"),
            row("mlp.Wi", ("ffn.gate", "ffn.up"), Split()),
            row("mlp.Wo", "ffn.down"),
        ),
        row("model.final_norm", "norm"),
        under("head", read, row("dense", "dense"), row("norm", "norm")),
        row("decoder.weight", "heads.mlm.then.proj.weight", tied="embed.tokens.weight"),
        row("decoder.bias", "heads.mlm.then.bias"),
        row("classifier", classes),
    ]


HUBS = (
    Hub(
        "modernbert",
        base="model.",
        bare=("ModernBertModel",),
        weights=_weights,
        architectures={
            "ModernBertForMaskedLM": {"task": "masked"},
            "ModernBertForSequenceClassification": {"task": "classify"},
            "ModernBertForTokenClassification": {"task": "tag"},
            "ModernBertModel": {"task": "none"},
        },
        config=(
            *keys(hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", vocab_size="vocab"),
            *keys(intermediate_size="hidden", max_position_embeddings="context", norm_eps="eps", norm_bias="norm_bias"),
            *keys(local_attention="window", attention_bias="bias", mlp_bias="mlp_bias", decoder_bias="vocab_bias"),
            *keys(classifier_bias="dense_bias", embedding_dropout="dropout", attention_dropout="attention_dropout"),
            *keys(mlp_dropout="mlp_dropout", classifier_dropout="classifier_dropout"),
            CLASSES,
            NO_PAD,
            key("classifier_pooling", "pool", {pool: pool for pool in POOLS}),
            key("hidden_activation", "act", ACTS),
            key("classifier_activation", "head_act", ACTS),
            key("tie_word_embeddings", "tied", default=True),
            layer_kinds(("global_attn_every_n_layers",), 3, first=True),
            two_ropes(("global_rope_theta", 160000.0), ("local_rope_theta", 10000.0), stretches=False),
            quiet("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", why="how, not what"),
            quiet("sparse_prediction", "sparse_pred_ignore_index", why="leaves out logits without a label"),
            quiet("layer_norm_eps", "position_embedding_type", why="inherited from BERT; norm_eps and rotary are used"),
            quiet("initializer_cutoff_factor", why="first weights, before training"),
        ),
    ),
)
