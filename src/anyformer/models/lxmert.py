"""LXMERT (Tan and Bansal, 2019; arXiv:1908.07490). A question and the objects of a picture, which read each other.

Differs from BERT by: a second stream of objects, each with the features and the box that a detector gives; both streams
have blocks of their own, then layers in which each attends to the other, by one attention for both directions, before
self-attention and MLP; heads for answers, for a text that belongs to the picture or not, and for what an object is.

```
ids ── token + place + segment ── LayerNorm ── block x language ──┬── crossing x cross ──┬── masked tokens
                                                                  │                      ├── match, answer: first token
features ── linear ── LayerNorm ─┐                                │                      └── object, attribute, features
box ─────── linear ── LayerNorm ─┴ mean ────── block x vision ────┘

crossing:  text ────┬─ attention to objects ─(+)─ LayerNorm ─ block ──     block: attention ─(+)─ LayerNorm ─
           objects ─┴─ attention to text ────(+)─ LayerNorm ─ block ──            MLP ─(+)─ LayerNorm
```
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.bert import ATTENTION, EMBEDDINGS, layer_rows
from anyformer.hub.tables.config import ACTS, Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.models._tasks import Top, choose
from anyformer.parts import MLP, Attention, Block, Classifier, LayerNorm, Learned, MaskedLM, Pooler, Tokens
from anyformer.parts.objects import AnswerHead, Crossing, ObjectHeads, Objects
from anyformer.skeletons.cross_encoder import CrossEncoder
from anyformer.skeletons.stack import Stack


@dataclass(frozen=True)
class Lxmert:
    dim: int = 768
    language: int = 9  # blocks
    vision: int = 5
    cross: int = 5  # layers of both
    heads: int = 12
    hidden: int = 3072
    vocab: int = 30522
    context: int = 512
    types: int = 2
    features: int = 2048  # of an object
    box: int = 4
    act: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    task: str = "pretraining"  # pretraining; answer: of a question; none
    answers: int = 9500
    objects: int = 1600  # kinds that are told apart, in pretraining
    attributes: int = 400


def lxmert(c: Lxmert) -> Recipe:
    norm = LayerNorm.of(eps=1e-12)
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, wiring="post", dropout=c.dropout)
    crossing = Crossing.of(mixer.but(cross=True), norm, block, block, dropout=c.dropout)
    embed = Tokens.of(
        vocab=c.vocab, positions=Learned.of(context=c.context), types=c.types, norm=norm, dropout=c.dropout
    )
    objects = Objects.of(features=c.features, norm=norm, place=c.box, dropout=c.dropout)
    answer = AnswerHead.of(answers=c.answers, norm=norm)
    pretraining = {"mlm": MaskedLM.of(vocab=c.vocab, norm=norm, act=c.act), "match": Classifier.of(classes=2)}
    tasks = {"pretraining": Top({**pretraining, "answer": answer}), "answer": Top({"answer": answer}), "none": Top({})}
    heads = choose("lxmert", "task", c.task, tasks).heads
    said = {"object": c.objects, "attribute": c.attributes, "features": c.features}
    seen = ObjectHeads.of(scores=said, norm=norm, act=c.act) if c.task == "pretraining" else None
    language, vision = Stack.of([block] * c.language), Stack.of([block] * c.vision)
    layers = [crossing] * c.cross
    return CrossEncoder.of(c.dim, embed, objects, language, vision, layers, Pooler.of(), heads, seen, context=c.context)


SIZES = {
    "tiny": Lxmert(
        dim=16,
        language=1,
        vision=1,
        cross=1,
        heads=2,
        hidden=24,
        vocab=64,
        context=64,
        features=20,
        dropout=0.0,
        attention_dropout=0.0,
        answers=11,
        objects=9,
        attributes=7,
    ),
    "mini": Lxmert(
        dim=128,
        language=2,
        vision=1,
        cross=2,
        heads=4,
        hidden=512,
        vocab=512,
        context=64,
        features=64,
        task="answer",
        answers=64,
    ),
    "base": Lxmert(task="none"),
    "vqa": Lxmert(task="answer", answers=3129),
}
PARAMETERS = {"tiny": 14_113, "mini": 1_670_720, "base": 207_936_768, "vqa": 213_930_297}
CASES = {
    "answer": {"task": "answer", "answers": 5, "types": 3, "vision": 2, "cross": 2, "act": "relu"},
    "none": {"task": "none", "dim": 30, "heads": 3, "language": 2, "box": 5, "hidden": 40},
}


def _side(theirs: str, ours: str) -> list:
    """One stream's block in a crossing."""
    return [
        under(f"{theirs}_self_att.self", f"{ours}.mixer", *ATTENTION),
        row(f"{theirs}_self_att.output.dense", f"{ours}.mixer.o"),
        row(f"{theirs}_self_att.output.LayerNorm", f"{ours}.norm.mixer"),
        row(f"{theirs}_inter.dense", f"{ours}.ffn.up"),
        row(f"{theirs}_output.dense", f"{ours}.ffn.down"),
        row(f"{theirs}_output.LayerNorm", f"{ours}.norm.ffn"),
    ]


