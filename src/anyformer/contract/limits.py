"""Item 10: parts meet their exactly known limits.

B batch, T time, G key/value heads, K head width, E inner width, N state.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from anyformer.contract.check import check
from anyformer.contract.kernels import SOFTMAX, attends, changed, like
from anyformer.contract.probe import close, draw, expect, run, same, slopes_agree
from anyformer.contract.subjects import Subject
from anyformer.core.flow import Flow
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe, signature
from anyformer.hub.tables.weights import RotaryOrder
from anyformer.parts import Attention, LatentAttention, Learned, Rotary
from anyformer.parts.attention.masks import Window
from anyformer.parts.positions import Dynamic, Linear, Llama3, LongRope, Scaling, YaRN
from anyformer.parts.recurrent.chunked import decayed, delta
from anyformer.parts.recurrent.mamba import scan


@check(10, "model", needs=attends)
def wide_window_equals_full_attention(subject: Subject) -> float:
    """A window of the text's length is full attention."""
    batch = draw(subject, random.Random(22), [9, 5], "left")
    other = like(subject, SOFTMAX, mask=Window(9 if subject.reads_text else 400, 400))
    full = like(subject, SOFTMAX, mask=None)
    return same(run(other, batch), run(full, batch), "window >= length")


def chunked(subject: Subject) -> list[type[Part]]:
    """The classes of parts with a chunk size."""
    parts = [v.part for _, v in subject.recipe.walk() if isinstance(v, Recipe)]
    return [part for part in dict.fromkeys(parts) if "chunk" in signature(part)]


@check(10, "model", needs=lambda s: None if chunked(s) else "it has no recurrence")
def chunk_size_does_not_matter(subject: Subject) -> float:
    """A recurrence gives the same with chunks of any size."""
    batch = draw(subject, random.Random(23), [21, 4], "left")
    expected = run(subject.model, batch)
    pairs = [(part, size) for part in chunked(subject) for size in (1, 3, 7, 1000)]
    return max(same(run(like(subject, p, chunk=c), batch), expected, f"{p.__name__}, chunk {c}") for p, c in pairs)


