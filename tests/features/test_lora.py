import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.edge.export import inputs
from anyformer.train import lora

from .models import idle, linear, model, one_of_each, outputs


def learn(made, steps=3):
    """A few steps of the adapters toward smaller outputs: enough that they are no longer zero."""
    made.train()
    weights = [p for p in made.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        out = outputs(made, batch=8)  # enough that every expert is chosen
        torch.stack([t.square().mean() for n, t in out.items() if n != "memory"]).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    made.eval()


@one_of_each
def test_every_linear_layer_learns_and_merges_to_the_same_function(name):
    made = model(name)
    with torch.no_grad():  # with gradients, PyTorch's attention takes another kernel for a bias that learns
        before = outputs(made)
    layers = linear(made)
    frozen = {n: p.clone() for n, p in made.named_parameters()}
    added = lora.add(made, rank=4, targets=("**",))
    assert list(added) == list(layers)
    with torch.no_grad():
        for key, value in outputs(made).items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=1e-5 * max(1.0, float(before[key].abs().max())))
    assert {n for n, p in made.named_parameters() if p.requires_grad} == set(lora.state(made))

    learn(made)
    for path, layer in added.items():
        assert path in idle(added, made) or layer.lora_b.abs().max() > 0, f"{path} did not learn"
    assert all(torch.equal(p, frozen[n]) for n, p in made.named_parameters() if n in frozen), "a frozen weight moved"
    tuned = outputs(made)
    assert any((tuned[k] - before[k]).abs().max() > 1e-3 for k in before)

    assert lora.merge(made) == list(layers)
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in frozen.items()}
    assert all(type(m) is nn.Linear for m in linear(made).values()) and list(linear(made)) == list(layers)
    assert all(p.requires_grad for p in made.parameters())
    for key, value in outputs(made).items():
        scale = tuned[key].abs().max().item()
        torch.testing.assert_close(value, tuned[key], rtol=1e-5, atol=2e-5 * max(1.0, scale), msg=f"{key} after merge")


@one_of_each
def test_a_merged_model_saves_and_loads(name, tmp_path):
    made = model(name)
    lora.add(made, rank=2, targets=("**",))
    learn(made, steps=1)
    lora.merge(made)
    made.save(tmp_path)
    again = af.load(tmp_path)
    for key, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    for key, value in outputs(again).items():
        torch.testing.assert_close(value, outputs(made)[key])


def test_the_formula():
    base = nn.Linear(5, 3)
    made = lora.LoraLinear(base, rank=2, alpha=3.0, dropout=0.0)
    nn.init.normal_(made.lora_b)
    x = torch.randn(4, 5)
    whole = base.weight + 3.0 / 2 * made.lora_b @ made.lora_a
    torch.testing.assert_close(made(x), x @ whole.T + base.bias)
    torch.testing.assert_close(made.merged().weight, whole)
    assert made.weight is base.weight, "the layer is not copied"


def test_half_precision_merges_with_one_rounding():
    made = lora.LoraLinear(nn.Linear(64, 32).bfloat16(), rank=4, alpha=8.0, dropout=0.0)
    nn.init.normal_(made.lora_b)
    assert isinstance(made.weight, torch.Tensor)
    exact = made.weight.double() + 2.0 * made.lora_b.double() @ made.lora_a.double()
    merged = made.merged().weight
    assert merged.dtype == torch.bfloat16 and made.lora_a.dtype == torch.float32  # what learns is float32
    assert ((merged.double() - exact).abs() <= exact.abs() * 2**-8).all()


def test_defaults_are_the_papers_choice_and_paths_stay():
    made = model("llama")
    keys = set(made.state_dict())
    assert list(lora.add(made)) == [f"blocks.{i}.mixer.{n}" for i in range(2) for n in "qv"]
    assert set(made.state_dict()) - keys == {
        f"blocks.{i}.mixer.{n}.lora_{ab}" for i in range(2) for n in "qv" for ab in "ab"
    }
    assert keys <= set(made.state_dict())


def test_dropout_acts_on_the_adapter_in_training_alone():
    made = model("gpt")
    lora.add(made, dropout=0.5)
    for path, value in lora.state(made).items():
        if path.endswith("b"):
            value.normal_()
    still = outputs(made)["logits"]
    assert torch.equal(outputs(made)["logits"], still)
    made.train()
    assert not torch.equal(outputs(made)["logits"], still)


