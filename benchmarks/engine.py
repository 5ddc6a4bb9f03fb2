"""Engines for language models: ours on ONNX Runtime and on PyTorch, transformers, llama.cpp; greedy, 64 tokens.

SmolLM2-135M (Q4_1) and Gemma 3 270M (Q4_K_M) as published, and a new Mamba of the published 130 M shape, of which
llama.cpp has no file. Each through its own loop. "Decoding" continues a prompt of 64 tokens, alone or eight at a time;
its time is that from the first token to the last one. "First token" reads 512 tokens. "Repeats" continues a text that
says everything twice: ours and transformers by prompt look-up, llama.cpp as it decodes otherwise. Loading is that of a
file into a process that has imported its libraries; ours on ONNX Runtime loads programs that were built before. Log
losses are those of 8 windows of 512 tokens of Python's documentation, or of random ones for the new model, the same for
all, paired.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import engine_profile, weights
from benchmarks.contest import THREADS, Answers, Contestant, Missing, compete, ratio, spread, started
from benchmarks.report import Claim, Section, row, times

NEW, SHORT, TOGETHER, WINDOWS = 64, 64, 8, 8  # tokens after the first, tokens of a prompt, texts at once, windows
MODELS = {"smollm2": "SmolLM2-135M", "gemma3": "Gemma 3 270M", "mamba": "Mamba 130M"}
FORMS = {"smollm2": "Q4_1", "gemma3": "Q4_K_M"}  # of the files that llama.cpp reads
MEASURES = {
    "decode": ("decoding", NEW),
    "batch": ("decoding, 8 texts", NEW * TOGETHER),
    "prefill": ("first token, prompt of 512", weights.PROMPT),
    "repeats": ("text that repeats", NEW),
}


def contestants(model: str) -> dict[str, Contestant]:
    """Everybody who reads this model; a key is the contestant and the model."""
    found = {
        f"engine {model}": Contestant("anyformer, ONNX Runtime, auto"),
        f"engine32 {model}": Contestant("anyformer, ONNX Runtime, float32"),
        f"torch {model}": Contestant("anyformer, PyTorch, float32"),
        f"hf {model}": Contestant("transformers, float32", against=f"engine32 {model}"),
    }
    if model in FORMS:
        found[f"llama_cpp {model}"] = Contestant(f"llama.cpp, {FORMS[model]}", "llamacpp", f"engine {model}")
    return found


class Ours:
    """Both engines of anyformer."""

    def __init__(self, facts: dict[str, Any], precision: str | None):
        import torch

        import anyformer as af
        from anyformer.generate.engine import with_engine

        torch.set_num_threads(THREADS)
        if precision is not None:
            from anyformer.generate.engine import build, model, program  # noqa: F401 (before the clock starts)

            with_engine(af.load(facts["gguf"]), "onnx", precision)  # builds it
        began = time.perf_counter()
        self.model = af.load(facts["gguf"])
        if precision is not None:
            self.model = with_engine(self.model, "onnx", precision)
        self.load = time.perf_counter() - began
        getattr(self.model, "torch_model", self.model).tokenizer = None  # it knows the ends of texts

    def write(self, prompts: list[list[int]], tell: Callable[[], None], lookup: bool = False) -> None:
        from anyformer.generate.decoding import Decoding
        from anyformer.generate.options import Options
        from anyformer.generate.speculating import Speculation

        given = Options(NEW + 1, 0.0, None, None, None, None, (), None, True, speculate="lookup" if lookup else None)
        run = (Speculation if lookup else Decoding)(self.model, prompts, given)
        while run.rows:
            run.step()
            tell()

    def losses(self, rows: list[list[int]]) -> list[float]:
        import torch

        found: list[float] = []
        with torch.inference_mode():
            for ids in torch.tensor(rows)[:, None]:
                logits = self.model(input_ids=ids[:, :-1], state=self.model.start(1, ids.shape[1])).logits[0]
                found += (-logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]).tolist()
        return found


class Transformers:
    """transformers, by `generate`."""

    def __init__(self, model: str):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        began = time.perf_counter()
        self.model = AutoModelForCausalLM.from_pretrained(weights.bare(model), dtype=torch.float32).eval()
        self.load = time.perf_counter() - began
        self.model.generation_config.eos_token_id = None

    def write(self, prompts: list[list[int]], tell: Callable[[], None], lookup: bool = False) -> None:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Clock(StoppingCriteria):
            """Is asked after each step whether a text ends: none does."""

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
                tell()
                return torch.zeros(len(input_ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        given: dict[str, Any] = {"prompt_lookup_num_tokens": 8} if lookup else {}
        clock = StoppingCriteriaList([Clock()])
        mask = torch.ones_like(ids)
        self.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW + 1, stopping_criteria=clock, **given
        )

    def losses(self, rows: list[list[int]]) -> list[float]:
        import torch

        found: list[float] = []
        with torch.inference_mode():
            for ids in torch.tensor(rows)[:, None]:
                logits = self.model(ids[:, :-1]).logits[0]
                found += (-logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]).tolist()
        return found


class LlamaCpp:
    """llama.cpp: one text by `generate`, several by a batch of its C interface."""

    def __init__(self, facts: dict[str, Any]):
        from llama_cpp import Llama

        self.given = {"n_ctx": 1024, "n_batch": weights.PROMPT, "n_threads": THREADS, "n_threads_batch": THREADS}
        began = time.perf_counter()
        self.model = Llama(facts["gguf"], **self.given, verbose=False)
        self.load, self.path = time.perf_counter() - began, facts["gguf"]

    def write(self, prompts: list[list[int]], tell: Callable[[], None], lookup: bool = False) -> None:
        if len(prompts) > 1:
            return self._together(prompts, tell)
        self.model.reset()  # it would not read the same prompt twice
        tokens = self.model.generate(prompts[0], temp=0.0)
        for _ in range(NEW + 1):
            next(tokens)
            tell()

    def _together(self, prompts: list[list[int]], tell: Callable[[], None]) -> None:
        import llama_cpp
        import numpy as np
        from llama_cpp._internals import LlamaBatch, LlamaContext

        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = 256 * len(prompts), weights.PROMPT, len(prompts)
        params.n_threads = params.n_threads_batch = THREADS
        context = LlamaContext(model=self.model._model, params=params, verbose=False)
        batch = LlamaBatch(n_tokens=weights.PROMPT, embd=0, n_seq_max=1, verbose=False)
        vocab = self.model.n_vocab()

        def read(rows: list[list[int]], first: int) -> list[int]:
            """The likeliest next token of each text after its tokens from place `first` on."""
            count, last = 0, []
            for text, ids in enumerate(rows):
                for place, token in enumerate(ids):
                    b = batch.batch
                    b.token[count], b.pos[count], b.n_seq_id[count], b.seq_id[count][0] = token, first + place, 1, text
                    b.logits[count] = place == len(ids) - 1
                    count += 1
                last.append(count - 1)
            batch.batch.n_tokens = count
            context.decode(batch)
            scores = (np.ctypeslib.as_array(context.get_logits_ith(at), shape=(vocab,)) for at in last)
            return [int(s.argmax()) for s in scores]

        tokens, place = read(prompts, 0), len(prompts[0])
        tell()
        for _ in range(NEW):
            tokens, place = read([[token] for token in tokens], place), place + 1
            tell()
        batch.close()
        context.close()

    def losses(self, rows: list[list[int]]) -> list[float]:
        import numpy as np
        from llama_cpp import Llama

        model, found = Llama(self.path, **self.given, verbose=False, logits_all=True), list[float]()
        for ids in rows:
            model.reset()
            model.eval(ids[:-1])
            s = np.asarray(model.scores[: len(ids) - 1], np.float64)
            top = s.max(1)
            found += (np.log(np.exp(s - top[:, None]).sum(1)) + top - s[np.arange(len(s)), ids[1:]]).tolist()
        return found


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """Facts, and the function that does what a request names: one of `MEASURES`, or losses."""
    kind, _, model = name.partition(" ")
    facts = weights.facts(model)
    makers: dict[str, Callable[[], Any]] = {
        "engine": lambda: Ours(facts, "auto"),
        "engine32": lambda: Ours(facts, "float32"),
        "torch": lambda: Ours(facts, None),
        "hf": lambda: Transformers(model),
        "llama_cpp": lambda: LlamaCpp(facts),
    }
    made = makers[kind]()
    prompt: list[int] = facts["prompt"]

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        if "rows" in request:
            return {"losses": made.losses(request["rows"])}
        if "profile" in request:
            from anyformer.core.machine import read_rate

            def work() -> list[float]:
                clock: list[float] = []
                made.write([prompt[:SHORT]], lambda: clock.append(time.perf_counter()))
                return clock

            return {"found": engine_profile.profiled(made.model, work), "rate": read_rate()}
        found = {}
        for what in MEASURES:
            apart = (len(prompt) - SHORT) // (TOGETHER - 1)
            prompts = {
                "decode": [prompt[:SHORT]],
                "batch": [prompt[n * apart : n * apart + SHORT] for n in range(TOGETHER)],
                "prefill": [prompt],
                "repeats": [prompt[:128] + prompt[:64]],
            }[what]
            clock = [time.perf_counter()]
            made.write(prompts, lambda clock=clock: clock.append(time.perf_counter()), what == "repeats")
            found[what] = clock[1] - clock[0] if what == "prefill" else clock[-1] - clock[1]
        return found

    return {"load": made.load}, serve


def texts(model: str) -> list[list[int]]:
    """The windows on which losses are compared."""
    import anyformer as af
    from anyformer.generate.engine.quality import sample

    return sample(af.load(weights.facts(model)["gguf"]), WINDOWS)[0].tolist()


def run(rounds: int = 8) -> Section:
    """The section of the report."""
    notes: list[str] = []
    heads = [f"{what}, tokens/s" for what, _ in MEASURES.values()]
    table, claims = [row("", "", *heads, "load, s", "perplexity", "log loss − llama.cpp's")], list[Claim]()
    for model in MODELS:
        try:
            weights.prepared(model)
        except Missing as error:
            notes.append(f"{MODELS[model]} was not measured: {error}.")
            continue
        more, said = _measured(model, rounds, notes)
        table += more
        claims += said
    text = f"{(__doc__ or '').strip()}\n\nRounds: {rounds}, after one to warm up; medians. {THREADS} threads."
    return Section("Engines", text, table, claims, notes)


def _measured(model: str, rounds: int, notes: list[str]) -> tuple[list[str], list[Claim]]:
    """The rows and claims of one model."""
    entrants, title = contestants(model), MODELS[model]
    workers = started("engine", entrants, notes)
    rows = texts(model)
    losses = {key: worker.ask(rows=rows)["losses"] for key, worker in workers.items()}
    loads = {key: worker.facts["load"] for key, worker in workers.items()}
    compete(workers, entrants, 1, {}, notes)  # warm-up
    answers = compete(workers, entrants, rounds, {}, notes)
    if f"engine {model}" in workers:
        seen = workers[f"engine {model}"].ask(profile=True)
        notes.append(f"{title}, ONNX Runtime, auto: {engine_profile.sentence(seen['found'], seen['rate'])}.")
    for worker in workers.values():
        worker.close()
    table, claims = list[str](), list[Claim]()
    for key, found in answers.items():
        rates = {m: MEASURES[m][1] / spread([a[m] for a in found])[0] for m in MEASURES}
        cells = [f"{rates[m]:,.1f}" for m in MEASURES] + [f"{loads[key]:.2f}"]
        cells += [f"{math.exp(statistics.fmean(losses[key])):.3f}", _paired(losses, key, f"llama_cpp {model}")]
        table.append(row(title, entrants[key].name, *cells))
        ours = entrants[key].against
        for m in MEASURES if ours in answers else ():
            mine, theirs = [a[m] for a in answers[ours]], [a[m] for a in found]
            rate = MEASURES[m][1] / spread(mine)[0]
            figures = f"{rate:,.1f} tokens/s", f"{rates[m]:,.1f} tokens/s"
            what = f"{title}, {entrants[ours].name.partition(', ')[2]}, {MEASURES[m][0]}"
            claims.append(Claim(what, entrants[key].name, *figures, ratio(theirs, mine), rounds))
    notes.append(f"{title}: {_batching(answers, entrants)}")
    return table, claims


def _paired(losses: dict[str, list[float]], key: str, peer: str) -> str:
    """The difference of the log loss from the peer's, with its standard error."""
    if peer not in losses or key == peer:
        return ""
    d = [a - b for a, b in zip(losses[key], losses[peer], strict=True)]
    return f"{statistics.fmean(d):+.4f} ± {statistics.stdev(d) / len(d) ** 0.5:.4f}"


def _batching(answers: Answers, entrants: dict[str, Contestant]) -> str:
    """A sentence on how much eight texts at a time bring."""
    each = {n: ratio([TOGETHER * a["decode"] for a in some], [a["batch"] for a in some]) for n, some in answers.items()}
    gains = ", ".join(f"{entrants[n].name} {times(gain)}" for n, gain in each.items())
    return f"eight texts at a time are faster than one after another by: {gains}."
