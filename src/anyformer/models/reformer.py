"""Reformer (Kitaev et al., 2020; arXiv:2001.04451). For long texts: attention in chunks, layers that keep nothing.

Differs from GPT-2 by: attention within chunks, of the text ("local") or of tokens that a random hash calls alike
("lsh", where queries are keys); two streams from which the input of a layer is computed back, so that training keeps
no activations; places folded into rows and columns (axial); no biases in attention; a head of its own on both streams.

```
                    ┌── x1 ──────────────────(+)── y1 ──┬──────────────────┐
ids ── token + place┤                         │         │                  ├ LayerNorm ── logits with bias
                    └── x2 ─┬─ LayerNorm ─ attention    LayerNorm ─ MLP    │
                            └────────────────────────────────────(+)── y2 ─┘      … x depth
```
As a decoder it keeps a state for as many tokens as a hashed chunk has; for longer texts generate with `cache=False`:
LSH layers sort them anew with each token. Up to one chunk all is exact and causal; beyond, which earlier tokens are
seen depends on later ones, as in every Reformer (`LSHAttention` says more). Files without `num_buckets` are refused:
transformers then takes the number from the first text that it meets. With `hash_seed` null, as published, buckets are
random there; here they are random in training, and always the same ones in evaluation.
"""

from dataclasses import dataclass
from typing import Any

from anyformer.core.part import check_option
from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import ACTS, Lens, key, keys, must, quiet
from anyformer.hub.tables.weights import Hub, Thin, row, under
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
    local: tuple[int, int, int] = (64, 1, 0)  # tokens of a chunk, chunks that it sees before and after itself
    lsh: tuple[int, int, int] = (64, 1, 0)
    rounds: int = 1
    buckets: tuple[int, ...] = (64, 128)
    hash_seed: int | None = None  # None: new hashes in each pass of training
    chunk: int | None = None  # tokens that the MLP takes at a time; None: all
    eps: float = 1e-12
    dropout: float = 0.0
    local_dropout: float = 0.0
    lsh_dropout: float = 0.0
    task: str = "lm"  # "masked" and "none" see both ways


_tiny = Reformer(32, ("local", "lsh"), 4, 8, 48, "relu", 128, 96, (8, 12, 8, 24), (24, 1, 0), (24, 1, 0), 1, (6,), 3)
_grid, _layers = (128, 512, 256, 768), ("local", "local", "lsh", "local") * 3
SIZES = {
    "tiny": _tiny, "crime-and-punishment": Reformer(),
    "mini": Reformer(192, ("local", "lsh") * 2, 4, 48, 768, "relu", 1024, 256, (16, 16, 64, 128), buckets=(8,)),
    "enwik8": Reformer(1024, _layers, 8, 128, 4096, "relu", 258, 65536, _grid, (128, 1, 0), (256, 1, 0), 4, (512,)),
}  # fmt: skip
PARAMETERS = {"crime-and-punishment": 2_748_224, "enwik8": 149_182_722}
CASES = {
    "masked": {"task": "masked", "axial": None, "context": 128, "local": (20, 1, 1), "lsh": (40, 1, 1), "rounds": 3,
               "buckets": (4, 2), "chunk": 1},
    "hidden": {"task": "none", "layers": ("lsh",), "lsh": (24, 0, 0), "dim": 30, "axial": (8, 12, 9, 21), "heads": 3},
    "local": {"layers": ("local",) * 3, "vocab": 101, "local": (24, 0, 0), "eps": 0.1, "axial": None},
}  # fmt: skip


def reformer(c: Reformer) -> Recipe:
    check_option("reformer", "task", c.task, ("lm", "masked", "none"))
    if c.task == "lm" and (c.local[2] or c.lsh[2]):
        raise ValueError(f"reformer: a decoder sees no chunk after its own; got local={c.local}, lsh={c.lsh}")
    if c.axial is not None and (held := c.axial[0] * c.axial[1]) < c.context:
        raise ValueError(f"reformer: axial={c.axial} are {held} places, fewer than the context of {c.context}")
    norm, fill = LayerNorm.of(eps=c.eps), c.lsh[0] if "lsh" in c.layers else None
    local = LocalAttention.of(c.heads, c.head_dim, *c.local, fill, dropout=c.local_dropout)
    lsh = LSHAttention.of(c.heads, c.head_dim, *c.lsh, c.rounds, c.buckets, c.hash_seed, dropout=c.lsh_dropout)
    ffn, blocks = ChunkedMLP.of(hidden=c.hidden, act=c.act, dropout=c.dropout, chunk=c.chunk), []
    for kind in c.layers:
        check_option("reformer", "layers", kind, ("local", "lsh"))
        blocks.append(ReversibleBlock.of(lsh if kind == "lsh" else local, ffn, norm, dropout=c.dropout))
    places = Learned.of(context=c.context) if c.axial is None else Axial.of(shape=c.axial[:2], widths=c.axial[2:])
    embed, head = TwoStreams.of(vocab=c.vocab, positions=places, dropout=c.dropout), Logits.of(vocab=c.vocab, bias=True)
    same: dict[str, Any] = {"norm": norm, "dropout": c.dropout, "context": c.context}
    if c.task == "lm":
        return ReversibleLM.of(2 * c.dim, embed, blocks, head=head, **same)
    return ReversibleEncoder.of(2 * c.dim, embed, blocks, heads={"tokens": head} if c.task == "masked" else {}, **same)


