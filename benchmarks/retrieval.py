"""Retrieval on gold questions: words, vectors and both, beside sentence-transformers on the same weights and passages.

    python -m benchmarks.retrieval search --sets faq packages wordnet --out runs/retrieval.json
    python -m benchmarks.retrieval cite --out runs/citations.json
    python -m benchmarks.retrieval show runs/*.json --doc docs/retrieval.md

Recall counts files: the best passage of a file is its rank. Without sentence-transformers its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anyformer as af
from anyformer.data.models import find
from anyformer.know import Encoder, Searcher, ask, index
from anyformer.know.searching import POOL
from anyformer.know.words import query
from benchmarks import machine, retrieval_data

ASKED = 500  # questions of a set
FOREIGN = 200  # questions of which no passage knows anything
SPEED = 96  # passages that both libraries embed, in turns
ROUNDS = 3


def ranks(order: Callable[[str], Sequence[str]], pairs: Sequence[tuple[str, str]]) -> list[int]:
    """The rank of each question's file, from 1; 0 = not among the first 50 passages."""
    made = []
    for question, path in pairs:
        files = list(dict.fromkeys(order(question)))
        made.append(files.index(path) + 1 if path in files else 0)
    return made


def figures(found: Sequence[int]) -> dict[str, float]:
    """Recall at 1 and 5, and the mean reciprocal rank."""
    at = np.array(found)
    return {
        "recall@1": float((at == 1).mean()),
        "recall@5": float(((at > 0) & (at <= 5)).mean()),
        "mrr": float(np.where(at > 0, 1 / np.maximum(at, 1), 0.0).mean()),
    }


def plain(searcher: Searcher, paths: dict[int, str], question: str) -> list[str]:
    """The order of the sum of 1 / (60 + rank), as in the paper, to compare."""
    orders = [
        [i for i, _ in searcher.store.match(query(question), POOL)],
        searcher.vectors.nearest(searcher.encoder.asked([question])[0], POOL),
    ]
    score: dict[int, float] = {}
    for order in orders:
        for rank, i in enumerate(order, 1):
            score[i] = score.get(i, 0.0) + 1 / (60 + rank)
    return [paths[i] for i in sorted(score, key=lambda i: -score[i])]


