"""BigBird (Zaheer et al., 2020; arXiv:2007.14062). BERT for long texts: attention between a few blocks of tokens.

Differs from BERT by: a block of tokens sees itself, its neighbours, the first and the last block of the text, and a
few random blocks (short texts see all of themselves); GELU is the tanh form; classes have a dense layer of their own,
and the heads for tokens carry an unused pooler.

```
ids ── token + place + segment ── LayerNorm ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP, GELU ─(+)─ LayerNorm ── … x depth ─┐
                                              └────────────┘                └────────────┘                             │
   blocks:  ends │ neighbours │ random         next sentence | classes ── dense ── first token ──┬── masked tokens ────┘
```
"""

from dataclasses import dataclass, replace

from torch import Tensor

from anyformer.core.part import check_option, drop
from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import bert_config, bert_rows, prediction_rows
from anyformer.hub.tables.config import keys
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Attention, Block, Classifier, LayerNorm, Learned, MaskedLM, Pooler, Tokens
from anyformer.parts.attention.block_sparse import BlockSparse
from anyformer.parts.heads import Kept, Through
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class BigBird:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocab: int = 50358
    context: int = 4096
    types: int = 2
    attention: str = "block_sparse"  # or original_full
    block: int = 64  # tokens of a block
    random: int = 3  # random blocks of each one
    bias: bool = True  # of q, k and v
    scaled: bool = False  # True: token vectors are multiplied by sqrt(dim)
    act: str = "gelu_tanh"
    eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float | None = None  # as `dropout`
    task: str = "pretraining"  # pretraining, masked, classify, tag (a class for each token), none
    classes: int = 2


class DropNorm(LayerNorm, also="DropNorm"):
    """A norm with dropout before it. Shape: (..., D)."""

    def __init__(self, dim: int, eps: float, dropout: float):
        super().__init__(dim, eps)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(drop(self, x))


def bigbird(c: BigBird) -> Recipe:
    check_option("bigbird", "attention", c.attention, ("block_sparse", "original_full"))
    norm = LayerNorm.of(eps=c.eps)
    full = Attention.of(heads=c.heads, bias=c.bias, out_bias=True, dropout=c.attention_dropout)
    near = BlockSparse.of(
        heads=c.heads, size=c.block, random=c.random, planned=c.context, bias=c.bias, dropout=c.attention_dropout
    )
    mixers = [full if c.attention == "original_full" else near.but(seed=i) for i in range(c.depth)]
    ffn = MLP.of(hidden=c.hidden, act=c.act)
    blocks = [Block.of(mixer=m, ffn=ffn, norm=norm, wiring="post", dropout=c.dropout) for m in mixers]
    embed = Tokens.of(
        vocab=c.vocab,
        positions=Learned.of(context=c.context),
        types=c.types,
        scale=c.dim**0.5 if c.scaled else 1.0,
        norm=DropNorm.of(eps=c.eps, dropout=c.dropout),
    )
    last = c.dropout if c.classifier_dropout is None else c.classifier_dropout
    mlm, nsp = MaskedLM.of(vocab=c.vocab, norm=norm, act=c.act), Classifier.of(classes=2)
    classes = Classifier.of(classes=c.classes, dropout=last, each=c.task == "tag")
    unread = Kept.of()  # the pooler of files with a head for tokens
    tasks = {
        "pretraining": Top({"mlm": mlm, "nsp": nsp}, Pooler.of()),
        "masked": Top({"mlm": Through.of(unread, mlm)}),
        "classify": Top({"classes": classes}, Through.of(unread, Pooler.of(act=c.act, dropout=last))),
        "tag": Top({"classes": Through.of(unread, classes)}),
        "none": Top({}, Pooler.of()),
    }
    top = choose("bigbird", "task", c.task, tasks)
    return Encoder.of(c.dim, embed, blocks, pool=top.pool, heads=top.heads, context=c.context)


_tiny = BigBird(dim=32, depth=2, heads=4, hidden=64, vocab=128, context=64, block=1, random=1)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, hidden=768, vocab=1024, context=1024, block=16, random=2, task="masked"),
    "base": BigBird(task="none"),
    "large": BigBird(dim=1024, depth=24, heads=16, hidden=4096, task="none"),
}
PARAMETERS = {"tiny": 25_730, "mini": 2_211_904, "base": 127_468_800, "large": 359_123_968}
CASES = {
    "masked": {"task": "masked", "block": 2, "random": 2, "act": "relu"},
    "classify": {"task": "classify", "classes": 5, "block": 3, "context": 63, "bias": False, "scaled": True},
    "tag": {"task": "tag", "classes": 3, "dim": 30, "heads": 3, "classifier_dropout": 0.0},
    "full": {"task": "none", "attention": "original_full", "types": 1, "vocab": 101},
    "short": {"task": "none", "block": 10},
}


def first_weights(c: BigBird) -> dict[str, float]:
    """The same size for all, as in BERT: for scaled tokens and the output projections of branches, too."""
    return {"embed.tokens": 0.02, "blocks.*.mixer.o": 0.02, "blocks.*.ffn.down": 0.02}


def _weights(c: BigBird) -> list:
    mlm = "heads.mlm.then" if c.task == "masked" else "heads.mlm"
    unread = {"masked": "heads.mlm.first", "classify": "pool.first", "tag": "heads.classes.first"}
    classes = [row("classifier", "heads.classes.then.proj")]
    if c.task == "classify":
        classes = under("classifier", "", row("dense", "pool.then.dense"), row("out_proj", "heads.classes.proj"))
    return [
        bert_rows("bert"),
        row("bert.pooler", unread.get(c.task, "pool.dense")),
        classes,
        prediction_rows(mlm),
    ]


HUBS = (
    Hub(
        "big_bird",
        base="bert.",
        bare=("BigBirdModel",),
        weights=_weights,
        architectures={
            "BigBirdForPreTraining": {"task": "pretraining"},
            "BigBirdForMaskedLM": {"task": "masked"},
            "BigBirdForSequenceClassification": {"task": "classify"},
            "BigBirdForTokenClassification": {"task": "tag"},
            "BigBirdModel": {"task": "none"},
        },
        ignore={"bert.embeddings.position_ids": "0, 1, 2, …"},
        config=(
            *bert_config(),
            *keys(attention_type="attention", block_size="block", num_random_blocks="random"),
            *keys(use_bias="bias", rescale_embeddings="scaled"),
        ),
    ),
)
