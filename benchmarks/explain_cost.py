"""Time and memory of explanations beside captum, LXT and TransformerLens: the same LLaMA, the same weights.

8 layers, 6 heads, width 384, vocabulary 8,000, 96 tokens (24 where each position of each block is patched: 192 passes).
Every turn is a process of its own, which works once to warm up and then `ROUNDS` times; contestants take turns. Memory
is what the process grew by (VmHWM) from before that work: imports and weights are not counted.

captum: integrated gradients of 8 points with their convergence delta (our residual), gradient x input, occlusion of
each token. LXT: the relevance of its patched transformers, which is version 4 (BENCH_LXT: a folder that has both).
TransformerLens: the scores behind each block, and patches of the stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import anyformer as af
from anyformer.explain import attribute, lens, patch
from anyformer.explain.features import Explained
from anyformer.hub.text.tokenizer import Tokenizer
from benchmarks import machine
from benchmarks.contest import ratio
from benchmarks.report import row, times

ROUNDS, TURNS = 5, 3
TOKENS, PATCHED, TOKEN = 96, 24, 7
PEERS = {"grad": "captum", "ig": "captum", "occlusion": "captum", "relevance": "LXT", "lens": "TransformerLens",
         "patch": "TransformerLens"}  # fmt: skip


def _model() -> Any:
    sizes = {"dim": 384, "depth": 8, "heads": 6, "kv_heads": 6, "hidden": 1024, "vocab": 8000, "context": 128}
    return af.build("llama", "tiny", seed=0, **sizes).eval()


def _ids(length: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(0, 8000, (1, length), generator=torch.Generator().manual_seed(seed))


def ours(method: str) -> Callable[[], Any]:
    """The work of one turn, with anyformer."""
    model, ids = _model(), _ids()
    if method == "lens":
        return lambda: lens(model, ids, TOKEN)
    if method == "patch":
        clean, corrupt = _ids(PATCHED), _ids(PATCHED, 1)
        return lambda: patch(model, clean, corrupt, "blocks.*", TOKEN, positions=True)
    return lambda: attribute(model, ids, TOKEN, method, baseline="zeros", tolerance=1e9)  # ig: 8 points


def theirs(method: str) -> Callable[[], Any]:
    """The same work, with the peer."""
    return {"captum": _captum, "LXT": _lxt, "TransformerLens": _transformer_lens}[PEERS[method]](method)


def _captum(method: str) -> Callable[[], Any]:
    import captum.attr as captum

    explained = Explained(_model(), {"input_ids": _ids()})
    value, base = explained.features["input_ids"].value, explained.baseline("zeros")["input_ids"]

    def score(x: Tensor) -> Tensor:
        logits: Any = explained.copies(len(x)).run({"input_ids": x}).logits
        return logits[:, -1, TOKEN]

    if method == "ig":
        shares = captum.IntegratedGradients(score)
        return lambda: shares.attribute(value, base, n_steps=8, internal_batch_size=8,
                                        return_convergence_delta=True)  # fmt: skip
    if method == "grad":
        return lambda: captum.InputXGradient(score).attribute(value.clone().requires_grad_())
    mask = torch.arange(TOKENS)[None, :, None]
    return lambda: captum.FeatureAblation(score).attribute(value, base, feature_mask=mask, perturbations_per_eval=8)


def _saved(folder: str) -> str:
    model = _model()
    model.tokenizer = Tokenizer.bytes_level()  # a peer wants one; nothing reads it
    model.save(Path(folder) / "llama")
    return str(Path(folder) / "llama")


def _lxt(method: str) -> Callable[[], Any]:
    from transformers.models.llama import modeling_llama

    monkey_patch = _importable_lxt()
    monkey_patch(modeling_llama)
    with tempfile.TemporaryDirectory() as folder:
        model = modeling_llama.LlamaForCausalLM.from_pretrained(_saved(folder), attn_implementation="eager").eval()
    for weight in model.parameters():
        weight.requires_grad = False

    def relevance() -> Tensor:
        vectors = model.get_input_embeddings()(_ids()).requires_grad_()
        model(inputs_embeds=vectors, use_cache=False).logits[0, -1, TOKEN].backward()
        assert vectors.grad is not None
        return (vectors * vectors.grad).sum(-1)

    return relevance


def _importable_lxt() -> Callable[[Any], None]:
    """LXT's `monkey_patch`. Version 2.1 imports all its models, one of which needs torchvision; a stand-in is
    enough here."""
    for name in ("torchvision", "torchvision.models", "torchvision.models.vision_transformer"):
        sys.modules.setdefault(name, ModuleType(name))
    vision: Any = sys.modules["torchvision.models.vision_transformer"]
    vision.nn, sys.modules["torchvision.models"].vision_transformer = torch.nn, vision  # type: ignore[attr-defined]
    from lxt.efficient.core import monkey_patch

    return monkey_patch  # type: ignore[no-any-return]


def _transformer_lens(method: str) -> Callable[[], Any]:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        model = TransformerBridge.boot_transformers(_saved(folder), device="cpu")
    streams = [f"blocks.{i}.hook_resid_post" for i in range(8)]

    @torch.no_grad()
    def behind() -> Any:
        _, cache = model.run_with_cache(_ids(), names_filter=["blocks.0.hook_resid_pre", *streams])
        scores = [model.unembed(model.ln_final(stream)) for stream in cache.values()]
        return [s.topk(5, -1) for s in scores]

    @torch.no_grad()
    def patches() -> list[float]:
        clean, corrupt = _ids(PATCHED), _ids(PATCHED, 1)
        _, cache = model.run_with_cache(clean, names_filter=streams)

        def put(value: Tensor, hook: Any, place: int) -> Tensor:
            value[:, place] = cache[hook.name][:, place]
            return value

        return [
            float(model.run_with_hooks(corrupt, fwd_hooks=[(at, lambda v, hook, p=p: put(v, hook, p))])[0, -1, TOKEN])
            for at in streams
            for p in range(PATCHED)
        ]

    return behind if method == "lens" else patches


def one(who: str, method: str) -> None:
    """Prints seconds and bytes of the work of one process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run = (ours if who == "ours" else theirs)(method)
    before, seconds = machine.resident().get("VmHWM", 0), []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    memory = machine.resident().get("VmHWM", 0) - before
    print(json.dumps({"seconds": median(seconds[1:]), "memory": memory}))


