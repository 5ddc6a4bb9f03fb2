"""Counts without weights equal what is counted while the real model computes, on every page."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import anyformer as af
from anyformer.core import pages
from anyformer.edge import machine
from anyformer.edge.count import Count, count
from tests.later import later

NOW = ("bigbird", "clip", "dvae", "gemma3", "llama", "llava", "mamba", "mixtral", "t5", "vit", "whisper")
CLOSE = {"omni": 0.04}  # pictures and sounds have sizes of their own, which shapes do not tell: those of all are masked
aten = torch.ops.aten


class Products(TorchDispatchMode):
    """The operations of all products, from their shapes alone: an oracle apart from PyTorch's table."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += self.of(func._overloadpacket, args, out)
        return out

    @staticmethod
    def of(name: Any, args: Any, out: Any) -> int:
        if name in (aten.mm, aten.bmm):
            return 2 * out.numel() * args[0].shape[-1]
        if name in (aten.addmm, aten.addmm_, aten.baddbmm):
            return 2 * out.numel() * args[1].shape[-1]
        if name == aten.convolution:
            x, weight, turned = args[0], args[1], args[6]
            return 2 * math.prod(weight.shape[1:]) * (x if turned else out).numel()
        if name == aten.convolution_backward:
            grad, x, weight, turned, wanted = args[0], args[1], args[2], args[7], args[10]
            return sum(wanted[:2]) * 2 * math.prod(weight.shape[1:]) * (x if turned else grad).numel()
        if name == aten._scaled_dot_product_flash_attention_for_cpu:
            q, k, v = args[:3]
            return 2 * math.prod(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3])
        if name == aten._scaled_dot_product_flash_attention_for_cpu_backward:  # scores again, and four products
            q, k, v = args[1:4]
            return 2 * math.prod(q.shape[:3]) * k.shape[2] * (3 * q.shape[3] + 2 * v.shape[3])
        return 0


def real(name: str, found: Count) -> tuple[Any, dict[str, Tensor]]:
    """The page with weights, and inputs of the sizes that were counted."""
    model, noise = af.build(name, "tiny", seed=0).eval(), torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for entrance in model.entrances():
        size = found.tokens[entrance.prefix + entrance.front.main]
        example = entrance.front.example(found.batch, size, noise)
        made |= {entrance.prefix + n: v for n, v in example.items()}
    usual = model.example(found.batch, {}, noise)
    return model, model.complete(made | {n: v for n, v in usual.items() if n not in made})


def length(name: str) -> int | None:
    """A short text, in which the media of the page have room."""
    model = pages.empty(pages.recipe(name, "tiny"))
    usual = [e.front.sizes()[0] for e in model.entrances() if e.front.vocab is not None]
    return usual[0][0] if usual and len(usual[0]) == 1 else None


@pytest.mark.parametrize("name", [*NOW, *later(*(n for n in pages.names() if n not in NOW))])
def test_operations_and_state_are_those_of_the_real_model(name: str) -> None:
    found = count(pages.recipe(name, "tiny"), length(name), 2, train=True)
    model, inputs = real(name, found)
    with torch.no_grad(), Products() as forward:
        model(**inputs)
    assert found.forward == pytest.approx(forward.total, rel=CLOSE.get(name, 1e-3))
    with Products() as both:
        out = model(**inputs)
        kept = [out.logits, out.hidden, out.pooled, out.memory, *out.heads.values(), *out.aux.values()]
        values = [v for v in [*kept, *out.beside.values()] if v is not None and v.requires_grad]
        sum(v.float().sum() for v in values).backward()  # type: ignore[union-attr]
    assert found.forward + found.backward == pytest.approx(both.total, rel=CLOSE.get(name, 1e-3))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.parameters == sum(p.parameters for p in found.parts.values())
    assert found.forward == sum(p.forward for p in found.parts.values())
    assert found.backward == sum(p.backward for p in found.parts.values())
    assert found.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    if model.decodes and found.state is not None:
        entrance = model.entrances()[-1 if model.target else 0]
        state = model.start(found.batch, math.prod(found.tokens[entrance.prefix + entrance.front.main]))
        with torch.no_grad():
            model(**inputs, state=state)
        assert found.state == state.bytes()
    else:
        assert not model.decodes


def test_a_large_model_is_counted_without_its_memory() -> None:
    before = machine_memory()
    found = count(pages.recipe("llama", "7b"), tokens=256, train=True)
    assert found.parameters == 6_738_415_616 and found.weights == 4 * found.parameters
    matrices = found.parameters - found.embeddings - 65 * 4096  # all but the table and the norms
    attention = 32 * 2 * 256 * 256 * 2 * 4096  # layers x two products
    assert found.forward == 2 * 256 * matrices + attention and found.attention == attention
    assert found.backward == 2 * 2 * 256 * matrices + 5 * attention // 2
    assert found.state == 2 * 32 * 256 * 4096 * 4
    assert found.decoding is not None and found.decoding.weights == found.weights - 4 * (found.embeddings - 4096)
    assert machine_memory() - before < 3e9  # of 27 GB


def machine_memory() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096


def test_experts_count_as_many_as_a_token_meets() -> None:
    found = count(pages.recipe("mixtral", "tiny"), tokens=8)
    experts = sum(p.numel() for n, p in af.build("mixtral", "tiny").named_parameters() if ".experts." in n)
    assert found.parameters - found.active == experts // 2  # 2 of 4


def test_recomputed_activations_take_less_memory_and_more_operations() -> None:
    plain, again = (count(pages.recipe("gpt", "tiny"), 32, 4, True, again) for again in (False, True))
    assert again.activations < plain.activations / 2 and again.peak < plain.peak
    assert again.backward == pytest.approx(plain.backward + plain.forward, rel=0.15)


def test_half_as_many_bits_are_half_as_many_bytes() -> None:
    one, half = (count(pages.recipe("gpt", "tiny"), 8, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert one.weights == 2 * half.weights and one.state == 2 * (half.state or 0) and one.forward == half.forward


def test_times_are_the_larger_of_two_and_energy_is_their_sum() -> None:
    found = count(pages.recipe("gpt", "tiny"), 8)
    slow = machine.Machine("x", "y", 1, "float32", flops=1e6, bytes=1e12)
    dry = machine.Machine("x", "y", 1, "float32", flops=1e15, bytes=1e6)
    assert found.least(slow)["forward"] == pytest.approx(found.forward / 1e6)
    assert found.least(dry)["forward"] == pytest.approx(found.weights / 1e6)
    assert found.energy()["forward"] == pytest.approx(1e-12 * (2.3 * found.forward + 160 * found.weights))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"tokens": 65}, "do not fit the context of 64"),
        ({"dtype": torch.int8}, "dtype must be float32, float16 or bfloat16"),
    ],
)
def test_mistakes_are_named(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        count(pages.recipe("gpt", "tiny"), **asked)


def test_the_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    calls: Counter[str] = Counter()
    monkeypatch.setattr(machine, "matmul_rate", lambda *_: calls.update(["product"]) or 2e9)
    monkeypatch.setattr(machine, "read_rate", lambda: calls.update(["read"]) or 3e9)
    first = machine.measured()
    assert machine.measured() == first and calls == {"product": 1, "read": 1}
    assert (first.flops, first.bytes, first.threads) == (2e9, 3e9, torch.get_num_threads())
    machine.measured(torch.bfloat16)  # another type is another product
    assert calls["product"] == 2
    (tmp_path / machine.FILE).write_text('{"damaged": 1}')
    assert machine.measured() == first and calls["product"] == 3
