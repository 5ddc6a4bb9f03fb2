"""Do published GGUF weights say the same here and in the peers? The likeliest next token after 20 prompts.

Every contestant reads the same GGUF file and the same token ids. transformers and we turn the weights into float32;
llama.cpp multiplies 4-bit weights with activations of 8 bits, so its logits are near ours and not equal: where the two
likeliest tokens are nearly as likely, it may prefer the other one. The margin is ours, in logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.contest import THREADS, Contestant, Missing, started
from benchmarks.report import Section, row

MODELS = {"gemma3": "Gemma 3 270M, Q4_K_M", "smollm2": "SmolLM2-135M-Instruct, Q4_1"}
CONTESTANTS = {
    "ours": Contestant("anyformer"),
    "hf": Contestant("transformers", against="ours"),
    "llama_cpp": Contestant("llama.cpp", "llamacpp", "ours"),
}
PROMPTS = (
    "The capital of France is", "Water boils at a temperature of", "Once upon a time, there was a little",
    "def fibonacci(n):\n    if n <", "The opposite of hot is", "In 1969, humans first walked on the",
    "To be, or not to be, that is the", "The three primary colours are red, yellow and", "1, 2, 3, 4, 5,",
    "The chemical symbol for gold is", "My favourite season is summer because", "import numpy as",
    "The largest planet of the solar system is", "Shakespeare wrote the play Romeo and", "A dozen eggs are",
    "Die Hauptstadt von Deutschland ist", "The quick brown fox jumps over the lazy", "Two plus two equals",
    "She opened the door and saw", "The author of the theory of relativity was Albert",
)  # fmt: skip
Likeliest = Callable[[list[int]], list[float]]  # from token ids to the logits of the next one


def ours(path: str) -> Likeliest:
    import torch

    import anyformer as af

    torch.set_num_threads(THREADS)
    model = af.load(path).eval()

    @torch.no_grad()
    def logits(ids: list[int]) -> list[float]:
        return model(torch.tensor([ids])).logits[0, -1].tolist()

    return logits


def hf(path: str) -> Likeliest:
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    file = Path(path)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()

    @torch.no_grad()
    def logits(ids: list[int]) -> list[float]:
        return model(torch.tensor([ids])).logits[0, -1].tolist()

    return logits


def llama_cpp(path: str) -> Likeliest:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=64, n_threads=THREADS, n_threads_batch=THREADS, logits_all=True, verbose=False)

    def logits(ids: list[int]) -> list[float]:
        model.reset()
        model.eval(ids)
        return model.scores[len(ids) - 1].tolist()

    return logits


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The function that says, for a file and prompts, which token is likeliest after each, and by how much."""

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        best_tokens, logits = [], globals()[name](request["path"])
        for ids in request["prompts"]:
            scores = logits(ids)
            best = max(range(len(scores)), key=scores.__getitem__)
            second = max(s for i, s in enumerate(scores) if i != best)
            best_tokens.append((best, scores[best] - second))
        return {"found": best_tokens}

    return {}, serve


def prompts(name: str) -> dict[str, Any]:
    """The path of a model's file, and the prompts as its own tokenizer reads them.

    Raises:
        Missing: if the file cannot be had.
    """
    from anyformer.data import sources
    from anyformer.hub.load import load

    try:
        path = str(sources.get(name))
    except OSError as error:
        raise Missing(f"the weights of {name} are not to be had: {error}") from error
    tokenizer = load(path).tokenizer
    return {"path": path, "prompts": [tokenizer.encode(text) for text in PROMPTS], "decode": tokenizer.decode}


def run(rounds: int = 1) -> Section:
    """The section of the report. Nothing is timed, so `rounds` changes nothing."""
    notes: list[str] = []
    table = [row("", "", "the same token as anyformer", "the smallest margin where it is", "the largest where not")]
    for name, title in MODELS.items():
        asked = prompts(name)
        decode = asked.pop("decode")
        workers = started("agreement", CONTESTANTS, notes if name == next(iter(MODELS)) else [])
        answers = {key: worker.ask(**asked)["found"] for key, worker in workers.items()}
        for worker in workers.values():
            worker.close()
        mine = answers.pop("ours")
        for key, theirs in answers.items():
            same = [(a[0] == b[0], a[1]) for a, b in zip(mine, theirs, strict=True)]
            yes, no = ([margin for equal, margin in same if equal is side] for side in (True, False))
            cells = f"{len(yes)} of {len(same)}", f"{min(yes, default=0):.3f}", f"{max(no):.3f}" if no else ""
            table.append(row(title, CONTESTANTS[key].name, *cells))
            for prompt, a, b in zip(PROMPTS, mine, theirs, strict=True):
                if a[0] != b[0]:
                    here, there = (repr(decode([t])) for t in (a[0], b[0]))
                    notes.append(f"after {prompt!r} {CONTESTANTS[key].name} prefers {there} to {here} ({title}).")
    return Section("Agreement on published weights", (__doc__ or "").strip(), table, [], notes, timed=False)
