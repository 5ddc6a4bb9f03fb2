"""Roles of heads: which heads read the token before, the first one, a delimiter, the same token, what followed it, or
the subject of a verb; and whether the model needs them.

B batch, T positions, L layers, H heads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.pages import build
from anyformer.explain.attention import implied, kinds
from anyformer.explain.attribution import named
from anyformer.explain.blocks import InBlocks, Weights
from anyformer.explain.features import Explained
from anyformer.explain.patching import HEADS, changed, head_count
from anyformer.explain.subjects import agreeing

ROLES = ("previous", "next", "offset", "first", "delimiter", "duplicate", "induction", "subject")
WHAT = {
    "previous": "the position before",
    "next": "the position behind",
    "offset": "a fixed distance back",
    "first": "the first position (a sink)",
    "delimiter": "punctuation and special tokens",
    "duplicate": "earlier places of the same token",
    "induction": "what followed the same token before",
    "subject": "the subject of the verb",
}
OF = {"duplicate": "twice", "induction": "twice", "subject": "verbs"}  # the rows that a role is scored on, else "text"
FURTHEST, ROWS, SPAN = 8, 2, 32  # the largest offset; random rows, and the tokens that each of them has twice
Place = Callable[[Tensor, Tensor], Tensor]  # queries (t, 1) and keys (s,) -> True where a role reads, (B or 1, t, s)
TOP, BESIDE = 3, 6  # heads of a role whose effect is measured; random heads beside them


@dataclass(frozen=True)
class Head:
    """One head and one role.

    Args:
        role: one of `ROLES`. path, head: where. offset: of the role "offset" the distance, else 0.
        score: the mean share of its weights that goes where the role says.
        untrained: the highest such score of any head of the same model with new weights.
        effect: nats of the next tokens' likelihood that go when the head's output is its mean (of the role "subject"
            those of the verb); of a model that writes no text the divergence of its scores.
    """

    role: str
    path: str
    head: int
    score: float
    untrained: float
    effect: float
    offset: int = 0


@dataclass(frozen=True)
class Roles:
    """The roles of all heads.

    Args:
        layers: paths of the attention, in order. scores: by role the score of each head, (L, H).
        found: the three heads with the highest score of each role, with their effects.
        beside: by role the effects of random heads, measured on the same tokens.
        loss: nats a token, by role, without any change; None where the model writes no text.
    """

    layers: tuple[str, ...]
    scores: dict[str, Tensor]
    found: tuple[Head, ...]
    beside: dict[str, tuple[float, ...]]
    loss: dict[str, float | None]


def roles(model: Any, text: Any, *, seed: int = 0) -> Roles:
    """The roles of the heads of the longest stack of self-attention, each as a share of its weights (Clark et al.,
    2019, arXiv:1906.04341; Olsson et al., 2022, arXiv:2209.11895).

    A share says where a head looks. Whether that counts is measured: the head's output is replaced by its mean over
    all positions, and the likelihood of the next tokens falls, or does not. Random heads tell how far it falls anyway.

    Args:
        model: any model with attention weights, in evaluation mode.
        text: a text, token ids, or all tensors of a call, for the roles that follow positions; long ones tell more.
        seed: of the random tokens, the random heads and the weights of the untrained model.

    Raises:
        ValueError: for a model without attention weights, or fewer than 4 positions.
    """
    explained = Explained(model, named(model, text))
    layers = _layers(explained)
    fresh = build(model.recipe, seed=seed).eval().to(next(model.parameters()))
    scores, offsets, untrained = dict[str, Tensor](), torch.zeros(()), dict[str, float]()
    every = _rows(model, explained, _tokens(explained, layers), seed)
    for rows in every:
        for mine, each in ((True, rows.call), (False, Explained(fresh, rows.call.inputs))):
            made, offset = _scored(_weights(each, layers), rows, model)
            if mine:
                scores.update(made)
                offsets = offset if rows.kind == "text" else offsets
            else:
                untrained.update({name: float(value.max()) for name, value in made.items()})
    found, beside, loss = list[Head](), dict[str, tuple[float, ...]](), dict[str, float | None]()
    for rows in every:
        names = [name for name in scores if OF.get(name, "text") == rows.kind]
        if not names:
            continue
        effects = _effects(rows, layers, {name: scores[name] for name in names}, seed)
        for name in names:
            loss[name], beside[name] = effects.plain, effects.beside
            for layer, head in _best(scores[name]):
                found.append(
                    Head(name, layers[layer], head, float(scores[name][layer, head]), untrained[name],
                         effects.of[layer, head], int(offsets[layer, head]) if name == "offset" else 0)
                )  # fmt: skip
    order = [name for name in ROLES if name in scores]
    found.sort(key=lambda h: (order.index(h.role), -h.score))
    return Roles(tuple(layers), {name: scores[name] for name in order}, tuple(found), beside, loss)


@dataclass(frozen=True)
class _Rows:
    """A call that some roles are scored on.

    Args:
        kind: "text", "twice" or "verbs". call: with one or more rows.
        ids: (B, T) its tokens, or None where positions are no tokens.
        where: (B, T, T) of "verbs": the tokens of the subject, for the place that has to know it.
        counts: (B, T) the tokens whose likelihood is measured; None: all.
    """

    kind: str
    call: Explained
    ids: Tensor | None
    where: Tensor | None = None
    counts: Tensor | None = None


def _rows(model: Any, explained: Explained, name: str | None, seed: int) -> list[_Rows]:
    """The given text; random tokens that come twice; sentences with a verb, where the model reads words."""
    every = [_Rows("text", explained, None if name is None else explained.inputs[name])]
    if name is None:
        return every
    twice = _repeated(model, explained, name, seed)
    if call := _instead(explained, name, twice):
        counts = torch.zeros_like(twice, dtype=torch.bool)
        counts[:, twice.shape[1] // 2 + 1 :] = True
        every.append(_Rows("twice", Explained(model, call), twice, counts=counts))
    made = agreeing(model.tokenizer, seed, model.context) if model.tokenizer is not None else None
    if made is not None and name == model.takes and (call := _instead(explained, name, made.ids)):
        rows, (B, T) = torch.arange(len(made.ids)), made.ids.shape
        verb, where = torch.zeros(B, T, dtype=torch.bool), torch.zeros(B, T, T, dtype=torch.bool)
        verb[rows, made.verb] = True
        before = int(model.generates and not model.reads_source)  # what writes the verb stands before it
        where[rows, made.verb - before] = made.subject
        ids = call[name]
        every.append(_Rows("verbs", Explained(model, call), ids, where.to(ids.device), verb.to(ids.device)))
    return every


def _instead(explained: Explained, name: str, ids: Tensor) -> dict[str, Tensor]:
    """The call with other rows of tokens; empty where other inputs belong to the tokens."""
    like = explained.inputs[name]
    texts = {n for n, f in explained.features.items() if f.table is not None}
    others = {n: v for n, v in explained.inputs.items() if n != name and (n in texts or v.shape != like.shape)}
    if not set(others) <= texts:
        return {}
    return {name: ids.to(like.device), **{n: v[:1].expand(len(ids), *v.shape[1:]) for n, v in others.items()}}


def _layers(explained: Explained) -> list[str]:
    """The paths of self-attention whose maps are square, of the stack with the most layers."""
    model = explained.model
    own = {kind: list(paths.values()) for kind, paths in {**kinds(model), **implied(model)}.items()}
    first = {kind: model.get_submodule(paths[0]) for kind, paths in own.items()}
    own = {k: paths for k, paths in own.items() if not getattr(first[k], "cross", 0) and head_count(first[k])}
    if not own:
        raise ValueError("this model has no self-attention with weights, so its heads have no roles; try method='ig'")
    return max(own.values(), key=len)


def _weights(explained: Explained, layers: list[str]) -> list[Weights]:
    """The maps of the layers, (B, H, T, T) each."""
    with torch.no_grad(), InBlocks(explained.model, layers) as taps:
        explained.run()
    shapes = [taps.maps[path].shape for path in layers]
    square = all(len(shape) == 4 and shape[-1] == shape[-2] for shape in shapes)
    if not square or len({(shape[0], *shape[2:]) for shape in shapes}) != 1:
        raise ValueError("roles are of maps from all positions to all; this model attends inside windows or blocks")
    if shapes[0][-1] < 4:
        raise ValueError(f"roles need at least 4 positions, better hundreds; this text has {shapes[0][-1]}")
    return [taps.maps[path] for path in layers]


def _tokens(explained: Explained, layers: list[str]) -> str | None:
    """The name of the input whose tokens are the stack's positions, or None if they are no tokens."""
    names = [n for n, f in explained.features.items() if f.table is not None]
    inside = [n for n in names if n.startswith("decoder") == layers[0].startswith("decoder.")] or names
    return inside[0] if len(inside) == 1 else None


