"""RAG from scratch: retriever and generator learn together from answers alone, and the facts stay in the index.

    python examples/facts.py --out runs/facts --doc docs/rag.md      # writes the table into the document

WordNet (Debian's wordnet-base, fetched once) says of each noun what kind of thing it is. A file for each of the facts,
"a NOUN is a kind of KIND. GLOSS.", is indexed by a small BERT that learned to find passages by their words. Questions
have four forms; those of a fifth of the nouns are held out: their facts are in the index, never in training.

    encoder     BERT, finds a passage by one of its words, in two of the four forms or among common words; no answers
    generator   T5, reads one passage and says the kind. The kinds in its passages are drawn anew, so that it copies
    joint       both in a RAG-token with an encoder of passages, from questions and answers
    frozen      the same, and neither encoder learns

The nouns that are learned from have drawn kinds in these lessons, too: else the generator would learn to guess a kind
from the gloss, and answer so whatever the passage says. Then comes the index of the true facts, and one in which
the same nouns have other kinds: the answers must follow it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import documents
import torch

import anyformer as af
from anyformer.data import debian
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.know import Encoder, index, words
from anyformer.know.reader import Passages, Reader
from anyformer.know.store import Store
from anyformer.models.rag import joined
from anyformer.train import finetune, train
from anyformer.train.tasks.registry import add_special_tokens

MARKS = "<!-- facts: begin -->", "<!-- facts: end -->"
FIRST = {  # the first token's vector, as DPR's
    "modules.json": [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ],
    "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
}
FORMS = (
    "what kind of thing is a {}?",
    "a {} is what sort of thing?",
    "name the class that the word {} belongs to.",
    "tell me what a {} is.",
)
K, KINDS = 5, 80
COMMON = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "its",
        "kind",
        "of",
        "on",
        "or",
        "that",
    }
    | {"the", "to", "used", "who", "with"}
)


@dataclass(frozen=True)
class Fact:
    """A noun, its kind, and words about it."""

    noun: str
    kind: str
    gloss: str

    @property
    def passage(self) -> str:
        return f"a {self.noun} is a kind of {self.kind}. {self.gloss}."


def facts(count: int, seed: int) -> list[Fact]:
    """Nouns of one word, of the most frequent kinds of one word."""
    home = debian.fetch("wordnet-base", r"usr/share/wordnet/data[.](noun|verb|adj|adv)", 4, "WordNet's licence, free")
    synsets: dict[str, tuple[str, str, str]] = {}
    for line in (home / "usr/share/wordnet/data.noun").read_text("utf-8").split("\n"):
        fields, _, gloss = line.partition(" | ")
        parts = fields.split(" ")
        if line.startswith("  ") or len(parts) < 6:
            continue
        above = [parts[i + 1] for i, part in enumerate(parts[:-1]) if part == "@"]
        synsets[parts[0]] = (parts[4], above[0] if above else "", gloss.partition('"')[0].partition(";")[0].strip())
    usable = [
        (noun, synsets[above][0], " ".join(gloss.split()[:9]))
        for noun, above, gloss in synsets.values()
        if above in synsets and _plain(noun) and _plain(synsets[above][0]) and len(gloss.split()) > 3
    ]
    often = Counter(kind for _, kind, _ in usable)
    once = Counter(noun for noun, _, _ in usable)
    kinds = {kind for kind, _ in often.most_common(KINDS)}
    made = [Fact(*one) for one in usable if one[1] in kinds and once[one[0]] == 1]
    return random.Random(seed).sample(made, count)


def _plain(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower() and 3 < len(word) < 12


def question(fact: Fact, number: int) -> str:
    return FORMS[number % len(FORMS)].format(fact.noun)


def written(rows: Sequence[dict[str, str]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def indexed(some: Sequence[Fact], encoder: Encoder, out: Path, name: str) -> None:
    """The index of a folder with a file for each fact."""
    folder = out / name
    folder.mkdir(parents=True)
    for number, fact in enumerate(some):
        (folder / f"{number:05d}.txt").write_text(fact.passage + "\n", "utf-8")
    index(folder, out / f"{name}-index", encoder)


def recalls(reader: Reader, held: Sequence[tuple[int, str]]) -> tuple[float, float]:
    """The shares of questions whose passage is the first one, and among the first five."""
    paths = [row.path for row in reader.passages.rows]
    numbers = reader.find([reader.question(text) for _, text in held])[0].tolist()
    ranks = [[paths[n] for n in row].index(f"{i:05d}.txt") if f"{i:05d}.txt" in [paths[n] for n in row] else 99
             for (i, _), row in zip(held, numbers, strict=True)]  # fmt: skip
    return sum(r == 0 for r in ranks) / len(ranks), sum(r < K for r in ranks) / len(ranks)


class ByWords(Reader):
    """The same model with the passages that BM25 finds."""

    store: Store

    def asked_words(self, texts: Sequence[str]) -> torch.Tensor:
        """The numbers of the passages, (B, K); where words find fewer, the first ones fill up."""
        ids = {int(i): n for n, i in enumerate(self.store.vectors(self.passages.vectors.shape[1])[0])}
        rows = []
        for text in texts:
            found = [ids[i] for i, _ in self.store.match(words.query(text), K)]
            rows.append((found + [n for n in range(K) if n not in found])[:K])
        return torch.tensor(rows)

    def find(self, questions: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = self.asked_words([self.reads.decode(ids, skip_special=True) for ids in questions])
        return numbers, torch.zeros(numbers.shape)


def answers(reader: Reader, held: Sequence[tuple[int, str]]) -> list[str]:
    return [reply.text for reply in reader.ask([text for _, text in held], max_new_tokens=8, batch=32)]


def right(said: Sequence[str], held: Sequence[tuple[int, str]], some: Sequence[Fact]) -> float:
    return sum(a == some[i].kind for a, (i, _) in zip(said, held, strict=True)) / len(held)


def made_up(text: str, rng: random.Random) -> str:
    """A rare word of a text, in one of two forms of questions: without an answer, and mostly without sense.

    Every fourth time among common words instead: a form in which no passage is found teaches nothing later.
    """
    word = rng.choice(sorted(set(text.replace(".", "").split()) - COMMON))
    if rng.randrange(4):
        return rng.choice(FORMS[:2]).format(word)
    before, behind = (rng.sample(sorted(COMMON), rng.randrange(5)) for _ in range(2))
    return " ".join([*before, word, *behind])


def tokenizer(some: Sequence[Fact], out: Path, vocab: int) -> str:
    """One for all parts, from the passages and the questions."""
    texts = [fact.passage for fact in some] + [question(fact, i) for i, fact in enumerate(some)]
    made = add_special_tokens(Tokenizer.train_bpe(texts, vocab), "retrieve")
    made.save(out / "tokenizer")
    return str(out / "tokenizer")


def parts(a: argparse.Namespace, some: Sequence[Fact], learn: Sequence[int], out: Path, seed: int) -> tuple[Any, Any]:
    """The encoder and the generator; in its folder, a generator that never sees a passage."""
    words_of = tokenizer(some, out, a.vocab)
    common: dict[str, Any] = {"tokenizer": words_of, "seed": seed, "quiet": True, "eval_every": 0, "save_every": 0}
    shape: dict[str, Any] = {"dim": a.dim, "depth": 2, "heads": 4, "hidden": 2 * a.dim}
    rng, kinds = random.Random(seed), sorted({fact.kind for fact in some})
    known = Tokenizer.load(words_of)
    bert = af.build("bert", "tiny", **shape, context=64, vocab=known.vocab_size, task="none", seed=seed)
    bert.tokenizer, bert.origin = known, {"pooling": FIRST}
    bert.save(out / "bert")
    spans = [{"anchor": made_up(fact.passage, rng), "positive": fact.passage} for fact in some for _ in range(4)]
    bert = finetune(
        model=str(out / "bert"), data=written(spans, out / "spans.jsonl"), task="embed", method="full", batch=64,
        steps=a.encoder_steps, lr=2e-3, out=out / "search", seed=seed, quiet=True, eval_every=0, save_every=0,
    ).model  # fmt: skip
    copied = [Fact(some[i].noun, rng.choice(kinds), some[i].gloss) for i in learn for _ in range(a.drawn)]
    pairs = [
        {"source": f"{fact.passage} // {question(fact, rng.randrange(4))}", "target": fact.kind} for fact in copied
    ]
    alone = [{"source": question(some[i], form), "target": some[i].kind} for i in learn for form in range(len(FORMS))]
    t5: dict[str, Any] = {**shape, "decoder_depth": 2, "head_dim": a.dim // 4}
    made = []
    for name, rows, steps in (("reader", pairs, a.generator_steps), ("alone", alone, a.alone_steps)):
        made.append(
            train(
                "t5", task="seq2seq", data=written(rows, out / f"{name}.jsonl"), steps=steps, batch=32, lr=3e-3,
                out=out / name, overrides=t5, **common,
            ).model
        )  # fmt: skip
    return bert, made[0]


def one(a: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All of it, with one seed; what an earlier call has made is taken as it is."""
    out = Path(a.out) / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    some, rng, began = facts(a.facts, seed), random.Random(seed), time.perf_counter()
    places = rng.sample(range(len(some)), len(some))
    cut = len(some) // 5
    held = [(i, question(some[i], form)) for i in places[:cut] for form in range(len(FORMS))]
    learn = places[cut:]
    kinds = sorted({fact.kind for fact in some})
    other = [Fact(f.noun, rng.choice([k for k in kinds if k != f.kind]), f.gloss) for f in some]
    draw, drawn = random.Random(seed + 1), set(learn)
    lessons = [Fact(f.noun, draw.choice(kinds), f.gloss) if i in drawn else f for i, f in enumerate(some)]
    place, swapped, taught = (out / f"{name}-index" for name in ("facts", "altered", "lessons"))
    if not (out / "start").exists():
        bert, generator = parts(a, some, learn, out, seed)
        bert.save(out / "encoder")
        encoder = Encoder(af.load(out / "encoder"), str(out / "encoder"))
        for name, each in (("facts", some), ("altered", other), ("lessons", lessons)):
            indexed(each, encoder, out, name)
        joined(bert, generator, documents=True, passages=K, longest=64, between=" // ").save(out / "start")
    made: dict[str, Any] = {}
    began = time.perf_counter() - began
    forms = range(len(FORMS))
    rows = [{"question": question(some[i], form), "answer": lessons[i].kind} for i in learn for form in forms]
    data = written(rng.sample(rows, len(rows)), out / "questions.jsonl")
    for name, trainable in (("frozen", ["generator.**"]), ("joint", None)):
        start, before = time.perf_counter(), Reader(af.load(out / "start"), Passages.of(place))
        made[f"{name}, before"] = recalls(before, held)
        result = finetune(
            model=str(out / "start"), data=data, index=str(taught), refresh=a.refresh if trainable is None else 0,
            method="full", steps=a.steps, batch=a.batch, lr=a.lr, out=out / name, held_out=0.02, trainable=trainable,
            seed=seed, quiet=not a.loud, eval_every=0, save_every=100, resume="auto",
        )  # fmt: skip
        if result.stopped:
            raise SystemExit(f"{name}: stopped at step {result.steps}; the same command goes on from there")
        made[f"{name}, seconds"] = time.perf_counter() - start
    scores: dict[str, Any] = {"seconds": began, "before": made["joint, before"]}
    for name in ("frozen", "joint"):
        model = af.load(sorted((out / name).glob("step-*"))[-1])
        reader = Reader(model, Passages.of(place))
        said = answers(reader, held)
        turned = answers(Reader(model, Passages.of(swapped)), held)
        scores[name] = {
            "recall": recalls(reader, held), "right": right(said, held, some), "new": right(turned, held, other),
            "old": right(turned, held, some), "seconds": made[f"{name}, seconds"],
        }  # fmt: skip
    by_words = ByWords(model, Passages.of(place))
    by_words.store = Store(place)
    scores["BM25"] = {"recall": recalls(by_words, held), "right": right(answers(by_words, held), held, some)}
    texts = [text for _, text in held]
    alone = af.load(sorted((out / "alone").glob("step-*"))[-1])
    said = [text.strip() for text in af.generate.generate(alone, texts, max_new_tokens=8)]
    most = Counter(some[i].kind for i in learn).most_common(1)[0][0]
    scores["no passages"] = {"right": right(said, held, some)}
    scores["the most frequent kind"] = {"right": right([most] * len(held), held, some)}
    return scores


