"""Learning a task within a time: from labels, and from what a teacher says of the same texts and of pieces of them.

Time is what this thread has computed (`clock`): a busy machine takes longer, and does the same work.

    L = (1 - a) loss(label) + a distance(teacher)     a = 0.7 if the teacher has read it, 1 without a label, else 0

Scores: both are squared errors. Classes: cross entropy, and T^2 KL (`compress.distil`). B rows, C classes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import hub
from anyformer.compress.distil import divergence
from anyformer.core import pages
from anyformer.core.rewrite import select
from anyformer.edge.medium import Medium, Part, Texts
from anyformer.edge.task import SCORES, Task, said
from anyformer.generate.engine.processor import flags
from anyformer.parts import Classifier
from anyformer.parts.embeddings import Table
from anyformer.parts.pooling import AdditivePool

SIZE, RATE, FINE = 32, 1e-3, 5e-5  # rows of a batch; the largest rate of small models, and of a teacher
WARM, CLIP, DECAY = 0.05, 1.0, 0.01
SHARE = 0.7  # a
LOOKS = 10  # times that a run looks at rows that choose
HALVES = {"avx512_bf16", "amx_bf16"}  # flags of processors that multiply bfloat16 fast
OWN = 0  # the place of a teacher's tokenizer among those of the task
LOOKED_AT = ("choose", "test")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Taught:
    """A teacher's metric on the first 600 rows that choose, and on those that are looked at once; itself, as it was
    when it had these."""

    choose: float
    test: float
    model: Any


def clock() -> float:
    """The seconds that this thread has computed so far."""
    return time.thread_time()


def loss(task: Task, part: Part, rows: Sequence[int], logits: Tensor) -> Tensor:
    """L of a batch. logits (B, C), (B, 1) of scores, (B, T, C) of running text."""
    score = task.metric in SCORES
    total, size = logits.sum() * 0.0, len(rows)
    soft = None if part.soft is None else part.soft[list(rows)]
    read = torch.zeros(size, dtype=torch.bool) if soft is None else soft.isfinite().all(1)  # the teacher's
    known = torch.tensor([row < len(part.labels) for row in rows])
    if bool(known.any()):
        labels = part.labels[[row for row in rows if row < len(part.labels)]]
        if score:
            hard = (logits[known, 0] - labels).square()
        else:  # of running text, the mean of the bytes of a row
            hard = F.cross_entropy(logits[known].movedim(-1, 1), labels, reduction="none")
            hard = hard.reshape(len(hard), -1).mean(1)
        total = total + (hard * torch.where(read[known], 1 - SHARE, 1.0)).sum() / size
    if soft is None or not bool(read.any()):
        return total
    weights = torch.where(known[read], SHARE, 1.0)
    if score:
        return total + (weights * (logits[read] - soft[read]).square()[:, 0]).sum() / size
    each = torch.stack([divergence(a, b) for a, b in zip(logits[read], soft[read], strict=True)])
    return total + (weights * each).sum() / size


def rate(done: float, most: float) -> float:
    """The rate of a step at a share of the time: up in the first 5 %, down in a line to 0."""
    return most * min(1.0, (done + 1e-3) / WARM) * max(0.0, 1 - done)


def fit(
    model: Any,
    task: Task,
    vocab: int | None,
    seconds: float,
    most: float = RATE,
    seed: int = 0,
    half: bool = False,
    say: Say = print,
) -> float:
    """Trains a model for so long, and leaves it with the weights that were best on the rows that choose.

    Args:
        vocab: of the tokenizer. most: the largest learning rate. half: products in bfloat16.

    Returns:
        The metric on these; higher is better.

    Raises:
        FloatingPointError: if the loss is no longer finite.
    """
    learn, choose, noise = task.parts["learn"], task.parts["choose"].first(task.medium.looked), random.Random(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), most, weight_decay=DECAY, fused=True)
    best, kept, next_look, run = -float("inf"), {}, 1 / LOOKS, logits_of(model, half)
    began = clock()
    for steps, rows in enumerate(task.draws(learn, vocab, SIZE, noise)):
        done = (clock() - began) / seconds
        if done >= next_look or done >= 1:
            model.eval()
            found = task.measure(task.answers(run, choose, vocab), choose)
            if found >= best:  # of equal ones the last, which has learned more
                best, kept = found, {n: t.clone() for n, t in model.state_dict().items()}
            say(f"  {done:4.0%}  step {steps:,}  {task.metric} {said(task.metric, found):.4f}")
            looked = (clock() - began) / seconds - done
            next_look = done + looked + max(1 / LOOKS, 8 * looked)  # looking takes a ninth of the time at most
            model.train()
        if done >= 1:
            break
        step(model, optimizer, loss(task, learn, rows, run(**task.medium.batch(learn, vocab, rows))), rate(done, most))
    model.load_state_dict(kept)
    model.eval()
    return best


def step(model: nn.Module, optimizer: Any, value: Tensor, now: float) -> None:
    """One step of the optimizer.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    if not bool(value.isfinite()):
        raise FloatingPointError("the loss is not finite: no model was written; another --seed may do")
    optimizer.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for group in optimizer.param_groups:
        group["lr"] = now
    optimizer.step()


