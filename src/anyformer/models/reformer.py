"""Reformer (Kitaev et al., 2020; arXiv:2001.04451). For long texts: attention in chunks, layers that save nothing.

Differs from GPT-2 by: attention within chunks, of the text ("local") or of tokens with equal random hashes ("lsh",
where queries are keys); two streams from which the input of a layer is recomputed, so that training saves no
activations; positions folded into rows and columns (axial); no biases in attention; a head on both streams.

```
                    ┌── x1 ──────────────────(+)── y1 ──┬──────────────────┐
ids ── token + place┤                         │         │                  ├ LayerNorm ── logits with bias
                    └── x2 ─┬─ LayerNorm ─ attention    LayerNorm ─ MLP    │
                            └────────────────────────────────────(+)── y2 ─┘      … x depth
```
As a decoder it keeps a state for up to one hashed chunk of tokens; for longer texts generate with `cache=False`: LSH
layers sort them anew with each token. Up to one chunk all is exact and causal; beyond, later tokens change the
set of visible earlier ones, as in every Reformer (see `LSHAttention`). Files without `num_buckets` are refused:
transformers then takes the number from its first text. With `hash_seed` null, as published, buckets are
random there; here they are random in training, and always the same ones in evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import ACTS, Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, Thin, row, under
from anyformer.models._tasks import choose
from anyformer.parts import Axial, LayerNorm, Learned, LocalAttention, Logits, LSHAttention
from anyformer.parts.reversible import ChunkedMLP, ReversibleBlock, TwoStreams
from anyformer.skeletons.reversible import ReversibleEncoder, ReversibleLM


@dataclass(frozen=True)
class Reformer:
    dim: int = 256  # of one stream
    layers: tuple[str, ...] = ("local", "lsh") * 3
    heads: int = 2
    head_dim: int = 64
    hidden: int = 512
    act: str = "relu"
    vocab: int = 320
    context: int = 524288
    axial: tuple[int, ...] | None = (512, 1024, 64, 192)  # rows, columns, widths of their vectors; None: no grid
    local: tuple[int, int, int] = (64, 1, 0)  # tokens of a chunk, visible chunks before and after it
    lsh: tuple[int, int, int] = (64, 1, 0)
    rounds: int = 1
    buckets: tuple[int, ...] = (64, 128)
    hash_seed: int | None = None  # None: new hashes in each pass of training
    chunk: int | None = None  # tokens per piece of the MLP; None: all
    eps: float = 1e-12
    dropout: float = 0.0
    local_dropout: float = 0.0
    lsh_dropout: float = 0.0
    task: str = "lm"  # "masked" and "none" see both ways


def reformer(c: Reformer) -> Recipe:
    check_option("reformer", "task", c.task, ("lm", "masked", "none"))
    if c.task == "lm" and (c.local[2] or c.lsh[2]):
        raise ValueError(f"reformer: a decoder sees no chunk after its own; got local={c.local}, lsh={c.lsh}")
    if c.axial is not None and (held := c.axial[0] * c.axial[1]) < c.context:
        raise ValueError(f"reformer: axial={c.axial} are {held} positions, fewer than the context of {c.context}")
    size, before, after = c.local
    local = LocalAttention.of(
        heads=c.heads, head_dim=c.head_dim, size=size, before=before, after=after, dropout=c.local_dropout
    )
    size, before, after = c.lsh
    lsh = LSHAttention.of(
        heads=c.heads, head_dim=c.head_dim, size=size, before=before, after=after, dropout=c.lsh_dropout
    )
    mixers = {
        "local": local.but(fill=c.lsh[0] if "lsh" in c.layers else None),
        "lsh": lsh.but(rounds=c.rounds, buckets=c.buckets, seed=c.hash_seed),
    }
    norm = LayerNorm.of(eps=c.eps)
    ffn = ChunkedMLP.of(hidden=c.hidden, act=c.act, dropout=c.dropout, chunk=c.chunk)
    kinds = [choose("reformer", "layers", kind, mixers) for kind in c.layers]
    blocks = [ReversibleBlock.of(mixer=mixer, ffn=ffn, norm=norm, dropout=c.dropout) for mixer in kinds]
    positions = Learned.of(context=c.context) if c.axial is None else Axial.of(shape=c.axial[:2], widths=c.axial[2:])
    embed = TwoStreams.of(vocab=c.vocab, positions=positions, dropout=c.dropout)
    head = Logits.of(vocab=c.vocab, bias=True)
    same: dict[str, Any] = {"norm": norm, "dropout": c.dropout, "context": c.context}
    if c.task == "lm":
        return ReversibleLM.of(2 * c.dim, embed, blocks, head=head, **same)
    heads = {"tokens": head} if c.task == "masked" else {}
    return ReversibleEncoder.of(2 * c.dim, embed, blocks, heads=heads, **same)


_tiny = Reformer(
    dim=32,
    layers=("local", "lsh"),
    heads=4,
    head_dim=8,
    hidden=48,
    vocab=128,
    context=96,
    axial=(8, 12, 8, 24),
    local=(24, 1, 0),
    lsh=(24, 1, 0),
    buckets=(6,),
    hash_seed=3,
)
_mini = Reformer(
    dim=192,
    layers=("local", "lsh") * 2,
    heads=4,
    head_dim=48,
    hidden=768,
    vocab=1024,
    context=256,
    axial=(16, 16, 64, 128),
    buckets=(8,),
)
_enwik8 = Reformer(
    dim=1024,
    layers=("local", "local", "lsh", "local") * 3,
    heads=8,
    head_dim=128,
    hidden=4096,
    vocab=258,
    context=65536,
    axial=(128, 512, 256, 768),
    local=(128, 1, 0),
    lsh=(256, 1, 0),
    rounds=4,
    buckets=(512,),
)
SIZES = {"tiny": _tiny, "crime-and-punishment": Reformer(), "mini": _mini, "enwik8": _enwik8}
PARAMETERS = {"tiny": 26_624, "crime-and-punishment": 2_748_224, "mini": 2_297_344, "enwik8": 149_182_722}
CASES = {
    "masked": {
        "task": "masked",
        "axial": None,
        "context": 128,
        "local": (20, 1, 1),
        "lsh": (40, 1, 1),
        "rounds": 3,
        "buckets": (4, 2),
        "chunk": 1,
    },
    "hidden": {"task": "none", "layers": ("lsh",), "lsh": (24, 0, 0), "dim": 30, "axial": (8, 12, 9, 21), "heads": 3},
    "local": {"layers": ("local",) * 3, "vocab": 101, "local": (24, 0, 0), "eps": 0.1, "axial": None},
}


def first_weights(c: Reformer) -> dict[str, float]:
    """The same size for all, output projections of branches too, except positions made of rows and columns."""
    positions = {} if c.axial is None else {"embed.positions.rows": 1.0, "embed.positions.columns": 1.0}
    return positions | {"blocks.*.mixer.o": 0.02, "blocks.*.ffn.down": 0.02}


def _weights(c: Reformer) -> list:
    head, inner = "head" if c.task == "lm" else "heads.tokens", "attention.self_attention"
    return [
        row("reformer.embeddings.word_embeddings", "embed.tokens"),
        row("reformer.encoder.layer_norm", "norm"),
        under(
            "reformer.embeddings.position_embeddings",
            "embed.positions",
            row("embedding", ""),
            row("weights.0", "rows", Thin(1)),
            row("weights.1", "columns", Thin(0)),
        ),
        under(
            "reformer.encoder.layers.{i}",
            "blocks.{i}",
            row("attention.layer_norm", "norm.mixer"),
            row("feed_forward.layer_norm", "norm.ffn"),
            row(f"{inner}.query_key", "mixer.qk"),
            row(f"{inner}.query", "mixer.q"),
            row(f"{inner}.key", "mixer.k"),
            row(f"{inner}.value", "mixer.v"),
            row("attention.output.dense", "mixer.o"),
            row("feed_forward.dense.dense", "ffn.up"),
            row("feed_forward.output.dense", "ffn.down"),
        ),
        row("lm_head.decoder", f"{head}.proj"),
        row("lm_head.bias", f"{head}.bias"),
        row("lm_head.decoder.bias", (), tied=f"{head}.bias"),
    ]


def _chunks(kind: str) -> Lens:
    """The entry for the chunks of one kind of attention: their length, and the visible ones before and after."""
    names = tuple(f"{kind}_{n}" for n in ("attn_chunk_length", "num_chunks_before", "num_chunks_after"))

    def get(config: Mapping[str, Any]) -> dict[str, Any]:
        return {kind: tuple(config.get(name, usual) for name, usual in zip(names, (64, 1, 0), strict=True))}

    def put(c: Reformer) -> dict[str, Any]:
        return dict(zip(names, getattr(c, kind), strict=True))

    return Lens(names, (kind,), get, put)


def _get_buckets(config: Mapping[str, Any]) -> dict[str, Any]:
    if (buckets := config.get("num_buckets")) is None:
        raise ValueError("config key 'num_buckets' is null: write how many, about 2 x tokens / lsh_attn_chunk_length")
    return {"buckets": (buckets,) if isinstance(buckets, int) else tuple(buckets)}


def _put_buckets(c: Reformer) -> dict[str, Any]:
    return {"num_buckets": list(c.buckets) if len(c.buckets) > 1 else c.buckets[0]}


def _get_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"layers": tuple(config.get("attn_layers", ("local", "lsh") * 3))}


def _put_layers(c: Reformer) -> dict[str, Any]:
    return {"attn_layers": list(c.layers), "num_hidden_layers": len(c.layers)}


GRID = ("axial_pos_embds", "axial_pos_shape", "axial_pos_embds_dim")


def _get_grid(config: Mapping[str, Any]) -> dict[str, Any]:
    there, shape, widths = GRID
    if not config.get(there, True):
        return {"axial": None}
    return {"axial": (*config.get(shape, (64, 64)), *config.get(widths, (64, 192)))}


def _put_grid(c: Reformer) -> dict[str, Any]:
    there, shape, widths = GRID
    return {there: True, shape: c.axial[:2], widths: c.axial[2:]} if c.axial else {there: False}


def _get_chunk(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"chunk": config.get("chunk_size_feed_forward") or None}


def _put_chunk(c: Reformer) -> dict[str, Any]:
    return {"chunk_size_feed_forward": c.chunk or 0}


def _direction(config: Mapping[str, Any]) -> dict[str, Any]:
    decoder, names = config.get("is_decoder"), config.get("architectures")
    if bool(decoder) == ("LMHead" in str(names or "LMHead")):
        return {}
    raise ValueError(f"config key 'is_decoder' is {decoder!r}, which contradicts the class {names}")


HUBS = (
    Hub(
        "reformer",
        architectures={
            "ReformerModelWithLMHead": {"task": "lm"},
            "ReformerForMaskedLM": {"task": "masked"},
            "ReformerModel": {"task": "none"},
        },
        base="reformer.",
        bare=("ReformerModel",),
        weights=_weights,
        config=(
            *keys(hidden_size="dim", num_attention_heads="heads", attention_head_size="head_dim", vocab_size="vocab"),
            *keys(feed_forward_size="hidden", max_position_embeddings="context", num_hashes="rounds"),
            *keys(hidden_dropout_prob="dropout", local_attention_probs_dropout_prob="local_dropout"),
            *keys(lsh_attention_probs_dropout_prob="lsh_dropout", layer_norm_eps="eps"),
            key("hash_seed", "hash_seed", default=None),
            key("hidden_act", "act", ACTS, default="relu"),
            _chunks("local"),
            _chunks("lsh"),
            Lens(("attn_layers", "num_hidden_layers"), ("layers",), _get_layers, _put_layers),
            Lens(("num_buckets",), ("buckets",), _get_buckets, _put_buckets),
            Lens(GRID, ("axial",), _get_grid, _put_grid),
            Lens(("chunk_size_feed_forward",), ("chunk",), _get_chunk, _put_chunk),
            Lens(("is_decoder",), (), _direction, lambda c: {"is_decoder": c.task == "lm"}, "implied by the class"),
            must("tie_word_embeddings", False),
            quiet("axial_norm_std", why="first weights"),
            quiet("chunk_size_lm_head", "output_past", why="requests outputs or memory, not other numbers"),
            quiet(
                "attention_probs_dropout_prob",
                "classifier_dropout",
                "intermediate_size",
                "num_chunks_before",
                "num_chunks_after",
                "sinusoidal_pos_embds",
                why="transformers does not read it",
            ),
        ),
    ),
)
