"""The film of a run: what heads attend to and how large gradients are, step by step, on one page.

B batch, T positions, H heads.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.taps import Taps, fits
from anyformer.core.value import nearest
from anyformer.data.batches import Batch
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.latent import LatentAttention
from anyformer.parts.streams import JointAttention
from anyformer.train import random_state
from anyformer.train.log import read_log
from anyformer.train.loggers import Observer

FRAMES = 60  # of a whole run
ROWS = 2  # of the first batch, which every frame looks at
SIDE, LEAST, BYTES = 24, 6, 2_500_000  # positions of a map, at most and at least; bytes of all maps before compression
PAGE = Path(__file__).with_name("film.html")


class Film(Observer):
    """Writes `film.jsonl` while a run goes on, and `film.html` at its end.

    A frame is made before an update: norms of gradients by path, and of each head entropy and sharpness of its weights
    over two rows of the first batch, in eval mode. It draws no random numbers and changes nothing: the run is the same
    with and without it, bit for bit.

    Args:
        folder: of the run. `model`: that is trained.
        look: patterns of paths, `blocks.*`; `*` is one step. Heads are those of attention at or below such a path.
        steps: of the whole run. `step`: where it goes on; later frames, which a killed run may have left, are dropped.

    Raises:
        ValueError: see `paths_of`.
    """

    def __init__(self, folder: Path, model: nn.Module, look: Sequence[str], steps: int, step: int = 0):
        self.folder, self.every = folder, max(1, steps // FRAMES)
        named, self.paths = dict(model.named_modules()), paths_of(model, look)
        kinds = (Attention, JointAttention, LatentAttention)
        self.mixers = [n for n, m in named.items() if isinstance(m, kinds) and any(_below(n, p) for p in self.paths)]
        heads = max(1, sum(getattr(named[name], "heads", 1) for name in self.mixers))
        side = int(min(SIDE, math.sqrt(BYTES / heads / FRAMES)))
        self.side = side if side >= LEAST else 0
        self.probe: Batch | None = None
        self.frames = [row for row in read_log(folder / "film.jsonl") if row["step"] <= step]
        self.file = folder / "film.jsonl"
        atomic_write(self.file, "".join(json.dumps(row) + "\n" for row in self.frames).encode())

    def on_gradients(self, step: int, model: Any, batch: Batch, loss: Tensor) -> None:
        """See `Observer`."""
        if self.probe is None:
            self.probe = {name: value[:ROWS] for name, value in batch.items() if name != "labels"}
        if (step - 1) % self.every:
            return
        row: dict[str, Any] = {"step": step, "loss": _short(float(loss)), "gradients": {}, "heads": {}, "maps": {}}
        for path in self.paths:
            slopes = [p.grad.float().norm() for p in model.get_submodule(path).parameters() if p.grad is not None]
            row["gradients"][path] = _short(float(torch.stack(slopes).norm())) if slopes else 0.0
        for path, weights in self._weights(model).items():
            row["heads"][path], row["maps"][path] = shape_of(weights), self._map(weights)
        self.frames.append(row)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @torch.no_grad()
    def _weights(self, model: Any) -> dict[str, Tensor]:
        """The weights of each attention for the same two rows, (B, H, T, S)."""
        if not self.mixers:
            return {}
        assert self.probe is not None
        device = next(model.parameters()).device
        modes, states = [(m, m.training) for m in model.modules()], random_state.random_states()
        try:
            model.eval()
            with Taps(model, *(f"{path}.weights" for path in self.mixers)) as taps:
                model(**{name: value.to(device) for name, value in self.probe.items()})
        finally:
            for module, mode in modes:
                module.training = mode
            random_state.restore_random(states)
        return {path: taps[f"{path}.weights"].float().cpu() for path in self.mixers}

    def _map(self, weights: Tensor) -> dict[str, Any] | None:
        """The maps of the first row, its first positions: whole numbers, compressed."""
        if not self.side or weights.ndim != 4:
            return None
        some = weights[0, :, : self.side, : self.side].clamp(0, 1).sqrt().mul(255).round().to(torch.uint8)
        data = base64.b64encode(zlib.compress(some.contiguous().numpy().tobytes(), 6)).decode()
        return {"shape": list(some.shape), "data": data}

    def close(self) -> None:
        """See `Observer`: writes film.html."""
        page = PAGE.read_text(encoding="utf-8")
        data = {"name": self.folder.name, "frames": self.frames, "paths": self.paths, "mixers": self.mixers}
        text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
        atomic_write(self.folder / "film.html", page.replace("{data}", text, 1).encode())


def paths_of(model: nn.Module, look: Sequence[str]) -> list[str]:
    """The paths of the parts with weights that a pattern fits, in the order of the model.

    Raises:
        ValueError: for a pattern that fits none, with the nearest path.
    """
    named = {name: m for name, m in model.named_modules() if name}
    paths = [name for name in named if any(fits(name, p) for p in look) and any(True for _ in named[name].parameters())]
    for pattern in look:
        if not any(fits(name, pattern) for name in paths):
            raise ValueError(
                f"look: {pattern!r} fits no part with weights{nearest(pattern, list(named))}; `anyformer inspect` "
                "lists the paths; * is one step of a path"
            )
    return paths


def shape_of(weights: Tensor) -> dict[str, list[float]]:
    """The shape of each head's weights (B, H, T, S), over queries that see more than one key.

    Returns:
        entropy: -sum w log w, as a share of that of even weights: 0 = one key, 1 = all the same.
        sharpness: the largest weight of a query, the mean over queries.
    """
    if weights.ndim > 4:
        weights = weights.flatten(0, -4)
    seen = (weights > 0).sum(-1)  # (B, H, T)
    counts = (seen > 1).float()
    share = torch.special.entr(weights).sum(-1) / seen.clamp(min=2).float().log()
    total = counts.sum((0, 2)).clamp(min=1)
    return {
        "entropy": [_short(float(v)) for v in (share * counts).sum((0, 2)) / total],
        "sharpness": [_short(float(v)) for v in (weights.amax(-1) * counts).sum((0, 2)) / total],
    }


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _short(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0
