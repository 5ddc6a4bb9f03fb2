"""Longformer (Beltagy et al., 2020; arXiv:2004.05150). An encoder for long texts: a window, and a few global tokens.

Differs from BERT by: a token sees its neighbours and the global tokens of `global_attention_mask`; these see
everything, by a second q, k and v. Attention is then linear in the length. As in RoBERTa, the origin of its
weights, positions are counted from the id of padding + 1, and there is one segment.

```
ids ── token + place + segment ── LayerNorm ──┬─ attention ─(+)─ LayerNorm ─┬─ MLP, GELU ─(+)─ LayerNorm ── … x depth ─┐
                                              └────────────┘                └────────────┘                             │
        attention: window / 2 on each side, and ◆      classes ── tanh ── dense ── first token ──┬── masked tokens ────┘
```
Dilated windows, which the published models do not have: `recipe.but({"blocks.*.mixer.mask": Dilated(2, 64, 64)})`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import bert_rows, lm_head_rows, text_config
from anyformer.hub.tables.config import ONE_VALUE, Lens, key, quiet
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Block, Classifier, LayerNorm, Learned, MaskedLM, Pooler, Tokens, Window
from anyformer.parts.attention.global_tokens import GlobalAttention
from anyformer.skeletons.encoder import GlobalEncoder


@dataclass(frozen=True)
class Longformer:
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocab: int = 50265
    places: int = 4098  # rows of the table of positions; pad + 1 of them are not used
    pad: int = 1
    types: int = 1
    window: int | tuple[int, ...] = 512  # tokens in the window, half on each side; of all layers, or each
    act: str = "gelu"
    eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    task: str = "masked"  # masked, classify (the first token is global by default), tag, none
    classes: int = 2


def longformer(c: Longformer) -> Recipe:
    windows = c.window if isinstance(c.window, tuple) else (c.window,) * c.depth
    if len(windows) != c.depth or any(w % 2 or w < 2 for w in windows):
        raise ValueError(f"window is an even number, or one for each of {c.depth} layers; got {c.window}")
    norm = LayerNorm.of(eps=c.eps)
    mixer = GlobalAttention.of(heads=c.heads, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, wiring="post", dropout=c.dropout)
    blocks = [block.but({"mixer.mask": Window(w // 2, w // 2)}) for w in windows]
    context = c.places - c.pad - 1
    places = Learned.of(context=context, offset=c.pad + 1)
    embed = Tokens.of(vocab=c.vocab, positions=places, types=c.types, norm=norm, dropout=c.dropout)
    classes = Classifier.of(classes=c.classes, dropout=c.dropout, each=c.task == "tag")
    tasks = {
        "masked": Top({"mlm": MaskedLM.of(vocab=c.vocab, norm=norm)}),
        "classify": Top({"classes": classes}, Pooler.of(dropout=c.dropout)),
        "tag": Top({"classes": classes}),
        "none": Top({}, Pooler.of()),
    }
    top, first = choose("longformer", "task", c.task, tasks), c.task == "classify"
    return GlobalEncoder.of(c.dim, embed, blocks, pool=top.pool, heads=top.heads, context=context, first=first)


SIZES = {
    "tiny": Longformer(dim=32, depth=2, heads=4, hidden=64, vocab=128, places=66, window=6),
    "mini": Longformer(dim=192, depth=4, heads=4, hidden=768, vocab=1024, places=1026, window=64),
    "base": Longformer(task="none"),
    "large": Longformer(dim=1024, depth=24, heads=16, hidden=4096, task="none"),
}
PARAMETERS = {"tiny": 30_976, "mini": 2_656_768, "base": 148_659_456, "large": 434_600_960}
CASES = {
    "classify": {"task": "classify", "classes": 5, "window": (4, 8), "act": "relu"},
    "tag": {"task": "tag", "classes": 3, "dim": 30, "heads": 3, "window": 4, "types": 2},
    "none": {"task": "none", "pad": 0, "vocab": 101, "window": (12, 4), "eps": 1e-3},
}


def _weights(c: Longformer) -> list:
    return [
        bert_rows("longformer", *(row(f"{n}_global", f"wide.{n[0]}") for n in ("query", "key", "value"))),
        lm_head_rows("heads.mlm"),
        row("lm_head.decoder.bias", (), tied="heads.mlm.bias"),
        *(
            [row("classifier", "heads.classes.proj"), row("longformer.pooler.dense", "pool.dense")]
            if c.task != "classify"
            else [under("classifier", "", row("dense", "pool.dense"), row("out_proj", "heads.classes.proj"))]
        ),
    ]


def _get_window(config: Mapping[str, Any]) -> dict[str, Any]:
    windows = config.get("attention_window", 512)
    windows = [windows] * config["num_hidden_layers"] if isinstance(windows, int) else windows
    return {"window": windows[0] if len(set(windows)) == 1 else tuple(windows)}


def _put_window(c: Longformer) -> dict[str, Any]:
    return {"attention_window": list(c.window) if isinstance(c.window, tuple) else [c.window] * c.depth}


def _no_gaps(config: Mapping[str, Any]) -> dict[str, Any]:
    dilation = config.get("attention_dilation")
    if dilation is not None and any(d != 1 for d in (dilation if isinstance(dilation, list) else [dilation])):
        raise ValueError(f"config key 'attention_dilation' is {dilation!r}; transformers ignores it; 1 is expected")
    return {}


HUBS = (
    Hub(
        "longformer",
        base="longformer.",
        bare=("LongformerModel",),
        weights=_weights,
        architectures={
            "LongformerForMaskedLM": {"task": "masked"},
            "LongformerForSequenceClassification": {"task": "classify"},
            "LongformerForTokenClassification": {"task": "tag"},
            "LongformerModel": {"task": "none"},
        },
        ignore={"longformer.embeddings.position_ids": "0, 1, 2, …"},
        config=(
            *text_config(),
            key("max_position_embeddings", "places"),
            key("pad_token_id", "pad", default=1),
            Lens(("attention_window",), ("window",), _get_window, _put_window),
            Lens(("attention_dilation",), (), _no_gaps, lambda c: {}, ONE_VALUE),
            quiet("onnx_export", "attention_mode", "ignore_attention_mask", why="how, not what"),
        ),
    ),
)
