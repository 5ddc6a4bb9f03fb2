"""RoBERTa (Liu et al., 2019; arXiv:1907.11692) and XLM-R (Conneau et al., 2019; arXiv:1911.02116): BERT trained longer.

Differs from BERT by: no next sentence, hence one segment; byte-level BPE (XLM-R: SentencePiece of 100 languages); a
table of positions whose first rows belong to padding; classes from the first token through a dense layer of their own.

```
ids ── token + place + segment ── LayerNorm ── block of BERT x depth ──┬── dense ─ gelu ─ LayerNorm ── tokens (tied)
                 └ pad + 1 rows are not used                           └── first ─ dense ─ tanh ── classes
```
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import bert_rows, lm_head_rows, text_config
from anyformer.hub.tables.config import key, must
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Attention, Block, Classifier, LayerNorm, Learned, MaskedLM, Pooler, Tokens
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Roberta:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocab: int = 50265
    places: int = 514  # rows of the table of positions; pad + 1 of them are not used
    pad: int = 1
    types: int = 1
    act: str = "gelu"
    eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float | None = None  # as `dropout`
    task: str = "masked"  # masked, classify, tag (a class for each token), none
    classes: int = 2


def roberta(c: Roberta) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, wiring="post", dropout=c.dropout)
    context = c.places - c.pad - 1
    positions = Learned.of(context=context, offset=c.pad + 1)
    embed = Tokens.of(vocab=c.vocab, positions=positions, types=c.types, norm=norm, dropout=c.dropout)
    last = c.dropout if c.classifier_dropout is None else c.classifier_dropout
    classes = Classifier.of(classes=c.classes, dropout=last, each=c.task == "tag")
    tasks = {
        "masked": Top({"mlm": MaskedLM.of(vocab=c.vocab, norm=norm)}),
        "classify": Top({"classes": classes}, Pooler.of(dropout=last)),
        "tag": Top({"classes": classes}),
        "none": Top({}, Pooler.of()),
    }
    top = choose("roberta", "task", c.task, tasks)
    return Encoder.of(c.dim, embed, [block] * c.depth, pool=top.pool, heads=top.heads, context=context)


_base = Roberta(task="none")
SIZES = {
    "tiny": Roberta(dim=32, depth=2, heads=4, hidden=64, vocab=128, places=66),
    "mini": Roberta(dim=192, depth=4, heads=4, hidden=768, vocab=1024, places=258),
    "base": _base,
    "large": replace(_base, dim=1024, depth=24, heads=16, hidden=4096),
    "distil": replace(_base, depth=6),
    "xlm-base": replace(_base, vocab=250002),
    "xlm-large": replace(_base, dim=1024, depth=24, heads=16, hidden=4096, vocab=250002),
}
PARAMETERS = {
    "tiny": 24_640,
    "mini": 2_064_640,
    "base": 124_645_632,
    "large": 355_359_744,
    "distil": 82_118_400,
    "xlm-base": 278_043_648,
    "xlm-large": 559_890_432,
}
CASES = {
    "classify": {"task": "classify", "classes": 5, "act": "relu"},
    "tag": {"task": "tag", "classes": 3, "dim": 30, "heads": 3, "types": 2},
    "none": {"task": "none", "pad": 0, "vocab": 101, "eps": 1e-3},
}


def _weights(c: Roberta) -> list:
    classes = [row("dense", "pool.dense"), row("out_proj", "heads.classes.proj")]
    return [
        bert_rows("roberta"),
        lm_head_rows("heads.mlm"),
        row("lm_head.decoder.bias", (), tied="heads.mlm.bias"),
        *(
            [under("classifier", "", *classes)]
            if c.task == "classify"
            else [row("classifier", "heads.classes.proj"), row("roberta.pooler.dense", "pool.dense")]
        ),
    ]


def _hub(kind: str, stem: str) -> Hub:
    return Hub(
        kind,
        base="roberta.",
        bare=(f"{stem}Model",),
        weights=_weights,
        architectures={
            f"{stem}ForMaskedLM": {"task": "masked"},
            f"{stem}ForSequenceClassification": {"task": "classify"},
            f"{stem}ForTokenClassification": {"task": "tag"},
            f"{stem}Model": {"task": "none"},
        },
        ignore={"roberta.embeddings.position_ids": "0, 1, 2, …"},
        config=(
            *text_config(),
            key("max_position_embeddings", "places"),
            key("pad_token_id", "pad", default=1),
            key("classifier_dropout", "classifier_dropout", default=None),
            must("is_decoder", False),
            must("add_cross_attention", False),
            must("position_embedding_type", "absolute"),
        ),
    )


HUBS = (_hub("roberta", "Roberta"), _hub("xlm-roberta", "XLMRoberta"))
