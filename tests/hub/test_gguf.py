"""`anyformer.hub.formats.gguf` and `dequant`: equal to the reference, bounded, and fast on a real file."""

import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data import sources
from anyformer.hub.formats import dequant
from anyformer.hub.formats.dequant import STORED, dequantize
from anyformer.hub.formats.gguf import GGUF
from anyformer.hub.formats.guard import FileRefused
from tests.apart import apart

torch.set_num_threads(1)
SLACK = 300_000  # bytes: interpreter objects, error messages
CODES = {stored.name: code for code, stored in STORED.items()}


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def row(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def craft(keys=(), rows=(), data=b"", version=3, tensors=None, count=None, magic=b"GGUF") -> bytes:
    head = struct.pack(
        "<4sIQQ", magic, version, len(rows) if tensors is None else tensors, len(keys) if count is None else count
    )
    head += b"".join(keys) + b"".join(rows)
    return head + b"\0" * (-len(head) % 32) + data


def write(path: Path, tensors: dict, kinds: dict | None = None, keys=lambda writer: None) -> Path:
    writer = GGUFWriter(path, "llama")
    keys(writer)
    for name, value in tensors.items():
        writer.add_tensor(name, value, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -------------------------------------------------------------------------------------------------- good files


def some_keys(writer: GGUFWriter) -> None:
    writer.add_uint8("a.u8", 7)
    writer.add_int8("a.i8", -7)
    writer.add_uint16("a.u16", 65_535)
    writer.add_int16("a.i16", -5)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "größe 🤷")
    writer.add_array("a.words", ["a", "", "ö" * 100])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, 1e30])
    writer.add_array("a.flags", [True, False])


def test_metadata_and_tensors_are_those_of_the_reference(tmp_path):
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    kinds = {n: Kind[n] for n in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")}
    tensors = {n: reference.quantize(values, kind) for n, kind in kinds.items()}
    tensors |= {"f32": values, "one": np.array([2.0], np.float32), "four": values[:4, :30].reshape(2, 3, 4, 5)}
    numbers = {"i8": [[1, -2]], "i16": [-3], "i32": [-4, 5], "i64": [2**40], "f64": [0.1]}
    long = {"i": "int", "f": "float"}
    tensors |= {name: np.array(value, long[name[0]] + name[1:]) for name, value in numbers.items()}
    path = write(tmp_path / "x.gguf", tensors, kinds, some_keys)
    ours, theirs = GGUF(path), reference.GGUFReader(path)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            got = ours.metadata[name]
            assert (got.tolist() if isinstance(got, np.ndarray) else got) == field.contents(), name
            assert type(got) in (int, float, bool, str, list, np.ndarray)
    assert ours.names() == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        got = ours.get(tensor.name)
        assert tuple(got.shape) == ours.shape(tensor.name) == tuple(tensor.shape[::-1].tolist())
        assert got.dtype == ours.dtype(tensor.name)
        want = tensor.data
        if tensor.name in kinds:
            want = reference.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(got.numpy(), want.astype(np.float32) if tensor.name == "f64" else want), tensor.name


def test_version_2_and_other_alignments(tmp_path):
    path = tmp_path / "x.gguf"
    for version in (2, 3):
        path.write_bytes(craft(rows=[row("w", (2,))], data=struct.pack("<2f", 1, 2), version=version))
        assert GGUF(path).get("w").tolist() == [1, 2]
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.full(5, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert GGUF(path).get("b").tolist() == [2] * 5


def test_floats_are_views_and_writing_to_them_leaves_the_file(tmp_path):
    path = write(tmp_path / "x.gguf", {"w": np.ones((1000, 1000), np.float32)})
    before = path.read_bytes()
    tracemalloc.start()
    w = GGUF(path).get("w")
    assert tracemalloc.get_traced_memory()[1] < SLACK
    tracemalloc.stop()
    w.mul_(2)
    assert w[0, 0] == 2 and path.read_bytes() == before


def test_giving_pages_back_changes_nothing_that_was_read(tmp_path):
    """Quantised pages are dropped from memory after use: neighbours that were written to must not be."""
    values = np.random.default_rng(0).standard_normal((300, 1024)).astype(np.float32)
    packed = reference.quantize(values, Kind.Q8_0)
    tensors = {"before": np.ones(700, np.float32), "q": packed, "after": np.ones(700, np.float32)}
    file = GGUF(write(tmp_path / "x.gguf", tensors, {"q": Kind.Q8_0}))
    before, after = file.get("before").mul_(3), file.get("after").mul_(5)
    first = file.get("q")
    assert torch.equal(first, file.get("q")) and before.eq(3).all() and after.eq(5).all()


# ---------------------------------------------------------------------------------------------- quantised types


def random_blocks(kind: Kind, count: int, seed: int) -> np.ndarray:
    """Random bits, with finite scales (the float16 numbers lie at the front, or in K-quants anywhere)."""
    _, size = reference.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)
    if kind.name in dequant.BLOCKS:
        scales = np.random.default_rng(seed).standard_normal((count, 2)).astype(np.float16)
        used = 2 if kind.name.endswith("_1") else 1
        blocks[:, : 2 * used] = scales[:, :used].copy().view(np.uint8)
    return blocks


def test_the_table_of_types_is_that_of_the_reference():
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in reference.GGML_QUANT_SIZES.items()}
    assert {code: stored[:3] for code, stored in STORED.items()} == theirs


