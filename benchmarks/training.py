"""Training as users start it: speed and peak memory, in float32 and in bfloat16, and with a large vocabulary.

anyformer's `fit` beside the Trainer of transformers, and litgpt's, x-transformers' and plain models in a plain loop.
AdamW (fused), gradients clipped to 1, batches of 8 x 256 tokens, vocabulary 65 or 49,152 (SmolLM2's), no dropout. bf16:
weights in float32, products in bfloat16. Every turn is a new process. Time is that from one batch to the next, the
median of a turn. Memory is what the process grew by (`VmHWM`) from before the model was made until the last batch is
fetched.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import train_step
from benchmarks.contest import THREADS, Contestant, afresh, ratio, spread
from benchmarks.machine import resident
from benchmarks.report import Claim, Section, percent, row, times
from benchmarks.train_step import BATCH, LARGE, SMALL, TIME, TOKENS, VOCAB, Shape


@dataclass(frozen=True)
class Case:
    """A size, a precision, and whether everything inside a block is made again in backward."""

    shape: Shape
    precision: str = "fp32"
    recompute: bool = False


WORDS = replace(SMALL, vocab=49_152)
CASES = {
    "10 M": Case(SMALL),
    "10 M, bf16": Case(SMALL, "bf16"),
    "10 M, 49,152 words": Case(WORDS),
    "10 M, 49,152 words, bf16": Case(WORDS, "bf16"),
    "57 M": Case(LARGE),
    "57 M, bf16": Case(LARGE, "bf16"),
    "10 M, recomputed": Case(SMALL, recompute=True),
    "57 M, recomputed": Case(LARGE, recompute=True),
}
CONTESTANTS = {
    "ours_gpt": Contestant("anyformer GPT"),
    "hf_gpt": Contestant("transformers GPT-2, Trainer", against="ours_gpt"),
    "plain_gpt": Contestant("plain loop, nanoGPT-like", against="ours_gpt"),
    "litgpt_pythia": Contestant("litgpt, Pythia-like, plain loop", "litgpt", "ours_gpt"),
    "ours_llama": Contestant("anyformer LLaMA"),
    "hf_llama": Contestant("transformers LLaMA, Trainer", against="ours_llama"),
    "x_llama": Contestant("x-transformers, LLaMA-like, plain loop", against="ours_llama"),
    "peak": Contestant("plain matrix products"),
}
STEPS = 6  # of a turn: two to warm up; four turns have at least ten intervals between batches
Fetch = Callable[[], None]  # called when a batch is fetched: writes down when, and the memory so far


def _ours(model: Any, steps: int, case: Case, fetched: Fetch) -> None:
    from anyformer.train import Settings, fit, objectives

    def batches(number: int) -> dict[str, Any]:
        fetched()
        ids = _ids(number, BATCH, TIME + 1)
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}

    recomputed = ("blocks.*",) if case.recompute else ()
    settings = Settings(steps=steps, precision=case.precision, activation_checkpointing=recomputed)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, batches, objectives.causal_lm, settings, folder)


def _ids(number: int, *shape: int) -> Any:
    import torch

    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(number))


def _trainer(model: Any, steps: int, case: Case, fetched: Fetch) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return (steps + 1) * BATCH

        def __getitem__(self, number: int) -> dict[str, Any]:
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen % BATCH == 1:
                fetched()
            ids = _ids(number, TIME)
            return {"input_ids": ids, "labels": ids}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, optim="adamw_torch_fused",
            gradient_checkpointing=case.recompute, bf16=case.precision == "bf16", use_cpu=True, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_steps=10, lr_scheduler_type="cosine",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=Rows()).train()


def _plain(model: Any, logits: Callable[[Any], Any], steps: int, case: Case, fetched: Fetch) -> None:
    import torch

    if case.recompute:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

        apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "Block")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for number in range(steps):
        fetched()
        ids = _ids(number, BATCH, TIME + 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            scores = logits(ids[:, :-1]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(scores, ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    fetched()


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Nothing but imports; the function makes a model, trains it, and says how long a step took and what it held."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if name == "peak":
        from benchmarks.machine import matmul_rate

        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
        return {}, lambda request: {"rate": matmul_rate(kinds[CASES[request["case"]].precision])}
    make = getattr(train_step, name)
    make(Shape(layers=1, heads=1, dim=8, gated=8))  # imports

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        moments: list[tuple[float, int]] = []
        before = resident().get("VmHWM", 0)
        case = CASES[request["case"]]
        model, logits = make(case.shape)
        model.train()

        def fetched() -> None:
            moments.append((time.perf_counter(), resident().get("VmHWM", 0)))

        arguments = request["steps"], case, fetched
        if name.startswith("ours"):
            _ours(model, *arguments)
        elif name.startswith("hf"):
            _trainer(model, *arguments)
        else:
            _plain(model, logits, *arguments)
        taken = [b - a for (a, _), (b, _) in itertools.pairwise(moments)]
        return {"seconds": statistics.median(taken[2:]), "memory": moments[-1][1] - before}

    return {}, serve


def run(rounds: int = 4) -> Section:
    """The section of the report."""
    kept = [title for title, case in CASES.items() if not case.recompute]
    return section("Training, speed and memory", kept, rounds, (__doc__ or "").strip())


def section(title: str, cases: list[str], rounds: int, text: str) -> Section:
    """A section over these cases."""
    notes: list[str] = []
    table = [row("", "case", "tokens/s", "of the peak", "time / ours", "memory, MB", "memory / ours")]
    claims: list[Claim] = []
    for case in cases:
        left_out = ("x_llama",) if CASES[case].recompute else ()
        taking_part = {k: c for k, c in CONTESTANTS.items() if k not in left_out}
        print(f"  {case}", flush=True)
        answers = afresh("training", taking_part, rounds, {"case": case, "steps": STEPS}, notes)
        peak = max(a["rate"] for a in answers.pop("peak"))
        for name, answered in answers.items():
            rows, made = _compared(name, answered, answers, case, CASES[case].shape.flops / peak)
            table.append(rows)
            claims += made
    steps = f"Rounds: {rounds}, of {STEPS - 2} steps each after two to warm up; medians (quartiles)."
    return Section(title, f"{text}\n\n{steps}", table, claims, list(dict.fromkeys(notes)))


def _compared(
    name: str, answered: list[dict[str, Any]], answers: dict[str, Any], case: str, least: float
) -> tuple[str, list[Claim]]:
    """A contestant's line, and what is claimed of it; `least` are the seconds of a step at the peak."""
    contestant = CONTESTANTS[name]
    seconds, memory = ([a[k] for a in answered] for k in ("seconds", "memory"))
    speed, held = TOKENS / spread(seconds)[0], spread(memory)[0] / 1e6
    ratios, claims = ["", ""], []
    if contestant.against in answers:
        ours = answers[contestant.against]
        what = f"{case}, {CONTESTANTS[contestant.against].name}"
        mine = [[a[k] for a in ours] for k in ("seconds", "memory")]
        r, m = ratio(seconds, mine[0]), ratio(memory, mine[1])
        ratios = [times(r), times(m)]
        rate = f"{TOKENS / spread(mine[0])[0]:,.0f} tokens/s", f"{speed:,.0f} tokens/s"
        size_of = f"{spread(mine[1])[0] / 1e6:,.0f} MB", f"{held:,.0f} MB"
        claims = [
            Claim(f"training, {what}", contestant.name, *rate, r, len(answered)),
            Claim(f"memory of training, {what}", contestant.name, *size_of, m, len(answered)),
        ]
    share = percent(least / spread(seconds)[0])
    cells = contestant.name, case, f"{speed:,.0f}", share, ratios[0], f"{held:,.0f}"
    return row(*cells, ratios[1]), claims
