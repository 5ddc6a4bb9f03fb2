"""The files of sentence-transformers that configure embeddings of texts.

modules.json                 the steps: Transformer, Pooling, perhaps Normalize
1_Pooling/config.json        how the tokens' vectors become one
sentence_bert_config.json    the longest text, in tokens; whether texts are lower-cased first
config_sentence_transformers.json    prompts to put in front of a text, by name
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.core.value import nearest
from anyformer.hub.formats.guard import atomic_write, inside, read_json, refuse
from anyformer.hub.ledger import Keys
from anyformer.hub.tables.config import Line

MODULES, LENGTH, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
STEPS = ("Transformer", "Pooling", "Normalize")
MODES = ("cls", "max", "mean", "lasttoken")
FLAGS = {  # older files have a switch for each mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}


POOLING_KEYS = Keys(
    used={"pooling_mode": "how a text's vector is made", **dict.fromkeys(FLAGS, "how a text's vector is made")},
    ignored={"read from the model": ("word_embedding_dimension", "embedding_dimension")},
    only={
        "include_prompt": (True,), "pooling_mode_mean_sqrt_len_tokens": (False,),
        "pooling_mode_weightedmean_tokens": (False,),
    },
)  # fmt: skip
LENGTH_KEYS = Keys(
    used={"max_seq_length": "longer texts are cut", "do_lower_case": "texts are lowercased first"},
    ignored={"where files are": ("model_args", "config_args", "tokenizer_args", "cache_dir", "tokenizer_name_or_path")},
)
PROMPT_KEYS = Keys(
    used={"prompts": "what `embed(prompt=)` can put in front", "default_prompt_name": "what `embed` puts in front"},
    ignored={
        "identifies the file": ("__version__", "model_type"),
        "how vectors are compared; the caller decides": ("similarity_fn_name",),
        "vectors keep their width": ("truncate_dim",),
    },
)
MODULE_KEYS = Keys(used={}, ignored={"which step, and where its files are": ("idx", "name", "path", "type")})


@dataclass(frozen=True)
class Pooling:
    """The pooling of a text's hidden states into one vector.

    Args:
        mode: "mean" of all real tokens, "max" of them in each dimension, "cls" the first, "lasttoken" the last.
        normalize: to length 1.
        tokens: longer texts are cut; None = the model's context.
        lower: lower-case texts first.
        prompts: texts to put in front of each text, by name; `prompt`: the name of the default one, or None.
    """

    mode: str = "mean"
    normalize: bool = False
    tokens: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None

    def before(self, asked: str | None) -> str:
        """The prompt in front of each text, by the name that a caller passes; None = the default of the files.

        Raises:
            ValueError: with the names of all prompts, if there is no such one.
        """
        name = self.prompt if asked is None else asked
        if not name:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(
                f"this model's files have no prompt {name!r}{nearest(name, list(self.prompts))}; they have {known}"
            )
        return self.prompts[name]


def pooled(hidden: Tensor, keep: Tensor | None, mode: str) -> Tensor:
    """One vector for each row, pooled over its real tokens; `keep` is the padding mask.

    Shapes: (B, T, D), (B, T) or None -> (B, D); a row without real tokens gives 0 by "mean", else undefined values.
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
    """The content of the files by name, unchanged (for `write_pooling`); empty if there are none.

    Raises:
        FileRefused: for files of another form.
    """
    files = {n: read_json(inside(folder, n)) for n in (MODULES, LENGTH, PROMPTS) if os.path.lexists(folder / n)}
    modules = files.get(MODULES, [])
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules
    ):
        raise refuse(folder / MODULES, "content", "a list of modules with their type", modules)
    for module in modules:
        path = module.get("path")
        if module["type"].endswith(".Pooling"):
            if not isinstance(path, str) or not re.fullmatch(r"\w+", path) or (folder / path).is_symlink():
                raise refuse(folder / MODULES, "path", "a plain folder name", path)
            files[f"{path}/config.json"] = read_json(inside(folder / path, "config.json"))
    for name, content in files.items():
        if name != MODULES and not isinstance(content, dict):
            raise refuse(folder / name, "content", "a JSON object", content)
    return files


def account(files: Mapping[str, Any], ignore: Collection[str]) -> dict[str, list[Line]]:
    """The lines of the ledger for each file.

    Raises:
        ValueError: naming file and key, if one is unknown.
    """
    lines = {}
    for name, content in files.items():
        keys = {MODULES: MODULE_KEYS, LENGTH: LENGTH_KEYS, PROMPTS: PROMPT_KEYS}.get(name, POOLING_KEYS)
        each = content if isinstance(content, list) else [content]
        lines[name] = [line for one in each for line in keys.account(name, one, ignore)]
    return lines


def write_pooling(folder: Path, files: dict[str, Any]) -> None:
    """Writes the files that `read_pooling` read."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_write(folder / name, (json.dumps(content, indent=2) + "\n").encode())


def meaning(files: dict[str, Any]) -> Pooling:
    """The pooling that the files specify; without files the mean of the tokens.

    Raises:
        FileRefused: naming a step or mode that is unknown here: the vectors would differ.
    """
    length, texts = files.get(LENGTH, {}), files.get(PROMPTS, {})
    tokens, lower = length.get("max_seq_length"), bool(length.get("do_lower_case"))
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise refuse(LENGTH, "max_seq_length", "a whole number above 0", tokens)
    prompts, prompt = texts.get("prompts") or {}, texts.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise refuse(PROMPTS, "prompts", "texts by name", prompts)
    if prompt is not None and prompt not in prompts:
        raise refuse(PROMPTS, "default_prompt_name", f"one of {', '.join(prompts) or 'no prompts'}", prompt)
    if MODULES not in files:
        return Pooling(tokens=tokens, lower=lower, prompts=prompts, prompt=prompt)
    steps = [module["type"].rsplit(".", 1)[-1] for module in files[MODULES]]
    if steps not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise refuse(MODULES, "modules", f"{STEPS[0]}, {STEPS[1]} and perhaps {STEPS[2]}", ", ".join(steps))
    name, config = next((n, c) for n, c in files.items() if n.endswith("/config.json"))
    switched = [FLAGS.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    mode = config.get("pooling_mode", switched or "mean")
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if mode not in MODES:
        raise refuse(name, "pooling_mode", f"one of {', '.join(MODES)}", mode)
    return Pooling(mode, steps[-1] == "Normalize", tokens, lower, prompts, prompt)
