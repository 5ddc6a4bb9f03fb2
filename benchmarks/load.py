"""SmolLM2-135M in float32, from a GGUF file and from a safetensors directory, to the first forward.

Every turn is a new process, in which the libraries are imported before the clock starts; the files are in the page
cache. A directory is mapped into memory, which puts work off until the weights are used: so the first forward, of 8
tokens, is measured as well and compared together with the load. Peak memory is what the process grew by from before the
load (`VmHWM`, resident memory) in relation to the weights, 4 bytes a parameter. "Of it file" is the part of resident
memory after the forward that is pages of the mapped file: the system counts them, but shares them between processes and
takes them back when memory is short.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import weights
from benchmarks.contest import THREADS, Contestant, afresh, ratio, spread
from benchmarks.machine import resident
from benchmarks.report import Claim, Section, row, times

TOKENS = 8
CONTESTANTS = {
    "ours_gguf": Contestant("anyformer, GGUF, with tokenizer"),
    "hf_gguf": Contestant("transformers, GGUF", against="ours_gguf"),
    "ours_bare": Contestant("anyformer, directory"),
    "ours_folder": Contestant("anyformer, directory, with tokenizer"),
    "hf_folder": Contestant("transformers, directory", against="ours_bare"),
}
Step = Callable[[], Any]


def _ours(path: str | Path) -> tuple[Step, Step | None]:
    import tokenizers  # noqa: F401 (imported before the clock starts, as theirs is)

    import anyformer as af

    load = af.load  # the attribute imports anyformer.hub
    return lambda: load(path), None


def ours_gguf(facts: dict[str, Any]) -> tuple[Step, Step | None]:
    return _ours(facts["gguf"])


def ours_bare(facts: dict[str, Any]) -> tuple[Step, Step | None]:
    return _ours(weights.BARE)


def ours_folder(facts: dict[str, Any]) -> tuple[Step, Step | None]:
    return _ours(weights.WITH_TOKENIZER)


def _hf(path: str | Path, **file: str) -> tuple[Step, Step | None]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.llama import modeling_llama  # noqa: F401 (as above)

    return (
        lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **file),
        lambda: AutoTokenizer.from_pretrained(path, **file),
    )


def hf_gguf(facts: dict[str, Any]) -> tuple[Step, Step | None]:
    import gguf  # noqa: F401 (transformers needs it here)

    path = Path(facts["gguf"])
    return _hf(path.parent, gguf_file=path.name)


def hf_folder(facts: dict[str, Any]) -> tuple[Step, Step | None]:
    return _hf(weights.WITH_TOKENIZER)


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Nothing to say beforehand, and the function that does it once."""
    import torch

    torch.set_num_threads(THREADS)
    facts = weights.facts()
    load, tokenizer = globals()[name](facts)
    torch.randn(64, 64) @ torch.randn(64, 64)  # starts the threads
    ids = torch.tensor([facts["prompt"][:TOKENS]])

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # the peak so far is that of the imports: forget it
            Path("/proc/self/clear_refs").write_text("5")
        before, clock = resident(), [time.perf_counter()]
        model = load()
        clock.append(time.perf_counter())
        loaded = resident()
        clock.append(time.perf_counter())
        with torch.inference_mode():
            best = model(ids).logits.argmax(-1)  # (1, T)
        clock.append(time.perf_counter())
        after = resident()
        answer = {"load": clock[1] - clock[0], "forward": clock[3] - clock[2], "best": best.tolist()}
        if before:
            peaks = {"peak_load": loaded["VmHWM"] - before["VmRSS"], "peak": after["VmHWM"] - before["VmRSS"]}
            answer |= peaks | {"file": after["RssFile"] - before["RssFile"]}
        if tokenizer is not None:
            start = time.perf_counter()
            tokenizer()
            answer["tokenizer"] = time.perf_counter() - start
        return answer

    return {}, serve


# key, name, compared with, answers of, with the time of the tokenizer added?
ROWS = (
    ("gguf", "anyformer, GGUF, with tokenizer", "", "ours_gguf", False),
    ("hf_gguf", "transformers, GGUF", "gguf", "hf_gguf", False),
    ("hf_gguf_all", "transformers, GGUF, with tokenizer", "gguf", "hf_gguf", True),
    ("folder", "anyformer, directory", "", "ours_bare", False),
    ("hf_folder", "transformers, directory", "folder", "hf_folder", False),
    ("folder_all", "anyformer, directory, with tokenizer", "", "ours_folder", False),
    ("hf_folder_all", "transformers, directory, with tokenizer", "folder_all", "hf_folder", True),
)
HEAD = row("", "load, s", "time / ours", "first forward, s", "load and forward / ours")
HEAD += " peak of the load | with the forward | of it file |"


