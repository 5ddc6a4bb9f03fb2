"""The lens, direct shares and patching: the last layer is the model, shares sum to the score, all of it is clean."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.core import pages
from anyformer.explain import direct, lens, patch
from anyformer.explain.features import Explained
from anyformer.explain.lens import behind_each, stack_of
from anyformer.explain.patching import found, patched, recorded

NO_STACK = "no row of blocks"
NO_LENS = {
    "autoformer": "a forecast is numbers",
    "informer": "a forecast is numbers",
    "clip": NO_STACK,
    "dit": "neither",
    "dvae": NO_STACK,
    **dict.fromkeys(("alphafold2", "encodec", "esmfold"), NO_STACK),
    "musicgen": "neither",
    "lxmert": NO_STACK,
    "rag": NO_STACK,
    "mmdit": "changes the length",
    "swin": NO_STACK,
    "vit_hybrid": "no head here",
}
NO_SUM = r"\(wiring 'post'\)|TrendBlock|Macaron|Adaptive|JointBlock|ReversibleBlock|is not linear in the stream"
LINEAR = {
    *("flamingo", "gemma3", "gpt", "graphormer", "jamba", "linear", "linformer", "llama", "llava", "mamba", "mamba2"),
    *("memorizing", "mixtral", "omni", "performer", "musiclm", "qwen2", "switch", "t5", "vit", "whisper"),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def _call(name: str, seed: int = 0, rows: int = 2) -> tuple[Any, dict[str, Tensor]]:
    model = af.build(name, "tiny", seed=0).eval()
    return model, model.complete(model.example(rows, {}, torch.Generator().manual_seed(seed)))


def _run(model: Any, call: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        return Explained(model, call).run()


def _mixed(out: Any) -> Tensor:
    x = (out.hidden if out.logits is None else out.logits).flatten(1)
    return x @ torch.randn(x.shape[1], generator=torch.Generator().manual_seed(1)).to(x)


@pytest.mark.parametrize("name", [n for n in pages.names() if n not in NO_LENS])
def test_the_last_layer_of_the_lens_is_the_model(name):
    model, call = _call(name)
    own = _run(model, call).logits
    seen = lens(model, call)
    last: Any = seen.last
    assert torch.equal(last.logits, own)
    assert torch.equal(seen.top[-1], own.topk(seen.top.shape[-1], -1).indices)
    assert seen.layers[0] == "embed" and len(seen.layers) == len(seen.top) == len(seen.score)
    assert seen.rank is not None and int(seen.rank[-1].max()) == 1  # the target is the model's own choice
    with torch.no_grad(), behind_each(Explained(model, call)) as (names, outs, _):
        shapes = [None if out.logits is None else out.logits.shape for out in outs]
        assert shapes == [own.shape] * (len(names) - 1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", [n for n in pages.names() if n not in NO_LENS])
def test_blocks_that_are_passed_over_change_nothing(name, monkeypatch):
    """The lens runs the blocks once, whatever their number, where the head needs nothing of them but the stream."""
    model, call = _call(name)
    runs, first = list[Any](), next(iter(stack_of(model)[1].layers()))
    hook = next(m for m in first.modules() if not list(m.children())).register_forward_hook(lambda *a: runs.append(1))
    quick = lens(model, call)
    count = len(runs)
    monkeypatch.setattr(sys.modules["anyformer.explain.lens"], "_only_pass", lambda *args: False)
    runs.clear()
    whole = lens(model, call)
    hook.remove()
    assert torch.equal(quick.score, whole.score) and torch.equal(quick.top, whole.top)
    assert count * len(quick.layers) == len(runs)
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("name", NO_LENS)
def test_a_page_without_a_lens_says_why(name):
    if name not in pages.names():
        pytest.skip("no such page")
    with pytest.raises(ValueError, match=NO_LENS[name]):
        lens(*_call(name))


@pytest.mark.parametrize("name", ["gpt", "llama", "t5", "gemma3"])
def test_the_norm_is_made_anew_for_each_layer(name):
    """The stream behind a block, through the last norm and the head by hand."""
    model, call = _call(name)
    stack = getattr(model, "decoder", model)
    seen = []
    hook = stack.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad(), behind_each(Explained(model, call)) as (names, outs, _):
        first = list(outs)[1]
    hook.remove()
    with torch.no_grad():
        hidden = stack.norm(seen[0])
    torch.testing.assert_close(first.hidden, hidden)
    assert names[1].endswith("blocks.0")


@pytest.mark.parametrize("name", [n for n in pages.names() if n in LINEAR])
def test_direct_shares_sum_to_the_score(name):
    model = redrawn(af.build(name, "tiny", seed=0)).eval()
    call = model.complete(model.example(2, {}, torch.Generator().manual_seed(0)))
    made = direct(model, call, at=-1 if name == "linformer" else None)
    out = _run(model, call)
    total = torch.stack([s.sum(1) for s in made.shares.values()]).sum(0)
    torch.testing.assert_close(total + made.bias, made.score)
    size = float(torch.stack([s.abs().sum(1) for s in made.shares.values()]).sum(0).max())
    bias = _bias(model, out, made)
    torch.testing.assert_close(made.bias, bias, rtol=1e-4, atol=1e-5 * size)
    for path, heads in made.heads.items():  # the heads and the bias of their output matrix are the branch
        mixer = model.get_submodule(path)
        if mixer.o.bias is None:
            torch.testing.assert_close(heads.sum(-1), made.shares[path], rtol=1e-4, atol=1e-5 * size)


def _bias(model: Any, out: Any, made: Any) -> Tensor:
    """The score of the last norm's bias and the head's, by the head itself."""
    stack = getattr(model, "decoder", model)
    norm = getattr(stack, "norm", None)
    start = getattr(norm, "bias", None)
    head = getattr(model, "head", None) or next(iter(model.heads.values()))
    ids = torch.tensor([made_ids[0] for made_ids in _ids(out, made)])
    matrix = (
        head.proj.weight
        if head.proj is not None
        else (model.entrances()[-1].front if model.target else model.embed).tokens.weight
    )
    rows = matrix.double()[ids] * getattr(head, "scale", 1.0)
    bias = torch.zeros(len(ids), dtype=torch.double)
    if start is not None:
        bias = bias + (rows * start.double()).sum(1)
    own = getattr(head, "bias", None)
    own = getattr(head.proj, "bias", None) if own is None and head.proj is not None else own
    return bias if own is None else bias + own.double()[ids]


def _ids(out: Any, made: Any) -> list[tuple[int, ...]]:
    logits = out.logits if out.logits.ndim == 2 else out.logits[:, -1]
    return [(int(i),) for i in logits.argmax(-1)]


@pytest.mark.parametrize("name", [n for n in pages.names() if n not in LINEAR and NO_LENS.get(n) != NO_STACK])
def test_a_part_without_direct_shares_is_named(name):
    with pytest.raises(ValueError, match=NO_SUM):
        direct(*_call(name))


def _pair(name: str) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A model and two calls that differ in tokens and numbers alone."""
    model, clean = _call(name, rows=1)
    other = model.complete(model.example(1, {}, torch.Generator().manual_seed(1)))
    mains = {e.prefix + e.front.main for e in model.entrances()}
    same = {n: v for n, v in clean.items() if v.shape != other[n].shape or not (n in mains or v.is_floating_point())}
    return model, clean, {**other, **same}


