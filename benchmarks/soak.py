"""`python -m benchmarks.soak --seconds 600`: a server at saturation; nothing lost, nothing crossed, no memory lost.

32 clients ask a tiny model all the time: whole answers and streams, some of which they leave in the middle, prompts of
many lengths, several texts at once, vectors, and mistakes. Every whole answer is compared with the text that `generate`
gives for the same prompt alone. Memory is that of the server's process: the median of the last fifth of the run against
that of the second one (the first warms up).
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CLIENTS, PROMPTS, NEW, MOST = 32, 48, 24, 0.05


def saved(folder: Path) -> Any:
    """A tiny LLaMA of bytes."""
    import torch

    import anyformer as af
    from anyformer.hub.text.tokenizer import Tokenizer

    model = af.build("llama", "tiny", vocab=257, context=512, seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=draw)
    model.tokenizer = Tokenizer.bytes_level()
    model.save(folder)
    return model.eval()


class Soak:
    """The clients of one run, and what they saw."""

    def __init__(self, port: int, expected: dict[str, str], end: float):
        self.port, self.expected, self.end = port, expected, end
        self.times: list[float] = []
        self.wrong: list[str] = []
        self.counts = {"whole": 0, "streams": 0, "left": 0, "vectors": 0, "mistakes": 0, "busy": 0}

    def client(self, number: int) -> None:
        """One client: asks until the time is over."""
        draw = random.Random(number)
        while time.monotonic() < self.end:
            try:
                self.ask(draw)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}"[:200])

    def ask(self, draw: random.Random) -> None:
        """One request of some kind."""
        prompt = draw.choice(list(self.expected))
        kind = draw.choices(list(self.counts)[:5], (50, 30, 8, 6, 6))[0]
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": NEW, "temperature": 0}
        path = "/v1/completions"
        if kind in ("streams", "left"):
            body["stream"] = True
        elif kind == "vectors":
            path, body = "/v1/embeddings", {"input": [prompt, "x"]}
        elif kind == "mistakes":
            body["temperature"] = 99
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if kind == "left" and answer.status == 200:
            answer.readline()
            connection.close()
        else:
            self.check(kind, prompt, answer.status, answer.read().decode())
            connection.close()
        self.counts["busy" if answer.status == 429 else kind] += 1
        if kind == "whole" and answer.status == 200:
            self.times.append(time.monotonic() - begin)

    def check(self, kind: str, prompt: str, status: int, text: str) -> None:
        """Notes an answer that is not the right one."""
        if status == 429:
            return
        if status != (422 if kind == "mistakes" else 200):
            self.wrong.append(f"{kind}: {status} {text[:200]}")
            return
        if kind == "whole":
            said = json.loads(text)["choices"][0]["text"]
        elif kind == "streams":
            events = [line[6:] for line in text.split("\n\n") if line.startswith("data: {")]
            said = "".join(json.loads(event)["choices"][0]["text"] for event in events)
        else:
            return
        if said != self.expected[prompt]:
            self.wrong.append(f"{kind}: {prompt!r} got {said!r} instead of {self.expected[prompt]!r}")


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def main() -> int:
    """Prints the figures; 1 if something was lost, crossed or leaked."""
    from anyformer.generate import generate

    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        model = saved(Path(folder) / "tiny")
        draw = random.Random(0)
        prompts = [f"user {i} {'word ' * draw.randrange(40)}" for i in range(PROMPTS)]
        expected = {prompt: generate(model, prompt, max_new_tokens=NEW) for prompt in prompts}
        code = "import sys; from anyformer.cli import main; sys.exit(main(sys.argv[1:]))"
        words = [sys.executable, "-c", code, "serve", f"{folder}/tiny", "--port", "0", "--waiting", "24"]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = next(line for line in server.stdout if line.startswith("anyformer serve: "))
        soak = Soak(int(address.rsplit(":", 1)[1]), expected, time.monotonic() + seconds)
        clients = [threading.Thread(target=soak.client, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        memory = []
        while time.monotonic() < soak.end:
            memory.append(resident(server.pid))
            time.sleep(min(1.0, seconds / 50))
        for client in clients:
            client.join()
        server.terminate()
        code_ = server.wait(60)
    fifth = len(memory) // 5
    early, late = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    grown = late / early - 1
    times = statistics.quantiles(soak.times, n=20)
    print(f"{seconds:.0f} s, {CLIENTS} clients: {soak.counts}")
    print(f"whole answers: p50 {1e3 * times[9]:.0f} ms, p95 {1e3 * times[18]:.0f} ms")
    print(f"memory: {early / 1e6:.0f} MB, then {late / 1e6:.0f} MB ({grown:+.1%}); exit code {code_}")
    for wrong in soak.wrong[:10]:
        print(f"wrong: {wrong}")
    return int(bool(soak.wrong) or grown > MOST or code_ != 0)


if __name__ == "__main__":
    sys.exit(main())
