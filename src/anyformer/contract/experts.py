"""Items 7, 10, 11 and 13 for mixtures of experts: exact limits, causality, padding, and upcycling.

B batch, T time, D width, E experts.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.check import check
from anyformer.contract.kernels import like
from anyformer.contract.oracle import fresh
from anyformer.contract.probe import close, draw, expect, run, same, slopes_agree
from anyformer.contract.subjects import Subject, apart_from_tiny
from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.parts import MLP, Block, ExpertChoice, MoE, TopK
from anyformer.train.upcycle import upcycle


def routed(subject: Subject) -> str | None:
    """The reason why checks of experts chosen by tokens do not apply, or None."""
    return None if subject.holds(TopK) else "no token chooses experts in it"


def at_each(model: Any, batch: Any) -> dict[str, tuple[Any, Tensor, Tensor, Any]]:
    """The calls of every mixture, by path: (module, its input, its output, the flow)."""
    seen: dict[str, tuple[Any, Tensor, Tensor, Any]] = {}
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, MoE):
            note = lambda m, inputs, out, path=path: seen.update({path: (m, inputs[0], out, inputs[1])})  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    run(model, batch)
    for hook in hooks:
        hook.remove()
    return seen


@check(10, "model", needs=routed)
def all_experts_equal_the_dense_mixture(subject: Subject) -> float:
    """If every token goes to all experts and none is full, y = sum of softmax(router) * expert over all of them."""
    recipe = subject.recipe
    for path, value in list(recipe.walk()):
        if isinstance(value, Recipe) and value.part is TopK:
            recipe = recipe.but({f"{path}.top": value.experts, f"{path}.capacity": None})
    model = pages.empty(recipe)
    model.load_state_dict(dict(subject.model.named_parameters()), assign=True)
    batch, worst = draw(subject, random.Random(27), [9, 5], "left"), 0.0
    with torch.no_grad():
        for path, (moe, x, actual, flow) in at_each(model.eval(), batch).items():
            p = moe.router.proj(x).softmax(-1)  # (B, T, E)
            expected = sum(p[..., e, None] * expert(x, flow) for e, expert in enumerate(moe.experts))
            if moe.shared is not None:
                expected = expected + moe.shared(x, flow)
            keep = flow.keep_now(x.shape[1])
            worst = max(worst, close(actual[keep], expected[keep], f"{path}: dense mixture"))
    return worst


@check(10, "model", needs=routed)
def ample_capacity_equals_no_capacity(subject: Subject) -> float:
    """With an expert capacity of as many tokens as the text has, none is dropped."""
    batch = draw(subject, random.Random(28), [9, 9], "none", source=[9, 9])
    free = like(subject, TopK, capacity=None)
    worst = same(run(like(subject, TopK, capacity=9), batch), run(free, batch), "capacity = length")
    for path, (moe, x, _, flow) in at_each(like(subject, TopK, capacity=1), batch).items():
        weights, sent = moe.router(x, flow)
        expect(int(sent.sum(1).max()) == 1, f"{path}: an expert of capacity 1 takes {int(sent.sum(1).max())} tokens")
        every = like(subject, TopK, capacity=None).get_submodule(path).router(x, flow)[1]
        expect(
            bool((sent.int().argmax(1) == every.int().argmax(1)).all()), f"{path}: the first token is not the one taken"
        )
        expect(bool((weights[~sent] == 0).all()), f"{path}: a dropped token has a weight")
    return worst


@check(11, "model", needs=lambda s: None if s.holds(MoE) else "it has no auxiliary losses")
def auxiliary_losses_ignore_padding(subject: Subject) -> float:
    """The auxiliary losses of a training batch, and their gradients, are the same however it is padded."""
    rng, model = random.Random(34), fresh(subject.model).train()
    lengths = [6, 4, 5]
    batch = draw(subject, rng, lengths, "left", source=lengths)
    other = {n: v for n, v in batch.inputs.items() if n not in batch.counted}
    wider = {n: torch.nn.functional.pad(v, (2, 3)) for n, v in batch.inputs.items() if n in batch.counted} | other
    (losses, slopes), (others, turned) = learned(model, batch.inputs), learned(model, wider)
    expect(bool(losses), "training reports no auxiliary loss")
    return max(same(others, losses, "auxiliary losses"), slopes_agree(turned, slopes, "auxiliary losses"))


def learned(model: Any, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The auxiliary losses of these inputs, and the gradients of their sum."""
    losses = model(**inputs).aux
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = torch.stack(list(losses.values())).sum()
    slopes = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return {n: v.detach() for n, v in losses.items()}, dict(zip(names, slopes, strict=True))


@check(7, "parts")
def expert_choice_is_refused_in_decoders() -> float:
    """Experts that choose among all tokens of a text would see the future: a causal decoder refuses them."""
    ffn = MoE.of(router=ExpertChoice.of(experts=2), expert=MLP.of(hidden=8))
    model = pages.build(pages.recipe("gpt", "tiny").but({"blocks.0.ffn": ffn}))
    try:
        model(torch.ones(1, 3, dtype=torch.long))
    except ValueError as error:
        expect("TopK" in str(error), f"the refusal does not state what to do: {error}")
        return 0.0
    expect(False, "a causal decoder runs with experts that choose")
    return 0.0


def dense(subject: Subject) -> list[str]:
    """The paths of feed-forward parts without experts."""
    blocks = [(path, m.ffn) for path, m in subject.outline.named_modules() if isinstance(m, Block)]
    return [f"{path}.ffn" for path, ffn in blocks if ffn is not None and not isinstance(ffn, MoE)]


@check(13, "model", needs=lambda s: None if dense(s) else "it has no dense feed-forward part", later=apart_from_tiny)
def upcycling_changes_nothing(subject: Subject) -> float:
    """With equal experts instead of each feed-forward part, the function is the same; the recipe describes it."""
    batch, model = draw(subject, random.Random(44), [7, 4], "left"), fresh(subject.model)
    before, paths = run(model, batch), dense(subject)
    expect(upcycle(model, *paths, experts=3, top=2) == paths, "other parts became mixtures")
    with torch.device("meta"):
        again = model.recipe.build()
    expect(
        {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()},
        "the recipe builds other parameters",
    )
    after = run(model, batch)
    real = [batch.real(name, v, i) for v_set in (after, before) for name, v in v_set.items() for i in range(len(batch))]
    half = len(real) // 2
    return max(close(a, b, "upcycled") for a, b in zip(real[:half], real[half:], strict=True))
