"""Servers of SmolLM2-135M in float32 under 1, 4 and 16 clients: short questions, answers of up to 64 tokens, streamed.

Every client asks again when its answer ends, each time something else; the questions of a round are the same for
everybody. In float32: `anyformer serve` with 16 places (`--rows 16`), by PyTorch beside `transformers serve`, alone and
with `--continuous-batching`; with `--engine onnx --precision float32` beside llama.cpp's `llama-server` with 16 slots
on the same weights. As published, in 4 bits: ours with `--engine onnx`, and `llama-server`. Servers are asked at
temperature 0; the tokens of the texts that came are counted by the same tokenizer.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks import weights
from benchmarks.contest import ROOT, THREADS, Contestant, Missing, compete, ratio, started
from benchmarks.report import Claim, Section, row, times

CLIENTS = (1, 4, 16)
NEW, EACH = 64, 2  # tokens of an answer, questions of each client in a round
CONTESTANTS = {
    "ours": Contestant("anyformer serve"),
    "hf": Contestant("transformers serve", against="ours"),
    "hf_batched": Contestant("transformers serve --continuous-batching", against="ours"),
    "ours_onnx": Contestant("anyformer serve --engine onnx --precision float32"),
    "llama_cpp": Contestant("llama-server", against="ours_onnx"),
    "ours4": Contestant("anyformer serve --engine onnx, Q4_1"),
    "llama_cpp4": Contestant("llama-server, Q4_1", against="ours4"),
}
OURS = {"ours": [], "ours_onnx": ["--engine", "onnx", "--precision", "float32"], "ours4": ["--engine", "onnx"]}
LLAMA_SERVER = ROOT / ".venv-llamacpp" / "bin" / "llama-server"  # `make bench-serve` makes it; or $BENCH_LLAMA_SERVER
TOPICS = (
    "the sea", "a mountain", "bread", "a clock", "the moon", "rain", "a bridge", "glass", "salt", "a forest", "music",
    "iron", "a river", "the desert", "paper", "snow",
)  # fmt: skip
STARTING = 180.0  # seconds that a server may take to answer its first question


def question(client: int, turn: int, number: int) -> str:
    """What a client asks: as long for all, and never the same twice."""
    topic = TOPICS[client % len(TOPICS)]
    return (
        f"Question {turn}.{client}.{number}: describe {topic} for somebody who has never seen it, in a long text, and "
        "begin with where it can be found."
    )


def command(name: str, port: int) -> list[str]:
    """The words that start a server.

    Raises:
        Missing: if there is no `llama-server`.
    """
    model, at = str(weights.WITH_TOKENIZER), ["--port", str(port)]
    if name in OURS:
        code = "import sys; from anyformer.cli import main; sys.exit(main(sys.argv[1:]))"
        known = "smollm2" if name == "ours4" else model
        return [sys.executable, "-c", code, "serve", known, *at, "--rows", "16", *OURS[name]]
    if name in ("llama_cpp", "llama_cpp4"):
        server = os.environ.get("BENCH_LLAMA_SERVER") or shutil.which(LLAMA_SERVER)
        if not server:
            raise Missing("no llama-server: `make bench-serve` compiles it (or set BENCH_LLAMA_SERVER)")
        file = float32() if name == "llama_cpp" else weights.facts()["gguf"]
        threads = ["--threads", str(THREADS), "--threads-batch", str(THREADS)]
        return [server, "--model", file, *at, *threads, "--parallel", "16", "--ctx-size", str(16 * 512)]
    more = ["--continuous-batching"] if name == "hf_batched" else []
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    return [sys.executable, "-c", code, "serve", model, *at, "--device", "cpu", "--dtype", "float32", *more]


def float32() -> str:
    """The path of a GGUF file of the weights in float32, made if there is none."""
    import anyformer as af
    from anyformer import hub

    file = weights.FOLDER / "smollm2-float32.gguf"
    if not file.exists():
        hub.save_gguf(af.load(weights.WITH_TOKENIZER), file, "float32")
    return str(file)


class Server:
    """A server in a process of its own, on a free port."""

    def __init__(self, name: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = "smollm2" if name.startswith("ours") else str(weights.WITH_TOKENIZER)
        variables = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command(name, self.port), env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + STARTING
        while True:
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                raise Missing(f"{name} did not start: {self.process.stderr.read()[-600:]}")
            try:
                if self.ask("Say a word.", 4)["text"]:
                    break
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > end:
                    self.process.kill()
                    raise Missing(f"{name} did not answer: {error}") from error
                time.sleep(0.5)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # type: ignore[union-attr]

    def ask(self, text: str, count: int) -> dict[str, Any]:
        """One streamed answer, with the times at which its pieces came."""
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0,
                "max_tokens": count}  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=STARTING)
        begin, came, said = time.perf_counter(), list[float](), ""
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"{answer.status}: {answer.read()[:300]!r}")
        for line in answer:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                piece = choices[0].get("delta", {}).get("content")
                if piece:
                    came.append(time.perf_counter() - begin)
                    said += piece
        connection.close()
        return {"text": said, "came": came}


def build(name: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """A server, and the function that puts a crowd in front of it."""
    from tokenizers import Tokenizer

    server, tokenizer = Server(name), Tokenizer.from_file(str(weights.WITH_TOKENIZER / "tokenizer.json"))

    def crowd(request: dict[str, Any]) -> dict[str, Any]:
        if request.get("end"):
            server.process.terminate()
            server.process.wait(60)
            return {}
        return {str(count): _crowd(server, tokenizer, count, request["round"]) for count in CLIENTS}

    return {}, crowd


def _crowd(server: Server, tokenizer: Any, clients: int, turn: int) -> dict[str, Any]:
    """Tokens a second, and the times of first and of further pieces, with that many clients."""
    answers: list[dict[str, Any]] = []

    def one(client: int) -> None:
        for number in range(EACH):
            answers.append(server.ask(question(client, turn, number), NEW))

    threads = [threading.Thread(target=one, args=(client,)) for client in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    if len(answers) < clients * EACH or not all(answer["came"] for answer in answers):
        raise RuntimeError(f"{len(answers)} of {clients * EACH} answers came")
    tokens = sum(len(tokenizer.encode(a["text"], add_special_tokens=False).ids) for a in answers)
    gaps = sorted(b - a for answer in answers for a, b in zip(answer["came"], answer["came"][1:], strict=False))
    return {
        "seconds": took / tokens, "tokens": tokens, "first": statistics.median(a["came"][0] for a in answers),
        "gap": gaps[int(0.95 * (len(gaps) - 1))] if gaps else 0.0,
    }  # fmt: skip


def run(rounds: int = 4) -> Section:
    """The section of the report."""
    notes: list[str] = []
    weights.prepared()
    workers = started("serve", CONTESTANTS, notes)
    answers = compete(workers, CONTESTANTS, rounds, {}, notes)
    for worker in workers.values():
        worker.ask(end=True)
        worker.close()
    head = [cell for count in CLIENTS for cell in (f"{count}: tokens/s", "time / ours", "first token", "95 % of gaps")]
    table, claims = [row("clients", *head)], []
    for name, rows in answers.items():
        cells, against = list[str](), CONTESTANTS[name].against
        for count in map(str, CLIENTS):
            taken, ours = ([r[count]["seconds"] for r in some] for some in (rows, answers[against or name]))
            rate, own = (1 / statistics.median(some) for some in (taken, ours))
            first, gap = (statistics.median(r[count][key] for r in rows) for key in ("first", "gap"))
            r = ratio(taken, ours)
            cells += [f"{rate:,.1f}", times(r) if against else "", f"{1e3 * first:,.0f} ms", f"{1e3 * gap:,.0f} ms"]
            if against:
                figures = f"{own:,.1f} tokens/s", f"{rate:,.1f} tokens/s"
                what = f"serving, {count} clients, {CONTESTANTS[against].name}"
                claims.append(Claim(what, CONTESTANTS[name].name, *figures, r, rounds))
        table.append(row(CONTESTANTS[name].name, *cells))
    text = (
        f"{(__doc__ or '').strip()}\n\nRounds: {rounds}, {EACH} questions of each client in each; medians (quartiles)."
    )
    return Section("Serving", text, table, claims, notes)
