"""Multiple choice, classes, generated answers, and perplexity. N items, C classes."""

from __future__ import annotations

import importlib.util
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anyformer.evaluate.intervals import Corpus, Estimate, Metric
from anyformer.evaluate.items import Item
from anyformer.evaluate.scoring import _fits, score, way, windows
from anyformer.evaluate.shots import Form
from anyformer.generate import classify, generate
from anyformer.generate.classifying import names_of

STOP = "\n\n"  # ends a generated answer, as it ends an example
BATCH = 8  # prompts that are continued at once


@dataclass
class Measured:
    """Figures of one model.

    Attributes:
        metrics: what is compared with another model. baselines: beside them. details: tables, for JSON.
        rows: what was computed of each item. notes: for people.
    """

    metrics: dict[str, Metric | Corpus]
    baselines: dict[str, Estimate] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def likelihoods(model: Any, item: Item, form: Form) -> np.ndarray:
    """log p of each choice behind the prompt, in nats, (choices,)."""
    logs = score(model, form.prompt(item), [form.separator + choice for choice in item.choices], item.where)
    return np.array([float(values.sum()) for values in logs])


def choice(model: Any, items: Sequence[Item], form: Form) -> Measured:
    """The choice with the highest log-likelihood (`acc`), and with the highest one per character (`acc_norm`) and per
    byte (`acc_bytes`) of the choice, lengths without the separator: the names and numbers of lm-eval."""
    rows, names = list[dict[str, Any]](), ("acc", "acc_norm", "acc_bytes")
    right: dict[str, list[float]] = {name: [] for name in names}
    for item in items:
        logs = likelihoods(model, item, form)
        lengths = [np.ones(len(logs)), [len(c) for c in item.choices], [len(c.encode()) for c in item.choices]]
        for name, length in zip(names, lengths, strict=True):
            right[name].append(float(int(np.argmax(logs / np.array(length))) == item.gold))
        rows.append({"item": item.where, "log_likelihoods": logs.tolist(), "label": item.gold})
    return Measured({name: Metric(np.array(values), share=True) for name, values in right.items()}, rows=rows)


def classes_of(items: Sequence[Item], pool: Sequence[Item]) -> tuple[str, ...]:
    """The labels of items and examples, sorted.

    Raises:
        ValueError: for fewer than two.
    """
    names = sorted({item.label for item in (*items, *pool) if item.label is not None})
    if len(names) < 2:
        raise ValueError(f"every label is {', '.join(names)!r}; classification needs two classes")
    return tuple(names)


def has_classes(model: Any) -> bool:
    """True for a model with a classification head."""
    heads = getattr(model, "heads", None)
    return heads is not None and "classes" in heads


def shares(model: Any, items: Sequence[Item], form: Form) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, and the probability of each for each item, (N, C): by the head, else by the likelihood of its name.

    Raises:
        ValueError: for shots with a head, or a label that is no class of the model.
    """
    if not has_classes(model):
        names = classes_of(items, form.pool)
        logs = np.array([likelihoods(model, replace(item, choices=names), form) for item in items])
        logs -= logs.max(1, keepdims=True)
        return names, np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    if form.count:
        raise ValueError("a model with a classification head reads no examples; leave --shots out")
    ranked = classify(model, [form.template.replace("{text}", item.text) for item in items])
    names = tuple(names_of(model, len(ranked[0])))
    return names, np.array([[row[name] for name in names] for row in ranked])


def gold_of(names: Sequence[str], items: Sequence[Item]) -> np.ndarray:
    """The number of each item's class, (N,).

    Raises:
        ValueError: for a label that is none.
    """
    places = {name: i for i, name in enumerate(names)}
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # classes without names
        places |= {name.removeprefix("LABEL_"): i for i, name in enumerate(names)}
    for item in items:
        if item.label not in places:
            raise ValueError(
                f"{item.where}: label {item.label!r} is no class of the model: {', '.join(names)[:200]}; "
                "--fields.label names another column"
            )
    return np.array([places[str(item.label)] for item in items])


def macro_f1(table: np.ndarray) -> float:
    """The mean over the classes that occur of 2 TP / (2 TP + FP + FN), from confusion (gold, predicted), (C, C)."""
    both = table.sum(0) + table.sum(1)  # (C,) 2 TP + FP + FN
    return float(np.mean(2 * np.diag(table)[both > 0] / both[both > 0]))


def confusion(gold: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """The counts of each class (row) that was taken for each (column), (C, C)."""
    return np.bincount(gold * count + predicted, minlength=count * count).reshape(count, count)


def classification(model: Any, items: Sequence[Item], form: Form) -> Measured:
    """Accuracy, macro-F1 and the confusion of classes."""
    names, probabilities = shares(model, items, form)
    gold, predicted = gold_of(names, items), probabilities.argmax(1)
    rows = [
        {"item": item.where, "label": item.label, "predicted": names[p], "probability": float(row[p])}
        for item, p, row in zip(items, predicted, probabilities, strict=True)
    ]
    metrics: dict[str, Metric | Corpus] = {
        "acc": Metric((gold == predicted).astype(float), share=True),
        "macro_f1": Corpus(lambda drawn: macro_f1(confusion(gold[drawn], predicted[drawn], len(names))), len(items)),
    }
    details = {"classes": names, "confusion": confusion(gold, predicted, len(names)).tolist()}
    how = "the classification head" if has_classes(model) else "the log-likelihood of the label's name"
    return Measured(metrics, details=details, rows=rows, notes=[f"classes by {how}"])


def plainly(text: str) -> str:
    """A text as answers are compared: small letters, without punctuation, articles and extra spaces (SQuAD)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(written: str, right: str) -> float:
    """2 · words in common / (words + words), each word as often as it comes in both."""
    a, b = plainly(written).split(), plainly(right).split()
    if not a or not b:
        return float(a == b)
    return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b))


