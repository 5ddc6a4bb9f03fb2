"""Folders of CTranslate2: `model.bin`, `config.json` and `vocabulary.json` or `.txt`, read only.

    | u32 6 | name of the kind | u32 revision | u32 variables | variables | u32 aliases | (alias, name) … |

    variable   name, u8 axes, u32 sizes[], u8 type, u32 bytes, data          name   u16 length, UTF-8, a 0 byte

All little endian. Variables without axes are settings, and become the metadata. A weight of 8 or 16 bits has its scale
beside it (`weight_scale`: one a row, or one in all), and is read as weight / scale in float32. Variables that are equal
are stored once; the others are aliases. `/` in names is `.` here. Every length is checked against the bytes that are
left before memory is spent on it.

Specification: the converter's `model_spec.py`, https://github.com/OpenNMT/CTranslate2
"""

from __future__ import annotations

import mmap
import os
import re
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.hub.formats.gguf import Cursor
from anyformer.hub.formats.guard import inside, map_file, read_bytes, read_json, refuse
from anyformer.hub.formats.safetensors import Entry, TensorFile

MODEL, VERSION = "model.bin", 6
TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
MAX_VARIABLES = 200_000
MAX_DIMS = 8
MAX_VOCABULARY = 50_000_000  # bytes
SCALE = "_scale"
ENGLISH = 51864  # tokens of the published English speech models; the others have more
SPEECH = {  # tokens of speech models, with their keys in generation_config.json
    "<|startoftranscript|>": ("decoder_start_token_id",),
    "<|endoftext|>": ("eos_token_id", "pad_token_id", "bos_token_id"),
    "<|startofprev|>": ("prev_sot_token_id",),
    "<|notimestamps|>": ("no_timestamps_token_id",),
    "<|transcribe|>": (),
    "<|translate|>": (),
}


def is_ct2(folder: str | os.PathLike[str]) -> bool:
    """True for a folder of CTranslate2: with its file of weights, and none of a Hugging Face directory."""
    return (Path(folder) / MODEL).is_file() and not any(Path(folder).glob("*.safetensors*"))