EVERY = [
    n for n in pages.names() if n not in ("alphafold2", "dit", "mmdit", "rag")
]  # whose last layers are 0 at first: one score; or whose scores are a mean behind the heads


@pytest.mark.parametrize("name", EVERY)
def test_patching_everything_is_clean_and_nothing_is_corrupt(name):
    model, clean, corrupt = _pair(name)
    one, two = Explained(model, clean), Explained(model, corrupt)
    ends = [p for p in found(model, ["**"]) if re.fullmatch(r"head|pool|heads\.\w+|decoder\.last", p)]
    values = _recorded(one, ends)
    a, b = _run(model, clean), _run(model, corrupt)
    assert not torch.equal(_mixed(a), _mixed(b))
    if not model.alike:  # whose towers return outputs, no tensors
        made: Any = patched(two, values)
        ours = [(n, made.heads[n], a.heads[n]) for n in made.heads if f"heads.{n}" in values]
        ours += [("logits", made.logits, a.logits)] if "head" in values else []
        ours += [("pooled", made.pooled, a.pooled)] if name == "vit_hybrid" else []
        last = {"dvae": "pixels", "encodec": "sound"}.get(name)
        ours += [] if last is None else [(last, made.heads[last], a.heads[last])]
        assert ours
        for place, got, wanted in ours:
            assert torch.equal(got, wanted), place
    nothing = {p: torch.zeros(v.shape[1:], dtype=torch.bool) for p, v in values.items()}
    assert torch.equal(_mixed(patched(two, values, nothing)), _mixed(b))
    assert torch.equal(_mixed(_run(model, corrupt)), _mixed(b))