def generation(model: Any, items: Sequence[Item], form: Form, new: int, pattern: str | None) -> Measured:
    """Exact match and token F1 with the best of the right answers, a regular expression, and chrF.

    The answer is the likeliest text (temperature 0) up to an empty line.

    Raises:
        ValueError: for a pattern that is none, a model that does not generate, or a prompt that is too long.
    """
    try:
        wanted = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(f"regex is no regular expression: {error}: {pattern!r:.60}") from None
    prompts = [form.prompt(item) + form.separator.rstrip(" ") for item in items]
    for item, prompt in zip(items, prompts, strict=True):
        _fits(len(model.tokenizer.encode(prompt)) + (0 if model.reads_source else new), model.context, item.where)
    texts = [""] * len(items)
    order = sorted(range(len(items)), key=lambda i: -len(prompts[i]))
    for at in range(0, len(order), BATCH):
        some = order[at : at + BATCH]
        for i, text in zip(
            some, generate(model, [prompts[i] for i in some], max_new_tokens=new, stop=STOP), strict=True
        ):
            texts[i] = text.strip()
    pairs = list(zip(texts, [item.answers for item in items], strict=True))
    metrics: dict[str, Metric | Corpus] = {
        "exact_match": Metric(
            np.array([float(any(plainly(t) == plainly(a) for a in right)) for t, right in pairs]), share=True
        ),
        "token_f1": Metric(np.array([max(token_f1(t, a) for a in right) for t, right in pairs])),
    }
    if wanted is not None:
        metrics["regex"] = Metric(np.array([float(bool(wanted.search(t))) for t in texts]), share=True)
    notes = [f"answers: the likeliest text of at most {new} tokens, up to an empty line"]
    if importlib.util.find_spec("sacrebleu") is not None:
        import sacrebleu

        metrics["chrf"] = Metric(np.array([sacrebleu.sentence_chrf(t, list(right)).score for t, right in pairs]))
    else:
        notes.append("chrF is left out: it needs `pip install sacrebleu`")
    rows = [{"item": i.where, "written": t, "right": list(i.answers)} for i, t in zip(items, texts, strict=True)]
    return Measured(metrics, rows=rows, notes=notes)


def perplexity(model: Any, items: Sequence[Item], form: Form, window: int | None, stride: int | None) -> Measured:
    """Perplexity of a token and of a byte, over documents in sliding windows, or over responses behind their prompts.

    Documents are the independent pieces of the interval; of one document its windows are, which are not quite that.

    Raises:
        ValueError: for windows that the model cannot read, or a stride that skips tokens.
    """
    way(model)
    window, stride = _window(model, window, stride)
    pieces = list[tuple[float, int, float, str]]()  # nats, tokens, bytes, item
    for item in items:
        if item.answers:
            (values,) = score(model, form.prompt(item), [form.separator + item.answers[0]], item.where)
            pieces.append((-float(values.sum()), len(values), len(item.answers[0].encode()), item.where))
            continue
        parts = windows(model, item.text, window, stride, item.where)
        per = len(item.text.encode()) / sum(count for _, count in parts)
        if len(items) == 1:
            pieces += [(nats, count, per * count, item.where) for nats, count in parts]
        else:
            pieces.append((sum(p[0] for p in parts), sum(p[1] for p in parts), len(item.text.encode()), item.where))
    nats, tokens, size = (np.array([piece[i] for piece in pieces], float) for i in range(3))
    units = "windows" if len(items) == 1 and not items[0].answers else "documents"
    metrics: dict[str, Metric | Corpus] = {
        "token_perplexity": Metric(nats, tokens, shown=math.exp, units=units),
        "byte_perplexity": Metric(nats, size, shown=math.exp, units=units),
        "bits_per_byte": Metric(nats / math.log(2), size, units=units),
    }
    rows = [{"item": p[3], "nats": p[0], "tokens": p[1], "bytes": p[2]} for p in pieces]
    notes = [f"{int(tokens.sum()):,} tokens, {int(size.sum()):,} bytes"]
    if not items[0].answers:
        notes.append(f"windows of {window} tokens, stride {stride}: a token sees {window - stride} before it, or all")
    if not model.generates:
        notes.append("pseudo-perplexity: each token hidden alone, windows do not overlap; not comparable with decoders")
    return Measured(metrics, details={"window": window, "stride": stride}, rows=rows, notes=notes)


def _window(model: Any, window: int | None, stride: int | None) -> tuple[int, int]:
    most = (model.context or 1024) - (0 if model.generates else 2)
    window = min(1024, most) if window is None else window
    if not 2 <= window <= most and (model.context is not None or window < 2):
        raise ValueError(f"window={window} must be from 2 to the context of the model, {most}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride} must be from 1 to the window, {window}: a larger one skips tokens")
    return window, stride if model.generates else window
