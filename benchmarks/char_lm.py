"""A character model of Shakespeare at the size that nanoGPT documents for a CPU: 2,000 steps, ours and a plain loop.

4 layers, 4 heads, width 128, 12 x 64 characters a step, float32, no dropout; AdamW 3e-3 to 3e-4 by cosine after 100
steps of warm-up, betas 0.9 and 0.99, decay 0.1, clipping at 1. The last tenth of the text is held out; its loss is the
mean over all of its characters in windows of 64, in nats. nanoGPT's README says 1.88 for this size, with 1e-3.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contest import THREADS, Contestant, Missing, afresh, ratio, spread
from benchmarks.report import Claim, Section, row, times

LAYERS, HEADS, DIM, BATCH, TIME, STEPS, PUBLISHED = 4, 4, 128, 12, 64, 2000, 1.88
LR, FINAL, WARMUP, BETAS, DECAY = 3e-3, 0.1, 100, (0.9, 0.99), 0.1
CONTESTANTS = {
    "ours": Contestant("anyformer train"),
    "hf": Contestant("transformers GPT-2, plain loop", against="ours"),
}
Answer = dict[str, Any]


def text() -> str:
    """What `--data` named."""
    path = os.environ.get("BENCH_DATA", "")
    if not Path(path).is_file():
        raise Missing("char_lm needs a text: python -m benchmarks char_lm --data tinyshakespeare.txt")
    return Path(path).read_text(encoding="utf-8")


def held_out_loss(logits: Callable[[Any], Any], ids: Any) -> float:
    """Mean cross-entropy over windows of TIME, each character counted once."""
    import torch

    count = (len(ids) - 1) // TIME
    x, y = (ids[i : i + count * TIME].view(count, TIME) for i in (0, 1))
    with torch.no_grad():
        parts = [
            torch.nn.functional.cross_entropy(logits(a).flatten(0, 1), b.flatten(), reduction="sum").item()
            for a, b in zip(x.split(64), y.split(64), strict=True)
        ]
    return sum(parts) / y.numel()


def ours(learn: str, held_out: str, steps: int, seed: int) -> Answer:
    """`anyformer train`, with its log, its evaluation, its checkpoint and its sample."""
    import torch

    from anyformer.train import train

    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "text.txt"), Path(folder, "run")
        path.write_text(learn + held_out, encoding="utf-8")
        began = time.perf_counter()
        result = train(
            "gpt", "tiny", data=path, out=out,
            overrides={"dim": DIM, "depth": LAYERS, "heads": HEADS, "context": TIME},
            tokenizer="chars", steps=steps, batch=BATCH, lr=LR, min_lr_ratio=FINAL, warmup=WARMUP, betas=BETAS,
            weight_decay=DECAY, eval_every=0, save_every=0, log_every=100, prompt="ROMEO:", quiet=True, seed=seed,
        )  # fmt: skip
        whole = time.perf_counter() - began
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    loop = sum(r["tokens"] / r["tokens_per_second"] for r in rows if "loss" in r)
    model = result.model
    ids = torch.tensor(model.tokenizer.encode(held_out, special=False))
    size = sum(p.numel() for p in model.parameters())
    return {
        "seconds": loop, "whole": whole, "parameters": size, "sample": result.sample[:400],
        "loss": held_out_loss(lambda x: model(x).logits, ids),
    }  # fmt: skip


def hf(learn: str, held_out: str, steps: int, seed: int) -> Answer:
    """The shortest loop that one would write around `transformers`' model."""
    import math

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    began = time.perf_counter()
    table = {c: i for i, c in enumerate(sorted(set(learn + held_out)))}
    train, test = (torch.tensor([table[c] for c in part]) for part in (learn, held_out))
    config = GPT2Config(
        vocab_size=len(table), n_positions=TIME, n_embd=DIM, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False, loss_type="ForCausalLMLoss",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "wte" not in n and "wpe" not in n]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    start = time.perf_counter()
    for step in range(steps):
        done = max(0.0, (step - WARMUP) / max(1, steps - 1 - WARMUP))
        lr = LR * min((step + 1) / WARMUP, FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = lr
        places = torch.randint(len(train) - TIME, (BATCH, 1)) + torch.arange(TIME + 1)
        ids = train[places]
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    end = time.perf_counter()
    model.eval()
    return {
        "seconds": end - start, "whole": end - began, "parameters": sum(p.numel() for p in model.parameters()),
        "sample": "", "loss": held_out_loss(lambda x: model(x).logits, test),
    }  # fmt: skip


def build(name: str) -> tuple[Answer, Callable[[Answer], Answer]]:
    """Facts, and the function that trains."""
    import torch

    torch.set_num_threads(THREADS)
    whole = text()
    cut = int(len(whole) * 0.9)
    work = {"ours": ours, "hf": hf}[name]
    if name == "hf":
        import transformers  # noqa: F401  (a contestant that is not installed says so before the first round)
    return {}, lambda request: work(whole[:cut], whole[cut:], request["steps"], request["round"])


def run(rounds: int = 5, steps: int = STEPS) -> Section:
    """The section of the report."""
    text()
    notes: list[str] = []
    answers = afresh("char_lm", CONTESTANTS, rounds, {"steps": steps}, notes)
    table = [row("", "parameters", "held-out loss", "training, s", "the whole call, s", "tokens/s", "time / ours")]
    claims, seconds = [], {name: [a["seconds"] for a in rows] for name, rows in answers.items()}
    for name, rows in answers.items():
        against, r = "", (1.0, 1.0, 1.0)
        if CONTESTANTS[name].against:
            r = ratio(seconds[name], seconds["ours"])
            against = times(r)
            mine, theirs = (f"{spread(seconds[n])[0]:.1f} s" for n in ("ours", name))
            claims.append(Claim(f"character model, {steps:,} steps", CONTESTANTS[name].name, mine, theirs, r, rounds))
        size, whole = rows[0]["parameters"], spread([a["whole"] for a in rows])[0]
        figures = times(spread([a["loss"] for a in rows]), 3), times(spread(seconds[name]), 1), f"{whole:.1f}"
        speed = f"{steps * BATCH * TIME / spread(seconds[name])[0]:,.0f}"
        table.append(row(CONTESTANTS[name].name, f"{size / 1e6:.2f} M", *figures, speed, against))
    worst = max(a["loss"] for a in answers["ours"])
    description = (
        f"{(__doc__ or '').strip()}\n\nCommand: `python -m benchmarks char_lm --data tinyshakespeare.txt`; ours is the "
        "call behind\n`anyformer train --size tiny --overrides.dim 128 --overrides.depth 4 --overrides.heads 4 "
        "--overrides.context 64 --tokenizer chars --batch 12 --steps 2000 --lr 3e-3 --betas [0.9,0.99] --data "
        "tinyshakespeare.txt`. Training is the time of the steps alone; the whole call, for ours, includes making the "
        "tokenizer, the log of every step, a bigram, the evaluation, a checkpoint and a sample.\n\n"
        f"Rounds: {rounds}, each in new processes and with a seed of its own; median (quartiles). The largest loss "
        f"of ours is {worst:.3f}. nanoGPT's {PUBLISHED} comes from a third of this learning rate: no comparison."
    )
    return Section("Character model", description, table, claims, notes)
