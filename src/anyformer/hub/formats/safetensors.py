"""The weight files of a Hugging Face folder: safetensors (single or sharded) in and out, pickles on request.

A weight file is a claim ("tensor q is 4096 x 4096 floats at byte 512"). Each claim is checked against the size
of the file before memory is spent on it, so that a file of 50 bytes can never cost much more than 50 bytes.

    | 8 bytes: n | n bytes of JSON: {name: {dtype, shape, data_offsets: [begin, end]}} | data, without holes |

Tensors are views of one copy-on-write memory map: opening costs the header, the rest is paged in when first
used, and writing to a tensor never reaches the file. The map is our own and not `safetensors.safe_open`
because then the bytes validated are the bytes read (one open), and because it is no slower: opening 62
tensors, 520 MB, takes 0.6 ms and 1 MB against 2 ms and 7 MB; touching all of it 43 ms for both. A mapped
file must not be truncated (the kernel then ends the process, as with every loader that maps).
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import secrets
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from anyformer.hub.formats.guard import (
    FileRefused,
    atomic_write,
    clear_stale,
    inside,
    map_file,
    open_regular,
    parse_json,
    read_json,
    refuse,
    short,
)

MAX_HEADER = 100_000_000  # bytes of safetensors header; also the limit of the format's own implementation
MAX_DIMS = 32

MODEL, DIFFUSERS = "model", "diffusion_pytorch_model"  # prefixes of file names: transformers, diffusers
SINGLE, INDEX, PICKLE = ".safetensors", ".safetensors.index.json", "pytorch_model.bin"
PICKLES = "pytorch_model.bin.index.json"  # pickles in several files
SHARD = re.compile(rf"({MODEL}|{DIFFUSERS})(-[0-9a-f]{{8}})?-\d{{5}}-of-\d{{5}}\.safetensors")  # names of our files

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """The dtype and shape of one stored tensor, and the function that reads it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class TensorFile:
    """Named tensors of one or several files, and their metadata; base of the readers below.

    `dtype` and `shape` are those of the result of `get` and cost nothing; `get` returns a view of the memory map
    where the file holds the tensor unchanged, else a new tensor.
    """

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, Entry]

    def names(self) -> list[str]:
        """The names of all tensors, in the order of the file."""
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor."""
        return self._entry(name).dtype

    def get(self, name: str) -> Tensor:
        """One tensor."""
        return self._entry(name).read()

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise FileRefused(f"{self.path}: there is no tensor {short(name)}")
        return self.entries[name]


class SafeTensors(TensorFile):
    """One `.safetensors` file; the header is validated in full at construction."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        data, size = map_file(path, at_least=8)
        length = int.from_bytes(data[:8], "little")
        if length > min(MAX_HEADER, size - 8):
            raise refuse(path, "header length", f"at most {min(MAX_HEADER, size - 8):,} bytes", f"{length:,}")
        header = parse_json(data[8 : 8 + length], f"{path} (header)")
        if not isinstance(header, dict):
            raise refuse(path, "header", "a JSON object", header)
        self.metadata = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(isinstance(v, str) for v in self.metadata.values()):
            raise refuse(path, "__metadata__", "an object of strings", self.metadata)
        spans = {}
        self.entries = {}
        for name, claim in header.items():
            where = f"{path}, tensor {short(name)}"
            dtype, shape, spans[name] = _claim(where, claim)
            self.entries[name] = Entry(dtype, shape, partial(_view, where, data, 8 + length, spans[name], dtype, shape))
        _check_cover(self.path, spans, size - 8 - length)


