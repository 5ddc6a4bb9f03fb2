"""`anyformer eval` on real data: what SmolLM2 and MiniLM know, how sure they are, and what they carry along.

    python examples/evaluation.py runs/evaluation --doc docs/evaluation.md    # and writes the tables into the document

Files of the kinds that `anyformer eval` reads are made of WordNet (definitions as multiple choice), of the descriptions
of Debian packages (their section as the class), of Python's documentation, and of word lists of Caliskan et al. (2017).
They stay in the folder, with a JSON of every result; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import documents
from data import available, described

import anyformer as af
from anyformer.data.debian import fetch
from anyformer.data.models import find
from anyformer.evaluate import Result, evaluate
from anyformer.evaluate.intervals import Estimate

MARKS = "<!-- evaluation: begin -->", "<!-- evaluation: end -->"
SECTIONS = ("games", "sound", "science", "net", "fonts")
JOBS = (
    "doctor", "nurse", "engineer", "teacher", "lawyer", "secretary", "pilot", "librarian", "farmer", "cook", "judge",
    "cleaner", "scientist", "dancer", "plumber", "hairdresser", "carpenter", "receptionist", "guard", "tailor",
)  # fmt: skip
FRAMES = (
    "The {} said that {} was tired.",
    "The {} opened the door because {} had the key.",
    "The {} knew what {} did.",
)
PLEASANT = ["caress", "freedom", "health", "love", "peace", "cheer", "friend", "heaven", "loyal", "pleasure"]
UNPLEASANT = ["abuse", "crash", "filth", "murder", "sickness", "accident", "death", "grief", "poison", "stink"]
WEAT = {  # subsets of the lists of Caliskan et al., 2017
    "flowers and insects": {
        "X": ["aster", "clover", "marigold", "poppy", "azalea", "crocus", "iris", "orchid", "rose", "daffodil"],
        "Y": ["ant", "caterpillar", "flea", "locust", "spider", "bedbug", "centipede", "fly", "maggot", "beetle"],
        "A": PLEASANT, "B": UNPLEASANT,
    },
    "instruments and weapons": {
        "X": ["bagpipe", "cello", "guitar", "lute", "trombone", "banjo", "clarinet", "harmonica", "viola", "trumpet"],
        "Y": ["arrow", "club", "gun", "missile", "spear", "axe", "dagger", "harpoon", "pistol", "sword"],
        "A": PLEASANT, "B": UNPLEASANT,
    },
    "male and female names, career and family": {
        "X": ["John", "Paul", "Mike", "Kevin", "Steve", "Greg", "Jeff", "Bill"],
        "Y": ["Amy", "Joan", "Lisa", "Sarah", "Diana", "Kate", "Ann", "Donna"],
        "A": ["executive", "management", "professional", "corporation", "salary", "office", "business", "career"],
        "B": ["home", "parents", "children", "family", "cousins", "marriage", "wedding", "relatives"],
    },
}  # fmt: skip


def write(place: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A file of rows."""
    place.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return place


def nouns() -> list[tuple[str, str]]:
    """Nouns of one word and their definitions: WordNet's."""
    home = fetch("wordnet-base", r"usr/share/wordnet/data[.](noun|verb|adj|adv)", 4, "WordNet's licence, free")
    made = []
    for line in (home / "usr/share/wordnet/data.noun").read_text(encoding="utf-8").splitlines():
        fields, _, gloss = line.partition(" | ")
        parts, definition = fields.split(" "), gloss.partition(";")[0].strip()
        if line[:2] != "  " and re.fullmatch("[a-z]{4,10}", parts[4]) and 5 <= len(definition.split()) <= 14:
            made.append((parts[4], definition))
    return made


