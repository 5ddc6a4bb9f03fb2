"""Prefill (512 tokens) and decoding (64 tokens) of SmolLM2-135M: one text, greedy, an end of text is not heeded.

Each through its own generation loop: ours `generate.Decoding`, which `generate`, `stream` and `chat` run on;
`transformers` its `generate` with sdpa and a streamer as the clock; llama.cpp its `generate`. Prefill is the time from
the call to the first token, decoding that from the first token to the 65th.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks import weights
from benchmarks.contest import THREADS, Contestant, compete, ratio, spread, started
from benchmarks.report import Claim, Section, percent, row, times

NEW = 64  # tokens after the first
CONTESTANTS = {
    "ours": Contestant("anyformer, float32"),
    "hf": Contestant("transformers, float32", against="ours"),
    "llama_cpp": Contestant("llama.cpp, 4-bit weights", "llamacpp", "ours"),
    "machine": Contestant("what the machine can do"),
}
Run = Callable[[list[int], Callable[[int], None]], None]  # continues ids; each new token goes to the second argument


def ours(facts: dict[str, Any]) -> Run:
    import torch

    import anyformer as af
    from anyformer.generate.decoding import Decoding
    from anyformer.generate.options import Options

    torch.set_num_threads(THREADS)
    model = af.load(facts["gguf"])
    model.tokenizer = None  # it knows the ends of texts
    options = Options(NEW + 1, 0.0, None, None, None, None, (), None, True)

    def run(prompt: list[int], tell: Callable[[int], None]) -> None:
        decoding = Decoding(model, [prompt], options)
        while decoding.rows:
            for _, token in decoding.step():
                tell(token)

    return run


def hf(facts: dict[str, Any]) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(weights.BARE, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None

    class Clock:
        """A streamer: `generate` hands it the prompt, then each token."""

        def __init__(self, tell: Callable[[int], None]):
            self.tell, self.begun = tell, False

        def put(self, ids: torch.Tensor) -> None:
            if self.begun:
                self.tell(int(ids[0]))
            self.begun = True

        def end(self) -> None:
            """Nothing is held back."""

    def run(prompt: list[int], tell: Callable[[int], None]) -> None:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW + 1, streamer=Clock(tell))

    return run


def llama_cpp(facts: dict[str, Any]) -> Run:
    from llama_cpp import Llama

    model = Llama(
        facts["gguf"], n_ctx=1024, n_batch=weights.PROMPT, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
    )

    def run(prompt: list[int], tell: Callable[[int], None]) -> None:
        model.reset()  # it would not read the same prompt twice
        tokens = model.generate(prompt, temp=0.0)
        for _ in range(NEW + 1):
            tell(int(next(tokens)))

    return run


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Facts, and the function that continues the prompt and says which tokens came and how long it took."""
    facts = weights.facts()
    if name == "machine":
        import torch

        from anyformer.core.machine import read_rate
        from benchmarks.machine import matmul_rate

        torch.set_num_threads(THREADS)
        return {}, lambda request: {"matmul": matmul_rate(), "read": read_rate()}
    run: Run = globals()[name](facts)

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        tokens: list[int] = []
        clock = [time.perf_counter()]

        def tell(token: int) -> None:
            clock.append(time.perf_counter())
            tokens.append(token)

        run(facts["prompt"], tell)
        assert len(tokens) == NEW + 1, f"{name} gave {len(tokens)} tokens instead of {NEW + 1}"
        return {"prefill": clock[1] - clock[0], "decode": clock[-1] - clock[1], "tokens": tokens}

    return {}, serve


def run(rounds: int = 8) -> Section:
    """The section of the report."""
    notes: list[str] = []
    facts = weights.prepared()
    workers = started("decode", CONTESTANTS, notes)
    compete(workers, CONTESTANTS, 1, {}, notes)  # warm-up
    answers = compete(workers, CONTESTANTS, rounds, {}, notes)
    for worker in workers.values():
        worker.close()
    bounds = answers.pop("machine")
    matmul, read = (max(a[key] for a in bounds) for key in ("matmul", "read"))
    work = 2 * (facts["parameters"] - facts["table"])  # FLOP a token, the products of attention left out
    speeds = ("prefill, tokens/s", "of the peak", "time / ours")
    table = [row("", "weights", *speeds, "decoding, tokens/s", "of the memory bound", "time / ours")]
    claims: dict[str, list[Claim]] = {"prefill": [], "decode": []}
    for name, rows in answers.items():
        size = facts["gguf_bytes"] if name == "llama_cpp" else 4 * facts["parameters"]
        cells = []
        for part, count in (("prefill", weights.PROMPT), ("decode", NEW)):
            taken = [a[part] for a in rows]
            ours = [a[part] for a in answers["ours"]]
            rate = count / spread(taken)[0]
            bound = work / matmul if part == "prefill" else size / read  # seconds a token, at least
            r = ratio(taken, ours)
            alike = name == "hf"  # the same float32 weights
            cells += [f"{rate:,.1f}", percent(rate * bound), times(r) if alike else ""]
            if alike:
                figures = f"{count / spread(ours)[0]:,.1f} tokens/s", f"{rate:,.1f} tokens/s"
                what = {"prefill": "prefill, 512 tokens", "decode": "decoding"}[part]
                claims[part].append(Claim(f"SmolLM2-135M float32, {what}", CONTESTANTS[name].name, *figures, r, rounds))
        table.append(row(CONTESTANTS[name].name, f"{size / 1e6:.0f} MB", *cells))
    if "hf" in answers:
        notes.append(_agreement(answers["ours"][0]["tokens"], answers["hf"][0]["tokens"]))
    text = (
        f"{(__doc__ or '').strip()}\n\nRounds: {rounds}, after one to warm up; medians (quartiles). The peak is "
        f"{matmul / 1e9:.0f} GFLOP/s, the best plain float32 matrix product in the same run, at 2 FLOP a token and "
        "parameter outside the token table, attention's products left out. The memory bound is that of reading every "
        f"weight once a token (llama.cpp: the whole file) at {read / 1e9:.1f} GB/s, the best plain read of 1 GiB in "
        "the same run; what a processor's cache holds can be read faster than that. llama.cpp has other weights, of 4 "
        "bits, so no ratio to it is given."
    )
    return Section("Prefill and decoding", text, table, claims["prefill"] + claims["decode"], notes)


def _agreement(ours: list[int], theirs: list[int]) -> str:
    """A sentence on whether two contestants with the same weights wrote the same."""
    if ours == theirs:
        return f"anyformer and transformers wrote the same {len(ours)} tokens."
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"**anyformer and transformers wrote different texts**, from new token {at} on."
