"""Training on one GPU, in ten minutes: `python -m benchmarks.gpu`. Prints as it goes, and writes nothing.

A bf16 step of GPT and LLaMA of 124 M (12 layers, 12 heads, width 768, 8 x 1,024 tokens, vocabulary 50,304), as it is
and compiled, beside transformers, litgpt and a plain loop: time, share of the peak of a bf16 product, memory. Then the
loss in pieces beside whole logits, PyTorch's FlashAttention beside the formula, our kernels and our cache beside plain
passes, and the kernels of mamba-ssm where they are installed. Peers that are not installed are named.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.report import percent, row
from benchmarks.train_step import BATCH, Shape

SHAPE = Shape(layers=12, heads=12, dim=768, gated=2048, vocab=50_304, time=1024)
NAMES = ("ours_gpt", "hf_gpt", "plain_gpt", "litgpt_pythia", "ours_llama", "hf_llama", "litgpt_llama")
VOCABULARIES = (49_152, 128_256)


def step(name: str, compiled: bool, shape: Shape, device: str, steps: int = 10) -> dict[str, float]:
    """The median time of a bf16 step in seconds, after three to warm up, and the most memory in bytes."""
    import torch

    from benchmarks import train_step

    torch.manual_seed(0)
    _fresh(device)
    model, logits = getattr(train_step, name)(shape)
    model.to(device).train()
    run = torch.compile(logits) if compiled else logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, shape.vocab, (BATCH, shape.time + 1), device=device)
    taken = []
    for _ in range(steps + 3):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            scores = run(ids[:, :-1]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(scores, ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())  # the device is done
        taken.append(time.perf_counter() - began)
    return {"seconds": statistics.median(taken[3:]), "memory": _most(device)}


def loss(pieces: bool, vocab: int, device: str, tokens: int = 8192, width: int = 768) -> dict[str, float]:
    """Forward and backward of the loss of a head in bf16: seconds, bytes, the loss itself."""
    import torch
    from torch.nn import functional as F

    from anyformer.parts.unscored import Unscored

    torch.manual_seed(0)
    _fresh(device)
    x = torch.randn(tokens, width, device=device, requires_grad=True)
    w = (0.02 * torch.randn(vocab, width, device=device)).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), device=device)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            if pieces:
                value = Unscored(x, w, None).cross_entropy(labels, -100)
            else:
                value = F.cross_entropy(F.linear(x, w), labels, reduction="sum")
        torch.autograd.grad(value, (x, w))
        found = float(value.detach())
        taken.append(time.perf_counter() - began)
    return {"seconds": statistics.median(taken[1:]), "memory": _most(device), "loss": found}


def checks(device: str) -> Iterator[tuple[str, float, float]]:
    """The values that are compared, their largest difference, and the one that rounding allows."""
    import torch

    import anyformer as af
    from anyformer.parts.attention.kernels import attend
    from anyformer.parts.attention.masks import CAUSAL, View

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 256, 64, device=device) for _ in range(3))
    view = View(CAUSAL, 0, 256, 0, 256, device=q.device)
    right = attend(q, k, v, view, kernel="reference")
    for kernel in ("sdpa", "chunked", "blockwise", *(["flex"] if device == "cuda" else [])):
        yield f"kernel {kernel}", float((attend(q, k, v, view, kernel=kernel) - right).abs().max()), 1e-4
    if device == "cuda":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            made = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), view, kernel="sdpa")
        yield "FlashAttention of PyTorch in bf16", float((made.float() - right).abs().max()), 0.05
    for page in ("gpt", "llama", "mamba"):
        model = af.build(page, "tiny", seed=0).to(device).eval()
        ids = torch.randint(0, 100, (1, 24), device=device)
        with torch.no_grad():
            whole, state = model(ids).logits, model.start(1, 24)
            parts = torch.cat([model(ids[:, i : i + 8], state=state).logits for i in (0, 8, 16)], 1)
        yield f"cache of {page}", float((whole - parts).abs().max()), 1e-4


def _fresh(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _most(device: str) -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0


def report(device: str, shape: Shape, minutes: float, say: Callable[[str], None] = print) -> int:
    """Everything, most important first, until the minutes are over; the number of comparisons that failed."""
    import torch

    from anyformer.core.machine import matmul_rate

    began, failed = time.monotonic(), 0
    peak = matmul_rate(torch.device(device), torch.bfloat16)
    say(f"peak of a bf16 product: {peak / 1e12:.1f} TFLOP/s")
    for what, off, room in checks(device):
        failed += off > room
        say(f"{what}: {off:.1e} apart, {'as it should' if off <= room else f'MORE THAN {room:.0e}'}")
    if importlib.util.find_spec("mamba_ssm") is None:
        say("mamba-ssm is not installed: the cache of mamba ran in plain operations")
    say(row("", "ms a step", "tokens/s", "of the peak", "memory, MB"))
    for compiled in (False, True):
        for name in NAMES:
            if time.monotonic() - began > 60 * minutes:
                say("the time is over; what is missing was not measured")
                return failed
            title = f"{name}{', compiled' * compiled}"
            try:
                found = step(name, compiled, shape, device)
            except Exception as error:  # a peer that is missing or breaks; whatever it throws
                say(f"{title} was not measured: {' '.join(str(error).split())[:200]}")
                failed += name.startswith("ours")
                continue
            seconds = found["seconds"]
            cells = f"{1e3 * seconds:.1f}", f"{BATCH * shape.time / seconds:,.0f}"
            say(row(title, *cells, percent(shape.flops / seconds / peak), f"{found['memory'] / 1e6:,.0f}"))
        for vocab in VOCABULARIES if not compiled and shape is SHAPE else ():
            for pieces in (True, False):
                found = loss(pieces, vocab, device)
                title = f"loss over {vocab:,} words, {'in pieces' if pieces else 'whole'}"
                say(f"{title}: {1e3 * found['seconds']:.1f} ms, {found['memory'] / 1e6:,.0f} MB, {found['loss']:.1f}")
    return failed


def main() -> int:
    """The number of comparisons that failed; 1 where there is no GPU."""
    import torch

    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False, and nothing was measured", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name(), torch.__version__, torch.version.cuda)
    return report("cuda", SHAPE, arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
