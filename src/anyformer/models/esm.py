"""ESM-2 (Lin et al., 2023: "Evolutionary-scale prediction of atomic-level protein structure with a language model").

A masked language model of proteins: a token is an amino acid.

Differs from BERT by: no segments and no places, q and k are turned (rotary); norms before the branches and one at the
end; no norm on the embeddings; masked tokens enter as 0, and the others are scaled for it. A logistic regression on the
attention maps of all layers says which residues touch (`anyformer.parts.proteins.contacts`).

```
ids ── token x 0.88 / (1 - share of masks) ──┬─ norm ─ attention, rotary ─(+)─┬─ norm ─ MLP, GELU ─(+)── … ── norm ──┐
                                             └─────────────────────────────────┘└────────────────────┘               │
                              classes ── tanh ── dense ── first token ──┬──────────────── amino acids ──────────────┘
```
"""

from dataclasses import dataclass, replace

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import ATTENTION, lm_head_rows
from anyformer.hub.tables.config import CLASSES, Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Attention, Block, Classifier, LayerNorm, MaskedLM, Pooler
from anyformer.parts.heads import Kept, Through
from anyformer.parts.proteins import ContactRegression, ProteinTokens, StoredRotary
from anyformer.skeletons.encoder import Encoder


@dataclass(frozen=True)
class Esm:
    dim: int = 640
    depth: int = 30
    heads: int = 20
    hidden: int = 2560
    vocab: int = 33
    context: int = 1026
    mask: int = 32  # id of the mask token
    dropped: bool = True  # masked tokens enter as 0
    entry_norm: bool = False  # a norm on the embeddings
    theta: float = 10000.0
    eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    task: str = "masked"  # masked, classify, tag (a class for each amino acid), none; stem: of a folding model
    classes: int = 2


def esm(c: Esm) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, positions=StoredRotary.of(), dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden), norm=norm, dropout=c.dropout)
    embed = ProteinTokens.of(
        vocab=c.vocab,
        head_dim=c.dim // c.heads,
        theta=c.theta,
        hidden=c.mask if c.dropped else None,
        norm=norm if c.entry_norm else None,
    )
    touch = Kept.of(held=ContactRegression.of(maps=c.depth * c.heads))
    classes = Classifier.of(classes=c.classes, dropout=c.dropout, each=c.task == "tag")
    tasks = {
        "masked": Top({"mlm": Through.of(first=touch, then=MaskedLM.of(vocab=c.vocab, norm=norm))}),
        "classify": Top({"classes": classes}, Through.of(first=touch, then=Pooler.of(dropout=c.dropout))),
        "tag": Top({"classes": Through.of(first=touch, then=classes)}),
        "none": Top({}, Through.of(first=touch, then=Pooler.of())),
        "stem": Top({"contacts": touch}),
    }
    top = choose("esm", "task", c.task, tasks)
    return Encoder.of(c.dim, embed, [block] * c.depth, norm=norm, pool=top.pool, heads=top.heads, context=c.context)


_tiny = Esm(dim=32, depth=2, heads=4, hidden=64, context=64)
SIZES = {
    "tiny": _tiny,
    "mini": replace(_tiny, dim=192, depth=4, hidden=768, context=512),
    "8m": Esm(dim=320, depth=6, hidden=1280),
    "35m": Esm(dim=480, depth=12, hidden=1920),
    "150m": Esm(),
    "650m": Esm(dim=1280, depth=33, hidden=5120),
    "3b": Esm(dim=2560, depth=36, heads=40, hidden=10240),
    "15b": Esm(dim=5120, depth=48, heads=40, hidden=20480),
}
PARAMETERS = {
    "tiny": 19_361,
    "mini": 1_823_649,
    "8m": 7_512_353,
    "35m": 33_501_153,
    "150m": 148_139_553,
    "650m": 651_042_593,
    "3b": 2_839_004_193,
    "15b": 15_129_098_273,
}
CASES = {
    "plain": {"dropped": False, "entry_norm": True},
    "classify": {"task": "classify", "classes": 5, "mask": 3},
    "tag": {"task": "tag", "classes": 3, "dim": 36, "heads": 3},
    "none": {"task": "none", "vocab": 40, "eps": 1e-3, "theta": 1e3},
}


_TURNS = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"  # in published files


def _weights(c: Esm) -> list:
    held = {"masked": "heads.mlm.first", "tag": "heads.classes.first"}.get(c.task, "pool.first")
    each = "heads.classes.then" if c.task == "tag" else "heads.classes"
    head = [row("dense", "pool.then.dense"), row("out_proj", "heads.classes.proj")]
    return [
        under("esm.embeddings", "embed", row("word_embeddings", "tokens"), row("layer_norm", "norm")),
        under(
            "esm.encoder.layer.{i}",
            "blocks.{i}",
            under("attention.self", "mixer", *ATTENTION),
            row("attention.output.dense", "mixer.o"),
            row("attention.LayerNorm", "norm.mixer"),
            row("LayerNorm", "norm.ffn"),
            row("intermediate.dense", "ffn.up"),
            row("output.dense", "ffn.down"),
        ),
        row("esm.encoder.emb_layer_norm_after", "norm"),
        row("esm.rotary_embeddings.inv_freq", "embed.frequencies", also=_TURNS.format(0)),
        row("esm.contact_head.regression", held),
        row("esm.pooler.dense", "pool.then.dense") if c.task == "none" else [],
        lm_head_rows("heads.mlm.then"),
        under("classifier", "", *head) if c.task == "classify" else row("classifier", f"{each}.proj"),
    ]


HUBS = (
    Hub(
        "esm",
        base="esm.",
        bare=("EsmModel",),
        tails={"gamma": "weight", "beta": "bias"},  # as transformers 5 writes them; published files have weight, bias
        weights=_weights,
        architectures={
            "EsmForMaskedLM": {"task": "masked"},
            "EsmForSequenceClassification": {"task": "classify"},
            "EsmForTokenClassification": {"task": "tag"},
            "EsmModel": {"task": "none"},
        },
        ignore={
            "esm.embeddings.position_ids": "0, 1, 2, …",
            "esm.embeddings.position_embeddings.weight": "of ESM-1b; with rotary positions nothing reads it",
            _TURNS.format("{i}"): "the first layer's, which all have",
        },
        config=(
            *keys(
                hidden_size="dim", num_hidden_layers="depth", num_attention_heads="heads", intermediate_size="hidden"
            ),
            key("vocab_size", "vocab"),
            key("layer_norm_eps", "eps", default=1e-12),
            key("hidden_dropout_prob", "dropout", default=0.1),
            key("attention_probs_dropout_prob", "attention_dropout", default=0.1),
            Lens(("pad_token_id",), (), lambda config: {}, lambda c: {"pad_token_id": 1}, "for the tokenizer"),
            CLASSES,
            key("max_position_embeddings", "context", default=1026),
            key("mask_token_id", "mask"),
            key("token_dropout", "dropped", default=False),
            key("emb_layer_norm_before", "entry_norm", default=False),
            key("rope_theta", "theta", default=10000.0),
            must("position_embedding_type", "rotary", absent=False),
            must("tie_word_embeddings", True),
            must("is_decoder", False),
            must("add_cross_attention", False),
            must("is_folding_model", False),
            quiet("esmfold_config", "vocab_list", why="of the folding model, which this is not"),
            quiet("hidden_act", "classifier_dropout", why="no class of this family reads it"),
        ),
    ),
)