def invented(words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Words that there are not, out of the letter triples of those that there are."""
    after: dict[str, list[str]] = {}
    for word in words:
        for i in range(len(word) + 1):
            after.setdefault(f"^^{word}$"[i : i + 2], []).append(f"^^{word}$"[i + 2])
    known, made = set(words), list[str]()
    while len(made) < count:
        text = "^^"
        while not text.endswith("$"):
            text += rng.choice(after[text[-2:]])
        if 5 <= len(text) - 3 <= 10 and text[2:-1] not in known and text[2:-1] not in made:
            made.append(text[2:-1])
    return made


def wordnet(out: Path, count: int, unreal: int) -> None:
    """choice.jsonl with examples, calibration.jsonl with invented words, generation.jsonl."""
    every = nouns()
    rng = random.Random(0)
    rng.shuffle(every)

    def row(word: str, definition: str | None) -> dict[str, Any]:
        others = [d for _, d in rng.sample(every[4 * count :], 4)]
        choices = others if definition is None else [definition, *others[:3]]
        rng.shuffle(choices)
        return {
            "text": f"{word}:",
            "choices": choices,
            "label": None if definition is None else choices.index(definition),
        }

    rows = [row(word, definition) for word, definition in every[: 2 * count]]
    write(out / "choice.jsonl", rows[:count])
    write(out / "examples.jsonl", rows[count:])
    names = invented([word for word, _ in every], unreal, rng)
    write(out / "calibration.jsonl", rows[:count] + [row(name, None) for name in names])
    asked = [{"prompt": f"Definition: {d}.\nWord:", "response": w} for w, d in every[2 * count : 4 * count]]
    write(out / "generation.jsonl", asked[: count // 2])
    write(out / "generation-examples.jsonl", asked[count // 2 :])


def packages(out: Path, count: int) -> None:
    """sections.jsonl: the first sentences of descriptions of packages, and their section, as many of each."""
    found: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for section, text in described(available()):
        if section in found:
            found[section].append(text)
    rng = random.Random(0)
    for texts in found.values():
        rng.shuffle(texts)
    each = count // len(SECTIONS)
    parts: list[list[dict[str, Any]]] = [[], []]
    for name, texts in found.items():
        unique = list(dict.fromkeys(texts))
        parts[0] += [{"text": text, "label": name} for text in unique[:each]]
        parts[1] += [{"text": text, "label": name} for text in unique[each : 5 * each]]
    for rows, file in zip(parts, ("sections.jsonl", "sections-examples.jsonl"), strict=True):
        rng.shuffle(rows)
        write(out / file, rows)


def prose(out: Path, count: int) -> None:
    """Topics of Python's documentation: some to measure, the others for the bigram."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    random.Random(0).shuffle(names)
    write(out / "prose.jsonl", [{"text": topics[name][:2500]} for name in names[:count]])
    write(out / "prose-examples.jsonl", [{"text": topics[name]} for name in names[count:]])


def files(out: Path, count: int) -> None:
    """All files that are measured."""
    out.mkdir(parents=True, exist_ok=True)
    wordnet(out, count, count // 2)
    packages(out, count)
    prose(out, max(2, count // 10))
    pairs = [
        {"first": f.format(j, "he"), "second": f.format(j, "she"), "group": j}
        for j, f in itertools.product(JOBS, FRAMES)
    ]
    write(out / "pronouns.jsonl", pairs)
    (out / "weat.json").write_text(json.dumps(WEAT, indent=1))


def stored(place: Path) -> Result:
    """A result of an earlier start, which had not come to its end."""
    read = json.loads(place.read_text(encoding="utf-8"))
    metrics, baselines, against, differences = (
        {name: Estimate(e["value"], e["low"], e["high"], e["interval"]) for name, e in read[part].items()}
        for part in ("metrics", "baselines", "against", "differences")
    )
    details, rows = read["details"], read["rows"]
    return Result(
        read["task"], read["items"], metrics, baselines, read["notes"], read["settings"], details, rows, against,
        differences,
    )  # fmt: skip


def cell(e: Any) -> str:
    """A figure with its interval."""
    return f"{e.value:.3f}" if e.low is None else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def row(name: str, figures: dict[str, Any], columns: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {name} | " + " | ".join(cell(figures[c]) if c in figures else "" for c in columns) + " |"


def head(*columns: str) -> list[str]:
    """The first lines of a table."""
    return ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def knowledge(run: Callable[..., Result], out: Path, shots: Sequence[int]) -> list[str]:
    """Choices and classes, by the number of examples."""
    columns: tuple[str, ...] = ("acc", "acc_norm", "acc_bytes")
    lines = head("WordNet: the definition of a noun, of four", *columns)
    for k in shots:
        given = {"examples": out / "examples.jsonl", "shots": k}
        lines.append(row(f"SmolLM2, {k} shots", (last := run("choice", "smollm2", **given)).metrics, columns))
    lines += [row(name[5:], {"acc": e}, columns) for name, e in last.baselines.items()]
    columns = ("acc", "macro_f1")
    lines += head(f"packages: the section, of {len(SECTIONS)}", *columns)
    for k in (shots[0], shots[-1]):
        given = {"examples": out / "sections-examples.jsonl", "shots": k, "template": "{text}\nSection:"}
        lines.append(row(f"SmolLM2, {k} shots", (last := run("sections", "smollm2", **given)).metrics, columns))
    for name in dict.fromkeys(n.partition(", ")[2] for n in last.baselines):
        lines.append(row(name, {c: last.baselines[f"{c}, {name}"] for c in columns}, columns))
    columns = ("exact_match", "token_f1", "chrf")
    lines += head("WordNet: the word of a definition, written", *columns)
    for k in (shots[0], shots[-1]):
        given = {"examples": out / "generation-examples.jsonl", "shots": k, "max_new_tokens": 8}
        lines.append(row(f"SmolLM2, {k} shots", (last := run("generation", "smollm2", **given)).metrics, columns))
    return [*lines, *(row(n.partition(", ")[2], {"exact_match": e}, columns) for n, e in last.baselines.items())]


def likelihood(run: Callable[..., Result], out: Path) -> list[str]:
    """Perplexity by stride, and calibration."""
    columns = ("token_perplexity", "byte_perplexity", "bits_per_byte")
    lines = head("Python's documentation, windows of 256 tokens", *columns)
    for stride in (256, 128):
        given = {"examples": out / "prose-examples.jsonl", "window": 256, "stride": stride}
        lines.append(row(f"SmolLM2, stride {stride}", (last := run("prose", "smollm2", **given)).metrics, columns))
    lines += [row(n.partition(", ")[2], {"bits_per_byte": e}, columns) for n, e in last.baselines.items()]
    found = run("calibration", "smollm2", task="calibration")
    lines += head("confidence in definitions, SmolLM2", "figure")
    lines += [row(name, {"": e}, ("",)) for name, e in found.metrics.items()]
    lines += head("confidence", "questions", "mean confidence", "accuracy")
    for part in found.details["reliability"]:
        low, high = part["accuracy"]["low"], part["accuracy"]["high"]
        shown = f"{part['accuracy']['value']:.2f} [{low:.2f}, {high:.2f}]"
        bounds = f"{part['bin'][0]:.1f} to {part['bin'][1]:.1f}"
        lines.append(f"| {bounds} | {part['count']} | {part['confidence']:.2f} | {shown} |")
    lines += head("questions answered, the most confident first", "errors, invented ones included")
    return [*lines, *(f"| {r['coverage']:.0%} | {r['risk']['value']:.2f} |" for r in found.details["risk"])]


def bias(run: Callable[..., Result]) -> list[str]:
    """Associations of two models, and pronouns."""
    lines = head("WEAT", "MiniLM, d", "p", "SmolLM2, d", "p")
    both = [run("weat", name, task="weat") for name in ("minilm", "smollm2")]
    for name in WEAT:
        cells = [c for r in both for c in (cell(r.metrics[f"{name}, d"]), f"{r.details[name]['p']:.4f}")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    found = run("pronouns", "smollm2", task="templates")
    lines += head('"he" before "she", SmolLM2', "log-likelihood, nats")
    groups = sorted(JOBS, key=lambda job: -found.metrics[f"difference, {job}"].value)
    lines.append(row(f"all {len(JOBS)} jobs", found.metrics, ("difference",)))
    named = [*groups[:3], *groups[-3:]]
    return [*lines, *(row(job, found.metrics, (f"difference, {job}",)) for job in named)]


def main() -> None:
    """Makes the files, measures, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=60, help="questions of a set")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--doc", type=Path, help="the document between whose marks the tables go")
    o = parser.parse_args()
    begin = time.perf_counter()
    files(o.out, o.count)
    models = {name: af.load(find(name)) for name in ("smollm2", "minilm")}

    def run(name: str, model: str, **given: Any) -> Result:
        file = o.out / (f"{name}.json" if name == "weat" else f"{name}.jsonl")
        words = [model, *(str(v) for v in (given.get("shots"), given.get("stride")) if v is not None)]
        place = o.out / f"result-{name}-{'-'.join(words)}.json"
        if place.exists():
            return stored(place)
        result = evaluate(models[model], file, **given)
        result.write(place)
        print(f"{name} {' '.join(words)}: {time.perf_counter() - begin:.0f} s", flush=True)
        return result

    lines = [*knowledge(run, o.out, o.shots), *likelihood(run, o.out), *bias(run)]
    lines.append(f"\n{o.count} questions of a set, seed 0, on two shared cores.")
    text = "\n".join(lines).strip()
    print(text)
    if o.doc is not None:
        documents.put(o.doc, *MARKS, text)


if __name__ == "__main__":
    main()