EXACT = ("F32", "I8", "I16", "I32", "I64")


@pytest.mark.parametrize("kind", [k for k in reference.GGML_QUANT_SIZES if k.name not in EXACT], ids=lambda k: k.name)
def test_every_type_is_dequantised_bit_for_bit(kind):
    blocks = random_blocks(kind, 9001 if kind.name in dequant.BLOCKS else 700, seed=int(kind))
    stored = STORED[int(kind)]
    raw = torch.from_numpy(blocks.reshape(-1))
    try:
        with np.errstate(all="ignore"):
            want = reference.dequantize(blocks, kind)
    except NotImplementedError:
        if kind == Kind.F64:
            with np.errstate(all="ignore"):
                want = blocks.view(np.float64).astype(np.float32)
        else:
            with pytest.raises(ValueError, match=f"{kind.name}: the package gguf cannot"):
                dequantize(raw, stored)
            return
    got = dequantize(raw, stored).numpy()
    want = want.reshape(-1)
    same = got.view(np.int32) == want.view(np.int32)
    assert np.all(same | (np.isnan(got) & np.isnan(want)))
    assert kind.name not in dequant.BLOCKS or same.all()


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(dequant.BLOCKS)), count=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_any_number_of_blocks(kind, count, seed):
    blocks = random_blocks(Kind[kind], count, seed)
    got = dequantize(torch.from_numpy(blocks.reshape(-1)), STORED[CODES[kind]])
    assert got.shape == (count * 32,)
    if count:
        assert np.array_equal(got.numpy(), reference.dequantize(blocks, Kind[kind]).reshape(-1))


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    raw = torch.zeros(144, dtype=torch.uint8)
    with pytest.raises(ValueError, match="Q4_K needs the package gguf: pip install gguf"):
        dequantize(raw, STORED[CODES["Q4_K"]])
    assert dequantize(raw[:34], STORED[CODES["Q8_0"]]).eq(0).all()


# -------------------------------------------------------------------------------------------------- refused files

