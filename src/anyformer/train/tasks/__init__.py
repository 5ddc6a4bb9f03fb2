"""Training tasks, and the data that they read.

registry.py   which task fits which model, and the special tokens that it needs
base.py       `Task`: examples by number, an objective, a measure, a baseline
text.py       tasks on text: causal, masked, span, denoise
tables.py     tables of rows; splits.py: which of them are held out
encode.py     a row as examples of a model
rows.py       tasks on rows: classify, tag, seq2seq, embed, images, match, paint, draw, reconstruct, answer, write
boxes.py      detect: the things in pictures
codes.py      reconstruct: the noise of codes, by the number of the example
drawing.py    draw: the codes of pictures after their texts
composing.py  compose and stage: the codes of sounds after their texts
painting.py   paint: pictures are noised, by the number of the example
episodes.py   act and clone: the actions of episodes
graphs.py     graphs: their value or class
series.py     forecast: the steps ahead of time series
folding.py    fold: the atoms of proteins
retrieving.py retrieve: answers from the passages of an index
"""

from __future__ import annotations

from anyformer.train.options import FinetuneOptions, TrainOptions
from anyformer.train.tasks import registry
from anyformer.train.tasks.boxes import BoxData
from anyformer.train.tasks.episodes import EpisodeData
from anyformer.train.tasks.folding import FoldData
from anyformer.train.tasks.graphs import GraphData
from anyformer.train.tasks.retrieving import RetrievalData
from anyformer.train.tasks.rows import TableData, on_rows
from anyformer.train.tasks.series import SeriesData
from anyformer.train.tasks.text import TextData, on_text

__all__ = [
    "BoxData",
    "EpisodeData",
    "FoldData",
    "GraphData",
    "RetrievalData",
    "SeriesData",
    "TableData",
    "TextData",
    "on_rows",
    "on_text",
    "training_data",
    "whole_data",
]


def training_data(
    kind: str, options: TrainOptions
) -> TextData | TableData | EpisodeData | BoxData | SeriesData | GraphData | FoldData | RetrievalData:
    """The training data of `train` for a task.

    Raises:
        FileNotFoundError, ValueError: for data that do not exist, or do not fit.
    """
    if kind in registry.WHOLE:
        if options.order == "packed":
            reads = registry.WHOLE[kind]
            raise ValueError(f"order=packed is for text, and {kind} reads {reads}; leave order out")
        return whole_data(kind, options)
    if kind == "retrieve":
        return RetrievalData(kind, options)
    if kind == "detect":
        return BoxData(kind, options)
    return (TableData if kind in registry.COLUMNS else TextData)(kind, options)


def whole_data(kind: str, options: TrainOptions | FinetuneOptions) -> EpisodeData | SeriesData | GraphData | FoldData:
    """The data of `train` and `finetune` for a task of `registry.WHOLE`.

    Raises:
        FileNotFoundError, ValueError: for data that do not exist, or do not fit.
    """
    if kind == "forecast":
        return SeriesData(kind, options)
    if kind == "graphs":
        return GraphData(kind, options)
    return FoldData(kind, options) if kind == "fold" else EpisodeData(kind, options)
