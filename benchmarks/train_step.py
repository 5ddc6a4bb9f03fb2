"""One training step of a 10.7 M model: forward, loss, backward, AdamW. Every contestant computes the same products.

6 layers, 6 heads, width 384, 8 x 256 tokens, vocabulary 65, no dropout. MLP 384 -> 1536 -> 384, or gated 384 -> 1024
twice -> 384, which is the same number of weights. Same batches, same cross-entropy, same fused AdamW. bf16: weights in
float32, products in bfloat16 (`torch.autocast`, as `precision="bf16"` of `fit`). Ours run as in `fit`, which keeps
freed memory for the next step (`core.machine.kept_memory`); peers run as they are and, "memory kept", with that setting
of ours. "Plain loop" is a GPT as short training scripts write it. Memory is what the process grew by at most (VmHWM)
from before the model was made.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.contest import PROCESS, THREADS, Contestant, compete, ratio, spread, started
from benchmarks.machine import resident
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
    vocab: int = VOCAB
    time: int = TIME

    @property
    def flops(self) -> int:
        """Of a step: 2 for a multiply-add, 3 for forward and both halves of backward; attention: two products of T x D,
        half of them masked."""
        dense = self.layers * 12 * self.dim**2 + self.vocab * self.dim
        return 6 * BATCH * self.time * (dense + self.layers * self.time * self.dim)


SMALL = Shape(layers=6, heads=6, dim=384, gated=1024)
LARGE = Shape(layers=8, heads=12, dim=768, gated=2048)

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
KEPT, HALF, COMPILED, BIG = "_kept", "_bf16", "_compiled", "_57m"  # ends of a contestant's key
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
    "peak": Contestant("plain matrix products"),
}
MADE = {**_more(COMPILED, "compiled", MADE_FASTER), **_more(HALF + COMPILED, "bf16, compiled", MADE_FASTER)}
Model = tuple[Any, Callable[[Any], Any]]  # the module, and a function from ids (B, T) to logits (B, T, V)


def ours_gpt(shape: Shape = SMALL) -> Model:
    import anyformer as af

    model = af.build(
        "gpt", "tiny", dim=shape.dim, depth=shape.layers, heads=shape.heads, vocab=shape.vocab, context=shape.time
    )
    return model, lambda ids: model(ids).logits


def ours_llama(shape: Shape = SMALL) -> Model:
    import anyformer as af

    model = af.build(
        "llama", "tiny", dim=shape.dim, depth=shape.layers, heads=shape.heads, kv_heads=shape.heads,
        hidden=shape.gated, vocab=shape.vocab, context=shape.time,
    )  # fmt: skip
    return model, lambda ids: model(ids).logits


def hf_gpt(shape: Shape = SMALL) -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.time, n_embd=shape.dim, n_layer=shape.layers, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    return model, lambda ids: model(ids).logits


def hf_llama(shape: Shape = SMALL) -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab, max_position_embeddings=shape.time, hidden_size=shape.dim,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        intermediate_size=shape.gated, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return model, lambda ids: model(ids).logits


def plain_gpt(shape: Shape = SMALL) -> Model:
    from benchmarks.plain import GPT

    model = GPT(shape.layers, shape.heads, shape.dim, shape.vocab, shape.time)
    return model, model


def x_llama(shape: Shape = SMALL) -> Model:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.dim, depth=shape.layers, heads=shape.heads, attn_dim_head=shape.dim // shape.heads, attn_flash=True,
        rotary_pos_emb=True, ff_glu=True, ff_swish=True, ff_mult=shape.gated / shape.dim,
        ff_no_bias=True, use_rmsnorm=True,
    )  # fmt: skip
    model = TransformerWrapper(
        num_tokens=shape.vocab, max_seq_len=shape.time, attn_layers=layers, use_abs_pos_emb=False, tie_embedding=True
    )
    return model, model


def _litgpt(shape: Shape, **options: Any) -> Model:
    from litgpt import GPT, Config

    common = dict(block_size=shape.time, vocab_size=shape.vocab, padded_vocab_size=shape.vocab)
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
    made, *ends = re.split(f"({KEPT}|{HALF}|{COMPILED}|{BIG})", name)
    if name.startswith("ours") or KEPT in ends:
        from anyformer.core.machine import kept_memory

        PROCESS.enter_context(kept_memory())
    globals()[made](Shape(layers=1, heads=1, dim=8, gated=8))  # imports
    before = resident().get("VmHWM", 0)
    model, logits = globals()[made](LARGE if BIG in ends else SMALL)
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

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        seconds = [step() for _ in range(request["steps"])]
        return {"seconds": seconds, "memory": resident().get("VmHWM", 0) - before}

    return {"parameters": weights}, serve


def run(rounds: int = 12) -> Section:
    """The section of the report."""
    return section("Training step", [CONTESTANTS], SMALL, rounds, (__doc__ or "").strip())


def section(title: str, groups: list[dict[str, Contestant]], shape: Shape, rounds: int, text: str) -> Section:
    """A section over groups of contestants, whose processes live at the same time; each group has the peak."""
    notes: list[str] = []
    table = [row("", "parameters", "ms a step", "tokens/s", "GFLOP/s", "of the peak", "time / ours", "memory, MB")]
    claims: list[Claim] = []
    peaks: dict[str, float] = defaultdict(float)
    for contestants in groups:
        workers = started("train_step", contestants, notes)
        compete(workers, contestants, 1, {"steps": 3}, notes)  # warm-up, and compiling
        answers = compete(workers, contestants, rounds, {"steps": 1}, notes)
        for kind, rate in ((k, r) for answer in answers.pop("peak") for k, r in answer["rate"].items()):
            peaks[kind] = max(peaks[kind], rate)
        for name, answer in answers.items():
            ours = answers.get(contestants[name].against)
            size = workers[name].facts["parameters"]
            least = shape.flops / peaks["bf16" if HALF in name else "float32"]
            line, claimed = _row(contestants, name, answer, ours, shape.flops, least, size)
            table.append(line)
            claims += claimed
        for worker in workers.values():
            worker.close()
    best = " and ".join(f"{rate / 1e9:.0f} GFLOP/s in {kind}" for kind, rate in peaks.items())
    text += (
        f"\n\nRounds: {rounds}, of one step each, after three to warm up; median (quartiles). {shape.flops / 1e9:.0f} "
        f"GFLOP a step. Best plain matrix product in the same run: {best}."
    )
    return Section(title, text, table, claims, notes)


def _row(
    contestants: Mapping[str, Contestant],
    name: str,
    answers: list[dict[str, Any]],
    ours: list[dict[str, Any]] | None,
    flops: int,
    least: float,
    size: int,
) -> tuple[str, list[Claim]]:
    """A contestant's line, and what follows from it beside ours, in time and memory; `least`: seconds at the peak."""
    contestant, taken = contestants[name], [min(a["seconds"]) for a in answers]
    (middle, low, high), held = spread(taken), max(a["memory"] for a in answers)
    claims, against = [], ""
    if ours is not None:
        own, mine = [min(a["seconds"]) for a in ours], max(a["memory"] for a in ours)
        what, r = contestants[contestant.against].name, ratio(taken, own)
        against = times(r)
        speeds = [f"{TOKENS / spread(t)[0]:,.0f} tokens/s" for t in (own, taken)]
        claims.append(Claim(f"training step, {what}", contestant.name, speeds[0], speeds[1], r, len(taken)))
        if COMPILED not in name + contestant.against and mine:
            sizes, m = [f"{n / 1e6:,.0f} MB" for n in (mine, held)], held / mine
            fixed = (m, m, m)  # a process has one highest figure
            claims.append(Claim(f"memory of the step, {what}", contestant.name, sizes[0], sizes[1], fixed, len(taken)))
    speed = f"{TOKENS / middle:,.0f}", f"{flops / middle / 1e9:.0f}", percent(least / middle)
    taken_ms = times((1e3 * middle, 1e3 * low, 1e3 * high), 0)
    return row(contestant.name, f"{size / 1e6:.2f} M", taken_ms, *speed, against, f"{held / 1e6:,.0f}"), claims
