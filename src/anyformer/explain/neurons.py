"""Neurons: the units of feed-forward parts that made an answer, what they promote, and where else they are active.

B batch, T positions, F hidden width, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.slots import FeedForward
from anyformer.explain.attribution import named
from anyformer.explain.features import Explained
from anyformer.explain.lens import stack_of
from anyformer.explain.linearised import once, outermost
from anyformer.explain.target import Target, goal
from anyformer.parts.heads import Logits, MaskedLM

TOP, WORDS, CONTEXTS = 12, 6, 4  # neurons, tokens that each promotes, places of the largest activity
AROUND = 6  # tokens before and behind such a place
PIECE = 256  # tokens of a text that are read at once


@dataclass(frozen=True)
class Context:
    """A place where a neuron is active: the token ids around it, the place among them, and the activity."""

    ids: tuple[int, ...]
    at: int
    active: float


@dataclass(frozen=True)
class Neuron:
    """One unit.

    Args:
        path, unit: of the feed-forward part, and the number of the unit in it.
        share: activity times the slope of the score in it, summed over positions.
        effect: how far the score falls when the unit is 0 everywhere.
        active: its largest activity in the input, at position `at`.
        promotes, suppresses: (token, score): what its output, with the sign that it has here, adds to the scores by the
            model's own head, the largest and the lowest; empty for a model without a vocabulary head.
        contexts: the places of its largest activity of that sign in other texts.
    """

    path: str
    unit: int
    share: float
    effect: float
    active: float
    at: int
    promotes: tuple[tuple[int, float], ...]
    suppresses: tuple[tuple[int, float], ...]
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class Neurons:
    """The neurons that made a score, the largest share first; the score; its name; why none promotes tokens."""

    found: tuple[Neuron, ...]
    score: float
    target: str
    silent: str = ""


def neurons(
    model: Any,
    inputs: Any,
    target: Target = None,
    texts: Sequence[str] = (),
    *,
    top: int = TOP,
    at: int | None = None,
    head: str | None = None,
) -> Neurons:
    """The units of all feed-forward parts with the largest shares in a score (Geva et al., 2021, arXiv:2012.14913:
    the first matrix finds patterns, the second one adds to the scores of tokens; and 2022, arXiv:2203.14680).

    A share is of first order; the effect of the unit's absence is measured for those that are found.

    Args:
        model, inputs, target, at, head: as of `attribute`; one row.
        texts: where the units are looked up, in pieces of 256 tokens.
        top: neurons that are found.

    Raises:
        ValueError: for a model without feed-forward parts of two matrices, or with several rows.
    """
    explained = Explained(model, named(model, inputs))
    paths = hidden_of(model)
    values, slopes, score, name = _slopes(explained, paths, target, at, head)
    each = {path: (values[path] * slopes[path]).flatten(0, -2).sum(0) for path in paths if path in values}  # (F,)
    flat = [
        (float(v), path, int(u)) for path, share in each.items() for v, u in zip(*_largest(share, top), strict=True)
    ]
    flat.sort(key=lambda row: -abs(row[0]))
    chosen = [(path, unit, share) for share, path, unit in flat[:top]]
    places = []
    for path, unit, _ in chosen:
        active = values[path][0, ..., unit].flatten()
        places.append((active, int(active.abs().argmax())))
    signed = [(path, unit, -1 if active[place] < 0 else 1)
              for (path, unit, _), (active, place) in zip(chosen, places, strict=True)]  # fmt: skip
    promoted, silent = _promoted(explained, signed)
    contexts = _contexts(model, signed, texts)
    found = []
    for n, (path, unit, share) in enumerate(chosen):
        active, place = places[n]
        high, low = promoted[n] if promoted else ((), ())
        found.append(
            Neuron(path, unit, share, score - _without(explained, path, unit, target, at, head), float(active[place]),
                   place, high, low, contexts[n])
        )  # fmt: skip
    return Neurons(tuple(found), score, name, silent)


def hidden_of(model: nn.Module) -> list[str]:
    """The paths of feed-forward parts whose last matrix, `down`, reads one number for each unit and position.

    Raises:
        ValueError: if there is none.
    """
    found = [path for path, part in model.named_modules()
             if isinstance(part, FeedForward) and isinstance(getattr(part, "down", None), nn.Module)
             and not any(step == "experts" for step in path.split("."))]  # fmt: skip
    if not found:
        raise ValueError(
            "this model has no feed-forward part with a matrix `down` at every position (experts read sorted tokens), "
            "so its neurons have no places; use lens, direct or patch"
        )
    return found


def _largest(share: Tensor, count: int) -> tuple[list[float], list[int]]:
    best = share.abs().topk(min(count, len(share))).indices
    return share[best].tolist(), best.tolist()


@contextmanager
def _hidden(model: nn.Module, paths: Sequence[str], change: Any) -> Iterator[None]:
    """`change(path, value)` sees the units of each part, and may replace them."""

    def at(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            made = change(path, args[0])
            return None if made is None else (made, *args[1:])

        return hook

    with ExitStack() as hooks:
        for path in paths:
            down = model.get_submodule(path).down
            assert isinstance(down, nn.Module)
            hooks.callback(down.register_forward_pre_hook(at(path)).remove)
        yield


def _slopes(
    explained: Explained, paths: Sequence[str], target: Target, at: int | None, head: str | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], float, str]:
    """The units of each part, (1, T, F), the slopes of the score in them, the score and its name."""
    values, leaves = dict[str, list[Tensor]](), dict[str, list[Tensor]]()

    def lift(path: str, value: Tensor) -> Tensor:
        values.setdefault(path, []).append(value.detach().double())  # some parts run over pieces of a text
        leaves.setdefault(path, []).append(torch.zeros_like(value, requires_grad=True))
        return value + leaves[path][-1]

    with ExitStack() as kept, _hidden(explained.model, paths, lift), torch.enable_grad():
        kept.enter_context(once())
        for layer in outermost(explained.model):  # reversible stacks run plainly when somebody listens
            kept.callback(layer.register_forward_hook(lambda *_: None).remove)
        out = explained.run()
        aim = goal(explained.model, out, target, at, head, explained.inputs)
        score = aim(out)
        if len(score) != 1:
            raise ValueError(f"neurons are of one score; got {len(score)} rows, explain one at a time")
        found = iter(torch.autograd.grad(score.sum(), [v for each in leaves.values() for v in each], allow_unused=True))
    slopes = {
        p: [(torch.zeros_like(v) if (g := next(found)) is None else g).double() for v in values[p]] for p in leaves
    }
    joined = [{p: torch.cat(v, -2) for p, v in each.items()} for each in (values, slopes)]
    return joined[0], joined[1], float(score.detach()), aim.name


@torch.no_grad()
def _without(explained: Explained, path: str, unit: int, target: Target, at: int | None, head: str | None) -> float:
    plain = goal(explained.model, explained.run(), target, at, head, explained.inputs)

    def silenced(path: str, value: Tensor) -> Tensor:
        value = value.clone()
        value[..., unit] = 0
        return value

    with _hidden(explained.model, [path], silenced):
        return float(plain(explained.run()))


@torch.no_grad()
def _promoted(explained: Explained, chosen: Sequence[tuple[str, int, int]]) -> tuple[list[Any], str]:
    """For each neuron the tokens whose scores its output raises and lowers most, by the model's head and last norm's
    weights; or why there are none."""
    model = explained.model
    try:
        stack = stack_of(model)[1]
    except ValueError as error:
        return [], str(error)
    part = getattr(model, "head", None)
    if not isinstance(part, Logits) or isinstance(part, MaskedLM):
        return [], "behind the stream is no plain matrix of tokens, so units promote none by themselves"
    weight = part.proj.weight if isinstance(part.proj, nn.Linear) else _table(model)
    if weight is None:
        return [], "the token matrix is quantised or below an adapter, so its rows are not to be had"
    gain = getattr(stack.norm, "weight", None)
    if gain is not None and type(stack.norm).__name__ == "OneRMSNorm":
        gain = 1 + gain
    inside = {id(part) for layer in stack.layers() for part in layer.modules()}
    made = list[Any]()
    for path, unit, sign in chosen:
        if id(model.get_submodule(path)) not in inside:  # of an encoder, whose stream the head does not read
            made.append([(), ()])
            continue
        down: Any = model.get_submodule(path).down
        one = torch.zeros(2, down.in_features).to(weight)
        one[0, unit] = 1.0
        column = sign * (down(one)[0] - down(one)[1])  # (D,): of any matrix, a quantised one too
        if len(column) != weight.shape[1]:
            return [], "a unit writes into a part of the stream alone, which the head does not read by itself"
        scores = weight @ (column if gain is None else column * gain)
        best = [scores.topk(WORDS, largest=way) for way in (True, False)]
        made.append([tuple((int(i), float(v)) for v, i in zip(*b, strict=True)) for b in best])
    return made, ""


def _table(model: Any) -> Tensor | None:
    """The token table of a front-end whose rows a tied head reads."""
    for entrance in model.entrances():
        if entrance.front.unembed is not None and isinstance(
            table := getattr(entrance.front, "tokens", None), nn.Embedding
        ):
            return table.weight
    return None


@torch.no_grad()
def _contexts(model: Any, chosen: Sequence[tuple[str, int, int]], texts: Sequence[str]) -> list[tuple[Context, ...]]:
    """The places of the largest activity of each neuron, one for each text at most."""
    best: list[list[Context]] = [[] for _ in chosen]
    paths, most = list(dict.fromkeys(path for path, _, _ in chosen)), min(PIECE, model.context or PIECE)
    for text in texts:
        inputs = named(model, text)
        here: list[list[Context]] = [[] for _ in chosen]
        for ids in inputs[model.takes].split(most, 1) if inputs[model.takes].shape[1] else ():
            values = dict[str, list[Tensor]]()
            with _hidden(model, paths, lambda path, value, values=values: values.setdefault(path, []).append(value)):
                Explained(model, {**inputs, model.takes: ids}).run()
            for some, (path, unit, sign) in zip(here, chosen, strict=True):
                active = torch.cat(values[path], -2)[0, ..., unit].flatten()
                if len(active) != ids.shape[1]:
                    continue
                place = int((sign * active).argmax())
                start = max(0, place - AROUND)
                around = tuple(ids[0, start : place + AROUND + 1].tolist())
                some.append(Context(around, place - start, float(active[place])))
        for mine, some, (*_, sign) in zip(best, here, chosen, strict=True):
            mine += [max(some, key=lambda c, sign=sign: sign * c.active)] if some else []  # type: ignore[misc]
    return [tuple(sorted(mine, key=lambda c: -abs(c.active))[:CONTEXTS]) for mine in best]
