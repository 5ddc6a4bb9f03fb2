"""What the files of sentence-transformers say about one vector for a text.

modules.json                 the steps: Transformer, Pooling, perhaps Normalize
1_Pooling/config.json        how the tokens' vectors become one
sentence_bert_config.json    the longest text, in tokens
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.formats.guard import FileRefused, atomic_write, inside, read_json, refuse

MODULES, LENGTH = "modules.json", "sentence_bert_config.json"
STEPS = ("Transformer", "Pooling", "Normalize")
MODES = ("cls", "max", "mean", "lasttoken")
FLAGS = {  # older files have a switch for each mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made.

    Args:
        mode: "mean" of all real tokens, "max" of them in each dimension, "cls" the first, "lasttoken" the last.
        normalize: to length 1.
        tokens: longer texts are cut; None = the model's context.
    """

    mode: str = "mean"
    normalize: bool = False
    tokens: int | None = None


def pooled(hidden: Tensor, keep: Tensor | None, mode: str) -> Tensor:
    """One vector for each row from the vectors of its tokens; padding, where `keep` is False, has no part in it.

    Shapes: (B, T, D), (B, T) or None -> (B, D); a row without real tokens gives 0 by "mean", something by the others.
    """
    row = torch.arange(hidden.shape[0], device=hidden.device)
    if mode == "cls":
        return hidden[:, 0] if keep is None else hidden[row, keep.int().argmax(1)]
    if mode == "lasttoken":
        return hidden[:, -1] if keep is None else hidden[row, hidden.shape[1] - 1 - keep.flip(1).int().argmax(1)]
    if mode == "max":
        return (hidden if keep is None else hidden.masked_fill(~keep[..., None], float("-inf"))).amax(1)
    assert mode == "mean", mode
    if keep is None:
        return hidden.mean(1)
    return hidden.masked_fill(~keep[..., None], 0.0).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)


def read_pooling(folder: Path) -> dict[str, Any]:
    """The files by name with their content, empty if there are none. They are kept as they are, for `write_pooling`.

    Raises:
        FileRefused: for files that are no such thing.
    """
    if not os.path.lexists(folder / MODULES):
        return {}
    modules = read_json(inside(folder, MODULES))
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules
    ):
        raise refuse(folder / MODULES, "content", "a list of modules with their type", modules)
    files: dict[str, Any] = {MODULES: modules}
    for module in modules:
        if module["type"].endswith(".Pooling"):
            path = module.get("path")
            if not isinstance(path, str) or not re.fullmatch(r"\w+", path) or (folder / path).is_symlink():
                raise refuse(folder / MODULES, "path", "a plain folder name", path)
            files[f"{path}/config.json"] = read_json(inside(folder / path, "config.json"))
    if os.path.lexists(folder / LENGTH):
        files[LENGTH] = read_json(inside(folder, LENGTH))
    for name, content in files.items():
        if name != MODULES and not isinstance(content, dict):
            raise refuse(folder / name, "content", "a JSON object", content)
    return files


def write_pooling(folder: Path, files: dict[str, Any]) -> None:
    """Writes what `read_pooling` read."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_write(folder / name, (json.dumps(content, indent=2) + "\n").encode())


def meaning(files: dict[str, Any]) -> Pooling:
    """What the files ask for; without files the mean of the tokens.

    Raises:
        FileRefused: naming the step or mode that is not known here: its vectors would be others.
    """
    if not files:
        return Pooling()
    steps = [module["type"].rsplit(".", 1)[-1] for module in files[MODULES]]
    if steps not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise refuse(MODULES, "modules", f"{STEPS[0]}, {STEPS[1]} and perhaps {STEPS[2]}", ", ".join(steps))
    name, config = next((n, c) for n, c in files.items() if n.endswith("/config.json"))
    switched = [FLAGS.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    mode = config.get("pooling_mode", switched or "mean")
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if mode not in MODES:
        raise refuse(name, "pooling_mode", f"one of {', '.join(MODES)}", mode)
    length = files.get(LENGTH, {})
    tokens = length.get("max_seq_length")
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise refuse(LENGTH, "max_seq_length", "a whole number above 0", tokens)
    if length.get("do_lower_case"):
        raise FileRefused(f"{LENGTH}: do_lower_case is true; only a tokenizer that does it itself is known here")
    return Pooling(mode, steps[-1] == "Normalize", tokens)
