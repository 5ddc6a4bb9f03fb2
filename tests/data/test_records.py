"""Rows from every kind of source; what is refused, and that a refusal says where and what to do."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyformer.data import files, records
from anyformer.data.records import find, fingerprint, texts

ROWS = [{"text": "one, two\nthree", "label": 1}, {"text": 'é "quoted"', "label": 0}, {"text": "日本", "label": 2}]
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(records.__file__).parents[2])}
CSV = 'text,label\n"one, two\nthree",1\n"é ""quoted""",0\n日本,2\n'


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def saved(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


def written(content, name="data"):
    def make(path):
        file = path.with_name(name)
        file.write_bytes(content)
        return file

    return make


MAKERS = {
    "jsonl": lambda path: jsonl(path.with_suffix(".jsonl")),
    "json": lambda path: jsonl(path.with_suffix(".json")),
    "csv": written(CSV.encode(), "a.csv"),
    "csv with a byte order mark": written(b"\xef\xbb\xbf" + CSV.encode(), "a.csv"),
    "csv of Windows": written(CSV.replace("\n", "\r\n").replace("two\r\n", "two\n").encode(), "a.csv"),
    "tsv": written(b"text\tlabel\n" + 'one, two\nthree\t1\n'.replace("one, two\nthree", '"one, two\nthree"').encode()
                   + 'é "quoted"\t0\n日本\t2\n'.replace('é "quoted"', '"é ""quoted"""').encode(), "a.tsv"),
    "parquet": lambda path: table(path.with_suffix(".parquet")),
    "jsonl.gz": written(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()), "a.jsonl.gz"),
    "saved": saved,
}  # fmt: skip


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_table_gives_the_same_rows(make, tmp_path):
    source = make(tmp_path / "data")
    assert list(records.records(source, need=("text", "label"))) == ROWS
    assert list(records.records(source, {"source": "text"})) == [{"source": row["text"]} for row in ROWS]
    assert [t for _, t in texts(source)] == [row["text"] for row in ROWS]
    assert [n for n, _ in texts(source)] == [0, 1, 2]


def test_zst_is_read_where_zstandard_is_installed(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="reading .zst needs the package zstandard, an optional one")
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"hello"))
    assert list(texts(tmp_path / "a.txt.zst")) == [(0, "hello")]


def test_a_published_layout_is_read_by_datasets(tmp_path):
    jsonl(tmp_path / "train.jsonl")
    jsonl(tmp_path / "test.jsonl", ROWS[:1])
    assert list(records.records(f"hub:{tmp_path}")) == ROWS
    assert list(records.records(f"hub:{tmp_path}#test")) == ROWS[:1]
    with pytest.raises(ValueError, match=r"hub:.*#dev cannot be opened"):
        list(records.records(f"hub:{tmp_path}#dev"))
    assert fingerprint(find(f"hub:{tmp_path}")) != fingerprint(find(f"hub:{tmp_path}#test"))


def test_a_data_set_that_nobody_published_is_one_line():
    code = "from anyformer.data.records import records; list(records('hub:no-such/thing-at-all'))"
    run = subprocess.run([sys.executable, "-c", code], env=OFFLINE, capture_output=True, text=True)
    assert run.returncode == 1 and "ValueError: the data set hub:no-such/thing-at-all cannot be opened: " in run.stderr


def test_several_saved_data_sets_are_one_too_many(tmp_path):
    import datasets

    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ValueError, match=r"holds several data sets: test, train; choose one"):
        list(records.records(tmp_path / "both"))
    assert list(records.records(tmp_path / "both" / "test")) == ROWS


def test_folder_of_one_kind_and_a_pattern(tmp_path):
    jsonl(tmp_path / "b.jsonl", ROWS[1:])
    jsonl(tmp_path / "a.jsonl", ROWS[:1])
    assert list(records.records(tmp_path)) == ROWS
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(ValueError, match=r"mixes text \(README.md …\), jsonl \(a.jsonl …\); choose one kind"):
        records.records(tmp_path)
    assert list(records.records(f"{tmp_path}/*.jsonl")) == ROWS
    assert list(records.records(f"{tmp_path}/*.md")) == [{"text": "about", "document": 0}]


