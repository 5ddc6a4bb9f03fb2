"""RAG of `transformers`: how it is called. B questions, K passages of each, T words, V vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

PASSAGES = ("context_input_ids", "context_attention_mask", "doc_vectors")


@contextlib.contextmanager
def finding(theirs: Any, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Their model with a retriever that finds the passages of a batch for any question; so their own code scores them,
    and the gradient reaches their encoder of questions. That gets the segments, which they do not pass on."""
    contexts, mask, vectors = (inputs[name] for name in PASSAGES)

    def retriever(*args: Any, **options: Any) -> dict[str, Tensor]:
        texts = {"context_input_ids": contexts.flatten(0, 1), "context_attention_mask": mask.flatten(0, 1)}
        numbers = torch.arange(contexts.shape[0] * contexts.shape[1]).view(contexts.shape[:2])
        return texts | {"retrieved_doc_embeds": vectors, "doc_ids": numbers}

    types = inputs.get("token_type_ids")
    hook = theirs.rag.question_encoder.register_forward_pre_hook(
        lambda module, given, named: (given, {**named, "token_type_ids": types}), with_kwargs=True
    )
    theirs.rag.retriever = retriever
    try:
        yield
    finally:
        theirs.rag.retriever = None
        hook.remove()


def call(theirs: Any, inputs: Mapping[str, Tensor], **options: Any) -> dict[str, Any]:
    """Their scores of passages (B, K), logits of each (B, T, K, V), and with `labels` their losses, (B,).

    Where words are mixed (RAG-token), also the mixture's log-probabilities, (B, T, V).
    """
    given = {n: v for n, v in inputs.items() if n not in (*PASSAGES, "token_type_ids")}
    given.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))  # without it DPR hides pad ids
    with finding(theirs, inputs):
        out = theirs(**given, n_docs=inputs[PASSAGES[0]].shape[1], use_cache=False, **options)
    each = out.logits.unflatten(0, inputs[PASSAGES[0]].shape[:2]).transpose(1, 2)
    made = {"doc_scores": out.doc_scores, "passages": each, "loss": out.loss}
    if hasattr(theirs, "marginalize"):
        made["logits"] = theirs.marginalize(out.logits, out.doc_scores, each.shape[2])
    return made
