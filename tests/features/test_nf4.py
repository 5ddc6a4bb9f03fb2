import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anyformer.compress import nf4
from anyformer.compress.nf4 import HALF, LEVELS, Nf4, Nf4Linear, quantise
from anyformer.train import lora

from .models import linear, model, one_of_each, outputs


def test_the_levels_are_the_papers_quantiles():
    """QLoRA, section 3: 7 quantiles below zero, 8 above, zero itself, scaled to [-1, 1]."""
    inverse, edge = statistics.NormalDist().inv_cdf, 0.9677083
    above = [inverse(edge + (0.5 - edge) * i / 8) for i in range(8)]
    below = [-inverse(edge + (0.5 - edge) * i / 7) for i in range(7)]
    expected = sorted([*above, 0.0, *below])
    assert list(LEVELS) == pytest.approx([e / max(expected) for e in expected], abs=2e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_stated_error_holds(rows, width, size, kind, double, seed):
    random = torch.Generator().manual_seed(seed)
    base = nn.Linear(width, rows)
    with torch.no_grad():
        spread = torch.rand(rows, 1, generator=random) * 3  # blocks of very different size
        base.weight.copy_(torch.randn(rows, width, generator=random) * size * 10**-spread)
        base.weight[0] = 0.0
        base.to(kind)
    made = Nf4Linear(base, double)
    weight = made.weight
    off = (base.weight.double() - weight.dequantised().double()).abs()
    assert (off <= HALF * weight.bounds().double() * (1 + 1e-6)).all(), "a weight is off by more than half a gap"
    largest = base.weight.float().abs().max()
    assert (weight.scales() <= largest * 1.0001 + 1e-37).all(), "a block is scaled by more than there is"
    x = torch.randn(3, width, generator=random).to(kind)
    before = base(x)
    if before.isfinite().all():
        assert ((made(x).float() - before.float()).abs() <= made.bound(x) + base.bias.float().abs() * 2**-7).all()


def test_the_bound_is_not_idle():
    torch.manual_seed(0)
    base = nn.Linear(2, 4096)
    made = Nf4Linear(base)
    x = torch.tensor([[1.0, 1.0]])
    assert ((made(x) - base(x)).abs() / made.bound(x)).max() > 0.7


@pytest.mark.parametrize("double, bits", [(False, 4.5), (True, 4 + 8 / 64 + 64 / (64 * 256))])
def test_bits_a_weight(double, bits):
    matrix = torch.randn(512, 1024)
    made = Nf4(matrix, double)
    assert sum(b.nbytes for b in made.buffers()) * 8 / matrix.numel() == pytest.approx(bits, abs=1e-9)
    assert made.codes.dtype == torch.uint8 and not list(made.parameters())
    report = quantise(stack := nn.ModuleList([nn.Linear(1024, 512, bias=False)]), double=double)
    assert report.before == 4 * matrix.numel() and report.after == bits / 8 * matrix.numel()
    assert 0.14 < report.share <= HALF * 1.000001 and isinstance(stack[0], Nf4Linear)


def test_levels_themselves_are_exact():
    """What is a level times its block's largest comes back as it was."""
    random = torch.Generator().manual_seed(0)
    places = torch.randint(0, 16, (8, 64), generator=random)
    places[:, 0] = 15
    matrix = torch.tensor(LEVELS)[places] * torch.logspace(-3, 3, 8)[:, None]
    torch.testing.assert_close(Nf4(matrix, double=False).dequantised(), matrix, rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_matrix_it_stands_for_and_the_matrix_is_not_kept():
    made = Nf4Linear(nn.Linear(96, 40))
    x, grad = torch.randn(5, 96, requires_grad=True), torch.randn(5, 40)
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = made(x)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ made.weight.dequantised())
    torch.testing.assert_close(y, x @ made.weight.dequantised().T + made.bias)
    assert (40, 96) not in kept


@one_of_each
def test_every_model_in_4_bits_and_back(name):
    made = model(name)
    layers, before = linear(made), outputs(made)
    report = quantise(made)
    assert report.layers == tuple(layers) and report.of == len(layers) and not linear(made)
    assert report.after < report.before and f"nf4: {len(layers)} of {len(layers)} linear" in str(report)
    after = outputs(made)
    for key, value in after.items():
        near = torch.nn.functional.cosine_similarity(value.flatten(), before[key].flatten(), 0)
        assert near > 0.8, f"{key} has nothing to do with what it was: {near}"
    assert nf4.dequantise(made) == list(layers) and list(linear(made)) == list(layers)
    for key, value in outputs(made).items():
        torch.testing.assert_close(value, after[key], rtol=1e-4, atol=1e-4)
    assert nf4.dequantise(made) == []


def test_adapters_learn_on_4_bits_and_the_base_stays():
    made = model("llama")
    quantise(made, targets=("blocks.**",))
    codes = {n: b.clone() for n, b in made.named_buffers()}
    lora.add(made, rank=4, targets=("blocks.**",))
    learning = [p for p in made.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=0.01)
    for _ in range(3):
        outputs(made)["logits"].square().mean().backward()
        optimizer.step()
    tuned = outputs(made)["logits"]
    assert all(torch.equal(b, codes[n]) for n, b in made.named_buffers() if n in codes)
    lora.merge(made)
    assert not any(isinstance(m, Nf4) for m in made.modules())
    torch.testing.assert_close(outputs(made)["logits"], tuned, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_saved_says_what_to_do(tmp_path):
    made = model("llama")
    quantise(made)
    with pytest.raises(ValueError, match=r"blocks\.0\.mixer\.q is a Nf4Linear.*nf4\.dequantise"):
        made.save(tmp_path / "a")
    nf4.dequantise(made)
    lora.add(made)
    with pytest.raises(ValueError, match=r"LoraLinear.*lora\.merge\(model\).*adapters\.write"):
        made.save(tmp_path / "a")
    lora.merge(made)
    from anyformer.compress import int8

    int8.quantise(made)
    with pytest.raises(ValueError, match=r"Int8Linear.*int8\.save"):
        made.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_that_are_not_finite_are_refused_and_nothing_changes():
    made = model("gpt")
    with torch.no_grad():
        made.blocks[1].ffn.up.weight[3, 4] = float("inf")
    before = linear(made)
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.up\.weight"):
        quantise(made)
    assert linear(made) == before
