import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.core.rewrite import replace, rewrite, select
from anyformer.parts import Attention

from .models import every_model, linear, model


def paths(made, *patterns, kind=nn.Linear):
    return list(select(made, *patterns, kind=kind))


@pytest.fixture
def llama():
    return af.build("llama", "tiny", depth=4, seed=0)


def test_patterns_choose_as_in_recipes(llama):
    assert paths(llama, "blocks.*.mixer.q") == [f"blocks.{i}.mixer.q" for i in range(4)]
    assert paths(llama, "blocks.1::2.mixer.q") == ["blocks.1.mixer.q", "blocks.3.mixer.q"]
    assert paths(llama, "blocks.-1.ffn.down") == ["blocks.3.ffn.down"]
    assert paths(llama, "**.mixer.[qv]", "blocks.0.mixer.k")[:3] == [f"blocks.0.mixer.{n}" for n in "qkv"]
    assert paths(llama, "**.mixer", kind=Attention) == [f"blocks.{i}.mixer" for i in range(4)]
    assert paths(llama, "head.**") == ["head.proj"]


def test_one_star_is_one_step(llama):
    with pytest.raises(ValueError, match=r"'\*\.mixer\.q'"):
        paths(llama, "*.mixer.q")


@every_model
def test_two_stars_find_every_linear_layer_in_order(name):
    made = model(name)
    assert paths(made, "**") == [p for p, m in made.named_modules() if isinstance(m, nn.Linear)]


def test_a_pattern_that_matches_nothing_names_the_nearest_paths(llama):
    with pytest.raises(ValueError, match=r"no Linear has a path that matches 'blocks.0.mixer.query'.*blocks.0.mixer.q"):
        paths(llama, "blocks.0.mixer.q", "blocks.0.mixer.query")
    with pytest.raises(ValueError, match=r"no Linear .* 'blocks\.0\.mixer'"):  # there, but of another kind
        paths(llama, "blocks.0.mixer")
    with pytest.raises(ValueError, match="'1:x' is not a slice"):
        paths(llama, "blocks.1:x.mixer.q")


def test_replace_keeps_the_mode_and_the_path(llama):
    llama.eval()
    replace(llama, "blocks.1.ffn.up", nn.Linear(32, 48, bias=False))
    assert not llama.blocks[1].ffn.up.training
    assert llama(torch.arange(5)[None]).logits.shape == (1, 5, 128)


def test_a_module_that_stands_in_two_places_stays_one():
    shared = nn.Linear(3, 3)
    inner = nn.Sequential(shared)
    tree = nn.ModuleDict({"a": shared, "b": inner, "c": nn.Linear(3, 3)})
    made = rewrite(tree, "a", kind=nn.Linear, make=lambda old: nn.Identity())
    assert tree["a"] is inner[0] is made["a"] and isinstance(made["a"], nn.Identity)
    assert paths(tree, "**") == ["c"]


def test_a_model_is_walked_as_often_for_all_layers_as_for_one(llama, monkeypatch):
    walks = []
    for pattern in ("blocks.0.mixer.q", "**"):
        count, plain = [0], llama.named_modules

        def counted(*args, count=count, plain=plain, **options):
            count[0] += 1
            return plain(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(llama, "named_modules", counted)
            rewrite(llama, pattern, kind=nn.Linear, make=lambda old: nn.Linear(old.in_features, old.out_features))
        walks.append(count[0])
    assert walks[0] == walks[1] > 0


def test_an_error_while_making_changes_nothing(llama):
    before, count = linear(llama), iter(range(3))

    def make(old):
        next(count)  # the fourth raises
        return nn.Identity()

    with pytest.raises(StopIteration):
        rewrite(llama, "**", kind=nn.Linear, make=make)
    assert linear(llama) == before