U32, STRING, ARRAY, U8 = 4, 8, 9, 0
HUGE = 2**60
BAD = {
    "empty": (b"", "size"),
    "23 bytes": (craft()[:23], "size"),
    "other magic": (craft(magic=b"GGML"), "magic"),
    "version 1": (craft(version=1), "version"),
    "big endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "version"),
    "2^60 tensors": (craft(tensors=HUGE), "counts"),
    "2^60 keys": (craft(count=HUGE), "counts"),
    "more keys than there are": (craft(keys=[key("a", U32, b"\1\0\0\0")], count=2), "key: expected a name"),
    "key of 2^60 bytes": (craft(keys=[struct.pack("<Q", HUGE) + b"a" * 20]), "length of key"),
    "key beyond the end": (craft(keys=[struct.pack("<Q", 60_000) + b"a" * 20]), "key: expected at most"),
    "key not UTF-8": (craft(keys=[key("", U32, b"\1\0\0\0").replace(b"\0" * 8, text(b"\xff"), 1)]), "UTF-8"),
    "key twice": (craft(keys=[key("a", U32, b"\1\0\0\0")] * 2), "a twice"),
    "unknown type": (craft(keys=[key("a", 99, b"\1\0\0\0")]), "type of a"),
    "text of 2^60 bytes": (craft(keys=[key("a", STRING, struct.pack("<Q", HUGE))]), "length of a"),
    "text not UTF-8": (craft(keys=[key("a", STRING, text(b"\xe4\xbd"))]), "a: expected UTF-8"),
    "2^60 bytes": (craft(keys=[key("a", ARRAY, struct.pack("<IQ", U8, HUGE))]), "a: expected at most"),
    "2^60 texts": (craft(keys=[key("a", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "count of a"),
    "2^60 arrays": (craft(keys=[key("a", ARRAY, struct.pack("<IQ", ARRAY, HUGE))]), "type of a"),
    "text of an array beyond": (
        craft(keys=[key("a", ARRAY, struct.pack("<IQQ", STRING, 2, 0) + struct.pack("<Q", HUGE))]),
        "a[1]",
    ),
    "text of an array not UTF-8": (
        craft(keys=[key("a", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xff"))]),
        "UTF-8",
    ),
    "boolean 2": (craft(keys=[key("a", 7, b"\2")]), "booleans"),
    "alignment 0": (craft(keys=[key("general.alignment", U32, b"\0" * 4)]), "alignment"),
    "alignment 48": (craft(keys=[key("general.alignment", U32, b"\x30\0\0\0")]), "alignment"),
    "alignment text": (craft(keys=[key("general.alignment", STRING, text("32"))]), "alignment"),
    "2^32 dims": (craft(rows=[text("w") + b"\xff" * 4 + b"\0" * 40]), "tensor w: dims"),
    "unknown tensor type": (craft(rows=[row("w", (4,), kind=4)]), "tensor w: type"),
    "name twice": (craft(rows=[row("w", (8,)), row("w", (8,), 0, 32)], data=b"\0" * 64), "it twice"),
    "long name": (craft(rows=[row("w" * 300, (8,))]), "length of tensor name"),
    "half a block": (craft(rows=[row("w", (33,), CODES["Q4_0"])], data=b"\0" * 64), "multiple of 32 for Q4_0"),
    "size overflows": (craft(rows=[row("w", (2**63, 2**63, 2**63, 2))], data=b"\0" * 32), "tensor w: end"),
    "truncated": (craft(rows=[row("w", (16,))], data=b"\0" * 63), "tensor w: end (truncated file?)"),
    "no data": (craft(rows=[row("w", (16,))]), "tensor w: end"),
    "too long": (craft(rows=[row("w", (8,))], data=b"\0" * 65), "size: expected at most"),
    "overlap": (craft(rows=[row("a", (16,)), row("b", (8,), 0, 32)], data=b"\0" * 64), "tensor b: offset (overlaps"),
    "hole": (craft(rows=[row("a", (8,)), row("b", (8,), 0, 64)], data=b"\0" * 96), "tensor b: offset (leaves a hole"),
    "not aligned": (craft(rows=[row("a", (1,)), row("b", (7,), 0, 4)], data=b"\0" * 32), "tensor b: offset"),
    "offset 2^63": (craft(rows=[row("a", (8,), 0, 2**63)], data=b"\0" * 32), "tensor a: offset"),
}


def bounded(path: Path) -> None:
    """Read all of a file: it loads or is refused, within a second, and without twice the memory of the file."""
    size = path.stat().st_size
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        file = GGUF(path)
        for name in file.names():
            file.get(name)
    except FileRefused as error:
        assert len(str(error)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - begin < 1 and peak <= 2 * size + SLACK, (peak, size)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_at_once_and_cheaply(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(FileRefused) as refused:
        GGUF(path)
    assert words in str(refused.value) and "bad.gguf" in str(refused.value), str(refused.value)
    bounded(path)


HANGS = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key("a", ARRAY, struct.pack("<IQ", U8, HUGE))


def test_the_file_on_which_the_reference_hangs_is_refused_wherever_it_is_cut(tmp_path):
    """One array that promises 2^60 bytes: the `gguf` package counts to 2^60."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(HANGS)
    code = f"import gguf; gguf.GGUFReader({str(path)!r})"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=2, capture_output=True)
    for length in range(len(HANGS)):
        path.write_bytes(HANGS[:length])
        with pytest.raises(FileRefused):
            GGUF(path)
        bounded(path)


def test_a_count_that_a_large_sparse_file_could_hold_is_refused(tmp_path):
    path = tmp_path / "big.gguf"
    with open(path, "wb") as file:
        file.write(craft(keys=[key("a", ARRAY, struct.pack("<IQ", STRING, 10**8))]))
        file.truncate(2 * 10**9)
    with pytest.raises(FileRefused, match="at most 2,000,000 strings"):
        GGUF(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_file_loads_or_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mutated-gguf"
    if not folder.exists():
        folder.mkdir()
        values = np.ones((2, 64), np.float32)
        kinds = {"q": Kind.Q4_1, "k": Kind.Q8_0}
        tensors = {"w": values, **{name: reference.quantize(values, kind) for name, kind in kinds.items()}}
        write(folder / "good.gguf", tensors, kinds, some_keys)
    good = bytearray((folder / "good.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop", "number"])):
            case "set":
                good[at] = data.draw(st.integers(0, 255))
            case "cut":
                good = good[: at + 1]
            case "insert":
                good[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "drop":
                del good[at : at + data.draw(st.integers(1, 9))]
                good = good or bytearray(b"\0")
            case "number":
                good[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    path = folder / "bad.gguf"
    path.write_bytes(good)
    bounded(path)


# ---------------------------------------------------------------------------------------------------- the real file


@apart
def test_smollm2_equals_the_reference_and_loads_fast():
    path = sources.get("smollm2")
    begin = time.process_time()
    file = GGUF(path)
    opened = time.process_time()
    for name in file.names():
        file.get(name)  # and let go: half a GB in all
    loaded = time.process_time()
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49_152
    assert opened - begin < 0.3 and loaded - opened < 2.5  # about 0.05 and 0.5 s of processor time
    theirs = reference.GGUFReader(path)
    for tensor in theirs.tensors[:40]:
        want = reference.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.get(tensor.name).numpy(), want), tensor.name


MEMORY = """
import resource, sys, torch
sys.path.insert(0, sys.argv[2])
from anyformer.hub.formats.gguf import GGUF
torch.set_num_threads(1)
file = GGUF(sys.argv[1])
begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = [file.get(name) for name in file.names()]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin
print(peak * (1 if sys.platform == "darwin" else 1024), sum(t.nbytes for t in tensors))
"""


def test_the_peak_of_a_load_is_little_more_than_the_weights():
    source = str(Path(dequant.__file__).parents[2])
    path = str(sources.get("smollm2"))
    done = subprocess.run([sys.executable, "-c", MEMORY, path, source], capture_output=True, text=True, check=True)
    peak, weights = map(int, done.stdout.split())
    assert peak <= 1.2 * weights, peak / weights
