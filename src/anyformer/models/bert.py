"""BERT (Devlin et al., 2018; arXiv:1810.04805). An encoder that sees both directions.

Differs from the 2017 Transformer's encoder by: learned positions, segments, GELU, a norm on the embeddings; heads
for masked tokens and for the next sentence. Post-norm: the norm comes after each sum.

```
ids ── token + place + segment ── LayerNorm ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP, GELU ─(+)─ LayerNorm ── … x depth ─┐
                                              └────────────┘                └────────────┘                             │
                               next sentence | classes ── tanh ── dense ── first token ──┬── masked tokens ────────────┘
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import bert_config, bert_rows, prediction_rows
from anyformer.hub.tables.weights import Hub, row
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Attention, Block, Classifier, LayerNorm, Learned, MaskedLM, Pooler, Tokens
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class BertBody:
    """A BERT without head."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocab: int = 30522
    context: int = 512
    types: int = 2
    act: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Bert(BertBody):
    classifier_dropout: float | None = None  # as `dropout`
    task: str = "pretraining"  # pretraining, masked, classify, tag (a class for each token), none
    classes: int = 2


def bert(c: Bert) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, wiring="post", dropout=c.dropout)
    embed = Tokens.of(
        vocab=c.vocab, positions=Learned.of(context=c.context), types=c.types, norm=norm, dropout=c.dropout
    )
    last = c.dropout if c.classifier_dropout is None else c.classifier_dropout
    mlm, nsp = MaskedLM.of(vocab=c.vocab, norm=norm, act=c.act), Classifier.of(classes=2)
    classes = Classifier.of(classes=c.classes, dropout=last, each=c.task == "tag")
    tasks = {
        "pretraining": Top({"mlm": mlm, "nsp": nsp}, Pooler.of()),
        "masked": Top({"mlm": mlm}),
        "classify": Top({"classes": classes}, Pooler.of()),
        "tag": Top({"classes": classes}),
        "none": Top({}, Pooler.of()),
    }
    top = choose("bert", "task", c.task, tasks)
    return Encoder.of(c.dim, embed, [block] * c.depth, pool=top.pool, heads=top.heads, context=c.context)


SIZES = {
    "tiny": Bert(dim=32, depth=2, heads=4, hidden=64, vocab=128, context=64),
    "mini": Bert(dim=192, depth=4, heads=4, hidden=768, vocab=1024, context=256),
    "base": Bert(task="none"),
    "large": Bert(dim=1024, depth=24, heads=16, hidden=4096, task="none"),
    "base-masked": Bert(task="masked"),
}
PARAMETERS = {"tiny": 25_730, "mini": 2_101_890, "base": 109_482_240, "large": 335_141_888, "base-masked": 109_514_298}
CASES = {
    "masked": {"task": "masked", "act": "relu"},
    "classify": {"task": "classify", "classes": 5},
    "tag": {"task": "tag", "classes": 3, "dim": 30, "heads": 3},
    "none": {"task": "none", "types": 1, "vocab": 101},
}


def _weights(c: Bert) -> list:
    return [
        bert_rows("bert"),
        row("bert.pooler.dense", "pool.dense"),
        prediction_rows("heads.mlm"),
        row("classifier", "heads.classes.proj"),
    ]


HUBS = (
    Hub(
        "bert",
        architectures={
            "BertForPreTraining": {"task": "pretraining"},
            "BertForMaskedLM": {"task": "masked"},
            "BertForSequenceClassification": {"task": "classify"},
            "BertForTokenClassification": {"task": "tag"},
            "BertModel": {"task": "none"},
        },
        base="bert.",
        bare=("BertModel",),
        tails={"gamma": "weight", "beta": "bias"},
        ignore={"bert.embeddings.position_ids": "0, 1, 2, …"},
        weights=_weights,
        config=bert_config(),
    ),
)