@check(10, "model", needs=attends)
def grouped_heads_equal_repeated_heads(subject: Subject) -> float:
    """Grouped heads are the same as one key/value head for each query head, repeated within each group."""
    recipe, weights = changed(subject.recipe, Attention, kv_heads=None), dict(subject.model.state_dict())
    for path, module in subject.model.named_modules():
        if isinstance(module, Attention):
            for name in (n for n in weights if n.startswith((f"{path}.k.", f"{path}.v."))):
                rows = weights[name].unflatten(0, (module.kv_heads, -1))  # (G, K, D) or (G, K)
                weights[name] = rows.repeat_interleave(module.heads // module.kv_heads, 0).flatten(0, 1)
    whole = recipe.build().eval()
    whole.load_state_dict(weights)
    batch = draw(subject, random.Random(24), [9, 5], "right")
    return same(run(whole, batch), run(subject.model, batch), "all heads")


def turns(subject: Subject) -> str | None:
    """The reason why checks of rotary positions do not apply, or None."""
    parts = [v.part for _, v in subject.recipe.walk() if isinstance(v, Recipe)]
    return None if Rotary in parts else "it has no rotary positions, or a file stores their frequencies"


@check(10, "model", needs=turns)
def rotary_pairings_are_permutations(subject: Subject) -> float:
    """Rotary pairs (i, i + K/2) and pairs (2i, 2i + 1) are the same function of reordered rows."""
    recipe, weights = changed(subject.recipe, Rotary, pairs="adjacent"), dict(subject.model.state_dict())
    for path, module in subject.model.named_modules():
        if isinstance(module, Attention) and isinstance(module.positions, Rotary):
            for letter, heads in (("q", module.heads), ("k", module.kv_heads)):
                for prefix, count in ((f"{path}.{letter}.", heads), (f"{path}.norm.{letter}.", 1)):
                    for name in (n for n in weights if n.startswith(prefix)):
                        weights[name] = RotaryOrder(count).write([weights[name]])[0]
        if isinstance(module, LatentAttention) and isinstance(module.positions, Rotary):
            for letter, heads in (("q", module.heads), ("kv_down", 1)):  # the last rows of a head are rotated
                for name in (n for n in weights if n.startswith(f"{path}.{letter}.")):
                    rows = weights[name].unflatten(0, (heads, -1))  # (H, N + P, D) or (1, R + P, D)
                    plain, turned = rows[:, : -module.rope_dim], rows[:, -module.rope_dim :]
                    turned = RotaryOrder(heads).write([turned.flatten(0, 1)])[0].unflatten(0, (heads, -1))
                    weights[name] = torch.cat((plain, turned), 1).flatten(0, 1)
    other = recipe.build().eval()
    other.load_state_dict(weights)
    batch = draw(subject, random.Random(25), [9, 5], "left")
    return same(run(other, batch), run(subject.model, batch), "adjacent pairs")


def relative(subject: Subject) -> str | None:
    """The reason why checks of relative positions do not apply, or None."""
    if turns(subject) or subject.holds(Learned) or not subject.reads_text:
        return "its positions are not relative alone"
    return "its turns depend on the length" if any(s.by_length for s in subject.values(Scaling)) else None


@check(10, "model", needs=relative)
def only_distances_count(subject: Subject) -> float:
    """With rotary positions alone, moving the whole text to later positions changes nothing."""
    batch = draw(subject, random.Random(26), [9, 9])
    moved = batch.with_(position_ids=torch.arange(9) + 17)
    actual, expected = run(subject.model, moved), run(subject.model, batch)
    return same(actual, expected, "moved by 17 positions", atol=1e-4)  # angles are float32: 26 radians carry 2e-6


@check(10, "parts")
def rope_scaling_by_one_changes_nothing() -> float:
    """Every rotary scaling by the factor 1, or within the trained length, is no scaling."""
    ones = (1.0,) * 4
    neutral = [Linear(1.0), YaRN(1.0, 16), Llama3(1.0, 1.0, 4.0, 16), LongRope(ones, ones, 8, 1.0), Dynamic(8.0, 64)]
    missing = {k.__name__ for k in Scaling.__subclasses__()} - {type(s).__name__ for s in neutral}
    expect(not missing, f"the contract has no neutral {missing}")
    positions = torch.arange(40)
    expected = Rotary(8).tables(Flow(positions), torch.float32)
    tables = [(s, Rotary(8, scaling=s).tables(Flow(positions), torch.float32)) for s in neutral]
    return max(close(a, b, f"{s}") for s, pair in tables for a, b in zip(pair, expected, strict=True))


@check(10, "parts", examples=25)
def scan_equals_recurrence(rng: random.Random) -> float:
    """The chunked scan is the recurrence step by step, from any state, whole or in two halves; so are its gradients."""
    noise = torch.Generator().manual_seed(rng.randrange(1 << 30))
    T, E, N, chunk = rng.randint(1, 40), rng.randint(1, 4), rng.randint(1, 3), rng.choice((1, 2, 5, 32))
    u, step = torch.randn(2, T, E, generator=noise), torch.rand(2, T, E, generator=noise)
    A, B, C = -torch.rand(E, N, generator=noise) * 3, *torch.randn(2, 2, T, N, generator=noise)
    h = torch.randn(2, E, N, generator=noise)
    inputs = [t.requires_grad_() for t in (u, step, A, B, C, h)]
    y, last = scan(u, step, A, B, C, h, chunk)
    state, rows = h, []
    for t in range(T):
        state = (step[:, t, :, None] * A).exp() * state + (step[:, t] * u[:, t])[..., None] * B[:, t, None]
        rows.append((state * C[:, t, None]).sum(-1))
    expected = torch.stack(rows, 1)
    worst = max(close(y, expected, "scan"), close(last, state, "its last state"))
    out = torch.randn(2, T, E, generator=noise)
    mine, theirs = (torch.autograd.grad((v * out).sum(), inputs, retain_graph=True) for v in (y, expected))
    names = ("u", "step", "A", "B", "C", "h")
    actual, wanted = (dict(zip(names, slopes, strict=True)) for slopes in (mine, theirs))
    worst = max(worst, slopes_agree(actual, wanted, "scan"))
    if T > 1:
        cut = rng.randint(1, T - 1)
        one, middle = scan(u[:, :cut], step[:, :cut], A, B[:, :cut], C[:, :cut], h, chunk)
        two, end = scan(u[:, cut:], step[:, cut:], A, B[:, cut:], C[:, cut:], middle, chunk)
        worst = max(worst, close(torch.cat((one, two), 1), y, "in two halves"), close(end, last, "state of two halves"))
    return worst


@check(10, "parts")
def scan_equals_convolution() -> float:
    """With constant step, B and C the scan is a convolution: y_t = sum_s C exp((t-s) step A) step B u_s."""
    noise = torch.Generator().manual_seed(0)
    T, E, N = 37, 3, 4
    u, step = torch.randn(1, T, E, generator=noise), torch.rand(E, generator=noise)
    A, B, C = -torch.rand(E, N, generator=noise), torch.randn(N, generator=noise), torch.randn(N, generator=noise)
    at_all = B.expand(1, T, N), C.expand(1, T, N)
    actual, _ = scan(u, step.expand(1, T, E), A, *at_all, torch.zeros(1, E, N))
    age = torch.arange(T)[:, None, None]
    kernel = ((age * step[:, None] * A).exp() * step[:, None] * B * C).sum(-1)  # (T, E)
    padded = torch.nn.functional.pad(u.mT, (T - 1, 0))  # (1, E, 2T - 1)
    expected = torch.nn.functional.conv1d(padded, kernel.flip(0).T[:, None], groups=E).mT
    return close(actual, expected, "convolution")


@check(10, "parts", examples=25)
def matrix_recurrences_equal_single_steps(rng: random.Random) -> float:
    """Decaying sums and the delta rule, in chunks of any size, whole or in two halves, are the recurrence; gradients
    too."""
    noise = torch.Generator().manual_seed(rng.randrange(1 << 30))
    T, K, V, chunk = rng.randint(1, 40), rng.randint(1, 4), rng.randint(1, 3), rng.choice((1, 2, 5, 64))
    q, k, v = (torch.randn(2, T, width, generator=noise) for width in (K, K, V))
    k = k / k.norm(dim=-1, keepdim=True)
    fade, beta = -3 * torch.rand(2, T, generator=noise), torch.rand(2, T, generator=noise)
    state, out = torch.randn(2, K, V, generator=noise), torch.randn(2, T, V, generator=noise)
    worst = 0.0
    rules: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "sum": lambda t, S, q, k, v: decayed(q, k, v, None, S, chunk),
        "fading sum": lambda t, S, q, k, v: decayed(q, k, v, fade[:, t], S, chunk),
        "delta rule": lambda t, S, q, k, v: delta(q, k, v, beta[:, t], fade[:, t], S, chunk),
    }
    for what, rule in rules.items():
        x = [t.clone().requires_grad_() for t in (q, k, v, state)]
        writes = beta if "delta" in what else None
        expected, last = by_steps(x[0], x[1], x[2], x[3], writes, 0 * fade if what == "sum" else fade)
        y, end = rule(slice(None), x[3], *x[:3])
        worst = max(worst, close(y, expected, what), close(end, last, f"{what}: its last state"))
        slopes = [torch.autograd.grad((t * out).sum(), x, retain_graph=True) for t in (y, expected)]
        actual, wanted = (dict(zip(("q", "k", "v", "state"), s, strict=True)) for s in slopes)
        worst = max(worst, slopes_agree(actual, wanted, what))
        if T > 1:
            one, two = slice(0, T // 2), slice(T // 2, T)
            first, middle = rule(one, x[3], *(t[:, one] for t in x[:3]))
            second, end = rule(two, middle, *(t[:, two] for t in x[:3]))
            worst = max(worst, close(torch.cat((first, second), 1), y, f"{what} in two halves"))
            worst = max(worst, close(end, last, f"{what}: state of two halves"))
    return worst


def by_steps(q: Tensor, k: Tensor, v: Tensor, S: Tensor, beta: Tensor | None, fade: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: S decays, then adds k v^T, or with `beta` corrects its value for k; y = S^T q."""
    rows = []
    for t in range(q.shape[1]):
        S = fade[:, t, None, None].exp() * S
        new = v[:, t] if beta is None else beta[:, t, None] * (v[:, t] - torch.einsum("bkv,bk->bv", S, k[:, t]))
        S = S + k[:, t, :, None] * new[:, None]
        rows.append(torch.einsum("bkv,bk->bv", S, q[:, t]))
    return torch.stack(rows, 1), S
