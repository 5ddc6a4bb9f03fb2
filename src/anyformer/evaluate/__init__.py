"""Evaluation on files of one's own, with intervals: what a model knows, and what it carries along.

items.py        rows of a file -> items, checked
shots.py        examples in front of an item
scoring.py      log-probabilities of texts, by every kind of model
intervals.py    figures with intervals, and paired differences
answering.py    multiple choice, classes, generated answers, perplexity
baselines.py    chance, the most frequent answer, n-grams
calibration.py  confidence against truth; abstention
bias.py         WEAT, and pairs of sentences that differ in a term
running.py      `evaluate`
"""

from anyformer.evaluate.running import Result, evaluate

__all__ = ["Result", "evaluate"]
