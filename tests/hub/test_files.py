"""`anyformer.hub.formats.safetensors` and `guard`: what is read, what is refused, and at what cost."""

import json
import os
import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anyformer.hub.formats import guard
from anyformer.hub.formats import safetensors as files
from anyformer.hub.formats.guard import FileRefused, inside, parse_json, read_json
from anyformer.hub.formats.safetensors import SafeTensors, Sharded, open_weights, write_safetensors

torch.set_num_threads(1)
SLACK = 300_000  # bytes: interpreter objects, error messages
TENSORS = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "flag": torch.tensor([True, False, True]),
    "whole": torch.randn(4, 3, 2),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "ids": torch.arange(5),
}


def craft(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def bounded(action, size: int):
    """Run `action`: it returns or refuses, within a second, and without twice the memory of its input."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        result = action()
    except (FileRefused, FileNotFoundError) as error:
        assert len(str(error)) < 2000
        result = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - begin < 1
    assert peak <= 2 * size + SLACK, (peak, size)
    return result


def read_all(file) -> dict[str, torch.Tensor]:
    tensors = {name: file.get(name) for name in file.names()}
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == file.shape(name) and tensor.dtype == file.dtype(name)
        tensor.float().sum()
    return tensors


# ------------------------------------------------------------------------------------------- safetensors, good ones


def test_reads_what_the_reference_wrote_and_writes_the_same_bytes(tmp_path):
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    file = SafeTensors(tmp_path / "theirs.safetensors")
    assert file.metadata == {"format": "pt"}
    for name, tensor in read_all(file).items():
        assert torch.equal(tensor, TENSORS[name]), name
    (ours,) = write_safetensors(tmp_path, TENSORS)
    assert ours.name == "model.safetensors"
    assert ours.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", files.CODES, ids=str)
def test_every_dtype_survives(tmp_path, dtype):
    bits = torch.arange(64, dtype=torch.uint8) % 2
    tensor = bits.bool() if dtype == torch.bool else bits.view(dtype)
    write_safetensors(tmp_path, {"x": tensor})
    back = load_file(tmp_path / "model.safetensors")["x"]
    assert back.dtype == dtype and back.view(torch.uint8).equal(bits)
    assert open_weights(tmp_path).get("x").view(torch.uint8).equal(bits)


def test_tensors_are_views_of_the_map_and_writing_to_them_leaves_the_file(tmp_path):
    write_safetensors(tmp_path, {"x": torch.ones(1_000_000)})
    before = (tmp_path / "model.safetensors").read_bytes()
    tracemalloc.start()
    x = open_weights(tmp_path).get("x")
    assert tracemalloc.get_traced_memory()[1] < SLACK
    tracemalloc.stop()
    x.mul_(3)
    assert x[5] == 3 and (tmp_path / "model.safetensors").read_bytes() == before


def test_unaligned_data_of_old_writers_is_copied(tmp_path):
    path = tmp_path / "x.safetensors"
    header = json.dumps({"x": entry(shape=(2,))}).encode()
    header += b" " * ((3 - len(header)) % 8)
    path.write_bytes(craft(header, torch.tensor([1.5, -2.0]).numpy().tobytes()))
    assert SafeTensors(path).get("x").tolist() == [1.5, -2.0]


def test_not_contiguous_tensors_are_written_in_order(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    write_safetensors(tmp_path, {"t": x.t(), "part": x[:, 1:3]})
    back = open_weights(tmp_path)
    assert back.get("t").equal(x.t()) and back.get("part").equal(x[:, 1:3])


def test_shards_round_trip_and_open_elsewhere(tmp_path):
    tensors = {f"w{i}": torch.full((100,), float(i)) for i in range(10)}
    written = write_safetensors(tmp_path, tensors, max_shard_bytes=1000)
    assert [p.name for p in written[:2]] == ["model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors"]
    index = read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 4000 and sorted(index["weight_map"]) == sorted(tensors)
    for name, tensor in read_all(open_weights(tmp_path)).items():
        assert tensor.equal(tensors[name])
    for name, place in index["weight_map"].items():
        assert load_file(tmp_path / place)[name].equal(tensors[name])


def test_a_save_replaces_any_older_layout_and_leaves_nothing_behind(tmp_path):
    big, small = {f"w{i}": torch.full((100,), 1.0) for i in range(6)}, {"w": torch.zeros(3)}
    for tensors, limit, count in ((big, 1000, 4), (small, 10**9, 1), (big, 1000, 4), (big, 800, 4), (small, 10**9, 1)):
        write_safetensors(tmp_path, tensors, limit)
        assert read_all(open_weights(tmp_path)).keys() == tensors.keys()
        assert len(list(tmp_path.iterdir())) == count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": "../a.safetensors"}, "plain name"),
        ({"a": "/etc/passwd"}, "plain name"),
        ({"a": "sub/a.safetensors"}, "plain name"),
        ({"a": ".."}, "plain name"),
        ({"a": ""}, "plain name"),
        ({"a": "x\0y"}, "plain name"),
        ({"a": "sub\\a.safetensors"}, "plain name"),
        ({"a": "pipe"}, "regular file"),
        ({"a": "folder"}, "regular file"),
        ({"a": "outside"}, "link to"),
        ({"a": "zero"}, "link to"),
        ({"a": 7}, "weight_map"),
        ({"c": "model-00001-of-00002.safetensors"}, "1 missing ['c']"),
        ({"a": "model-00002-of-00002.safetensors"}, "missing ['a']"),
        ({"a": None}, "weight_map"),
    ],
)
def test_an_index_is_not_believed(tmp_path, change, words):
    folder = tmp_path / "model"
    write_safetensors(folder, {"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    save_file({"a": torch.ones(4)}, tmp_path / "elsewhere.safetensors")
    (folder / "outside").symlink_to(tmp_path / "elsewhere.safetensors")
    (folder / "zero").symlink_to("/dev/zero")
    index = read_json(folder / "model.safetensors.index.json")
    index["weight_map"].update(change)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileRefused) as refused:
        open_weights(folder)
    assert words in str(refused.value)


def test_an_index_may_not_forget_a_tensor_or_a_file(tmp_path):
    write_safetensors(tmp_path, {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}, max_shard_bytes=32)
    path = tmp_path / "model.safetensors.index.json"
    index = read_json(path)
    del index["weight_map"]["b"]
    path.write_text(json.dumps(index))
    with pytest.raises(FileRefused, match=r"1 more \['b'\]"):
        Sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        Sharded(tmp_path)


def test_links_are_followed_inside_a_hub_cache_and_nowhere_else(tmp_path):
    repo = tmp_path / "models--a--b"
    snapshot, blobs = repo / "snapshots" / "c0ffee", repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"x": torch.ones(2)}, blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert open_weights(snapshot).get("x").tolist() == [1, 1]
    (tmp_path / "secret").write_text("s")
    (repo / "secret").write_text("s")
    for target in ("../../../secret", "../../secret", "/etc/passwd", "../../blobs/../secret"):
        (snapshot / "link").unlink(missing_ok=True)
        (snapshot / "link").symlink_to(target)
        with pytest.raises(FileRefused, match="link"):
            inside(snapshot, "link")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to(blobs / "abc")
    with pytest.raises(FileRefused, match="link"):
        open_weights(plain)


# --------------------------------------------------------------------------------------------------- refused files

NAN_SHAPE = {"x": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}
BAD = {
    "empty": (b"", "size"),
    "shorter than its length field": (b"\0" * 7, "size"),
    "length beyond the file": (craft({}, length=2**63), "header length"),
    "length of 100 TB": (craft({}, length=10**14), "header length"),
    "not JSON": (craft(b"{nope"), "line 1, column 2"),
    "not UTF-8": (craft(b'{"\xff": 1}'), "UTF-8 at byte 2"),
    "not an object": (craft(b"[]"), "a JSON object"),
    "key twice": (craft(b'{"a": 1, "a": 2}'), "a twice"),
    "deep": (craft(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"), "nesting"),
    "very deep": (craft(b"[" * 90_000), "nesting"),
    "many items": (craft(b"[" + b"[]," * 600_000 + b"1]"), "items"),
    "huge integer": (craft(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "metadata not text": (craft({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry not an object": (craft({"x": 5}), "tensor x: entry"),
    "unknown field": (craft({"x": {**entry(), "code": "os.system"}}, b"\0" * 8), "tensor x: entry"),
    "unknown dtype": (craft({"x": entry(dtype="F31")}, b"\0" * 8), "tensor x: dtype"),
    "dtype a list": (craft({"x": entry(dtype=["F32"])}, b"\0" * 8), "tensor x: dtype"),
    "shape not whole": (craft(NAN_SHAPE, b"\0" * 8), "tensor x: shape"),
    "shape of booleans": (craft({"x": entry(shape=(True, 2))}, b"\0" * 8), "tensor x: shape"),
    "shape negative": (craft({"x": entry(shape=(-2, -1))}, b"\0" * 8), "tensor x: shape"),
    "shape overflows": (craft({"x": entry(shape=(2**62, 8, 2**62))}, b"\0" * 8), "tensor x: data_offsets"),
    "too many dims": (craft({"x": entry(shape=(1,) * 40 + (2,))}, b"\0" * 8), "tensor x: shape"),
    "product is another": (craft({"x": entry(shape=(3,))}, b"\0" * 8), "12 bytes for F32 [3], got 8"),
    "range reversed": (craft({"x": entry(begin=8, end=0)}, b"\0" * 8), "[begin, end]"),
    "range beyond the file": (craft({"x": entry()}, b"\0" * 4), "truncated"),
    "left over": (craft({"x": entry()}, b"\0" * 9), "too long"),
    "overlap": (craft({"x": entry(), "y": entry(begin=4, end=12)}, b"\0" * 12), "tensor y: begin (overlaps"),
    "same range": (craft({"x": entry(), "y": entry()}, b"\0" * 8), "overlaps"),
    "hole": (craft({"x": entry(), "y": entry(begin=12, end=20)}, b"\0" * 20), "tensor y: begin (leaves a hole"),
    "hole at the front": (craft({"x": entry(begin=4, end=12)}, b"\0" * 12), "tensor x: begin (leaves a hole"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_at_once_and_cheaply(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileRefused) as refused:
        SafeTensors(path)
    assert words in str(refused.value) and "bad.safetensors" in str(refused.value)
    assert bounded(lambda: SafeTensors(path), len(content)) is None


def test_booleans_are_0_or_1(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(craft({"x": entry("BOOL", (2,), 0, 2)}, b"\1\2"))
    with pytest.raises(FileRefused, match="tensor x: BOOL"):
        SafeTensors(path).get("x")


def test_a_large_sparse_file_costs_nothing_until_it_is_refused(tmp_path):
    path = tmp_path / "big.safetensors"
    with open(path, "wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)
    with pytest.raises(FileRefused, match="100,000,000"):
        SafeTensors(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_file_loads_or_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        write_safetensors(folder, TENSORS)
        (folder / "good").write_bytes((folder / "model.safetensors").read_bytes())
    good = bytearray((folder / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop", "swap digit"])):
            case "set":
                good[at] = data.draw(st.integers(0, 255))
            case "cut":
                good = good[: at + 1]
            case "insert":
                good[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "drop":
                del good[at : at + data.draw(st.integers(1, 9))]
                good = good or bytearray(b"\0")
            case "swap digit":
                digits = [i for i, byte in enumerate(good[: len(good) - 200]) if 48 <= byte < 58]
                if digits:
                    good[data.draw(st.sampled_from(digits))] = data.draw(st.integers(48, 57))
    (folder / "model.safetensors").write_bytes(good)
    bounded(lambda: read_all(open_weights(folder)), len(good))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_index_loads_or_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mutated-index"
    path = folder / "model.safetensors.index.json"
    if not folder.exists():
        write_safetensors(folder, {f"w{i}": torch.ones(4) for i in range(4)}, max_shard_bytes=32)
        path.rename(folder / "good")
    text = bytearray((folder / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"../", b'"', b"{", b"[[", b"null", b"1e999"])
        )
        text = text or bytearray(b" ")
    path.write_bytes(text)
    bounded(lambda: read_all(open_weights(folder)), len(text) + 4 * 200)


def test_json_errors_name_the_file_and_the_place(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n  "a": 1,\n  "b" 2\n}')
    with pytest.raises(FileRefused, match=r"config\.json: not JSON at line 3, column 7"):
        read_json(path)
    path.write_text('{"limit": [0.0, Infinity]}')
    assert read_json(path) == {"limit": [0.0, float("inf")]}
    with pytest.raises(FileRefused, match=r"size: expected at most 10 bytes"):
        read_json(path, limit=10)
    with pytest.raises(FileRefused, match="regular file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileRefused, match="regular file"):
        read_json(tmp_path / "pipe")
    nested = b"[" * guard.MAX_DEPTH + b"]" * guard.MAX_DEPTH
    parse_json(nested, "x")
    with pytest.raises(FileRefused, match="64 levels"):
        parse_json(b"[" + nested + b"]", "x")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789.-eEtrufalsn\\ ', max_size=60).map(str.encode))
def test_any_bytes_are_json_or_refused(data):
    try:
        value = parse_json(data, "x")
    except FileRefused:
        return
    assert json.dumps(value) == json.dumps(json.loads(data))


def test_a_pickle_is_refused_unless_asked_for_and_never_runs(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.arange(6.0).view(2, 3)}, path)
    with pytest.raises(FileRefused, match=r"pickle.*allow_pickle=True"):
        open_weights(tmp_path)
    for legacy in (False, True):
        torch.save({"w": torch.arange(6.0).view(2, 3)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.warns(UserWarning, match="weights_only=True"):
            assert open_weights(tmp_path, allow_pickle=True).get("w").tolist() == [[0, 1, 2], [3, 4, 5]]
    torch.save({"w": Bomb(str(tmp_path / "ran"))}, path)
    with pytest.warns(UserWarning), pytest.raises(FileRefused, match="not a pickle of tensors"):
        open_weights(tmp_path, allow_pickle=True)
    torch.save({"w": 3}, path)
    with pytest.warns(UserWarning), pytest.raises(FileRefused, match="dict of tensors"):
        open_weights(tmp_path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


class Bomb:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_missing_weights_and_tensors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for model\.safetensors, .*index\.json, pytorch_model\.bin"):
        open_weights(tmp_path)
    write_safetensors(tmp_path, {"a": torch.ones(1)})
    with pytest.raises(FileRefused, match="no tensor b"):
        open_weights(tmp_path).get("b")