def test_messages_and_lists_come_as_they_are(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    assert list(records.records(jsonl(tmp_path / "chat.jsonl", rows), need=("messages",))) == rows


def test_images_have_the_label_of_their_folder(tmp_path):
    for place, colour in {"dog/b.png": (255, 0, 0), "cat/sub/a.jpg": (0, 0, 255), "dog/a.png": (0, 255, 0)}.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), colour).save(tmp_path / place)
    rows = list(records.records(tmp_path))
    assert [(r["class"], r["label"], r["image"].size, r["image"].mode) for r in rows] == [
        ("cat", 0, (4, 3), "RGB"), ("dog", 1, (4, 3), "RGB"), ("dog", 1, (4, 3), "RGB"),
    ]  # fmt: skip
    assert np.array(rows[1]["image"])[0, 0].tolist() == [0, 255, 0]
    with pytest.raises(ValueError, match=r"b\.png is one picture; pass the folder"):
        records.records(tmp_path / "dog/b.png")
    with pytest.raises(ValueError, match="is not in a class folder"):
        list(records.records(tmp_path / "dog"))
    (tmp_path / "cat/broken.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        list(records.records(tmp_path))


# ------------------------------------------------------------------------------------------------ text


def test_long_text_comes_in_pieces_at_line_ends_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 50)
    monkeypatch.setattr(files, "READ", 7)  # cuts characters of several bytes
    whole = "".join(f"line {i} é日本🙂\r\n" for i in range(100)) + "y" * 333
    (tmp_path / "a.txt").write_bytes(whole.encode())
    rows = list(records.records(tmp_path / "a.txt"))
    assert "".join(r["text"] for r in rows) == whole and {r["document"] for r in rows} == {0}
    assert all(len(r["text"]) <= 50 for r in rows) and all(r["text"].endswith("\n") for r in rows[:30])


def test_one_document_a_file_without_blank_ones(tmp_path):
    for name, content in {"a.txt": "one", "b.txt": " \n", "c.txt": "two"}.items():
        (tmp_path / name).write_text(content)
    assert list(texts(tmp_path)) == [(0, "one"), (1, "two")]


def test_one_document_in_a_table_longer_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 5)
    source = jsonl(tmp_path / "a.jsonl", [{"text": "ab\ncdefgh"}, {"text": "  "}, {"text": "x"}])
    assert list(texts(source)) == [(0, "ab\n"), (0, "cdefg"), (0, "h"), (1, "x")]