class CTranslate2(TensorFile):
    """The file `model.bin` of a folder; all lengths are checked at construction.

    Attributes:
        kind: the name of the kind of model, "WhisperSpec".
        metadata: the settings by name.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = inside(folder, MODEL)
        data, size = map_file(self.path, at_least=4)
        cursor = Cursor(self.path, data, size)
        if (version := cursor.integer(4, "version")) != VERSION:
            raise refuse(self.path, "version", f"{VERSION}; convert the model again with a newer CTranslate2", version)
        self.kind, self.revision = _text(cursor, "kind"), cursor.integer(4, "revision")
        self.metadata, stored = {}, {}
        for _ in range(_count(cursor, "variables")):
            name, entry = _variable(cursor, data)
            if name in stored or name in self.metadata:
                raise refuse(self.path, "variables", "each name once", name)
            if entry.shape or name.endswith(SCALE):
                stored[name] = entry
            else:
                self.metadata[name] = entry.read().item()
        for _ in range(_count(cursor, "aliases")):
            alias, name = (_text(cursor, "alias") for _ in range(2))
            if name not in stored or stored.get(alias, stored[name]) is not stored[name]:
                raise refuse(self.path, f"alias {alias}", "another name of one variable", name)
            stored[alias] = stored[name]
            if name + SCALE in stored:
                stored.setdefault(alias + SCALE, stored[name + SCALE])
        if cursor.at != size:
            raise refuse(self.path, "end", f"the end of the file at byte {cursor.at:,}", f"{size - cursor.at:,} more")
        self.entries = {name: self._whole(name, e, stored) for name, e in stored.items() if not name.endswith(SCALE)}
        if lonely := next((n for n in stored if n.endswith(SCALE) and n.removesuffix(SCALE) not in stored), None):
            raise refuse(self.path, lonely, "a scale beside its weight", "no such weight")

    def _whole(self, name: str, entry: Entry, stored: dict[str, Entry]) -> Entry:
        """The entry of a weight; of one with a scale, in float32."""
        scale = stored.get(name + SCALE)
        if (scale is not None) != (entry.dtype in (torch.int8, torch.int16)):
            raise refuse(self.path, name, "whole numbers with a scale, or others without", entry.dtype)
        if scale is None:
            return entry
        if scale.dtype != torch.float32 or scale.shape not in ((), entry.shape[:1]):
            raise refuse(self.path, name + SCALE, f"float32 of shape () or {entry.shape[:1]}", scale.shape)
        return Entry(torch.float32, entry.shape, partial(_scaled, entry, scale))

    def layers(self, stack: str) -> int:
        """The number of layers of a stack, whose tensors are `stack.layer_0.…`."""
        begin = f"{stack}.layer_"
        found = {name[len(begin) :].partition(".")[0] for name in self.entries if name.startswith(begin)}
        return sum(number.isdigit() for number in found)


def _count(cursor: Cursor, what: str) -> int:
    count = cursor.integer(4, f"number of {what}")
    if count > min(MAX_VARIABLES, cursor.size - cursor.at):
        raise refuse(cursor.path, f"number of {what}", f"at most {MAX_VARIABLES:,}, which fit the file", f"{count:,}")
    return count


def _text(cursor: Cursor, what: str) -> str:
    length = cursor.integer(2, f"length of {what}")
    start = cursor.need(length, what)
    text = cursor.decode(cursor.data[start : cursor.at], what)
    if not text.endswith("\0") or "\0" in text[:-1]:
        raise refuse(cursor.path, what, "text with a 0 byte at its end alone", text)
    return text[:-1].replace("/", ".")


def _variable(cursor: Cursor, data: mmap.mmap) -> tuple[str, Entry]:
    name = _text(cursor, "name of a variable")
    where = f"{cursor.path}, {name}"
    axes = cursor.integer(1, f"axes of {name}")
    if axes > MAX_DIMS:
        raise refuse(where, "axes", f"at most {MAX_DIMS}", axes)
    shape = tuple(cursor.integer(4, f"size of {name}") for _ in range(axes))
    code, count = cursor.integer(1, f"type of {name}"), cursor.integer(4, f"bytes of {name}")
    if code >= len(TYPES):
        raise refuse(where, "type", f"a number below {len(TYPES)}", code)
    if count != prod(shape) * TYPES[code].itemsize:
        raise refuse(where, "bytes", f"{prod(shape) * TYPES[code].itemsize:,} of shape {shape}", f"{count:,}")
    start = cursor.need(count, name)
    return name, Entry(TYPES[code], shape, partial(_tensor, data, start, TYPES[code], shape))


def _tensor(data: mmap.mmap, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    raw = bytearray(data[start : start + count * dtype.itemsize])  # a copy: data may begin at an odd byte
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _scaled(entry: Entry, scale: Entry) -> Tensor:
    divisor = scale.read()
    return entry.read().float() / divisor.reshape(divisor.shape + (1,) * (len(entry.shape) - divisor.ndim))


def vocabulary(folder: str | os.PathLike[str]) -> list[str]:
    """The tokens of a folder by their ids.

    Raises:
        ValueError: naming the file, if it is no list of texts. FileNotFoundError: without a file.
    """
    for name in ("vocabulary.json", "vocabulary.txt"):
        if not os.path.lexists(Path(folder) / name):
            continue
        path = inside(folder, name)
        if name.endswith(".txt"):
            text = read_bytes(path, MAX_VOCABULARY).decode("utf-8", errors="replace")
            return text.removesuffix("\n").split("\n")
        tokens = read_json(path, MAX_VOCABULARY)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise refuse(path, "content", "a list of tokens", tokens)
        return tokens
    raise FileNotFoundError(f"{folder} has no vocabulary.json or vocabulary.txt: its files are not complete")


def config_of(folder: Path, file: CTranslate2, keys: list[str]) -> dict[str, Any]:
    """The settings of a folder: those of config.json and model.bin, and the facts that a table names.

    Args:
        keys: names of the table. `NAME.shape` is that of a tensor, `STACK.layers` a number of layers, `token TEXT` the
            id of a token, `tokens` their number.
    """
    config: dict[str, Any] = dict(file.metadata)
    path = folder / "config.json"
    said = read_json(inside(folder, "config.json")) if os.path.lexists(path) else {}
    if not isinstance(said, dict):
        raise refuse(path, "content", "a dictionary", said)
    config.update(said)
    tokens = vocabulary(folder)
    for key in keys:
        stem, _, what = key.rpartition(".")
        if what == "shape" and stem in file.entries:
            config[key] = list(file.shape(stem))
        elif what == "layers":
            config[key] = file.layers(stem)
        elif key == "tokens":
            config[key] = len(tokens)
        elif key.startswith("token ") and key[6:] in tokens:
            config[key] = tokens.index(key[6:])
    return config


def habits(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of generation, under the names of generation_config.json; of a speech model, with its marks, which
    transformers reads there."""
    names = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    names |= {"alignment_heads": "alignment_heads"}
    found = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
    tokens = vocabulary(folder)
    place = {token: i for i, token in enumerate(tokens) if token.startswith("<|")}
    if not place.keys() >= SPEECH.keys():
        return found
    found |= {key: place[token] for token, keys in SPEECH.items() for key in keys}
    found |= {"max_length": shape[0]} if (shape := config.get("decoder.position_encodings.encodings.shape")) else {}
    several = len(tokens) > ENGLISH
    found |= {"is_multilingual": several, "max_initial_timestamp_index": 50, "return_timestamps": False}
    if several:
        found["lang_to_id"] = {token: i for token, i in place.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", token)}
        found["task_to_id"] = {name: place[f"<|{name}|>"] for name in ("transcribe", "translate")}
    return found