def peer(folder: Path) -> Any:
    """sentence-transformers' model of the same files, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(str(folder), device="cpu")
    except ImportError:
        return None


def searched(name: str, count: int, encoder: Encoder, other: Any) -> dict[str, Any]:
    """The figures of one set."""
    make = retrieval_data.SETS[name][0]
    with tempfile.TemporaryDirectory() as work:
        pairs = retrieval_data.folder(make(count), Path(work) / "files")
        asked = pairs[:ASKED]
        done = index(Path(work) / "files", Path(work) / "idx", encoder)
        searcher = Searcher(Path(work) / "idx", encoder)
        paths = dict(searcher.store.db.execute("SELECT id, path FROM passages").fetchall())
        texts = [row[0] for row in searcher.store.db.execute("SELECT text FROM passages ORDER BY path, number")]
        ids, matrix = searcher.store.vectors(int(searcher.store.meta("width") or 0))

        def nearest(passages: np.ndarray, vectors: np.ndarray) -> Callable[[str], list[str]]:
            rows = {
                q: np.argsort(-(passages @ v), kind="stable")[:POOL] for (q, _), v in zip(asked, vectors, strict=True)
            }
            return lambda q: [paths[int(ids[i])] for i in rows[q]]

        rows = {
            "BM25": figures(ranks(lambda q: [paths[i] for i, _ in searcher.store.match(query(q), POOL)], asked)),
            "vectors": figures(ranks(nearest(matrix, encoder.asked([q for q, _ in asked])), asked)),
            "both": figures(ranks(lambda q: [hit.row.path for hit in searcher.search(q, POOL).hits], asked)),
            "both, plain ranks": figures(ranks(lambda q: plain(searcher, paths, q), asked)),
        }
        took = []
        for question, _ in asked[:200]:
            begin = time.perf_counter()
            searcher.search(question)
            took.append(time.perf_counter() - begin)
        foreign = retrieval_data.wordnet(FOREIGN) if name != "wordnet" else retrieval_data.packages(FOREIGN)
        result = {
            "set": name, "precision": encoder.precision, "files": len(pairs), "asked": len(asked),
            "passages": done.passages, "tokens": done.tokens,
            "lost": done.lost, "seconds": done.seconds, "query_ms": 1000 * statistics.median(took),
            "limits": {key: float(searcher.store.meta(key) or 0) for key in ("cosine", "share", "bm25")},
            "refused": 1 - statistics.mean(searcher.search(q).sure for q, _ in asked),
            "foreign_found": statistics.mean(searcher.search(q).sure for q, _ in foreign),
        }  # fmt: skip
        if other is not None:
            vectors = other.encode(texts, normalize_embeddings=True, batch_size=32, show_progress_bar=False)
            queries = other.encode([q for q, _ in asked], normalize_embeddings=True, show_progress_bar=False)
            result["largest_difference"] = float(np.abs(vectors - matrix).max())
            rows["sentence-transformers"] = figures(ranks(nearest(vectors, queries), asked))
            result |= speeds(texts[:SPEED], encoder, other)
        searcher.close()
    return result | {"rows": rows}


def speeds(texts: Sequence[str], encoder: Encoder, other: Any) -> dict[str, float]:
    """Passages a second of both, in turns: the medians."""
    took: dict[str, list[float]] = {"anyformer": [], "sentence-transformers": []}
    for _ in range(ROUNDS):
        for name, work in (
            ("anyformer", lambda: encoder.vectors(texts)),
            (
                "sentence-transformers",
                lambda: other.encode(list(texts), normalize_embeddings=True, show_progress_bar=False),
            ),
        ):
            begin = time.perf_counter()
            work()
            took[name].append(len(texts) / (time.perf_counter() - begin))
    return {f"rate {name}": statistics.median(values) for name, values in took.items()}


def cited(encoder: Encoder, model: Any, count: int) -> dict[str, Any]:
    """Counterfactual edits: the answer to a question before, with the cited fact changed, with another file changed."""
    rows = list(retrieval_data.facts())
    asked = [row for i, row in enumerate(rows) if i % max(1, len(rows) // count) == 0][:count]
    made: dict[str, list[bool]] = {name: [] for name in ("right", "cites it", "cited edited", "other edited")}
    answers = []
    with tempfile.TemporaryDirectory() as work:
        files, out = Path(work) / "files", Path(work) / "idx"
        files.mkdir()
        for file, _, sentence, _, _ in rows:
            (files / file).write_text(sentence, encoding="utf-8")

        def answer(question: str) -> Any:
            index(files, out, encoder)
            searcher = Searcher(out, encoder)
            try:
                return ask(searcher, question, model, k=3, max_new_tokens=40)
            finally:
                searcher.close()

        def said(one: Any) -> str:
            return " ".join(s.text for s in one.statements)

        for file, question, sentence, changed, fact in asked:
            before = answer(question)
            sources = {s.span.row.path for s in before.statements if s.span is not None}
            made["right"].append(fact in said(before))
            made["cites it"].append(sources == {file})
            (files / file).write_text(changed, encoding="utf-8")
            after = answer(question)
            (files / file).write_text(sentence, encoding="utf-8")
            uncited = next(h.row.path for h in before.search.hits if h.row.path not in {*sources, file})
            kept = (files / uncited).read_text(encoding="utf-8")
            (files / uncited).write_text(next(r[3] for r in rows if r[0] == uncited), encoding="utf-8")
            same = answer(question)
            (files / uncited).write_text(kept, encoding="utf-8")
            if sources == {file}:
                made["cited edited"].append(said(after) != said(before))
                made["other edited"].append(said(same) != said(before))
            answers.append([question, *(said(one) for one in (before, after, same))])
    shares = {name: (sum(values), len(values)) for name, values in made.items()}
    return {"asked": len(asked), "shares": shares, "answers": answers}


def table(results: Sequence[dict[str, Any]]) -> str:
    """The tables of the results."""
    lines = list[str]()
    found = [r for r in results if r["kind"] == "search"]
    if found:
        lines += ["| | passages | | recall@1 | recall@5 | MRR |", "|---|---|---|---|---|---|"]
    for r in found:
        first = f"{r['set']}, {r['precision']} | {r['passages']:,}"
        for name, row in r["rows"].items():
            numbers = " | ".join(f"{row[key]:.3f}" for key in ("recall@1", "recall@5", "mrr"))
            lines.append(f"| {first} | {name} | {numbers} |")
            first = " |"
    if found:
        heads = (
            "", "indexed in", "tokens lost", "a query", "own questions: nothing found",
            "foreign ones: something found", "passages/s", "sentence-transformers",
        )  # fmt: skip
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in found:
        rates = [f"{r[key]:.0f}" if (key := f"rate {n}") in r else "-" for n in ("anyformer", "sentence-transformers")]
        shares = f"{r['refused']:.1%} | {r['foreign_found']:.1%}"
        about = f"{r['set']}, {r['precision']} | {r['seconds']:.0f} s | {r['lost']} | {r['query_ms']:.0f} ms"
        lines.append(f"| {about} | {shares} | {' | '.join(rates)} |")
    for r in results:
        if r["kind"] == "cite":
            lines += ["", f"| answers of {r['model']} | |", "|---|---|"]
            names = {"right": "the answer has the fact", "cites it": "and cites its file alone",
                     "cited edited": "the cited fact is edited: another answer",
                     "other edited": "an uncited passage is edited: another answer"}  # fmt: skip
            lines += [f"| {names[k]} | {n} of {of} |" for k, (n, of) in r["shares"].items()]
    return "\n".join([*lines, "", machine.recorded(results)])


def main() -> None:
    """Measures or shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "cite", "show"))
    parser.add_argument("files", nargs="*", type=Path, help="of show: results")
    parser.add_argument("--sets", nargs="+", choices=list(retrieval_data.SETS), default=list(retrieval_data.SETS))
    parser.add_argument("--model", default="", help="of cite: what writes the answers; none = sentences of the files")
    parser.add_argument("--count", type=int, help="items of each set; of cite: questions, 18")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the vectors of passages")
    parser.add_argument("--out", type=Path, default=Path("runs/retrieval.json"))
    parser.add_argument("--doc", type=Path, help="of show: the document between whose marks the tables go")
    o = parser.parse_args()
    if o.what == "show":
        results = [r for file in o.files for r in json.loads(file.read_text(encoding="utf-8"))]
        text = table(results)
        print(text)
        if o.doc is not None:
            marks = "<!-- retrieval: begin -->", "<!-- retrieval: end -->"
            whole = o.doc.read_text(encoding="utf-8")
            pattern = f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})"
            o.doc.write_text(re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", whole, flags=re.S), encoding="utf-8")
        return
    folder = Path(find("minilm"))
    encoder, results = Encoder(af.load(folder), "minilm", o.precision), []
    facts = machine.facts(torch.get_num_threads())
    if o.what == "search":
        other = peer(folder)
        for name in o.sets:
            count = o.count or retrieval_data.SETS[name][1]
            results.append({"kind": "search", "machine": facts, **searched(name, count, encoder, other)})
            print(json.dumps(results[-1], indent=1), flush=True)
    else:
        model = af.load(find(o.model)) if o.model else None
        results = [{"kind": "cite", "machine": facts, "model": o.model or "sentences of the files",
                    **cited(encoder, model, o.count or 18)}]  # fmt: skip
        print(json.dumps(results, indent=1))
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