def _environment(peer: str) -> dict[str, str]:
    paths = [os.environ.get("BENCH_LXT", "") if peer == "LXT" else "", os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def table() -> list[str]:
    """The lines of the document; peers that are not there are named."""
    lines = [
        "| method | peer | ours, ms | peer, ms | peer / ours (quartiles) | ours, MB | peer, MB |",
        "|---|" + "---|" * 6,
    ]
    for method, peer in PEERS.items():
        made: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        why = ""
        for _ in range(TURNS):
            for who, rows in made.items():
                words = [sys.executable, "-m", "benchmarks.explain_cost", who, method]
                done = subprocess.run(words, capture_output=True, text=True, env=_environment(peer))
                if done.returncode == 0:
                    rows.append(json.loads(done.stdout.splitlines()[-1]))
                else:
                    why = done.stderr.strip().splitlines()[-1]
            if why:
                break
        if why:
            lines.append(row(method, f"{peer}: {why}", "", "", "", "", ""))
        else:
            mine, other = ([r["seconds"] for r in made[who]] for who in made)
            memory = [f"{median(r['memory'] for r in rows) / 1e6:.0f}" for rows in made.values()]
            speed = f"{1e3 * median(mine):.0f}", f"{1e3 * median(other):.0f}", times(ratio(other, mine))
            lines.append(row(method, peer, *speed, *memory))
        print(lines[-1], flush=True)
    lines += ["", f"{TURNS} processes each, one thread. Measured on: {machine.facts(1)}"]
    return lines


if __name__ == "__main__":
    one(*sys.argv[1:])
