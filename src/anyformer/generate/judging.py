"""The value or the classes of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anyformer.generate.decoding import evaluating
from anyformer.hub.processors.graphs import GraphProcessor
from anyformer.media.graphs import Graph


@torch.inference_mode()
def judge(model: Any, graphs: Sequence[Graph], batch: int = 32) -> list[float] | list[dict[str, float]]:
    """The value of each graph, in the unit of the labels of training; or the share of each class, the likeliest first.

    Args:
        graphs: see `anyformer.media.graphs`: `graph_of(row)`, `of_smiles(text)`, `of_networkx(graph)`.
        batch: graphs at once; a graph has the same result in any batch.

    Raises:
        ValueError: for a model that reads no graphs, or without a processor, and kinds that training had not.
    """
    if model.takes != "nodes":
        raise ValueError(f"the model reads {model.takes}, no graphs; `anyformer train --model graphormer` trains one")
    processor = model.processor
    if not isinstance(processor, GraphProcessor):
        raise ValueError("the model has no processor, which knows the kinds of nodes and edges: train it on graphs")
    if batch < 1:
        raise ValueError(f"batch={batch} graphs; expected at least 1")
    device, found = next(model.parameters()).device, list[Any]()
    with evaluating(model):
        for at in range(0, len(graphs), batch):
            inputs = {n: v.to(device) for n, v in processor(graphs[at : at + batch]).items()}
            rows = model(**inputs).logits.float()
            if not processor.classes:
                found += (processor.mean + processor.std * rows[:, 0]).tolist()
                continue
            for shares in rows.softmax(-1).tolist():
                named = zip(processor.classes, shares, strict=True)
                found.append(dict(sorted(named, key=lambda pair: -pair[1])))
    return found
