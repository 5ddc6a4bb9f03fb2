"""Wherever the vectors are searched, what is found is the same, before and after edits."""

import pytest

from anyformer.cli import main
from anyformer.know import Searcher, index, vectors
from anyformer.know.store import Store
from anyformer.know.vectors import FAISS

from .subjects import small, write

WORDS = ("alpha", "beta", "gamma", "delta", "bees ", "honey ")
TEXTS = {f"{n:02d}.txt": f"Note {n}. {WORDS[n % 6] * (n % 5)}" for n in range(52)}
TEXTS |= {name: "the same text" for name in ("same-a.txt", "same-b.txt")}
QUESTIONS = ("the same text", "bees and honey", "Note 12", "zyxwvut")


def needed(kind: str) -> None:
    package = {"faiss": "faiss", "qdrant": "qdrant_client"}[kind.partition(":")[0]]
    pytest.importorskip(package, reason=f"vectors: {kind}: left out: {package} is not installed")


def found(place, encoder):
    searcher = Searcher(place, encoder)
    try:
        return [searcher.search(question, 10) for question in QUESTIONS]
    finally:
        searcher.close()


@pytest.mark.parametrize("kind", ["faiss", "faiss:HNSW32", "qdrant"])
def test_what_is_found_is_what_one_product_with_each_finds(tmp_path, kind):
    """Passages, scores, cosines, ranks and limits; again after files were edited, removed and named anew."""
    needed(kind)
    folder = write(tmp_path / "docs", TEXTS)
    for step in range(2):
        if step:
            (folder / "05.txt").unlink()
            (folder / "same-a.txt").rename(folder / "zz.txt")
            write(folder, {"07.txt": "honey is made by bees", "new.txt": "Note 12 is new"})
        index(folder, tmp_path / "other", small(), vectors=kind if not step else None)
        index(folder, tmp_path / "idx", small())
        assert found(tmp_path / "other", small()) == found(tmp_path / "idx", small())


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_an_open_index_and_one_that_was_killed(tmp_path, kind, monkeypatch):
    needed(kind)
    folder, out = write(tmp_path / "docs", {"a.txt": "bees", "b.txt": "cats", "c.txt": "oxen"}), tmp_path / "idx"
    index(folder, out, small(), vectors=kind)
    if kind == "faiss":  # Qdrant's local mode is of one process
        searcher = Searcher(out, small())
        (folder / "b.txt").write_text("changed")
        index(folder, out, small())
        assert {h.row.text.strip() for h in searcher.search("changed", 9).hits} == {"bees", "changed", "oxen"}
        searcher.close()
    (folder / "a.txt").unlink()
    (folder / "d.txt").write_text("a new one")
    with monkeypatch.context() as patch:  # killed behind the passages, in front of the vectors
        patch.setattr(vectors.Faiss if kind == "faiss" else vectors.Qdrant, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index(folder, out, small())
    done = index(folder, out, small())
    assert sorted(done.unchanged) == ["b.txt", "c.txt", "d.txt"]
    index(folder, tmp_path / "fresh", small())
    for one, other in zip(found(out, small()), found(tmp_path / "fresh", small()), strict=True):
        assert [(h.row, h.ranks) for h in one.hits] == [(h.row, h.ranks) for h in other.hits]
        assert [h.cosine for h in one.hits] == pytest.approx([h.cosine for h in other.hits], abs=1e-5)


def test_a_file_of_faiss_that_is_older_than_the_passages_finds_no_passage_that_is_gone(tmp_path):
    needed("faiss")
    folder, out = write(tmp_path / "docs", {"a.txt": "bees", "b.txt": "cats"}), tmp_path / "idx"
    index(folder, out, small(), vectors="faiss")
    store = Store(out)
    store.remove(["a.txt"])
    store.close()
    assert {h.row.path for answer in found(out, small()) for h in answer.hits} == {"b.txt"}
    (out / FAISS).unlink()
    assert [len(answer.hits) for answer in found(out, small())] == [0, 0, 0, 0]


def test_kinds_that_are_none_are_named(tmp_path, capsys):
    folder = write(tmp_path / "docs", {"a.txt": "bees"})
    with pytest.raises(ValueError, match="'annoy' is none of exact, faiss, faiss:FACTORY, qdrant, qdrant:URL"):
        index(folder, tmp_path / "idx", small(), vectors="annoy")
    index(folder, tmp_path / "idx", small())  # the index did not keep it
    needed("faiss")
    for kind, why in (("faiss:Plane", "Plane"), ("faiss:IVF64,Flat", "for 1 passages")):
        with pytest.raises(ValueError, match=f"vectors: {kind}.*{why}"):
            index(folder, tmp_path / kind.replace(":", "-"), small(), vectors=kind)
    assert main(["index", str(folder), "--out", str(tmp_path / "cli"), "--vectors", "hnsw"]) == 2
    assert "none of exact" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(tmp_path):
    needed("qdrant")
    with pytest.raises(OSError, match=r"Qdrant, http://127\.0\.0\.1:9"):
        index(
            write(tmp_path / "docs", {"a.txt": "bees"}), tmp_path / "idx", small(), vectors="qdrant:http://127.0.0.1:9"
        )
