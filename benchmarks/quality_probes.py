"""Synthetic tasks that tell mechanisms apart. Every model has two layers, width 64 and the same number of parameters.

copying     40 random symbols, a separator, and the same again. What counts is the second half.
recall      16 pairs of key and value, then the 16 keys in another order: what is the value? (Arora et al., 2023;
            arXiv:2312.04927)
induction   passages follow each other in a random order: how does one go on that was there before? (Olsson et al.,
            2022; arXiv:2209.11895)
needle      "marker, value" somewhere, then noise; at eight later places the marker again: what was the value?
parity      bits: is the number of ones up to here odd?

A model trains on new examples until 99.5 % of the answers at the full size are right, or `STEPS` are over. Each batch
has a size drawn anew, from `FROM` to the full one: with the full size alone, full attention stays at guessing a tenth
of the pairs of `recall` for thousands of steps. Where the first of two learning rates does not get there, the better
one counts: full attention learns `recall` with the lower one, `copying` with the higher one. B batch, T time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.init import initialise
from benchmarks.quality_models import MIXERS, Variant, model, parameters

DIM, DEPTH, VOCAB = 64, 2, 96
BATCH, STEPS, EVERY, WARMUP, GOAL = 32, 1500, 100, 50, 0.995
RATES = (1e-3, 3e-3)  # learning rates; the second where the first did not reach the goal
SYMBOLS = 64  # ids below are symbols; above: SEPARATOR, MARKER, and keys of `recall`
SEPARATOR, MARKER, IGNORE = 64, 65, -100
Task = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]  # of a size: ids and labels, (B, T) each


def shuffled(random: torch.Generator, count: int) -> Tensor:
    """The numbers below `count` in another order in each row, (B, count)."""
    return torch.rand(BATCH, count, generator=random).argsort(-1)


def copying(random: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """T = 2 length."""
    text = torch.randint(SYMBOLS, (BATCH, length), generator=random)
    ids = torch.cat((text, torch.full((BATCH, 1), SEPARATOR), text), 1)  # (B, 2 length + 1)
    labels = ids[:, 1:].clone()
    labels[:, :length] = IGNORE
    return ids[:, :-1], labels


def recall(random: torch.Generator, pairs: int) -> tuple[Tensor, Tensor]:
    """T = 4 pairs."""
    keys = 66 + shuffled(random, 30)[:, :pairs]  # (B, pairs)
    values = torch.randint(SYMBOLS, (BATCH, pairs), generator=random)
    again = shuffled(random, pairs)
    first, second = (
        torch.stack((k, v), -1).flatten(1)
        for k, v in ((keys, values), (keys.gather(1, again), values.gather(1, again)))
    )
    ids = torch.cat((first, second), 1)
    labels = torch.full_like(ids, IGNORE)
    labels[:, 2 * pairs :: 2] = values.gather(1, again)
    return ids, labels


def induction(random: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """T = length. The text is nothing but passages of 2 to 4 symbols, up to six different ones."""
    size = torch.randint(2, 5, (BATCH, 1), generator=random)  # the same for all passages of a row
    turn, inside = torch.arange(length) // size, torch.arange(length) % size  # (B, T) each
    order = torch.randint(min(6, 1 + length // 8), (BATCH, length // 2 + 1), generator=random)  # the n-th passage
    before = (order[:, :, None] == order[:, None]).tril(-1).any(-1)  # has it been there?
    symbols, kind = shuffled(random, 24), order.gather(1, turn)  # (B, 24): four a passage; (B, T)
    answers = before.gather(1, turn) & (inside < size - 1)
    following = symbols.gather(1, 4 * kind + (inside + 1) % 4)
    return symbols.gather(1, 4 * kind + inside), torch.where(answers, following, IGNORE)


def needle(random: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """T = length. The distances from the value to the questions go up to T - 2."""
    ids = torch.randint(SYMBOLS, (BATCH, length), generator=random)
    labels = torch.full_like(ids, IGNORE)
    start = torch.randint(0, 16, (BATCH,), generator=random)
    rows, value = torch.arange(BATCH), torch.randint(SYMBOLS, (BATCH,), generator=random)
    asked = torch.rand(BATCH, length, generator=random).masked_fill(torch.arange(length) < start[:, None] + 2, -1.0)
    for place in asked.topk(8, -1).indices.T:  # (B,) each
        ids[rows, place], labels[rows, place] = MARKER, value
    ids[rows, start], ids[rows, start + 1] = MARKER, value
    return ids, labels


def parity(random: torch.Generator, length: int) -> tuple[Tensor, Tensor]:
    """T = length."""
    ids = torch.randint(2, (BATCH, length), generator=random)
    return ids, ids.cumsum(1) % 2


TASKS: dict[str, Task] = {
    "copying": copying, "recall": recall, "induction": induction, "needle": needle, "parity": parity,
}  # fmt: skip
FROM = {"copying": 4, "recall": 2, "induction": 8, "needle": 32, "parity": 4}
FULL = {"copying": 40, "recall": 16, "induction": 48, "needle": 128, "parity": 32}
LONGER = {"copying": 80, "recall": 24, "induction": 96, "needle": 256, "parity": 64}
LONG = {
    "copying": "80 symbols", "recall": "24 pairs", "induction": "96 tokens", "needle": "256 tokens",
    "parity": "64 bits",
}  # fmt: skip
SETUP = {"steps": STEPS, "batch": BATCH, "rates": list(RATES), "dim": DIM, "depth": DEPTH}
NAMES = (
    "full", "full, convolution first", "window 64", "linear, elu", "convolution 16", "Mamba-2", "delta", "gated delta",
)  # fmt: skip


def setup(task: str) -> dict[str, Any]:
    """What a result was found with: one that was found with something else is not shown."""
    return {**SETUP, "sizes": [FROM[task], FULL[task]]}


def one(task: str, name: str, seed: int) -> dict[str, Any]:
    """Trains and measures one mixer on one task: the share of right answers, and the steps that it took."""
    began, tried = time.perf_counter(), []
    for rate in RATES:
        tried.append(trained(task, name, seed, rate))
        if tried[-1]["right"] >= GOAL:
            break
    best = max(tried, key=lambda run: run["right"])
    return {**best, "seed": seed, "setup": setup(task), "seconds": time.perf_counter() - began}


def trained(task: str, name: str, seed: int, rate: float) -> dict[str, Any]:
    """With one learning rate."""
    v = MIXERS[name]
    v = replace(v, mixers=(*v.mixers[:1], v.mixers[-1]))  # two layers: what is first, and what is last
    recipe = model(v, _hidden(v), DIM, DEPTH, VOCAB)
    net = recipe.build()
    initialise(net, seed=seed)
    random, make = torch.Generator().manual_seed(seed), TASKS[task]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    right, step = 0.0, 0
    while step < STEPS and right < GOAL:
        for _ in range(EVERY):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - step / STEPS * 0.9)
            size = int(torch.randint(FROM[task], FULL[task] + 1, (), generator=random))
            ids, labels = make(random, size)
            loss = F.cross_entropy(net(ids).logits.flatten(0, 1), labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        right = accuracy(net, make, FULL[task])
    size = sum(p.numel() for p in net.parameters())
    return {
        "right": right, "steps": step, "rate": rate, "longer": accuracy(net, make, LONGER[task]), "parameters": size,
    }  # fmt: skip


@torch.no_grad()
def accuracy(net: Any, make: Task, size: int) -> float:
    """The share of right answers in eight new batches of that size."""
    random, right, count = torch.Generator().manual_seed(977), 0, 0
    for _ in range(8):
        ids, labels = make(random, size)
        asked = labels != IGNORE
        right += int((net(ids).logits.argmax(-1) == labels)[asked].sum())
        count += int(asked.sum())
    return right / count


def _hidden(v: Variant) -> int:
    """The feed-forward that gives all probes as many parameters as full attention with F = 4 D."""
    aim, few, more = (
        parameters(model(x, f, DIM, DEPTH, VOCAB)) for x, f in ((MIXERS["full"], 4 * DIM), (v, 8), (v, 16))
    )
    return max(1, 8 + round((aim - few) / ((more - few) / 8)))