def table(every: Sequence[dict[str, Any]], a: argparse.Namespace) -> str:
    """The results of all seeds, one after another in each cell."""
    names = {
        "joint": "RAG, learned together", "frozen": "RAG, encoders frozen", "BM25": "its generator, passages by BM25",
        "no passages": "T5 without passages", "the most frequent kind": "the most frequent kind",
    }  # fmt: skip
    head = "| | passage first | among five | answers right | index swapped: new | old | seconds |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for key, label in names.items():
        cells = [[_share(s[key].get("recall", (None, None))[n]) for s in every] for n in (0, 1)]
        cells += [[_share(s[key].get(what)) for s in every] for what in ("right", "new", "old")]
        cells.append([f"{s[key]['seconds']:.0f}" if "seconds" in s[key] else "" for s in every])
        lines.append(f"| {label} | " + " | ".join(", ".join(filter(None, cell)) for cell in cells) + " |")
    count = a.facts // 5
    seeds, most = ", ".join(map(str, a.seeds)), 2 * (0.25 / count) ** 0.5
    return "\n".join(lines) + (
        f"\n\n{a.facts:,} facts, {count} nouns held out, four questions each; seeds {seeds}, in this order in each "
        f"cell. Two standard errors of a share of {count} nouns are at most {most:.1%}."
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"facts": 500, "vocab": 5000, "dim": 64, "drawn": 15, "encoder_steps": 600, "generator_steps": 600,
               "alone_steps": 100, "steps": 600, "batch": 12, "refresh": 25}  # fmt: skip
    for name, value in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--doc", type=Path)
    parser.add_argument("--loud", action="store_true", help="show the run's progress")
    a = parser.parse_args()
    every = []
    for seed in a.seeds:
        every.append(one(a, seed))
        (Path(a.out) / "scores.json").write_text(json.dumps(every, indent=2) + "\n")
    made = table(every, a)
    print(made)
    if a.doc is not None:
        documents.put(a.doc, *MARKS, made)


if __name__ == "__main__":
    main()
