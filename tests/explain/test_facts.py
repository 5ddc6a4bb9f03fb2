"""The numbers of `inspect` are those of the real thing."""

import ast

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.explain import inspect
from anyformer.explain.tree import wrapped
from anyformer.parts import LSHAttention, Mamba, SegmentRecurrence
from anyformer.parts.attention.media import MediaAttention


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", pages.names())
def test_paths_are_the_modules(name):
    model = af.build(name, "tiny")
    known = dict(model.named_modules())
    for path, _ in inspect(model).tree:
        first = ".".join(step.split("-")[0] for step in path.split("."))
        last = ".".join(step.split("-")[-1] for step in path.split("."))
        assert first in known and last in known


@pytest.mark.parametrize("name", [n for n in pages.names() if af.build(n, "tiny").generates])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_are_those_of_a_real_state(name, dtype):
    model = af.build(name, "tiny", seed=0).eval().to(dtype)
    facts = inspect(model).state
    if any(isinstance(m, SegmentRecurrence | LSHAttention | MediaAttention) for m in model.modules()):
        assert facts is None  # what it keeps depends on what was read
        return
    assert facts is not None
    source, target = 5, 7
    ids = torch.ones(1, target, dtype=torch.long)
    state = model.start(1, target)
    with torch.no_grad():
        if facts.source:
            model(input_ids=torch.ones(1, source, dtype=torch.long), decoder_input_ids=ids, state=state)
        else:
            model(ids, state=state)
    assert state.bytes() == facts.fixed + target * facts.token + (source if facts.source else 0) * facts.source


def test_a_window_bounds_the_state():
    wide, narrow = (inspect(af.build("llama", "tiny", window=w)).state for w in (None, 7))
    assert wide is not None and narrow is not None
    assert wide.token == narrow.token and wide.full == 64 * wide.token > narrow.full


def test_weights_are_counted_once_and_per_dtype():
    model = af.build("gpt", "tiny")  # its head is the token table
    facts = inspect(model)
    assert facts.weights == {"float32": 4 * facts.parameters} and facts.weights_as["bfloat16"] == 2 * facts.parameters
    model.embed.to(torch.bfloat16)
    assert set(inspect(model).weights) == {"float32", "bfloat16"}


def test_an_encoder_has_no_state_and_a_built_model_no_ledger():
    facts = inspect(af.build("bert", "tiny"))
    assert facts.state is None and facts.ledger is None and facts.tokenizer is None


@pytest.mark.parametrize("name", pages.names())
@pytest.mark.parametrize("width", [40, 100])
def test_the_wrapped_recipe_is_the_same_expression(name, width):
    recipe = af.recipe(name, "tiny")
    text = wrapped(repr(recipe), width)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(repr(recipe)))
    assert text.count("\n") > 3


def test_a_hybrid_recipe_is_wrapped_at_every_run_of_layers():
    recipe = af.recipe("llama", "tiny", depth=6).but({"blocks.2::3.mixer": Mamba.of()})
    text = wrapped(repr(recipe))
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(repr(recipe)))
    assert max(map(len, text.splitlines())) <= 100