def test_cached_decoding_with_adapters_is_the_same():
    made = model("hybrid")
    lora.add(made, targets=("**",))
    learn(made, 1)
    ids = inputs(made)["input_ids"]
    with torch.no_grad():
        state = made.start(len(ids))
        steps = [made(ids[:, t : t + 1], state=state).logits for t in range(ids.shape[1])]
        torch.testing.assert_close(torch.cat(steps, 1), made(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_state_goes_into_another_model():
    one, two = model("t5"), model("t5")
    for made in (one, two):
        lora.add(made, rank=3)
    learn(one)
    lora.load_state(two, lora.state(one))
    assert all(torch.equal(a, b) for a, b in zip(outputs(one).values(), outputs(two).values(), strict=True))
    given = lora.state(one)
    name = next(iter(given))
    with pytest.raises(ValueError, match="has no place in the model"):
        lora.load_state(two, {**given, "blocks.0.lora_a": given[name]})
    with pytest.raises(ValueError, match=f"{name}.*no tensor among those given"):
        lora.load_state(two, {n: t for n, t in given.items() if n != name})
    with pytest.raises(ValueError, match=f"{name}.*another rank"):
        lora.load_state(two, {**given, name: torch.zeros(5, 5)})
    assert all(torch.equal(t, given[n]) for n, t in lora.state(two).items()), "an error changed something"


def test_wrong_use_is_told():
    made = model("mamba")
    with pytest.raises(ValueError, match=r"'\*\*\.mixer\.q'.*mixer"):  # no q in Mamba
        lora.add(made)
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
        lora.add(made, rank=0, targets=("**",))
    with pytest.raises(ValueError, match=r"dropout .* got 1\.0"):
        lora.add(made, dropout=1.0, targets=("**",))
    with pytest.raises(ValueError, match="no adapters to merge"):
        lora.merge(made)
    assert all(p.requires_grad for p in made.parameters()) and lora.state(made) == {}, "an error changed something"
    lora.add(made, targets=("**.mixer.*",))
    with pytest.raises(ValueError, match="has 8 adapters already"):
        lora.add(made, targets=("**",))


def test_doras_formula():
    torch.manual_seed(0)
    base = nn.Linear(5, 3)
    made = lora.DoraLinear(base, rank=2, alpha=3.0, dropout=0.0)
    torch.testing.assert_close(made.lora_m, base.weight.norm(dim=1))
    nn.init.normal_(made.lora_b)
    nn.init.normal_(made.lora_m)
    x = torch.randn(4, 5)
    moved = base.weight + 3.0 / 2 * made.lora_b @ made.lora_a
    whole = made.lora_m[:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made(x), x @ whole.T + base.bias)
    torch.testing.assert_close(made.merged().weight, whole)


def test_doras_length_is_constant_in_the_gradient():
    """Section 4.3 of the paper: nabla V' = m / C nabla W'."""
    torch.manual_seed(0)
    base = nn.Linear(5, 3, bias=False)
    made = lora.DoraLinear(base, rank=2, alpha=2.0, dropout=0.0)
    nn.init.normal_(made.lora_b)
    nn.init.normal_(made.lora_m)
    base.weight.requires_grad_(False)
    x, grad = torch.randn(4, 5), torch.randn(4, 3)
    made(x).backward(grad)
    moved = base.weight + made.lora_b @ made.lora_a
    through = (made.lora_m / moved.norm(dim=1))[:, None] * (grad.T @ x)  # (O, I)
    torch.testing.assert_close(made.lora_b.grad, through @ made.lora_a.T)
    torch.testing.assert_close(made.lora_a.grad, made.lora_b.T @ through)
    torch.testing.assert_close(made.lora_m.grad, (grad * (x @ moved.T)).sum(0) / moved.norm(dim=1))


def test_a_row_of_zeros_stays_finite():
    base = nn.Linear(4, 3)
    nn.init.zeros_(base.weight)
    made = lora.DoraLinear(base, rank=2, alpha=2.0, dropout=0.0)
    made(torch.randn(2, 4)).sum().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    assert made.merged().weight.isfinite().all()


@one_of_each
def test_dora_learns_and_merges_to_the_same_function(name):
    made = model(name)
    layers = linear(made)
    added = lora.add(made, rank=4, targets=("**",), dora=True)
    assert {n.rpartition(".")[2] for n in lora.state(made)} == {"lora_a", "lora_b", "lora_m"}
    first = {n: t.clone() for n, t in lora.state(made).items() if n.endswith("lora_m")}
    learn(made)
    assert len(first) == len(added)
    moved = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}  # if by less than rounding
    same = {n for n, t in first.items() if torch.equal(lora.state(made)[n], t)} - moved
    still = {n.rpartition(".")[0] for n in same}
    assert still <= idle(added, made), "a length did not learn"
    tuned = outputs(made)
    assert lora.merge(made) == list(layers)
    for key, value in outputs(made).items():
        scale = tuned[key].abs().max().item()
        torch.testing.assert_close(value, tuned[key], rtol=1e-5, atol=2e-5 * max(1.0, scale), msg=f"{key} after merge")