def _weights(c: Lxmert) -> list:
    return [
        under("lxmert.embeddings", "embed", *EMBEDDINGS),
        under(
            "lxmert.encoder.visn_fc",
            "objects",
            row("visn_fc", "features"),
            row("visn_layer_norm", "norm.features"),
            row("box_fc", "place"),
            row("box_layer_norm", "norm.place"),
        ),
        under("lxmert.encoder.layer.{i}", "language.blocks.{i}", *layer_rows()),
        under("lxmert.encoder.r_layers.{i}", "vision.blocks.{i}", *layer_rows()),
        under(
            "lxmert.encoder.x_layers.{i}",
            "cross.{i}",
            under("visual_attention.att", "exchange", *ATTENTION),
            row("visual_attention.output.dense", "exchange.o"),
            row("visual_attention.output.LayerNorm", "norm"),
            *_side("lang", "first"),
            *_side("visn", "second"),
        ),
        row("lxmert.pooler.dense", "pool.dense"),
        under("cls.predictions.transform", "heads.mlm", row("dense", "dense"), row("LayerNorm", "norm")),
        row("cls.predictions.bias", "heads.mlm.bias"),
        row("cls.predictions.decoder.weight", "heads.mlm.proj.weight", tied="embed.tokens.weight"),
        row("cls.seq_relationship", "heads.match.proj"),
        under(
            "answer_head.logit_fc",
            "heads.answer",
            row("0", "up"),
            row("2", "norm"),
            row("3", "out"),
        ),
        under("obj_predict_head.transform", "seen", row("dense", "dense"), row("LayerNorm", "norm")),
        row("obj_predict_head.decoder_dict.obj", "seen.out.object"),
        row("obj_predict_head.decoder_dict.attr", "seen.out.attribute"),
        row("obj_predict_head.decoder_dict.feat", "seen.out.features"),
    ]


def _depths(c: Lxmert) -> dict:
    return {"num_hidden_layers": {"vision": c.vision, "cross_encoder": c.cross, "language": c.language}}


LOSS = "the weight of a loss, or whether it is trained"
HUBS = (
    Hub(
        "lxmert",
        architectures={
            "LxmertForPreTraining": {"task": "pretraining"},
            "LxmertForQuestionAnswering": {"task": "answer"},
            "LxmertModel": {"task": "none"},
        },
        base="lxmert.",
        bare=("LxmertModel",),
        weights=_weights,
        outputs={
            "language_output": "hidden",
            "vision_output": "heads.objects",
            "pooled_output": "pooled",
            "prediction_logits": "heads.mlm",
            "cross_relationship_score": "heads.match",
            "question_answering_score": "heads.answer",
            "object_score": "heads.object",
            "attribute_score": "heads.attribute",
            "feature_score": "heads.features",
            "language_hidden_states": "language",
            "vision_hidden_states": "vision",
        },
        config=(
            *keys(hidden_size="dim", num_attention_heads="heads", intermediate_size="hidden", vocab_size="vocab"),
            *keys(max_position_embeddings="context", type_vocab_size="types"),
            key("l_layers", "language", default=9),
            key("r_layers", "vision", default=5),
            key("x_layers", "cross", default=5),
            key("visual_feat_dim", "features", default=2048),
            key("visual_pos_dim", "box", default=4),
            key("hidden_act", "act", ACTS, default="gelu"),
            key("hidden_dropout_prob", "dropout", default=0.1),
            key("attention_probs_dropout_prob", "attention_dropout", default=0.1),
            key("num_qa_labels", "answers", default=9500),
            key("num_object_labels", "objects", default=1600),
            key("num_attr_labels", "attributes", default=400),
            must("tie_word_embeddings", True),
            must("task_obj_predict", True),
            must("task_qa", True),
            must("visual_obj_loss", True),
            must("visual_attr_loss", True),
            must("visual_feat_loss", True),
            quiet("task_mask_lm", "task_matched", "visual_loss_normalizer", why=LOSS),
            quiet("layer_norm_eps", why="every norm of this family has 1e-12, whatever it says"),
            Lens(("num_hidden_layers",), (), lambda config: {}, _depths, "repeats l_layers, r_layers and x_layers"),
        ),
    ),
)
