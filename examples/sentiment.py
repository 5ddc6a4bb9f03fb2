"""Film reviews, positive or negative: MiniLM tuned in five ways, beside TF-IDF and logistic regression.

    python examples/data.py sentiment data
    python examples/sentiment.py data runs/sentiment      # prints the table of docs/finetuning.md; needs scikit-learn

Each row is a process of its own: its peak of memory (VmHWM, Linux) has Python and PyTorch in it, 0.4 GB before there is
a model. The second line of METHODS is what many do first: MiniLM stays as it is, and only a head on it learns.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "head alone": {"method": "full", "trainable": ["heads.**", "pool.**"], "lr": 2e-3},
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "dora": {"method": "dora"},
    "qlora": {"method": "qlora"},
}


def tuned(name: str, data: Path, out: Path) -> dict[str, Any]:
    """One method in this process: what is in its row of the table."""
    from anyformer.train import finetune

    train, test = data / "train.csv", data / "test.csv"
    began = time.process_time()
    done = finetune("minilm", train, out=out / name.replace(" ", "-"), held_out=str(test), epochs=2, **METHODS[name])
    assert done.after is not None
    return {
        "method": name, "accuracy": 1 - done.after, "learned": done.learned,
        "kept": sum(f.stat().st_size for f in done.checkpoint.iterdir() if re.match("model|adapter", f.name)),
        "peak": int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024,
        "seconds": time.process_time() - began,
    }  # fmt: skip


def baseline(data: Path) -> float:
    """Accuracy of logistic regression on TF-IDF of words and pairs of words; C by cross-validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline

    sets = []
    for name in ("train", "test"):
        with (data / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            sets.append([(row["text"], row["label"]) for row in csv.DictReader(file)])
    (x, y), (x_test, y_test) = (zip(*rows, strict=True) for rows in sets)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegressionCV(max_iter=1000, scoring="accuracy", l1_ratios=(0.0,), use_legacy_attributes=False),
    )
    return float(model.fit(x, y).score(x_test, y_test))


def main(data: Path, out: Path) -> None:
    """Runs all and prints the table."""
    columns = ["", "accuracy", "numbers that learn", "kept on disk", "peak of memory", "processor time"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print(f"| TF-IDF, logistic regression | {baseline(data):.1%} | | | | |", flush=True)
    for name in METHODS:
        done = subprocess.run(
            [sys.executable, __file__, str(data), str(out), name], stdout=subprocess.PIPE, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {row['accuracy']:.1%} | {row['learned']:,} | {row['kept'] / 1e6:.1f} MB | "
            f"{row['peak'] / 1e9:.2f} GB | {row['seconds']:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(tuned(sys.argv[3], Path(sys.argv[1]), Path(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
