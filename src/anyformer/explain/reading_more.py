"""Two towers, graphs and trajectories as one call of a model. B batch, T steps, N nodes."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data.episodes import COLUMNS, returns_to_go
from anyformer.data.records import records
from anyformer.explain.target import Contrast, Target
from anyformer.generate import acting
from anyformer.generate.embedding import inputs_of
from anyformer.hub.processors import Steps
from anyformer.hub.processors.graphs import GraphProcessor
from anyformer.media.graphs import Graph, graph_of, of_smiles
from anyformer.skeletons.base import Output


def pair(model: Any, picture: str, target: Target) -> tuple[dict[str, Tensor], Target]:
    """A picture and one text, or two of a contrast: the call, and the similarity as a target.

    Raises:
        ValueError: without a text, a picture that is no file.
    """
    if not Path(picture).is_file():
        raise ValueError(f'{picture!r} is no file; this model compares a picture with a text: FILE --for "a cat"')
    if target is None or callable(target) or isinstance(target, int):
        raise ValueError('this model compares a picture with texts; say which: --for "a cat", or --for "a cat - a dog"')
    texts = [str(target.a), str(target.b).strip()] if isinstance(target, Contrast) else [target]
    inputs = {**inputs_of(model, [Path(picture)]), **inputs_of(model, texts)}
    first = "pixel_values" in model.models()[0].inputs()

    def score(out: Output) -> Tensor:
        assert out.logits is not None
        rows = out.logits if first else out.logits.mT  # (pictures, texts)
        return rows[:, 0] if len(texts) == 1 else rows[:, 0] - rows[:, 1]

    score.__name__ = " - ".join(texts)
    return inputs, score


def graph(model: Any, item: str) -> tuple[dict[str, Tensor], list[str]]:
    """A graph of the first row of a file, or of SMILES: the call and the names of its nodes.

    Raises:
        ValueError: for rows without a graph, a model without a processor.
    """
    processor = model.processor
    if not isinstance(processor, GraphProcessor):
        raise ValueError("the model has no processor, which knows the kinds of nodes and edges: train it on graphs")
    if Path(item).is_file():
        row = next(iter(records(item)))
        if not {"smiles", "nodes"} & row.keys():
            raise ValueError(f"{item}: its first row has neither nodes nor smiles; it has {', '.join(row)}")
        made: Graph = graph_of(row)
    else:
        made = of_smiles(item)
    device = next(model.parameters()).device
    return {n: v.to(device) for n, v in processor([made]).items()}, list(made.nodes)


def episode(model: Any, item: str) -> tuple[dict[str, Tensor], int]:
    """The last steps of the first episode of a file, as many as the model sees: the call and the number of its last.

    Raises:
        ValueError: for a file without states, actions and rewards.
    """
    processor = acting.checked(model)
    if not Path(item).is_file():
        raise ValueError(f"{item!r} is no file; this model reads episodes, rows with {', '.join(COLUMNS)}")
    row = next(iter(records(item, need=COLUMNS)))
    states, actions = (np.array(row[name]) for name in ("states", "actions"))
    if states.ndim != 2 or not len(states) == len(actions) == len(row["rewards"]):
        raise ValueError(
            f"{item}: states are {states.shape}, actions {actions.shape}, rewards {len(row['rewards'])}; expected a "
            "state, an action and a reward for each step"
        )
    to_go = returns_to_go(np.array(row["rewards"], np.float64))
    start = max(0, len(states) - processor.window)
    steps = Steps(states[start:].astype(np.float32), actions[start:], to_go[start:], start)
    like = next(model.parameters())
    made = {n: v.to(like) if v.is_floating_point() else v.to(like.device) for n, v in processor([steps]).items()}
    return made, len(states) - start - 1


def spectrogram(samples: np.ndarray, columns: int = 320, rows: int = 64) -> dict[str, Any]:
    """The power of a sound over time and frequency, for a page: whole numbers from 0 to 255, low frequencies first.

    An amplitude 80 dB below the loudest is 0.
    """
    wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    size = min(512, max(64, len(wave)))
    hop = max(1, len(wave) // columns)
    power = torch.stft(wave, size, hop, window=torch.hann_window(size), return_complex=True).abs().square()
    if power.shape[0] > rows:
        power = torch.nn.functional.adaptive_avg_pool1d(power.T[None], rows)[0].T
    level = 10 * torch.log10(power.clamp(min=1e-10))
    shown = ((level - level.max() + 80) / 80).clamp(0, 1).mul(255).round().to(torch.uint8)[:, :columns]
    data = base64.b64encode(zlib.compress(shown.contiguous().numpy().tobytes(), 6)).decode()
    return {"rows": shown.shape[0], "columns": shown.shape[1], "data": data}
