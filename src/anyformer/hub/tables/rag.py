"""The names of tensors and settings in files of RAG: a DPR encoder and a generator of several families."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyformer.hub.tables.bart import seq2seq_config, seq2seq_rows
from anyformer.hub.tables.bert import bert_rows, encoder_config
from anyformer.hub.tables.config import CLASSES, Lens, Line, key, keys, must, quiet
from anyformer.hub.tables.nested import Within
from anyformer.hub.tables.t5 import CONFIG, NO_BIAS, ffn_config, head_config, mlp_rows, stack_rows
from anyformer.hub.tables.weights import row, under


@dataclass(frozen=True)
class OneOf(Lens):
    """The entry for a part of the model with a config one level down, whose `model_type` says which of several it is.

    Args:
        kinds: `model_type` to the entry; `usual`: the one of a config without it.
    """

    kinds: Mapping[str, Within] = field(default_factory=dict)
    usual: str = ""

    def values(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {name: None for name in self.fields} | self._chosen(config, where).values(config, where)

    def lines(self, config: Mapping[str, Any], where: str) -> list[Line]:
        return self._chosen(config, where).lines(config, where)

    def words(self, hyper: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        held = [kind for kind, entry in self.kinds.items() if getattr(hyper, entry.fields[0]) is not None]
        if len(held) != 1:
            raise ValueError(f"{' and '.join(self.fields)}: exactly one of them must be given, got {len(held)}")
        same = (origin.get(self.names[0]) or {}).get("model_type", self.usual) == held[0]
        made = self.kinds[held[0]].words(hyper, origin if same else {})
        return {name: {"model_type": held[0], **inner} for name, inner in made.items()}

    def hyperparameters(self) -> set[str]:
        return {name for entry in self.kinds.values() for name in entry.hyperparameters()}

    def _chosen(self, config: Mapping[str, Any], where: str) -> Within:
        inner = config.get(self.names[0])
        kind = inner.get("model_type", self.usual) if isinstance(inner, Mapping) else self.usual
        if kind not in self.kinds:
            raise ValueError(
                f"config key '{where}{self.names[0]}.model_type' is {kind!r}; this page reads {', '.join(self.kinds)}"
            )
        return self.kinds[kind]


def one_of(theirs: str, **kinds: tuple[str, type, tuple[Lens, ...]]) -> Lens:
    """Their dictionary is one of our nested hyperparameters, the others are None: `model_type` = (ours, its dataclass,
    its table); the first is the usual one."""
    entries = {
        kind: Within((theirs,), (ours,), dict, dict, cls=cls, entries=table)
        for kind, (ours, cls, table) in kinds.items()
    }
    fields = tuple(entry.fields[0] for entry in entries.values())
    return OneOf((theirs,), fields, dict, dict, kinds=entries, usual=next(iter(entries)))


def fixed(ours: str, value: Any, name: str) -> Lens:
    """A hyperparameter that the generator's class implies."""

    def put(c: Any) -> dict[str, Any]:
        if getattr(c, ours) != value:
            raise ValueError(f"{ours}={getattr(c, ours)!r} cannot be written: a {name} has {value!r}")
        return {"architectures": [name]}

    return Lens(("architectures",), (ours,), lambda config: {ours: value}, put)


DPR = (
    *(entry for entry in encoder_config(dropout=0.1) if entry is not CLASSES),
    *keys(vocab_size="vocab", type_vocab_size="types", max_position_embeddings="context"),
    key("projection_dim", "width", default=0),
    must("is_decoder", False),
    must("add_cross_attention", False),
    must("position_embedding_type", "absolute"),
    must("tie_word_embeddings", True),
)
BART = (
    *seq2seq_config(),
    *keys(vocab_size="vocab"),
    key("decoder_start_token_id", "begin_id", default=2),
    fixed("offset", True, "BartForConditionalGeneration"),
    must("static_position_embeddings", False),
    must("normalize_embedding", True),
    must("extra_pos_embeddings", 2),
)
T5 = (
    *CONFIG,
    key("num_decoder_layers", "decoder_depth"),
    ffn_config("relu"),
    head_config(),
    must("is_encoder_decoder", True),
    quiet("classifier_dropout", why="for parts that the file does not have"),
)


def _size(config: Mapping[str, Any]) -> dict[str, Any]:
    question = config.get("question_encoder")
    inner = question if isinstance(question, Mapping) else {}
    made = inner.get("projection_dim") or inner.get("hidden_size") or 768
    if config.get("retrieval_vector_size", made) != made:
        raise ValueError(
            f"'retrieval_vector_size' is {config['retrieval_vector_size']!r}, and the question encoder makes vectors "
            f"of {made}; an index of another width cannot be searched with it"
        )
    return {}


def _begins(config: Mapping[str, Any]) -> dict[str, Any]:
    above, generator = config.get("decoder_start_token_id"), config.get("generator")
    inner = generator if isinstance(generator, Mapping) else {}
    usual = 0 if inner.get("model_type") == "t5" else 2
    begins = usual if inner.get("decoder_start_token_id") is None else inner["decoder_start_token_id"]
    if above is not None and above != begins:
        raise ValueError(f"'decoder_start_token_id' is {above!r}, and that of the generator is {begins!r}")
    return {}


def _begin(c: Any) -> dict[str, Any]:
    return {"decoder_start_token_id": (c.bart or c.t5).begin_id}


ABOVE = (
    key("n_docs", "passages", default=5),
    key("max_combined_length", "longest", default=300),
    key("title_sep", "titled", default=" / "),
    key("doc_sep", "between", default=" // "),
    key("prefix", "prefix", default=""),
    Lens(("retrieval_vector_size",), (), _size,
         lambda c: {"retrieval_vector_size": c.question.width or c.question.dim}, "the width of the vectors; checked"),
    Lens(("decoder_start_token_id",), (), _begins, _begin, "repeats the generator's; checked"),
    quiet("vocab_size", why="repeats that of the generator, which decides"),
    must("is_encoder_decoder", True),
    quiet("dataset", "dataset_split", "dataset_revision", "index_name", "index_path", "passages_path",
          "use_dummy_dataset", "retrieval_batch_size", why="where transformers finds its passages"),
    quiet("reduce_loss", "label_smoothing", "exclude_bos_score", "do_marginalize", "output_retrieved",
          "do_deduplication", why="requests of outputs, and options of training and generation"),
)  # fmt: skip
NO_BIASES = {f"rag.generator.{name}": why for name, why in NO_BIAS.items()}


def weights(c: Any) -> list[Any]:
    """The rows of all parts."""
    encoder = [*bert_rows("bert_model"), row("encode_proj", "heads.vector.proj")]
    table = [row("shared", "embed.tokens"), row("lm_head", "head.proj", tied="embed.tokens")]
    generator = seq2seq_rows(row("embed_positions", "positions"), row("layernorm_embedding", "norm"))
    if c.t5 is not None:
        sides = ("encoder", "decoder")
        generator = [*table, *(stack_rows(side, side, "DenseReluDense", mlp_rows(c.t5.gated)) for side in sides)]
    return [
        under("rag.question_encoder.question_encoder", "question", encoder),
        [_under("rag.generator", "generator", r) for r in generator],
    ]


def _under(theirs: str, ours: str, rows: Any) -> list[Any]:
    """The rows below both prefixes, with what they are tied to."""
    made = under(theirs, ours, rows if isinstance(rows, list) else [rows])
    return [r if r.tied is None else dataclasses.replace(r, tied=f"{ours}.{r.tied}") for r in made]
