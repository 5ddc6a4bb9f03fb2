"""SmolLM2 with one head of keys and values instead of three: how much is lost, and what a short training brings back.

    python examples/grouped_heads.py --steps 60

The three heads become their mean (`anyformer.compress.grouped`; Ainslie et al., 2023, arXiv:2305.13245). Text: the
Python reference (`pydoc`); its last tenth is held out. What is trained is compared with the unchanged model after the
same training, since that learns the text as well.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch

import anyformer as af
from anyformer.compress.grouped import pool_heads
from anyformer.data import sources
from anyformer.train import Settings, fit, objectives

TIME = 256  # tokens of a window


def perplexity(model, ids, windows):
    """exp of the mean loss over the first windows of held-out text."""
    rows = ids[: windows * TIME + 1].unfold(0, TIME + 1, TIME)  # (windows, TIME + 1)
    with torch.no_grad():
        losses = [objectives.causal_lm(model.eval()(r[None, :-1]), r[None, 1:], float(TIME)).item() for r in rows]
    return math.exp(sum(losses) / len(losses))


def trained(model, ids, steps, batch, lr):
    """The model after some steps on drawn windows."""

    def batches(number):
        places = torch.randint(len(ids) - TIME, (batch,), generator=torch.Generator().manual_seed(number))
        rows = torch.stack([ids[p : p + TIME + 1] for p in places])
        return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}

    settings = Settings(steps=steps, lr=lr, warmup=steps // 10, schedule="cosine", weight_decay=0.0, log_every=10)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, batches, objectives.causal_lm, settings, folder)
    return model


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="", help="a model directory or .gguf file; SmolLM2-135M by default")
    options.add_argument("--kv-heads", type=int, default=1, help="heads of keys and values afterwards")
    options.add_argument("--steps", type=int, default=60, help="of the short training")
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--lr", type=float, default=3e-4)
    options.add_argument("--windows", type=int, default=32, help=f"held-out windows of {TIME} tokens to measure on")
    options.add_argument("--out", default="", help="a JSON file for the figures")
    o = options.parse_args()
    path = o.model or sources.get("smollm2")
    results = {}
    for name, pool in (("as published", False), (f"{o.kv_heads} key and value head", True)):
        model = af.load(path)
        ids = torch.tensor(model.tokenizer.encode(sources.text("pydoc"), special=False))
        learn, held = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
        if pool:
            pool_heads(model, o.kv_heads)
        count, state = sum(p.numel() for p in model.parameters()), model.start(1, 1000).bytes()
        before, start = perplexity(model, held, o.windows), time.perf_counter()
        print(f"{name}: {count:,} parameters, {state / 1e6:.1f} MB of state at 1,000 tokens, {before:.2f}", flush=True)
        after = perplexity(trained(model, learn, o.steps, o.batch, o.lr), held, o.windows)
        print(f"{name}: {after:.2f} after {o.steps} steps, {time.perf_counter() - start:.0f} s", flush=True)
        results[name] = {"parameters": count, "state": state, "before": before, "after": after}
    if o.out:
        Path(o.out).write_text(json.dumps({**vars(o), "perplexity": results}, indent=1))


if __name__ == "__main__":
    main()
