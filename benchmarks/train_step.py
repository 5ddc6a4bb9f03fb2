"""One training step of a 10.7 M model: forward, loss, backward, AdamW. Every contestant computes the same products.

6 layers, 6 heads, width 384, 8 x 256 tokens, vocabulary 65, no dropout. MLP 384 -> 1536 -> 384, or gated 384 -> 1024
twice -> 384, which is the same number of weights. Same batches, same cross-entropy, same fused AdamW. bf16: weights in
float32, products in bfloat16 (`torch.autocast`, as `precision="bf16"` of `fit`). Compiled: by `torch.compile`, before
the first step. Ours run as in `fit`, which keeps freed memory for the next step (`core.machine.kept_memory`); peers run
as they are and, "memory kept", with that setting of ours. "Plain loop" is a GPT as short training scripts write it.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.contest import THREADS, Contestant, compete, ratio, spread, started
from benchmarks.report import Claim, Section, percent, row, times

BATCH, TIME, VOCAB = 8, 256, 65
TOKENS = BATCH * TIME


@dataclass(frozen=True)
class Shape:
    """Depth and width of a model. A gated MLP of `gated` has as many weights as a plain one of 4 `dim`."""

    layers: int
    heads: int
    dim: int
    gated: int

    @property
    def flops(self) -> int:
        """Of a step: 2 for a multiply-add, 3 for forward and both halves of backward; attention: two products of T x D,
        half of them masked."""
        dense = self.layers * 12 * self.dim**2 + VOCAB * self.dim
        return 6 * TOKENS * dense + 6 * TOKENS * self.layers * TIME * self.dim


SMALL = Shape(layers=6, heads=6, dim=384, gated=1024)

EAGER = {
    "ours_gpt": Contestant("anyformer GPT"),
    "hf_gpt": Contestant("transformers GPT-2", against="ours_gpt"),
    "plain_gpt": Contestant("plain loop, nanoGPT-like", against="ours_gpt"),
    "litgpt_pythia": Contestant("litgpt, Pythia-like", "litgpt", "ours_gpt"),
    "ours_llama": Contestant("anyformer LLaMA"),
    "hf_llama": Contestant("transformers LLaMA", against="ours_llama"),
    "x_llama": Contestant("x-transformers, LLaMA-like", against="ours_llama"),
    "litgpt_llama": Contestant("litgpt, LLaMA-like", "litgpt", "ours_llama"),
}
KEPT, HALF, COMPILED = "_kept", "_bf16", "_compiled"  # ends of a contestant's key
MADE_FASTER = ("ours_gpt", "hf_gpt", "plain_gpt", "ours_llama", "hf_llama")  # by torch.compile


def _more(end: str, title: str, keys: Iterable[str] = EAGER) -> dict[str, Contestant]:
    """These contestants once more, each against ours with the same end."""
    added = {}
    for key in keys:
        c = EAGER[key]
        added[key + end] = replace(c, name=f"{c.name}, {title}", against=c.against and c.against + end)
    return added


def _kept(key: str) -> Contestant:
    return replace(EAGER[key], name=f"{EAGER[key].name}, memory kept")


CONTESTANTS = {
    **EAGER,
    **{key + KEPT: _kept(key) for key in ("hf_gpt", "hf_llama")},
    **_more(HALF, "bf16"),
    **_more(COMPILED, "compiled", MADE_FASTER),
    **_more(HALF + COMPILED, "bf16, compiled", MADE_FASTER),
    "peak": Contestant("plain matrix products"),
}
PROCESS = contextlib.ExitStack()  # entered for the life of a contestant's process
Model = tuple[Any, Callable[[Any], Any]]  # the module, and a function from ids (B, T) to logits (B, T, V)


def ours_gpt(shape: Shape = SMALL) -> Model:
    import anyformer as af

    model = af.build("gpt", "tiny", dim=shape.dim, depth=shape.layers, heads=shape.heads, vocab=VOCAB, context=TIME)
    return model, lambda ids: model(ids).logits


def ours_llama(shape: Shape = SMALL) -> Model:
    import anyformer as af

    model = af.build(
        "llama", "tiny", dim=shape.dim, depth=shape.layers, heads=shape.heads, kv_heads=shape.heads,
        hidden=shape.gated, vocab=VOCAB, context=TIME,
    )  # fmt: skip
    return model, lambda ids: model(ids).logits


def hf_gpt(shape: Shape = SMALL) -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=TIME, n_embd=shape.dim, n_layer=shape.layers, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    return model, lambda ids: model(ids).logits


def hf_llama(shape: Shape = SMALL) -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=TIME, hidden_size=shape.dim, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, intermediate_size=shape.gated,
        attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return model, lambda ids: model(ids).logits


def plain_gpt(shape: Shape = SMALL) -> Model:
    from benchmarks.plain import GPT

    model = GPT(shape.layers, shape.heads, shape.dim, VOCAB, TIME)
    return model, model


def x_llama(shape: Shape = SMALL) -> Model:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.dim, depth=shape.layers, heads=shape.heads, attn_dim_head=shape.dim // shape.heads, attn_flash=True,
        rotary_pos_emb=True, ff_glu=True, ff_swish=True, ff_mult=shape.gated / shape.dim,
        ff_no_bias=True, use_rmsnorm=True,
    )  # fmt: skip
    model = TransformerWrapper(
        num_tokens=VOCAB, max_seq_len=TIME, attn_layers=layers, use_abs_pos_emb=False, tie_embedding=True
    )
    return model, model


def _litgpt(shape: Shape, **options: Any) -> Model:
    from litgpt import GPT, Config

    common = dict(block_size=TIME, vocab_size=VOCAB, padded_vocab_size=VOCAB)
    model = GPT(Config(**common, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.dim, **options))
    return model, model


def litgpt_pythia(shape: Shape = SMALL) -> Model:
    return _litgpt(
        shape,
        rotary_percentage=0.25, parallel_residual=True, bias=True, norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP", intermediate_size=4 * shape.dim,
    )  # fmt: skip


def litgpt_llama(shape: Shape = SMALL) -> Model:
    return _litgpt(
        shape,
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", intermediate_size=shape.gated,
    )  # fmt: skip


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Facts, and the function that makes `steps` steps and says how long each took."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if name == "peak":
        from benchmarks.machine import matmul_rate

        kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
        return {}, lambda request: {"rate": {title: matmul_rate(kind) for title, kind in kinds.items()}}
    made, *ends = re.split(f"({KEPT}|{HALF}|{COMPILED})", name)
    if name.startswith("ours") or KEPT in ends:
        from anyformer.core.machine import kept_memory

        PROCESS.enter_context(kept_memory())
    model, logits = globals()[made]()
    if COMPILED in ends:
        logits = torch.compile(logits)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches = torch.randint(0, VOCAB, (16, BATCH, TIME + 1))
    done = 0

    def step() -> float:
        nonlocal done
        ids = batches[done % len(batches)]
        done += 1
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF in ends):
            scores = logits(ids[:, :-1]).reshape(-1, VOCAB)
            loss = torch.nn.functional.cross_entropy(scores, ids[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert bool(loss.isfinite())
        return time.perf_counter() - start

    weights = sum(p.numel() for p in model.parameters())
    return {"parameters": weights}, lambda request: {"seconds": [step() for _ in range(request["steps"])]}


def run(rounds: int = 12) -> Section:
    """The section of the report."""
    notes: list[str] = []
    workers = started("train_step", CONTESTANTS, notes)
    compete(workers, CONTESTANTS, 1, {"steps": 3}, notes)  # warm-up, and compiling
    answers = compete(workers, CONTESTANTS, rounds, {"steps": 1}, notes)
    peaks = {kind: max(a["rate"][kind] for a in answers["peak"]) for kind in ("float32", "bf16")}
    del answers["peak"]
    seconds = {name: [min(a["seconds"]) for a in rows] for name, rows in answers.items()}
    table = [row("", "parameters", "ms a step", "tokens/s", "GFLOP/s", "of the peak", "time / ours")]
    claims = []
    for name, taken in seconds.items():
        contestant, (middle, low, high) = CONTESTANTS[name], spread(taken)
        peak, against = peaks["bf16" if HALF in name else "float32"], ""
        if contestant.against:
            claims.append(_claim(contestant, taken, seconds[contestant.against]))
            against = times(claims[-1].ratio)
        speed = f"{TOKENS / middle:,.0f}", f"{SMALL.flops / middle / 1e9:.0f}", percent(SMALL.flops / middle / peak)
        size, taken_ms = workers[name].facts["parameters"], times((1e3 * middle, 1e3 * low, 1e3 * high), 0)
        table.append(row(contestant.name, f"{size / 1e6:.2f} M", taken_ms, *speed, against))
    for worker in workers.values():
        worker.close()
    best = " and ".join(f"{rate / 1e9:.0f} GFLOP/s in {kind}" for kind, rate in peaks.items())
    text = (
        f"{(__doc__ or '').strip()}\n\nRounds: {rounds}, of one step each, after three to warm up; median (quartiles). "
        f"{SMALL.flops / 1e9:.0f} GFLOP a step. Best plain matrix product in the same run: {best}."
    )
    return Section("Training step", text, table, claims, notes)


def _claim(contestant: Contestant, taken: list[float], ours: list[float]) -> Claim:
    """A peer's step beside ours."""
    mine, theirs = (f"{TOKENS / spread(t)[0]:,.0f} tokens/s" for t in (ours, taken))
    what = f"training step, {CONTESTANTS[contestant.against].name}"
    return Claim(what, contestant.name, mine, theirs, ratio(taken, ours), len(taken))
