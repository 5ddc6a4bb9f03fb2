import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import anyformer as af
from anyformer.compress import int8
from anyformer.compress.int8 import Int8Linear, quantise
from anyformer.edge.export import inputs
from anyformer.train import lora

from .models import idle, linear, model, one_of_each, outputs


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_the_stated_error_holds(rows, width, size, kind, seed):
    random = torch.Generator().manual_seed(seed)
    base = nn.Linear(width, rows)
    with torch.no_grad():
        base.weight.copy_(torch.randn(rows, width, generator=random) * size)
        base.weight[0] = 0.0
        base.to(kind)
    made = Int8Linear(base)
    assert made.weight.dtype == torch.int8 and made.scale.dtype == kind
    off = (base.weight.double() - made.weight.double() * made.scale.double()[:, None]).abs()
    assert (off <= made.scale.double()[:, None] / 2).all(), "a weight is off by more than half a step"
    x = torch.randn(3, width, generator=random).to(kind)
    before = base(x)
    if before.isfinite().all():
        assert ((made(x).float() - before.float()).abs() <= made.bound(x) + base.bias.float().abs() * 2**-7).all()


def test_the_bound_is_not_idle():
    """Somewhere the error comes near what is stated: a bound ten times as large would say nothing."""
    torch.manual_seed(0)
    base = nn.Linear(2, 4096)
    made = Int8Linear(base)
    x = torch.tensor([[1.0, 1.0]])
    assert ((made(x) - base(x)).abs() / made.bound(x)).max() > 0.45


@one_of_each
def test_every_layer_stays_inside_its_bound(name):
    """Each layer is given what it gets in the quantised model; its answer is compared with the float layer's."""
    made = model(name)
    layers, before = linear(made), outputs(made, batch=12)  # so many that no expert is idle
    report = quantise(made)
    assert report.layers == tuple(layers) and report.of == len(layers) and 0 < report.steps <= 0.5
    assert report.after < report.before and not linear(made)
    worst, met = [], set()

    def compare(module, args, output):
        path = next(p for p, m in made.named_modules() if m is module)
        off = (output - layers[path](args[0])).abs()
        assert (off <= module.bound(args[0])).all(), f"{path} is off by {off.max()}"
        worst.append(float(off.max()))
        met.add(path)

    hooks = [made.get_submodule(p).register_forward_hook(compare) for p in report.layers]
    with torch.no_grad():
        after = outputs(made, batch=12)
    for hook in hooks:
        hook.remove()
    assert met >= set(layers) - idle(layers, made) and max(worst) > 0
    for key, value in after.items():
        near = torch.nn.functional.cosine_similarity(value.flatten(), before[key].flatten(), 0)
        assert near > 0.97, f"{key} has nothing to do with what it was: {near}"


@one_of_each
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    made = model(name)
    quantise(made)
    int8.save(made, tmp_path)
    again = int8.load(tmp_path)
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in made.state_dict().items()}
    for key, value in outputs(again).items():
        assert torch.equal(value, outputs(made)[key])
    with pytest.raises(ValueError, match="anyformer-int8"):
        af.load(tmp_path)


def test_targets_and_the_report():
    made = model("llama")
    report = quantise(made, targets=("**.ffn.*",))
    assert report.layers == tuple(f"blocks.{i}.ffn.{n}" for i in range(2) for n in ("gate", "up", "down"))
    assert str(report).startswith("int8: 6 of 15 linear layers, 0.1 MB -> 0.1 MB, weights off by")
    assert quantise(made).of == 15
    with pytest.raises(ValueError, match="no Linear"):
        quantise(made)


@pytest.mark.parametrize("name", ["gpt", "t5", "bert"])  # a tied head, an encoder-decoder's table, a head behind an MLP
def test_the_token_table_only_when_asked(name, tmp_path):
    made = model(name)
    before, table = outputs(made), made.embed.tokens.weight.detach().clone()
    quantise(made)
    assert torch.equal(made.embed.tokens.weight, table)
    made = model(name)
    report = quantise(made, tables=True)
    assert report.tables == ("embed.tokens",) and "and 1 token table" in str(report)
    for key, value in outputs(made).items():
        assert torch.nn.functional.cosine_similarity(value.flatten(), before[key].flatten(), 0) > 0.97
    ids = torch.arange(table.shape[0])
    assert ((made.embed.tokens(ids) - table).abs() <= made.embed.tokens.scale[:, None] * 0.5001).all()
    x = torch.randn(3, table.shape[1])
    off = (made.embed.tokens.unembed(x) - x @ table.T).abs()
    assert (off <= made.embed.tokens.bound(x)).all()
    int8.save(made, tmp_path)
    torch.testing.assert_close(outputs(int8.load(tmp_path))["logits"], outputs(made)["logits"])


def test_half_precision_models_stay_in_their_type():
    made = model("llama").bfloat16()
    before = outputs(made)["logits"]
    quantise(made, tables=True)
    after = outputs(made)["logits"]
    assert after.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(after.float().flatten(), before.float().flatten(), 0) > 0.97


def test_cached_decoding_in_int8_is_the_same():
    made = model("hybrid")
    quantise(made)
    ids = inputs(made)["input_ids"]
    with torch.no_grad():
        state = made.start(len(ids))
        steps = [made(ids[:, t : t + 1], state=state).logits for t in range(ids.shape[1])]
        torch.testing.assert_close(torch.cat(steps, 1), made(ids).logits, rtol=1e-4, atol=1e-4)


def test_gradients_pass_through_to_the_input():
    torch.manual_seed(0)
    made = Int8Linear(nn.Linear(6, 4))
    x = torch.randn(2, 6, requires_grad=True)
    made(x).sum().backward()
    torch.testing.assert_close(x.grad, made.dequantised().sum(0).expand(2, 6))
    assert made.bias.grad is not None


def test_after_adapters_are_merged_everything_can_be_quantised():
    made = model("vit")
    lora.add(made)
    lora.merge(made)
    assert quantise(made).layers == tuple(linear(model("vit")))


def test_weights_that_are_not_finite_are_refused_and_nothing_changes():
    made = model("gpt")
    with torch.no_grad():
        made.blocks[1].ffn.up.weight[3, 4] = float("nan")
    before = linear(made)
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.up\.weight"):
        quantise(made)
    assert linear(made) == before


def test_a_damaged_folder_is_named(tmp_path):
    made = model("gpt")
    quantise(made, targets=("blocks.0.**",))
    int8.save(made, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for paths, told in ((config["int8"][1:], "is"), ([*config["int8"], "blocks.1.ffn.up"], "blocks.1.ffn.up")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "int8": paths}))
        with pytest.raises(ValueError, match=told):
            int8.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "int8": ["blocks.9.ffn.up"]}))
    with pytest.raises(ValueError, match=r"blocks\.9\.ffn\.up"):
        int8.load(tmp_path)