def _repeated(model: Any, explained: Explained, name: str, seed: int) -> Tensor:
    """Rows of random tokens that come twice, (B, T)."""
    draws = torch.Generator().manual_seed(seed)
    span = SPAN if model.context is None else max(2, min(SPAN, model.context // 2))
    special = model.tokenizer.core.get_added_tokens_decoder() if model.tokenizer is not None else {}
    table: Any = explained.features[name].table
    words = torch.tensor([i for i in range(getattr(table, "num_embeddings", 0) or table.rows) if i not in special])
    return words[torch.randint(len(words), (ROWS, span), generator=draws)].repeat(1, 2)


def _delimiters(model: Any, ids: Tensor | None) -> Tensor | None:
    """True at tokens without a letter or a digit, and at special ones, (B, T)."""
    if ids is None or model.tokenizer is None:
        return None
    special = model.tokenizer.core.get_added_tokens_decoder()
    plain = {i: not any(c.isalnum() for c in model.tokenizer.decode([i])) for i in set(ids.flatten().tolist())}
    marks = [[i in special or plain[i] for i in row] for row in ids.tolist()]
    return torch.tensor(marks, device=ids.device)


def _scored(weights: Sequence[Weights], rows: _Rows, model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """By role the score of each head, (L, H), and the best offset of each."""
    T = weights[0].shape[-1]
    ids = rows.ids if rows.ids is not None and rows.ids.shape[1] == T else None  # else others are in the stream, too
    if rows.kind != "text" and ids is None:
        return {}, torch.zeros(())
    if rows.where is not None:
        there = rows.where
        return _shares(weights, {"subject": lambda t, s: there[:, t, s]}), torch.zeros(())
    if rows.kind == "twice":
        assert ids is not None
        behind = F.pad(ids, (1, 0), value=-1)  # what stands before each token
        same: dict[str, Place] = {
            "duplicate": lambda t, s: (ids[:, t] == ids[:, None, s]) & (s < t),
            "induction": lambda t, s: (ids[:, t] == behind[:, None, s]) & (s < t),
        }
        return _shares(weights, same), torch.zeros(())

    def back(k: int) -> Place:
        return lambda t, s: (t - s == k)[None]

    places = {f"{k} back": back(k) for k in range(1, min(FURTHEST, T - 1) + 1)}
    places["next"], places["ahead"] = lambda t, s: (s - t == 1)[None], lambda t, s: (s > t)[None]
    places["first"] = lambda t, s: ((s == 0) & (t > 0))[None]
    delimiters = _delimiters(model, ids)
    if delimiters is not None and bool(delimiters[:, 1:].any()):
        places["delimiter"] = lambda t, s: delimiters[:, None, s] & (s > 0) & (s != t)
    made = _shares(weights, places)
    each = torch.stack([made.pop(f"{k} back") for k in range(1, min(FURTHEST, T - 1) + 1)])  # (K, L, H)
    if not bool(made.pop("ahead").any()):
        del made["next"]
    offset = torch.zeros_like(each[0])
    if len(each) > 1:
        made["offset"], offset = each[1:].max(0)
    return {"previous": each[0], **made}, offset + 2


def _shares(weights: Sequence[Weights], places: Mapping[str, Place]) -> dict[str, Tensor]:
    """By name the mean weight at the places of the positions that have some, (L, H); 0 for heads that a layer with
    fewer does not have."""
    B, T, most = weights[0].shape[0], weights[0].shape[-1], max(w.shape[1] for w in weights)
    made = {name: torch.zeros(len(weights), most) for name in places}
    has = {name: torch.zeros(B, T, dtype=torch.bool) for name in places}
    for layer, each in enumerate(weights):
        for rows, columns, block in each.blocks():
            t, s = (torch.arange(T, device=block.device)[at] for at in (rows, columns))
            for name, place in places.items():
                there = place(t[:, None], s).expand(B, -1, -1)  # (B, t, s)
                inside = (block.float() * there[:, None]).sum((0, 2, 3))
                made[name][layer, : len(inside)] += inside.cpu()
                has[name][:, rows] |= there.any(-1).cpu()
    return {name: made[name] / has[name].sum().clamp(min=1) for name in places}


def _best(scores: Tensor) -> Iterable[tuple[int, int]]:
    heads = scores.shape[1]
    return [(int(i) // heads, int(i) % heads) for i in scores.flatten().topk(min(TOP, scores.numel())).indices]


@dataclass(frozen=True)
class _Effects:
    of: dict[tuple[int, int], float]
    beside: tuple[float, ...]
    plain: float | None


def _effects(rows: _Rows, layers: list[str], scores: dict[str, Tensor], seed: int) -> _Effects:
    """The losses without each head of a role, and without random others."""
    measure, plain = _measure(rows)
    wanted = {place for each in scores.values() for place in _best(each)}
    counts = [head_count(rows.call.model.get_submodule(path)) or 0 for path in layers]
    others = sorted({(i, h) for i, count in enumerate(counts) for h in range(count)} - wanted)
    random.Random(seed).shuffle(others)
    of = {place: measure([place], layers) for place in sorted(wanted)}
    return _Effects(of, tuple(measure([place], layers) for place in others[:BESIDE]), plain)


def _measure(rows: _Rows) -> tuple[Callable[[list[tuple[int, int]], list[str]], float], float | None]:
    """The effect of taking heads away, as a function of them; and the loss of the whole model."""
    call, model = rows.call, rows.call.model
    with torch.no_grad():
        whole = call.run()
    writes = model.generates and whole.logits is not None and not model.reads_source
    ids = next((call.inputs[n] for n, f in call.features.items() if f.table is not None), None)

    def loss(logits: Tensor) -> float:
        assert ids is not None
        seen, counts = logits[:, -ids.shape[1] :], torch.ones_like(ids).bool() if rows.counts is None else rows.counts
        return float(F.cross_entropy(seen[:, :-1][counts[:, 1:]].float(), ids[:, 1:][counts[:, 1:]]))

    plain = loss(whole.logits) if writes and ids is not None and ids.shape[1] > 1 else None  # type: ignore[arg-type]

    def measure(places: list[tuple[int, int]], layers: list[str]) -> float:
        with torch.no_grad(), without(model, [(layers[i], h) for i, h in places]):
            out = call.run()
        if plain is not None:
            assert out.logits is not None
            return loss(out.logits) - plain
        if out.logits is None or whole.logits is None:
            assert out.hidden is not None and whole.hidden is not None
            return float((out.hidden - whole.hidden).norm() / whole.hidden.norm())
        p, q = (v.float().log_softmax(-1) for v in (whole.logits, out.logits))
        return float((p.exp() * (p - q)).sum(-1).mean())

    return measure, plain


def without(model: Any, heads: Iterable[tuple[str, int]]) -> ExitStack:
    """The model with the outputs of some heads at their means over all positions: a block, `with without(...)`."""
    stack = ExitStack()
    for path, head in heads:
        count = head_count(model.get_submodule(path)) or 1

        def mean(value: Tensor, head: int = head, count: int = count) -> Tensor:
            value = value.clone()
            width = value.shape[-1] // count
            own = value[..., head * width : (head + 1) * width]  # (B, T, K)
            own[:] = own.mean((0, 1), keepdim=True)
            return value

        stack.enter_context(changed(model, f"{path}.{HEADS}", mean))
    return stack
