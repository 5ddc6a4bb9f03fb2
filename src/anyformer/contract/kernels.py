"""Item 9: all kernels give the same numbers.

B batch, T queries, S keys, H heads, G key/value heads, K head width, E inner width, N state.
"""

from __future__ import annotations

import itertools
import random
import warnings
from typing import Any

import torch
from torch import Tensor

from anyformer.contract.behaviour import Decoding
from anyformer.contract.check import check, decodes, pads
from anyformer.contract.oracle import fresh
from anyformer.contract.probe import ATOL, Batch, close, draw, expect, gradients, run, same, slopes_agree
from anyformer.contract.subjects import Subject, apart_from_tiny
from anyformer.core import pages
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe, signature
from anyformer.parts import Attention, LatentAttention, SoftCap
from anyformer.parts.attention import kernels as kernel_module
from anyformer.parts.attention.kernels import attend
from anyformer.parts.attention.masks import And, Causal, Full, Mask, Not, Or, Packed, View, Window
from anyformer.parts.attention.sparse_masks import BlockWindow, Dilated, Global, Prefix, Random, Strided

SOFTMAX = (Attention, LatentAttention)  # mixers with the kernels of `parts.kernels`


def attends(subject: Subject) -> str | None:
    """The reason why checks of attention do not apply, or None."""
    return None if any(map(subject.holds, SOFTMAX)) else "it has no attention"


OF_ONE_TEXT = ("mask", "positions")  # options that cross-attention refuses


def changed(recipe: Recipe, part: type[Part] | tuple[type[Part], ...], **options: Any) -> Recipe:
    """The recipe with these options in every part of those classes that has them."""
    owners = {path: v for path, v in recipe.walk() if isinstance(v, Recipe) and issubclass(v.part, part)}
    taken = [(path, name) for path, v in owners.items() for name in options if name in signature(v.part)]
    taken = [(path, n) for path, n in taken if n not in OF_ONE_TEXT or not owners[path].options.get("cross")]
    return recipe.but({f"{path}.{name}": options[name] for path, name in taken})


def like(subject: Subject, part: type[Part] | tuple[type[Part], ...], **options: Any) -> Any:
    """A model with the subject's weights, but these options in every part of those classes."""
    model = pages.empty(changed(subject.recipe, part, **options))
    model.load_state_dict(subject.model.state_dict(keep_vars=True), assign=True)
    return model.eval()


@check(9, "model", needs=attends, checkpoint=True, later=apart_from_tiny)
def kernels_agree_in_the_model(subject: Subject) -> float:
    """Outputs and gradients of the model are the same with every kernel, padding and an empty row included."""
    batch = empty_row(draw(subject, random.Random(20), [9, 6, 6], "left"))
    worst = 0.0
    plain = like(subject, SOFTMAX, kernel="reference")
    expected, slopes = run(plain, batch), gradients(plain, batch)
    expect(all(g.isfinite().all() for g in slopes.values()), "a gradient is not finite")
    for kernel in able(subject, ("sdpa", "chunked") if subject.path else ("auto", "sdpa", "chunked", "blockwise")):
        other = like(subject, SOFTMAX, kernel=kernel)
        scale = max(1.0, *(float(v.abs().max()) for v in expected.values()))
        worst = max(worst, same(run(other, batch), expected, kernel, atol=ATOL * scale))
        worst = max(worst, slopes_agree(gradients(other, batch), slopes, kernel))
    return worst


def able(subject: Subject, kernels: tuple[str, ...]) -> list[str]:
    """The kernels that support the model's attention: "sdpa" refuses to cap scores."""
    return [kernel for kernel in kernels if kernel != "sdpa" or not subject.holds(SoftCap)]


def empty_row(batch: Batch) -> Batch:
    """The batch with a last row of padding alone."""
    for name, value in batch.inputs.items():
        if name.endswith("attention_mask"):
            value[-1] = 0
    for keep in (batch.keep, batch.source):
        if keep is not None:
            keep[-1] = False
    return batch


