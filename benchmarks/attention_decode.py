"""The process of one decoder: tokens a second and bytes of state at a context. B batch, T time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.attention_mixers import DECODING, DIM
from benchmarks.contest import THREADS

DEPTH, VOCAB, PIECE, STEPS = 4, 256, 1024, 48
Answer = dict[str, Any]


def build(name: str) -> tuple[Answer, Callable[[Answer], Answer]]:
    """A decoder of four layers with this mixer; the context is read in pieces, then tokens are timed one by one."""
    import torch

    from anyformer.core.init import initialise
    from anyformer.parts import MLP, Block, Logits, RMSNorm, Tokens
    from anyformer.skeletons.decoder import CausalLM

    torch.set_num_threads(THREADS)
    norm = RMSNorm.of()
    block = Block.of(mixer=DECODING[name], ffn=MLP.of(), norm=norm)
    model = CausalLM.of(DIM, Tokens.of(vocab=VOCAB), [block] * DEPTH, norm=norm, head=Logits.of(vocab=VOCAB)).build()
    initialise(model, seed=0)
    model.eval()

    @torch.no_grad()
    def serve(request: Answer) -> Answer:
        context = request["context"]
        state = model.start(1, context + STEPS)
        ids = torch.randint(VOCAB, (1, context), generator=torch.Generator().manual_seed(0))  # (B, T)
        for piece in ids.split(PIECE, 1):
            out = model(piece, state=state, last=True)
        took = []
        for _ in range(STEPS):
            token = out.logits[:, -1:].argmax(-1)  # (B, 1)
            start = time.perf_counter()
            out = model(token, state=state, last=True)
            took.append(time.perf_counter() - start)
        took.sort()
        return {"rate": 1 / took[len(took) // 2], "bytes": state.bytes()}

    serve({"context": 8})
    return {}, serve