@pytest.mark.parametrize("read", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    "content, byte", [(b"caf\xe9 au lait", 3), ("日本".encode()[:-1], 3), (b"ok \xf0\x9f\x99 no", 3), (b"a\x80", 1)]
)
def test_the_byte_that_is_not_utf8_is_named(content, byte, read, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ", read)
    (tmp_path / "latin.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"latin\.txt is not UTF-8: byte {byte} is 0x.*iconv -f latin1"):
        list(records.records(tmp_path / "latin.txt"))


def test_mixed_encodings_name_the_file_that_differs(tmp_path):
    (tmp_path / "a.txt").write_text("grün", encoding="utf-8")
    (tmp_path / "b.txt").write_text("grün", encoding="latin1")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8: byte 2"):
        list(texts(tmp_path))
    (tmp_path / "b.txt").write_text("grün", encoding="utf-16")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8 but UTF-16.*iconv -f utf-16"):
        list(texts(tmp_path))


def test_proteins_of_fasta_are_rows_and_every_text_of_its_own(tmp_path):
    (tmp_path / "a.fasta").write_text("; a comment\n>one of them\nmkt\nAY*\n\n>two\nGBU:PX\n")
    assert list(records.records(tmp_path / "a.fasta")) == [
        {"name": "one", "text": "MKTAY"},
        {"name": "two", "text": "GBU"},
        {"name": "two", "text": "PX"},
    ]
    assert list(texts(tmp_path)) == [(0, "MKTAY"), (1, "GBU"), (2, "PX")]


# ---------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "no such file": ("nowhere.txt", None, FileNotFoundError, "there is no file or folder"),
    "empty file": ("a.txt", b"", ValueError, r"a\.txt holds no text"),
    "empty table": ("a.jsonl", b"", ValueError, r"a\.jsonl holds no text"),
    "only blanks": ("a.csv", b"text\n \n\t\n", ValueError, "holds no text"),
    "line that is no JSON": ("a.jsonl", b'{"text": "x"}\n{"text": \n', ValueError, r"line 2 is not JSON: Expecting"),
    "a JSON array": ("a.json", b'[\n{"text": "x"}\n]', ValueError, "line 1 is a JSON array.*jq"),
    "a JSON array in a line": ("a.json", b'[{"text": "x"}]', ValueError, "line 1 is a list, not an object.*jq"),
    "missing column": ("a.jsonl", b'{"txt": "x"}', ValueError,
                       r"row 1: no column 'text' \(did you mean txt.*fields=\{'text'"),
    "missing in one row": ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', ValueError, "row 2: no column 'text'"),
    "null": ("a.jsonl", b'{"text": null}', ValueError, r"row 1: 'text' has no value \(null\)"),
    "a number as text": ("a.jsonl", b'{"text": 7}', ValueError, "'text' must be text, got int: '7'"),
    "uneven line": ("a.csv", b"text,label\nx,1\ny\n", ValueError, "line 3 has 1 cells and the first line 2 names"),
    "name twice": ("a.csv", b"text,text\nx,y\n", ValueError, "'text', 'text'"),
    "open quote": ("a.csv", b'text\n"x\n', ValueError, "not CSV: unexpected end"),
    "no Parquet": ("a.parquet", b"PAR1 nonsense", ValueError, r"a\.parquet cannot be read as Parquet"),
    "cut gz": ("a.txt.gz", gzip.compress(os.urandom(5000))[:-900], ValueError, r"a\.txt\.gz is (damaged|not UTF-8)"),
    "no gz": ("a.txt.gz", b"plain", ValueError, "is damaged: Not a gzipped file"),
    "no residue": ("a.fasta", b">one\nMK1T\n", ValueError, r"a\.fasta: one: '1' at residue 3 is no amino acid"),
    "no protein": ("a.fa", b"MKT\n", ValueError, r"a\.fa, line 1: a FASTA file begins with '>name'"),
    "latin1 table": ("a.jsonl", b'{"text": "caf\xe9"}', ValueError, r"a\.jsonl is not UTF-8: byte 13"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, kind, said", REFUSED.values(), ids=REFUSED)
def test_refused(name, content, kind, said, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=said):
        list(texts(tmp_path / name))


def test_numbers_must_be_numbers_where_they_are_asked_for(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": 1.0, "noise": float("nan")}])
    assert len(list(records.records(source, need=("text", "label")))) == 1  # the column with NaN is not asked for
    with pytest.raises(ValueError, match=r"row 1: 'noise' is nan; put a value there"):
        list(records.records(source))
    for cell in ("nan", "inf", ""):
        (tmp_path / "a.csv").write_text(f"text,label\nx,1\ny,{cell}\n")
        with pytest.raises(ValueError, match=r"a\.csv, row 2: 'label' (is nan|is inf|has no value)"):
            list(records.records(tmp_path / "a.csv", need=("text", "label")))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": pa.array([[0.5, float("nan")]])}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="row 1: 'label' is nan"):
        list(records.records(tmp_path / "a.parquet", need=("label",)))
    (tmp_path / "named.csv").write_text("text,label\nx,cat\n")
    assert next(records.records(tmp_path / "named.csv"))["label"] == "cat"


def test_field_names_are_checked(tmp_path):
    source = jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"fields: no name 'txt' \(did you mean text"):
        records.records(source, {"txt": "text"})
    with pytest.raises(ValueError, match=r"no column 'content' .*it has 'text', 'label'"):
        list(records.records(source, {"text": "content"}))
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'txt' \(did you mean text"):
        list(records.records(table(tmp_path / "a.parquet"), {"text": "txt"}))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="plain text and has only 'text', not 'label'"):
        list(records.records(tmp_path / "a.txt", need=("label",)))
    assert list(records.records(tmp_path / "a.txt", {"text": "content"})) == [{"text": "x", "document": 0}]


def test_fingerprint_is_of_the_content(tmp_path):
    a, b = jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl")
    assert fingerprint(find(a)) == fingerprint(find(b))
    assert fingerprint(find(a)) != fingerprint(find(a), {"text": "label"})
    jsonl(b, ROWS[:2])
    assert fingerprint(find(a)) != fingerprint(find(b))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_reading_holds_a_few_rows_not_the_file(tmp_path):
    """64 MB of rows in a process that gets no more than 24 MB beyond what it has before it reads."""
    for name, line in {"a.jsonl": b'{"text": "' + b"word " * 200 + b'"}\n', "a.txt": b"word " * 200 + b"\n"}.items():
        with (tmp_path / name).open("wb") as out:
            for _ in range(64):
                out.write(line * 1000)
        code = (
            "from anyformer.data.records import texts;"
            "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]);"
            f"before = peak(); n = sum(len(t) for _, t in texts({str(tmp_path / name)!r})); print(n, peak() - before)"
        )
        run = subprocess.run([sys.executable, "-c", code], env=OFFLINE, capture_output=True, text=True, check=True)
        characters, kilobytes = map(int, run.stdout.split())
        assert characters >= 64_000_000 and kilobytes < 24_000, (name, kilobytes)