@check(9, "model", needs=pads, checkpoint=True, later=apart_from_tiny)
def nothing_leaks_from_padding(subject: Subject) -> float:
    """NaN in inputs at padded positions reaches no output and no gradient."""
    rng = random.Random(21)
    worst = 0.0
    for side in ("left",) if subject.path else ("left", "right"):  # a checkpoint is large
        batch, model = draw(subject, rng, [8, 5, 1], side), fresh(subject.model)
        clean, slopes = run(model, batch), gradients(model, batch)
        keeps: dict[Any, list[Any]] = {}
        for entrance in (e for e in model.entrances() if e.mask):
            source = batch.source is not None and entrance.prefix != model.target
            keeps.setdefault(entrance.front, []).append(batch.source if source else batch.places)
        turns = {front: itertools.cycle(some) for front, some in keeps.items()}

        def poison(module: Any, inputs: Any, output: Tensor, keeps: Any = keeps, turns: Any = turns) -> Tensor:
            if output.shape[1] != keeps[module][0].shape[1]:  # it reads passages, too, which have masks of their own
                return output
            keep = next(turns[module])
            keep = keep.repeat_interleave(len(output) // len(keep), 0)
            return output.masked_fill(~keep[..., None], float("nan"))

        for front in keeps:
            front.register_forward_hook(poison)
        dirty = run(model, batch)
        for name in clean:
            for i in range(len(batch)):
                a, b = (batch.real(name, v[name], i) for v in (dirty, clean))
                worst = max(worst, close(a, b, f"NaN at padding ({side}): {name}"))
        worst = max(worst, slopes_agree(gradients(model, batch), slopes, f"NaN at padding ({side})"))
    return worst


@check(9, "parts", examples=60)
def kernels_agree(rng: random.Random) -> float:
    """Attention by every kernel, with random masks, padding, offsets, groups, biases, caps, is the definition."""
    case = Case(rng)
    expected, slopes = case.definition()
    worst = 0.0
    for kernel in ("auto", "reference", "sdpa", "chunked", "blockwise"):
        if kernel == "sdpa" and case.cap is not None:  # refused by sdpa
            continue
        actual, gradient = case.by(kernel)
        what = f"{kernel} over {case.view.mask}"
        worst = max(worst, close(actual, expected, what), slopes_agree(gradient, slopes, what))
    return worst


@check(9, "parts", examples=12)
def flex_agrees(rng: random.Random) -> float:
    """FlexAttention, forward (PyTorch has no gradient of it on the CPU), uncompiled, is the same definition."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex(Case(rng, most=20), flex_attention)


@check(9, "parts", slow=True)
def flex_agrees_compiled() -> float:
    """FlexAttention, forward, compiled as for users, is the same definition."""
    return max(flex(Case(random.Random(i), most=20), None) for i in range(3))


def flex(case: Case, kernel: Any) -> float:
    """The largest difference of FlexAttention, by this function or the compiled one."""
    before = kernel_module._compiled_flex
    try:
        if kernel is not None:
            kernel_module._compiled_flex = lambda: kernel  # type: ignore[assignment]
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # it warns that it is not compiled
            actual = case.attend("flex")
    finally:
        kernel_module._compiled_flex = before
    return close(actual, case.definition()[0], f"flex over {case.view.mask}")


class Case:
    """A random call of attention."""

    def __init__(self, rng: random.Random, most: int = 300):
        noise = torch.Generator().manual_seed(rng.randrange(1 << 30))
        self.groups, share = rng.choice((1, 2)), rng.choice((1, 2))
        B, T = rng.randint(1, 2), rng.choice((1, 2, 7, rng.randint(1, min(20, most)), rng.randint(1, most)))
        S = T + rng.choice((0, 0, 3))
        first = rng.choice((0, 5))  # keys that a sliding cache has dropped
        keep = None if rng.random() < 0.3 else torch.rand(B, S, generator=noise) < rng.choice((0.0, 0.5, 0.9))
        packed = Packed(*documents(B, T, noise)) if T == S and not first and rng.random() < 0.5 else None
        self.view = View(expression(rng, 2), first + S - T, T, first, S, keep, None, packed, packed)
        H, K = self.groups * share, 4
        shapes = {"q": (B, H, T, K), "k": (B, self.groups, S, K), "v": (B, self.groups, S, K)}
        shapes |= {"bias": (1, H, T, S)} if rng.random() < 0.4 else {}
        self.tensors = {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}
        self.out = torch.randn(B, H, T, K, generator=noise)
        self.scale, self.cap = rng.choice((None, 1.0, 0.3)), rng.choice((None, None, 0.8))

    def copies(self) -> dict[str, Tensor]:
        """Copies of the inputs, which can be changed."""
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    def seen(self) -> Tensor:
        """The mask, (B, 1, T, S), pair by pair."""
        view = self.view
        if view.mine is None:
            places = [(range(view.query, view.query + view.count), range(view.key, view.key + view.keys))]
            same = torch.ones(len(self.out), 1, 1, 1, dtype=torch.bool)
        else:
            places = [(row, row) for row in view.mine.positions.tolist()]
            same = (view.mine.ids[:, :, None] == view.mine.ids[:, None])[:, None]
        pairs = torch.tensor([[[sees(view.mask, i, j) for j in keys] for i in queries] for queries, keys in places])
        pairs = pairs[:, None] & same
        return pairs if view.keep is None else pairs & view.keep[:, None, None]

    def definition(self) -> tuple[Tensor, dict[str, Tensor]]:
        """softmax(cap(scale q k^T) + bias) v over visible keys, in float64, 0 without any; and its gradients."""
        inputs = self.inputs(torch.float64)
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        k, v = (t.repeat_interleave(q.shape[1] // self.groups, 1) for t in (k, v))
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        scores = scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)
        scores = scores + inputs.get("bias", 0.0)
        seen = self.seen()
        power = torch.where(seen, (scores - scores.detach().amax(-1, keepdim=True)).exp(), 0.0)
        y = power @ v / torch.where(seen.any(-1, keepdim=True), power.sum(-1, keepdim=True), 1.0)
        return y.detach().float(), self.slopes(y, inputs)

    def by(self, kernel: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Result and gradients of one of our kernels."""
        inputs = self.inputs(torch.float32)
        y = self.attend(kernel, **inputs)
        return y.detach(), self.slopes(y, inputs)

    def attend(self, kernel: str, **inputs: Tensor) -> Tensor:
        """The result of one of our kernels."""
        tensors = {**self.tensors, **inputs}
        q, k, v, bias = tensors["q"], tensors["k"], tensors["v"], tensors.get("bias")
        return attend(q, k, v, self.view, None, bias, self.scale, kernel=kernel, cap=self.cap)

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies of the inputs with gradients."""
        return {name: tensor.to(dtype).requires_grad_() for name, tensor in self.copies().items()}

    def slopes(self, y: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of a random combination of the result."""
        gradients = torch.autograd.grad(
            (y * self.out).sum(), list(inputs.values()), allow_unused=True, materialize_grads=True
        )
        return {n: g.float() for n, g in zip(inputs, gradients, strict=True)}


def documents(batch: int, count: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random documents in one piece each, and the position of each token in its own, (B, T) each."""
    begins = torch.rand(batch, count, generator=noise) < 0.2
    begins[:, 0] = True
    index = torch.arange(count).expand(batch, -1)
    return begins.cumsum(1) - 1, index - index.masked_fill(~begins, 0).cummax(1).values


def expression(rng: random.Random, depth: int) -> Mask:
    """A random mask."""
    kind = rng.randrange(6 if depth else 3)
    if kind == 0:
        return rng.choice((Full(), Causal()))
    if kind == 1:
        return Window(rng.choice((0, 1, 5, 40)), rng.choice((0, 0, 2)))
    if kind == 2:
        size, count = rng.choice((1, 3, 8)), rng.choice((1, 2))
        sparse = (Dilated(size, count, rng.choice((0, 2))), Strided(size), Global(size), Prefix(size))
        return rng.choice((*sparse, BlockWindow(size, count, 0), Random(size, count, rng.randrange(3))))
    if kind == 3:
        return ~expression(rng, depth - 1)
    a, b = expression(rng, depth - 1), expression(rng, depth - 1)
    return a & b if kind == 4 else a | b


def sees(mask: Mask, query: int, key: int) -> bool:
    """True if the query sees the key: the definition of every mask."""
    match mask:
        case Full():
            return True
        case Causal():
            return key <= query
        case Window(left, right):
            return -left <= key - query <= right
        case Dilated(step, left, right):
            return (key - query) % step == 0 and -left <= (key - query) // step <= right
        case Strided(stride):
            return (key - query) % stride == 0
        case Global(tokens):
            return min(query, key) < tokens
        case Prefix(tokens):
            return key < tokens
        case BlockWindow(size, left, right):
            return -left <= key // size - query // size <= right
        case Random(size, count, seed):
            earlier, later = sorted((query // size, key // size))
            return earlier != later and earlier in draws(later, count, seed)
        case And(a, b):
            return sees(a, query, key) and sees(b, query, key)
        case Or(a, b):
            return sees(a, query, key) or sees(b, query, key)
        case Not(a):
            return not sees(a, query, key)
    raise NotImplementedError(f"the contract has no definition of {type(mask).__name__}")


def draws(block: int, count: int, seed: int) -> list[int]:
    """The earlier blocks that a block of `Random` draws: the first of a permutation by seed and block."""
    noise = torch.Generator().manual_seed((seed * 1_000_003 + block) % (1 << 63))
    return torch.randperm(block, generator=noise)[:count].tolist()


@check(9, "parts", examples=60)
def mask_properties_match_the_mask(rng: random.Random) -> float:
    """A mask as a tensor is its definition; nothing beyond its reach is seen; the shortcuts agree with it."""
    mask = expression(rng, 3)
    T, S, query, key = rng.randint(1, 12), rng.randint(1, 12), rng.randint(0, 9), rng.randint(0, 9)
    view = View(mask, query, T, key, S)
    pairs = torch.tensor([[sees(mask, query + i, key + j) for j in range(S)] for i in range(T)])
    expect(torch.equal(view.tensor()[0, 0], pairs), f"{mask} as a tensor differs from its definition")
    left, right = mask.reach()
    for i, j in pairs.nonzero().tolist():
        expect(-left <= key + j - query - i <= right, f"{mask} reaches further than {mask.reach()}")
    expect(not view.nothing() or not bool(pairs.any()), f"{mask} shows something, but is reported as empty")
    expect(abs(mask.kept(T, S) - true_share(mask, T, S)) < 1e-9, f"{mask} reports a wrong cost")
    expect(not view.everything() or bool(pairs.all()), f"{mask} does not show everything, but is reported as full")
    triangle = torch.ones(T, S, dtype=torch.bool).tril()
    expect(
        not view.plainly_causal() or torch.equal(pairs, triangle), f"{mask} is not plainly causal, but is reported so"
    )
    return 0.0


def true_share(mask: Mask, queries: int, keys: int) -> float:
    """The share of visible pairs."""
    return sum(sees(mask, i, j) for i in range(queries) for j in range(keys)) / (queries * keys)


@check(9, "model", examples=2, needs=lambda s: decodes(s) or attends(s), later=apart_from_tiny)
def kernels_agree_while_decoding(subject: Subject, rng: random.Random) -> float:
    """Token by token through a cache, every kernel gives the plain formula's results for the whole text."""
    batch = draw(subject, rng, [rng.randint(2, 8)] * 2)
    plain = like(subject, SOFTMAX, kernel="reference")
    expected, worst = run(plain, batch)["logits"], 0.0
    for kernel in able(subject, ("auto", "reference", "sdpa", "chunked", "blockwise")):
        model = like(subject, SOFTMAX, kernel=kernel)
        state, pieces = model.start(2), Decoding(subject, batch)
        for t in range(pieces.total):
            with torch.no_grad():
                actual = model(**pieces.piece(t, t + 1), state=state).logits[:, 0]
            worst = max(worst, close(actual, expected[:, t], f"{kernel}, token {t}"))
    return worst