def _weights(c: Reformer) -> list:
    head, inner = "head" if c.task == "lm" else "heads.tokens", "attention.self_attention"
    return [
        row("reformer.embeddings.word_embeddings", "embed.tokens"), row("reformer.encoder.layer_norm", "norm"),
        under("reformer.embeddings.position_embeddings", "embed.positions", row("embedding", ""),
              row("weights.0", "rows", Thin(1)), row("weights.1", "columns", Thin(0))),
        under("reformer.encoder.layers.{i}", "blocks.{i}",
              row("attention.layer_norm", "norm.mixer"), row("feed_forward.layer_norm", "norm.ffn"),
              row(f"{inner}.query_key", "mixer.qk"), row(f"{inner}.query", "mixer.q"), row(f"{inner}.key", "mixer.k"),
              row(f"{inner}.value", "mixer.v"), row("attention.output.dense", "mixer.o"),
              row("feed_forward.dense.dense", "ffn.up"), row("feed_forward.output.dense", "ffn.down")),
        row("lm_head.decoder", f"{head}.proj"), row("lm_head.bias", f"{head}.bias"),
        row("lm_head.decoder.bias", (), tied=f"{head}.bias"),
    ]  # fmt: skip


def _chunks(kind: str) -> Lens:
    names = tuple(f"{kind}_{n}" for n in ("attn_chunk_length", "num_chunks_before", "num_chunks_after"))
    get = lambda c: {kind: (c.get(names[0], 64), c.get(names[1], 1), c.get(names[2], 0))}  # noqa: E731
    return Lens(names, (kind,), get, lambda c: dict(zip(names, getattr(c, kind), strict=True)))


def _buckets(c: Any) -> dict[str, Any]:
    if (found := c.get("num_buckets")) is None:
        raise ValueError("config key 'num_buckets' is null: write how many, about 2 x tokens / lsh_attn_chunk_length")
    return {"buckets": (found,) if isinstance(found, int) else tuple(found)}


def _direction(c: Any) -> dict[str, Any]:
    if bool(c.get("is_decoder")) == ("LMHead" in str(c.get("architectures") or "LMHead")):
        return {}
    raise ValueError(f"config key 'is_decoder' is {c.get('is_decoder')!r}, which is not for {c.get('architectures')}")


FFN, GRID = "chunk_size_feed_forward", ("axial_pos_embds", "axial_pos_shape", "axial_pos_embds_dim")
HUBS = (
    Hub(
        "reformer",
        base="reformer.", bare=("ReformerModel",), weights=_weights, architectures={"ReformerModelWithLMHead": {
            "task": "lm"}, "ReformerForMaskedLM": {"task": "masked"}, "ReformerModel": {"task": "none"}},
        config=(
            *keys(hidden_size="dim", num_attention_heads="heads", attention_head_size="head_dim", vocab_size="vocab"),
            *keys(feed_forward_size="hidden", max_position_embeddings="context", num_hashes="rounds"),
            *keys(local_attention_probs_dropout_prob="local_dropout", hidden_dropout_prob="dropout"), _chunks("local"),
            *keys(lsh_attention_probs_dropout_prob="lsh_dropout", layer_norm_eps="eps"), _chunks("lsh"),
            key("hash_seed", "hash_seed", default=None), key("hidden_act", "act", ACTS, default="relu"),
            Lens(("attn_layers", "num_hidden_layers"), ("layers",),
                 lambda c: {"layers": tuple(c.get("attn_layers", ("local", "lsh") * 3))},
                 lambda c: {"attn_layers": list(c.layers), "num_hidden_layers": len(c.layers)}),
            Lens(("num_buckets",), ("buckets",), _buckets,
                 lambda c: {"num_buckets": list(c.buckets) if len(c.buckets) > 1 else c.buckets[0]}),
            Lens(GRID, ("axial",), lambda c: {"axial": (
                 *c.get(GRID[1], (64, 64)), *c.get(GRID[2], (64, 192))) if c.get(GRID[0], True) else None},
                 lambda c: dict(zip(GRID, (True, c.axial[:2], c.axial[2:]) if c.axial else (False,), strict=False))),
            Lens((FFN,), ("chunk",), lambda c: {"chunk": c.get(FFN) or None}, lambda c: {FFN: c.chunk or 0}),
            Lens(("is_decoder",), (), _direction, lambda c: {"is_decoder": c.task == "lm"}, "goes with the class"),
            must("tie_word_embeddings", False),
            quiet("axial_norm_std", "chunk_size_lm_head", "attention_probs_dropout_prob", "classifier_dropout",
                  "intermediate_size", "num_chunks_before", "num_chunks_after", "sinusoidal_pos_embds", "output_past",
                  why="memory, first weights, or nobody reads it"),
        ),
    ),
)  # fmt: skip