def logits_of(model: Any, half: bool = False) -> Callable[..., Tensor]:
    """The logits of a model as a function of its inputs, in float32."""

    def run(**inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits: Tensor = model(**inputs).logits
        return logits.float()

    return run


def check_teacher(teacher: Any, medium: Medium) -> None:
    """Raises ValueError for a model that reads no text, or rows that are none."""
    if not isinstance(medium, Texts):
        raise ValueError(f"a teacher reads texts, and the rows are {medium.name}: leave --teacher out")
    if teacher.tokenizer is None or not teacher.reads_text:
        raise ValueError("the teacher has no tokenizer, or reads no text; pass a model of texts, e.g. --teacher minilm")


def teach(task: Task, teacher: Any, seconds: float, more: int, out: Path, say: Say = print) -> Taught | None:
    """Lets a teacher say what it thinks of the texts that teach, and of pieces of them, `more` for each.

    A teacher without a head of the task's outputs gets one, and learns the task while there is time left to read all,
    at least in half of the time; it is written to `out`. Then it reads: a text that it does not come to has no score of
    a teacher (NaN), a piece is left out.

    Returns:
        How good it is; None, with nothing changed, if its time is too short to learn from each row once.

    Raises:
        ValueError: for a teacher of other classes.
    """
    medium, half = task.medium, bool(HALVES & flags())
    assert isinstance(medium, Texts)
    medium.tokenizers[OWN] = teacher.tokenizer
    learn = task.parts["learn"]
    with torch.no_grad():
        found = teacher.eval()(**task.medium.batch(learn, OWN, [0])).logits
    if found is None or found.ndim != 2:
        teacher = _headed(teacher, task.outputs)
        needed = pace(teacher, task, OWN, half) * len(learn.labels) / min(SIZE, len(learn.labels))
        alone = max(seconds / 2, seconds - needed / 3 * (1 + more))  # reading a text is a third of learning from it
        if needed > alone:
            say(f"no teacher: to learn from each text once takes {needed:.0f} s, and it has {alone:.0f} s")
            learn.ids.pop(OWN, None)
            return None
        seconds -= alone
        say(f"the teacher learns the task, {alone:.0f} s")
        fit(teacher, task, OWN, alone, FINE, half=half, say=say)
        hub.save(teacher, out, overwrite=True)
    elif found.shape[1] != task.outputs:
        raise ValueError(
            f"the teacher has {found.shape[1]} outputs, and the task {task.outputs}: it was trained for another task; "
            "pass a model without a head, which learns this one"
        )
    noise = random.Random(0)
    pieces = [p for text in learn.items for _ in range(more) if (p := _piece(text, noise))]
    learn.items, learn.ids = learn.items + pieces, {}
    run, every = logits_of(teacher, half), Part(learn.items, torch.zeros(len(learn.items)))
    scores = [
        task.measure(task.answers(run, p, OWN), p) for p in (task.parts[n].first(medium.looked) for n in LOOKED_AT)
    ]
    taught, ends = Taught(scores[0], scores[1], teacher), clock() + seconds
    learn.soft = torch.full((len(learn.items), task.outputs), float("nan"))
    with torch.no_grad():
        for rows in itertools.islice(task.draws(every, OWN, SIZE, noise), -(-len(learn.items) // SIZE)):
            if clock() > ends:
                break
            learn.soft[rows] = run(**task.medium.batch(every, OWN, rows))
    read = learn.soft.isfinite().all(1)
    say(f"the teacher has read {int(read.sum()):,} of {len(learn.items):,} texts; {task.metric} {taught.choose:.4f}")
    if task.metric in SCORES:  # a teacher's scores can have another unit
        both = read[: len(learn.labels)]
        x, y = learn.soft[: len(learn.labels), 0][both], learn.labels[both]
        if len(x) > 1:
            slope = float(((x - x.mean()) * (y - y.mean())).mean() / x.var().clamp(min=1e-9))
            learn.soft = (learn.soft - x.mean()) * slope + y.mean()
    kept = [i for i in range(len(learn.items)) if i < len(learn.labels) or read[i]]  # a piece unread is no row
    learn.items, learn.soft, learn.ids = [learn.items[i] for i in kept], learn.soft[kept], {}
    return taught


def pace(model: Any, task: Task, vocab: int | None, half: bool) -> float:
    """About the seconds of a step, without the optimizer: drawn rows there and back, of which the first warm up."""
    took, part, run = list[float](), task.parts["learn"], logits_of(model, half)
    for rows in itertools.islice(task.draws(part, vocab, SIZE, random.Random(0)), 4):
        began = clock()
        loss(task, part, rows, run(**task.medium.batch(part, vocab, rows))).backward()
        took.append(clock() - began)
    model.zero_grad()
    return mean(took[1:])


def _headed(model: Any, outputs: int) -> Any:
    """The model with a head for the task on the mean of its tokens, at first."""
    recipe = model.recipe.but({"pool": AdditivePool.of(), "heads": {"classes": Classifier.of(classes=outputs)}})
    made = pages.build(recipe, seed=0)
    made.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("pool.")}, strict=False)
    nn.init.zeros_(made.pool.query.weight)
    made.tokenizer = model.tokenizer
    return made


def _piece(text: str, noise: random.Random) -> str:
    """Some words in a row, of which one in ten is left out (Tang et al., 2019; arXiv:1903.12136)."""
    words = text.split()
    if len(words) < 4:
        return ""
    length = noise.randint(3, len(words))
    at = noise.randint(0, len(words) - length)
    return " ".join(word for word in words[at : at + length] if noise.random() > 0.1)


@torch.no_grad()
def table_of(teacher: Any, tokenizer: Any, dim: int) -> Tensor | None:
    """First vectors of a tokenizer's tokens from a teacher's table, (V, dim): the mean of its pieces, along the
    directions in which the table varies most, so that a narrow model begins with these. None if it has no table."""
    tables = (
        list(select(teacher, "**", kind=Table).values()) if any(isinstance(m, Table) for m in teacher.modules()) else []
    )
    if not tables or tables[0].weight.shape[1] < dim:
        return None
    weight, core = tables[0].weight.float(), teacher.tokenizer.core
    vectors = []
    for i in range(tokenizer.vocab_size):
        token = tokenizer.core.id_to_token(i)
        own = core.token_to_id(token)
        ids = [own] if own is not None else core.encode(token.removeprefix("##"), add_special_tokens=False).ids
        vectors.append(weight[ids].mean(0) if ids else weight.mean(0))
    made = torch.stack(vectors)
    made = made - made.mean(0)
    _, axes = torch.linalg.eigh(made.mT @ made)
    made = made @ axes.flip(1)[:, :dim]
    return made * (0.05 / made.std())


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """A context in which PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