def _claim(where: str, claim: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    """dtype, shape and byte range of one header entry, when the three agree."""
    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise refuse(where, "entry", "dtype, shape and data_offsets", claim)
    code, shape, span = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise refuse(where, "dtype", f"one of {', '.join(DTYPES)}", code)
    if not _naturals(shape) or len(shape) > MAX_DIMS:
        raise refuse(where, "shape", f"at most {MAX_DIMS} integers from 0 up", shape)
    if not _naturals(span) or len(span) != 2 or span[0] > span[1]:
        raise refuse(where, "data_offsets", "[begin, end]", span)
    size = math.prod(shape) * DTYPES[code].itemsize
    if size != span[1] - span[0]:
        raise refuse(where, "data_offsets", f"{size:,} bytes for {code} {shape}", f"{span[1] - span[0]:,} bytes")
    return DTYPES[code], tuple(shape), (span[0], span[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _check_cover(path: Path, spans: dict[str, tuple[int, int]], size: int) -> None:
    """Refuses tensors that do not lie end to end and fill the `size` bytes after the header."""
    position = 0
    for (begin, end), name in sorted((span, name) for name, span in spans.items()):
        if begin != position:
            what = "overlaps another tensor" if begin < position else "leaves a hole before it"
            raise refuse(f"{path}, tensor {short(name)}", f"begin ({what})", position, begin)
        position = end
    if position != size:
        raise refuse(path, "data (truncated, or too long)", f"{position:,} bytes", f"{size:,}")


def _view(
    where: str, data: mmap.mmap, start: int, span: tuple[int, int], dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """The tensor in bytes `span` after `start`: a view of the map (a copy where an old file does not align it)."""
    begin, end = span
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=start + begin)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    if dtype == torch.bool and bool((flat > 1).any()):
        raise refuse(where, "BOOL", "bytes 0 and 1", int(flat.max()))
    return flat.view(dtype).view(shape)


class Sharded(TensorFile):
    """The files that the index of `folder` names, as one; `.safetensors`, or with `kind=Pickled` pickles.

    Strict both ways: each tensor of the index is in the shard that it names, and no shard holds another one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        index: str = MODEL + INDEX,
        kind: Callable[[Path], TensorFile] = SafeTensors,
    ):
        self.path = inside(folder, index)
        content = read_json(self.path)
        place = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(place, dict) or not place or not all(isinstance(name, str) for name in place.values()):
            raise refuse(self.path, "weight_map", "an object of tensor name: file name", place)
        self.metadata = content.get("metadata", {})
        indexed: dict[str, set[str]] = {}
        for tensor, file in place.items():
            indexed.setdefault(file, set()).add(tensor)
        shards = {file: kind(inside(folder, file, self.path)) for file in sorted(indexed)}
        for file, shard in shards.items():
            missing, extra = indexed[file] - shard.entries.keys(), shard.entries.keys() - indexed[file]
            if missing or extra:
                difference = f"{len(missing)} missing {sorted(missing)[:3]}, {len(extra)} more {sorted(extra)[:3]}"
                raise refuse(self.path, f"tensors in {file}", f"the {len(indexed[file])} of the index", difference)
        self.entries = {tensor: shards[file].entries[tensor] for tensor, file in place.items()}


class Pickled(TensorFile):
    """A `pytorch_model.bin`, read by `torch.load(weights_only=True)`: no code of the file runs."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self.metadata = Path(path), {}
        with open_regular(path) as file:
            mapped = file.read(4) == b"PK\x03\x04"  # else the format before torch 1.6, which cannot be mapped
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # a malformed pickle can raise anything
            raise FileRefused(f"{path}: not a pickle of tensors alone: {short(str(error))}") from None
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise refuse(path, "content", "a dict of tensors", type(state).__name__)
        self.entries = {
            name: Entry(t.dtype, tuple(t.shape), partial(state.__getitem__, name)) for name, t in state.items()
        }


def open_weights(folder: str | os.PathLike[str], allow_pickle: bool = False, stem: str = MODEL) -> TensorFile:
    """The weights in a Hugging Face folder: `model.safetensors`, else its index, else (if allowed) a pickle or several.

    In that order, as in transformers. A pickle is a program: it is refused unless `allow_pickle`, and then read with
    `weights_only=True` and a warning. `stem`: the prefix of the names; `DIFFUSERS` for a folder of diffusers.
    Errors: FileRefused; FileNotFoundError naming the expected files.
    """
    single, index = stem + SINGLE, stem + INDEX
    pickle, pickles = (PICKLE, PICKLES) if stem == MODEL else (f"{stem}.bin", f"{stem}.bin.index.json")
    has = {name: os.path.lexists(Path(folder) / name) for name in (single, index, pickle, pickles)}
    if has[single]:
        return SafeTensors(inside(folder, single))
    if has[index]:
        return Sharded(folder, index)
    pickled = next((name for name in (pickle, pickles) if has[name]), None)
    if pickled and not allow_pickle:
        raise FileRefused(
            f"{folder}: the weights are a pickle ({pickled}), which can run code. Pass allow_pickle=True if you trust "
            "its maker, or convert it to safetensors"
        )
    if pickled:
        warnings.warn(f"{folder}: reading {pickled}, a pickle, with weights_only=True as asked", stacklevel=2)
        return Pickled(inside(folder, pickle)) if has[pickle] else Sharded(folder, pickles, Pickled)
    inner = sorted(p.parent for name in (single, index) for p in Path(folder).glob(f"*/{name}"))
    hint = f"; a folder in it has some: {inner[-1]}" if inner else ""  # a run: its last checkpoint
    raise FileNotFoundError(f"{folder}: no weights; looked for {single}, {index}, {pickle}{hint}")


def write_safetensors(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    max_shard_bytes: int = 5_000_000_000,
    stem: str = MODEL,
) -> list[Path]:
    """Write named tensors as `model.safetensors`, or as shards of at most `max_shard_bytes` and their index; `stem` is
    another beginning of the names.

    The Hugging Face layout, with the metadata that `transformers` requires. The switch from old weights in
    `folder` to the new ones is the rename of one file: shards do not overwrite older shards (they take other
    names, `model-1a2b3c4d-00001-of-00002.safetensors`, if theirs are taken), and the old ones are removed after
    the switch. A tensor larger than a shard gets a shard of its own. Returns the files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    single, index = stem + SINGLE, stem + INDEX
    clear_stale(folder, f"{stem}-*.safetensors")
    before = [p for p in folder.iterdir() if p.name in (single, index) or SHARD.fullmatch(p.name)]
    groups: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and groups[-1]:
            groups.append({})
            room = max_shard_bytes
        groups[-1][name] = tensor
        room -= tensor.nbytes
    if len(groups) == 1:
        written = [folder / single]
        atomic_write(written[0], partial(_write_file, tensors=groups[0]))
    else:
        tag = f"-{secrets.token_hex(4)}" if any(SHARD.fullmatch(p.name) for p in before) else ""
        written = [folder / f"{stem}{tag}-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
        place = {}
        for path, group in zip(written, groups, strict=True):
            atomic_write(path, partial(_write_file, tensors=group))
            place.update(dict.fromkeys(group, path.name))
        content = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": place}
        written.append(folder / index)
        atomic_write(written[-1], (json.dumps(content, indent=2) + "\n").encode())
    for old in sorted(set(before) - set(written), key=lambda p: p.name != single):  # in the order of reading
        old.unlink()
    return written


def _write_file(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, larger item sizes first (so that all data is aligned), tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in order:
        t = tensors[name]
        if t.dtype not in CODES:
            raise ValueError(f"tensor {name}: safetensors has no code for {t.dtype}; it has {', '.join(DTYPES)}")
        span = [position, position + t.nbytes]
        header[name] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": span}
        position += t.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        t = tensors[name].detach().cpu().contiguous()
        file.write(memoryview(t.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