def _recorded(explained: Explained, paths: list[str]) -> dict[str, Tensor]:
    with recorded(explained.model, paths) as values, torch.no_grad():
        explained.run()
    return values


@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "vit", "mamba", "qwen2"])
def test_a_block_carries_everything_and_first_order_is_the_limit(name):
    model, clean, corrupt = _pair(name)
    made = patch(model, clean, corrupt, "blocks.*", 3)
    for path in made.scores:  # one stream: behind any block it is all there is
        torch.testing.assert_close(made.restored(path), torch.ones(1, dtype=torch.double), rtol=1e-4, atol=1e-4)
    main = next(iter(clean))
    explained = Explained(model, corrupt)
    small = {p: v for p, v in _recorded(explained, ["blocks.0"]).items()}
    if corrupt[main].is_floating_point():
        near = {main: corrupt[main] + 1e-3 * torch.randn(corrupt[main].shape)}
        close = patch(model, near, corrupt, "blocks.*", 3)
        for path, score in close.scores.items():
            assert abs(float(close.first_order[path] - score)) < 0.05 * abs(float(close.clean - close.corrupt))
    assert small


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_positions_and_heads_are_apart(name):
    model, clean, corrupt = _pair(name)
    path = "decoder.blocks.1.mixer" if name == "t5" else "blocks.1.mixer"
    at = None if model.generates else 2
    made = patch(model, clean, corrupt, [f"{path}.heads", path], 3, at=at)
    assert made.scores[f"{path}.heads"].shape == (1, 4) and made.scores[path].shape == (1,)
    linear = made.first_order[f"{path}.heads"] - made.corrupt[:, None]
    torch.testing.assert_close(linear.sum(1), made.first_order[path] - made.corrupt, rtol=1e-3, atol=1e-5)
    each = patch(model, clean, corrupt, path, 3, positions=True, at=at)
    assert each.scores[path].shape == (1, 16)
    quick = patch(model, clean, corrupt, path, 3, positions=True, exact=False, at=at)
    assert not quick.scores and torch.equal(quick.first_order[path], each.first_order[path])


def test_mistakes_are_named():
    model, clean, corrupt = _pair("llama")
    with pytest.raises(ValueError, match=r"'block\.\*' is no place of this model"):
        patch(model, clean, corrupt, "block.*")
    with pytest.raises(ValueError, match=r"clean input has the shape \(1, 3\), the corrupt one \(1, 2\).*equally many"):
        patch(model, [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="both inputs have the score"):
        patch(model, clean, clean)
    with pytest.raises(ValueError, match=r"'blocks.0.mixer.heads' is no place of this model"):
        patch(af.build("mamba", "tiny").eval(), clean, corrupt, "blocks.0.mixer.heads")
    with pytest.raises(ValueError, match="training mode"):
        lens(model.train(), clean)
