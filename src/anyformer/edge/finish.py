"""The last part of a design: the chosen model is trained, stored in few bits, checked on real rows, and reported."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from anyformer import hub
from anyformer.compress import few
from anyformer.edge import artefact, learn
from anyformer.edge.count import count
from anyformer.edge.design import Design, Infeasible, Point
from anyformer.edge.heirs import MARK, planned
from anyformer.edge.learn import Say
from anyformer.edge.shared import GROUP, Shared
from anyformer.edge.space import PATHS, Choice, key
from anyformer.edge.targets import Onnx, Target, Written
from anyformer.edge.task import BITS, SCORES, Task, said
from anyformer.edge.trial import learned
from anyformer.edge.wish import Wish
from anyformer.hub.formats.guard import atomic_write, read_json
from anyformer.parts import quantised

REPORT = "report.json"
LOST = {8: 0.01, 4: 0.05}  # mean squared difference of scores, or nats, that fewer bits may cost
CALIBRATED = 16  # batches
ROWS = 64  # whose answers are compared at once
RUNNERS = 4  # models of a race
SEEN = 3  # models with a value, so that its best says something of it
# of a wish, in the report
SAID = ("task", "test", "metric", "size", "latency", "memory", "target", "threads", "model", "teacher", "hours")


def designed(wish: Wish, out: str | Path, teacher: Any = None, say: Say = print) -> dict[str, Any]:
    """Designs a model for a wish in a folder, and returns the report; one that is done is read again.

    Args:
        teacher: the loaded model of `wish.teacher`.

    Raises:
        Infeasible: if nothing fits. ValueError, OSError, ImportError: nothing of the artefact has been written.
    """
    with learn.threads(wish.threads):
        design = Design(wish, out, teacher, say)
        if not (design.out / REPORT).exists():
            weights, measured = design.run()
            with FileLock(design.out / "finish.lock"):
                if not (design.out / REPORT).exists():  # another process was quicker
                    return finish(design, weights, measured)
        return dict(read_json(design.out / REPORT))


def finish(design: Design, weights: Shared, measured: list[Point]) -> dict[str, Any]:
    """Trains the best model that was measured within the budget, writes it, and returns the report.

    Raises:
        Infeasible: if the artefact misses the budget after all. ValueError: for a file that differs from the model.
    """
    wish, task = design.wish, design.task
    chosen, model = race(design, weights, [p for p in measured if not p.over(wish)])
    seconds, vocab = design.left * (1 - sum(design.parts.values())), chosen.choice.get("vocab")
    design.say(f"the first of the race learns for {seconds:.0f} s: {chosen.line(wish)}")
    learned(design, model, chosen.choice, seconds, RUNNERS, design.say)
    task.medium.attach(model, vocab)
    model.origin = {**(model.origin or {}), "classes": list(task.classes)}
    test = task.parts["test"]
    full = task.answers(learn.logits_of(model), test, vocab)
    room = wish.size - (chosen.real_size or chosen.size)
    small, work = stored(model, task, chosen.choice, room, design.target)
    answers = task.answers(learn.logits_of(small), test, vocab)
    lost = moved(task, answers, full)
    if lost > LOST[min((e.bits or 8 for e in work.changed), default=8)]:
        raise ValueError(f"few bits move the model by {lost:.3g}, too far: give --size more, or --space.bits 8")
    place = design.out / "model"
    beside = design.out / f".model.{secrets.token_hex(4)}.tmp"
    try:
        off, written = _write(design, small, vocab, beside)
        products = "float32"
        if not design.target.exact:
            answers, off, products = as_it_runs(design, small, work, vocab, beside, answers, off)
            lost = moved(task, answers, full)
        elif design.target.whole:
            answers, off, products = in_whole_numbers(design, small, vocab, beside, answers, off)
            lost = moved(task, answers, full)
        chosen.real_size = sum(f.stat().st_size for f in beside.iterdir())
        chosen.real = design.target.measured(beside / design.target.file, model)
        if chosen.over(wish):
            raise Infeasible([chosen, *(p for p in measured if p is not chosen)], wish)
        hub.save(model, design.out / "trained", overwrite=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    made = report(design, chosen, measured)
    low, high = task.interval(answers, test)
    made |= {"metric": wish.metric, "value": said(wish.metric, task.measure(answers, test)), "interval": [low, high]}
    made |= {"float32": said(wish.metric, task.measure(full, test)), "lost": lost, "difference": off}
    made |= {"teacher": design.taught.get("score"), "rows": {n: len(p.labels) for n, p in task.parts.items()}}
    made["matrices"] = {e.path: e.bits for e in work.entries}
    made |= {"covered": artefact.covered(model, work.entries), "rows_are": task.medium.name}
    made |= {"row": task.medium.words, "lost_of_rows": task.medium.loss, "products": products}
    made |= {n: list(v) if v else None for n, v in (("delegated", written.delegated), ("nodes", written.nodes))}
    atomic_write(design.out / "front.html", page(made).encode())
    atomic_write(design.out / REPORT, json.dumps(made, indent=1).encode())
    return made


def race(design: Design, weights: Shared, fitting: list[Point]) -> tuple[Point, Any]:
    """The best of some models after each has learned alone for the same time, from the shared weights on; half of them
    go on to each next round (successive halving: Jamieson and Talwalkar, 2016; arXiv:1502.07943). The largest uniform
    model takes part. A teacher that is no better than the winner is not heard from here on.

    Returns:
        The winner, and its model with what it has learned.
    """
    task, plain = design.task, [p for p in design.plain() if any(key(p.choice) == key(f.choice) for f in fitting)][:1]
    best = sorted(fitting, key=lambda p: -p.goodness)
    first = [p for p in best if plain and key(p.choice) == key(plain[0].choice)]
    first += [p for p in best if MARK in p.choice]
    running = [*first, *(p for p in best if p not in first)][:RUNNERS]
    models = {key(p.choice): design.standing(weights, p.choice) for p in running}
    found = {key(p.choice): p.goodness for p in running}
    rounds = (len(running) - 1).bit_length()
    for turn in range(rounds):
        each = design.parts["race"] * design.left / rounds / len(running)
        design.say(f"{len(running)} models learn for {each:.1f} s each")
        for p in running:
            known = key(p.choice)
            found[known] = learned(design, models[known], p.choice, each, turn)
        running = sorted(running, key=lambda p: -found[key(p.choice)])[: len(running) // 2 or 1]
    chosen = running[0]
    if design.taught.get("score") is not None and design.taught["choose"] <= found[key(chosen.choice)]:
        design.say(f"the teacher is no better ({design.taught['choose']:.4f}) and is not heard any more")
        task.parts["learn"].forget()
    return chosen, models[key(chosen.choice)]


def stored(model: Any, task: Task, choice: Choice, room: int, target: Target | None = None) -> tuple[Any, few.Work]:
    """The model with its matrices in few bits: of those in 4, the ones that move it most have 8 while there is room.

    Args:
        target: what runs it, ONNX Runtime by default: says which matrices, and how much of them must be in few bits.

    Raises:
        ValueError: if fewer can be.
    """
    bits, vocab, learned = choice.get("bits", 8), choice.get("vocab"), task.parts["learn"]
    target = target or Onnx()
    entries = planned(model, choice, target)
    if bits < 8:
        inputs = task.medium.batch(learned, vocab, list(range(min(200, task.medium.looked, len(learned.labels)))))
        with torch.no_grad():
            wanted = learn.logits_of(model.eval())(**inputs)
        entries = few.finer(
            model, entries, GROUP, room, lambda one: moved(task, learn.logits_of(one)(**inputs), wanted)
        )
    work = few.Work("gptq", GROUP, entries)
    if target.few_bits:
        artefact.check_covered(model, entries, target.coverage)
    made, noise = copy.deepcopy(model).eval(), torch.Generator().manual_seed(0)
    order = torch.randperm(len(learned.labels), generator=noise)[: 32 * CALIBRATED].tolist()
    if not work.changed:  # a target whose matrices are all floats
        return made, work
    few.quantise(made, work, [task.medium.batch(learned, vocab, order[i : i + 32]) for i in range(0, len(order), 32)])
    few.verify(made, work)
    return made, work


def moved(task: Task, answers: Tensor, before: Tensor) -> float:
    """The mean squared difference of scores, in their variance, or nats of divergence of classes."""
    if task.metric in SCORES:
        return float((answers - before).square().mean())
    each = []
    for a, b in zip(answers.split(ROWS), before.split(ROWS), strict=True):  # those of running text are many
        p, q = b.log_softmax(-1), a.log_softmax(-1)
        each.append((p.exp() * (p - q)).sum(-1).reshape(len(p), -1).mean(1))
    return float(torch.cat(each).mean())


def _write(design: Design, model: Any, vocab: int | None, folder: Path) -> tuple[float, Written]:
    """Writes the artefact, and returns its largest difference from the model on real rows, of odd sizes, and its
    report.

    Raises:
        ValueError: if that is above 1e-4.
    """
    target, facts, medium = design.target, design.facts(vocab), design.task.medium
    file = folder / target.file
    written = target.write(model, file, facts)
    beside = {**medium.files(vocab), **target.files(model, facts), "run.py": target.script(medium)}
    for name, content in beside.items():
        atomic_write(folder / name, content)
    checks, plain = medium.checks(design.task.parts["test"], vocab), folder / f"float32{Path(target.file).suffix}"
    if not target.exact:  # what is checked to every digit are the same numbers in float32
        target.write(quantised.full(model).eval(), plain, facts)
    off = target.difference(file if target.exact else plain, model.eval(), checks)
    plain.unlink(missing_ok=True)
    if not off <= artefact.CLOSE:
        raise ValueError(
            f"the written file differs from the model by {off:.1e} on real {medium.name}; allowed: {artefact.CLOSE:g}"
        )
    return off, written


def as_it_runs(
    design: Design, model: Any, work: few.Work, vocab: int | None, folder: Path, before: Tensor, off: float
) -> tuple[Tensor, float, str]:
    """The answers of a file whose runtime rounds more than the model's matrices.

    Args:
        model: as it is stored. before: its answers on the rows of the test. off: the difference of the same numbers in
            a file of float32.

    Returns:
        The answers, the largest difference from the model on real rows of odd sizes, and a sentence on what was done.

    Raises:
        ValueError: if the answers move too far.
    """
    task, run = design.task, design.target.opened(folder / design.target.file)
    answers = task.answers(lambda **given: torch.as_tensor(run(**given)), task.parts["test"], vocab)
    most = LOST[min((e.bits or 8 for e in work.changed), default=8)]
    if not (lost := moved(task, answers, before)) <= most:
        raise ValueError(
            f"the written file moves the answers by {lost:.3g}; allowed: {most:g}; give --space.bits 8 or --target onnx"
        )
    there = artefact.difference(run, model, task.medium.checks(task.parts["test"], vocab))
    told = f"those of the file, with 8-bit inputs, move the answers by {lost:.2g}; in float32 it differs by {off:.1e}"
    return answers, there, told


def in_whole_numbers(
    design: Design, model: Any, vocab: int | None, folder: Path, before: Tensor, off: float
) -> tuple[Tensor, float, str]:
    """Puts products of whole numbers into the written file, if it is faster so and the answers stay where they were.

    Args:
        model: as it is stored. before: its answers on the rows of the test. off: the written file's difference from it.

    Returns:
        The answers, the largest difference from the model on real rows of odd sizes, and a sentence on what was done.
    """
    task, target = design.task, design.target
    file, other = folder / target.file, folder / f"int8{Path(target.file).suffix}"
    count = target.write(model, other, design.facts(vocab), whole=True).whole
    if not count:
        other.unlink()
        return before, off, "float32: no matrix in few bits is multiplied as it is"
    old, new = (min(r[0] for r in target.measured(f, model)) for f in (file, other))
    run = target.opened(other)
    answers = task.answers(lambda **given: torch.as_tensor(run(**given)), task.parts["test"], vocab)
    lost, told = moved(task, answers, before), f"int8 takes {new:.3f} ms in place of {old:.3f}"
    if new >= old or lost > LOST[8]:
        other.unlink()
        return before, off, f"float32: {told if new >= old else f'int8 moves the answers by {lost:.2g}'}"
    os.replace(other, file)
    off = target.difference(file, model, task.medium.checks(task.parts["test"], vocab))
    return answers, off, f"int8 of {count} matrices, 8-bit inputs: {told}"


def report(design: Design, chosen: Point, measured: Sequence[Point]) -> dict[str, Any]:
    """The facts of a run for machines: every model of the search, those measured, the chosen one, what bound it."""
    wish, known = design.wish, {json.dumps(p.choice, sort_keys=True): p for p in measured}

    def told(point: Point) -> dict[str, Any]:
        return {**vars(point), "metric": None if point.metric is None else said(wish.metric, point.metric)}

    every = [p for p in measured if MARK in p.choice]
    every += [known.get(json.dumps(p.choice, sort_keys=True), p) for p in design.points()]
    errors = [abs(p.milliseconds / min(r[0] for r in p.real) - 1) for p in measured if p.real]
    worst = {
        "size": (chosen.real_size or 0) / wish.size, "latency": chosen.p50 / wish.latency,
    }  # fmt: skip
    if wish.memory is not None:
        worst["memory"] = max(r[2] for r in chosen.real) / wish.memory
    flops = count(design.recipe(chosen.choice), tokens=wish.tokens)
    return {
        "wish": {n: getattr(wish, n) for n in SAID},
        "machine": design.table.key, "table": {"error": median(errors), "seconds": design.table.took},
        "chosen": told(chosen), "parameters": flops.parameters, "flops": flops.forward,
        "recipe": repr(design.recipe(chosen.choice)), "used": worst, "without": dict(design.space.without),
        "points": [told(p) for p in every], "better": "lower" if wish.metric == BITS else "higher",
        "mattered": mattered(design.points(), wish),
    }  # fmt: skip


def mattered(points: Sequence[Point], wish: Wish) -> dict[str, dict[str, list[float]]]:
    """By path, and by value there, the best first: the best metric with shared weights among the models within the
    budget that have it, and their number. The path whose values differ most comes first, those of fewer than three
    models apart; a path with a single value is left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for point in points:
        if point.metric is None or point.over(wish):
            continue
        for name, value in point.choice.items():
            what, _, layer = name.partition(".")
            path = PATHS.get(what, what).replace("blocks.0", f"blocks.{layer}")
            best = found.setdefault(path, {}).setdefault(str(value), [point.metric, 0])
            best[:] = max(best[0], point.metric), best[1] + 1
    several = {path: values for path, values in found.items() if len(values) > 1}

    def spread(path: str) -> float:
        best = [value for value, count in several[path].values() if count >= SEEN]
        return max(best, default=0.0) - min(best, default=0.0)

    return {
        path: {
            value: [said(wish.metric, best), count]
            for value, (best, count) in sorted(several[path].items(), key=lambda v: -v[1][0])
        }
        for path in sorted(several, key=spread, reverse=True)
    }


def page(made: dict[str, Any]) -> str:
    """The page of the front: one file, nothing is fetched."""
    text = json.dumps(made).replace("</", "<\\/")
    return Path(__file__).with_name("front.html").read_text(encoding="utf-8").replace("/*DATA*/", text)