def run(rounds: int = 5) -> Section:
    """The section of the report."""
    notes: list[str] = []
    size = 4 * weights.prepared()["parameters"]
    answers = afresh("load", CONTESTANTS, rounds, {}, notes)
    load: dict[str, list[float]] = {}
    both: dict[str, list[float]] = {}
    table = [HEAD]
    for key, name, against, source, tokenizer in ROWS:
        if source not in answers:
            continue
        rows = answers[source]
        load[key] = [a["load"] + (a["tokenizer"] if tokenizer else 0.0) for a in rows]
        cells = [f"{spread(load[key])[0]:.2f}", times(ratio(load[key], load[against])) if against else ""]
        if "forward" in rows[0]:
            both[key] = [t + a["forward"] for t, a in zip(load[key], rows, strict=True)]
            cells += [f"{spread([a['forward'] for a in rows])[0]:.2f}"]
            cells += [times(ratio(both[key], both[against])) if against else ""]
        memory = [f"{_middle(rows, k) / size:.2f} ×" for k in ("peak_load", "peak", "file") if k in rows[0]]
        cells += [""] * (4 - len(cells)) + (memory if not tokenizer else [])
        table.append(row(name, *cells, *[""] * (7 - len(cells))))
    if len({str(a["best"]) for rows in answers.values() for a in rows if "best" in a}) > 1:
        notes.append("**the contestants' likeliest next tokens differ.**")
    claims = [
        *_claim("load, GGUF", load, "gguf", "hf_gguf"),
        *_claim("load and first forward, directory", both, "folder", "hf_folder"),
        *_memory_claim("peak memory, GGUF", "peak_load", answers, "ours_gguf", "hf_gguf", size),
        *_memory_claim("peak memory with first forward, directory", "peak", answers, "ours_bare", "hf_folder", size),
    ]
    text = (
        f"{(__doc__ or '').strip()}\n\nRounds: {rounds}; medians (quartiles). "
        f"{size / 1e6:.0f} MB of weights. " + _aims(load, answers, size)
    )
    return Section("Loading", text, table, claims, notes)


def _middle(rows: list[dict[str, Any]], key: str) -> float:
    return spread([float(a[key]) for a in rows])[0]


def _claim(what: str, taken: dict[str, list[float]], ours: str, peer: str) -> list[Claim]:
    """The comparison of two rows, if the peer took part."""
    if peer not in taken:
        return []
    figures = [f"{spread(taken[key])[0]:.2f} s" for key in (ours, peer)]
    name = next(r[1] for r in ROWS if r[0] == peer)
    return [Claim(what, name, figures[0], figures[1], ratio(taken[peer], taken[ours]), len(taken[ours]))]


def _memory_claim(
    what: str, key: str, answers: dict[str, list[dict[str, Any]]], ours: str, peer: str, size: int
) -> list[Claim]:
    """The same of peak memory; nothing where it was not measured."""
    if peer not in answers or key not in answers[ours][0]:
        return []
    grown = [[float(a[key]) for a in answers[name]] for name in (ours, peer)]
    figures = [f"{spread(g)[0] / size:.2f} × the weights" for g in grown]
    return [Claim(what, CONTESTANTS[peer].name, figures[0], figures[1], ratio(grown[1], grown[0]), len(grown[0]))]


def _aims(load: dict[str, list[float]], answers: dict[str, list[dict[str, Any]]], size: int) -> str:
    """What is wanted, and whether it was reached."""
    aims = []
    if "hf_gguf" in load:
        share = 1 / ratio(load["hf_gguf"], load["gguf"])[0]
        aims.append((f"GGUF in at most a fifth of the peer's time without its tokenizer ({share:.2f})", share <= 0.2))
    if "hf_folder" in load:
        r = ratio(load["hf_folder"], load["folder"])
        aims.append((f"a directory no slower ({1 / r[0]:.2f})", r[2] >= 1))
    ours = [name for name in ("ours_gguf", "ours_bare", "ours_folder") if "peak" in answers[name][0]]
    if ours:
        most = max(_middle(answers[name], "peak_load") for name in ours) / size
        aims.append((f"loads within 1.2 × the weights ({most:.2f})", most <= 1.2))
    return "Aims: " + "; ".join(f"{what}: {'reached' if good else 'missed'}" for what, good in aims) + "."
