"""The measure of a task on rows of one's own, of models that do not learn from them: before and after a change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyformer.generate.classifying import known_names
from anyformer.train import model_setup
from anyformer.train.finetune import goal_of, kind_of, read_data
from anyformer.train.options import FinetuneOptions
from anyformer.train.tasks import registry, whole_data
from anyformer.train.tasks.base import Task
from anyformer.train.tasks.rows import check_head
from anyformer.train.tasks.splits import everything


def measured(model: Any, data: str | Path, fields: Mapping[str, str] | None = None) -> Task:
    """The task that `finetune` would learn from this data, with all of its rows held out; of series, episodes, graphs
    and proteins the part that training holds out.

    Args:
        model: whose tokens, processor and classes the examples have: `task.measure(model, batch)`; another one with
            the same is measured alike.
        data: as of `finetune`. fields: renamed columns.

    Raises:
        ValueError: naming what does not fit: the columns, a class that the model has not, a head that it lacks.
        OSError: for data that do not exist.
    """
    options = FinetuneOptions("the model", data, fields=None if fields is None else dict(fields))
    if whole := registry.whole("auto", model):
        return whole_data(whole, options).task(model, None)
    found = read_data(options)
    kind, names, context, columns = kind_of(model, found, options, least=1)
    if known := list(known_names(model).values()) if kind in model_setup.ENDS else []:
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"{data}: the model has no class {missing[0]!r}; it has {', '.join(known)}")
        names = tuple(known)
    task = goal_of(model, kind, names, context, columns, found, options, everything)
    if names and kind in model_setup.ENDS:
        check_head(model, task, names)
    return task
