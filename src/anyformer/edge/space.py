"""The space of a search: choices at the paths of a recipe, each checked before anything is trained.

    dim, depth, vocab, patch, pool, bits        of the model
    mixer, heads, kv_heads, hidden              of each layer

| choice | path of the recipe | values |
|---|---|---|
| dim | dim | width of the stream |
| depth | blocks | number of layers |
| vocab | embed.vocab | tokens |
| patch | embed.patch | height and width in pixels of what becomes one position |
| pool | pool | own: that of the page; additive: attention with one learned query |
| mixer | blocks.*.mixer | own, window, linear, convolution, fourier, mamba |
| heads, kv_heads | blocks.*.mixer.heads, .kv_heads | numbers; 0 key/value heads are as many as heads |
| hidden | blocks.*.ffn.hidden | as a multiple of dim |
| tied | head.tied | 1: the head is the token table |
| bits | | of the matrices, in the file |

A choice is a dictionary, `{"dim": 64, "mixer.0": "own", …}`: what Optuna suggests, JSON keeps, and `Space.recipe` makes
a recipe of. A path that the recipe lacks is no choice; a mixer that does not fit the skeleton is left out, with its
reason.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.core.value import nearest
from anyformer.edge.count import count
from anyformer.parts import Attention
from anyformer.parts.approximate.fourier import Fourier
from anyformer.parts.approximate.linear import LinearAttention
from anyformer.parts.attention.masks import Window
from anyformer.parts.norms import RunningNorm
from anyformer.parts.pooling import AdditivePool
from anyformer.parts.recurrent.convolution import Convolution
from anyformer.parts.recurrent.mamba import Mamba

Choice = dict[str, Any]
NEAR, WIDE = 8, 7  # tokens on each side that a window sees; tokens of a convolution's kernel
MODEL: dict[str, tuple[Any, ...]] = {
    "dim": (32, 64, 96, 128), "depth": (1, 2, 3), "vocab": (2048, 4096, 8192), "patch": (4, 7, 8, 14, 16),
    "pool": ("own", "additive"), "tied": (0, 1), "bits": (8, 4),
}  # fmt: skip
LAYER: dict[str, tuple[Any, ...]] = {
    "mixer": ("own", "window", "linear", "convolution", "fourier", "mamba"),
    "heads": (2, 4), "kv_heads": (0, 1), "hidden": (1, 2, 4),
}  # fmt: skip
PATHS = {
    "dim": "dim", "depth": "blocks", "vocab": "embed.vocab", "patch": "embed.patch", "pool": "pool",
    "tied": "head.tied",
    "mixer": "blocks.0.mixer", "heads": "blocks.0.mixer.heads", "kv_heads": "blocks.0.mixer.kv_heads",
    "hidden": "blocks.0.ffn.hidden",
}  # fmt: skip
BITS = (4, 8)  # that a file can have
NEEDED = ("dim", "depth")
DERIVED = ("kv_heads", "hidden")  # sizes that a recipe can leave to the part
STREAM = ("dim", "patch")  # choices that decide the size of the stream, and so what a layer takes


def _window(own: Recipe[Any]) -> Recipe[Any] | None:
    return own.but(mask=Window(NEAR, NEAR)) if own.part is Attention else None


MIXERS: dict[str, Callable[[Recipe[Any]], Recipe[Any] | None]] = {
    "own": lambda own: own,
    "window": _window,
    "linear": lambda own: LinearAttention.of(heads=getattr(own, "heads", 4)),
    "convolution": lambda own: Convolution.of(width=WIDE),
    "fourier": lambda own: Fourier.of(),
    "mamba": lambda own: Mamba.of(),
}


@dataclass(frozen=True)
class Space:
    """The choices of a recipe.

    Attributes:
        base: the recipe. model, layer: the values of each choice. without: choices left out, and why.
        tokens: the longest text. sizes: that the rows fix, by path. alike: choices that all layers share.
    """

    base: Recipe[Any]
    model: Mapping[str, tuple[Any, ...]]
    layer: Mapping[str, tuple[Any, ...]]
    tokens: int
    without: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    alike: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One row in words, for people and for caches."""
        fixed = [f"{n} {v}" for n, v in self.sizes.items()]
        return ", ".join(fixed if "patch" in self.model else [*fixed, f"{self.tokens} tokens"])

    @property
    def largest(self) -> int | None:
        """The largest vocabulary; None without one."""
        return max(self.model["vocab"]) if "vocab" in self.model else None

    @property
    def most_kv_heads(self) -> int:
        """The value of kv_heads that gives the most of them."""
        values = self.layer.get("kv_heads", (0,))
        return 0 if 0 in values else max(values)

    def recipe(self, choice: Choice) -> Recipe[Any]:
        """The recipe of a choice.

        Raises:
            ValueError: naming the path, for a value that the recipe does not take.
        """
        blocks = self.base["blocks"]
        layers = [self._block(blocks[i % len(blocks)], i, choice) for i in range(choice["depth"])]
        changes: dict[str, Any] = {"dim": choice["dim"], "blocks": tuple(layers), **self.sizes}
        changes |= {PATHS[name]: choice[name] for name in ("vocab", "patch") if name in choice}
        if choice.get("pool", "own") == "additive":
            changes["pool"] = AdditivePool.of()
        if "tied" in choice:
            changes["head.tied"] = bool(choice["tied"])
        there = dict(self.base.walk())
        changes |= {p: self.tokens for p in ("context", "embed.positions.context") if isinstance(there.get(p), int)}
        return self.base.but(changes)

    def _block(self, block: Recipe[Any], i: int, choice: Choice) -> Recipe[Any]:
        changes: dict[str, Any] = {}
        mixer = MIXERS[choice.get(f"mixer.{i}", "own")](block["mixer"])
        assert mixer is not None
        sizes = {
            name: choice[f"{name}.{i}"] or choice.get(f"heads.{i}", mixer.options["heads"])
            for name in ("heads", "kv_heads")
            if f"{name}.{i}" in choice and name in mixer.options
        }
        changes["mixer"] = mixer.but(sizes) if sizes else mixer
        if f"hidden.{i}" in choice:
            changes["ffn.hidden"] = choice[f"hidden.{i}"] * choice["dim"]
        return block.but(changes)

    def full(self, choice: Choice) -> Choice:
        """The choice without the layers that it does not have, and without what its mixers do not read: choices that
        make one recipe are equal."""
        kept = {}
        for name, value in choice.items():
            what, _, layer = name.partition(".")
            if layer and int(layer) >= choice["depth"]:
                continue
            mixer = choice.get(f"mixer.{layer}", "own") if layer else ""
            if (what == "heads" and mixer in ("convolution", "fourier", "mamba")) or (
                what == "kv_heads" and mixer not in ("own", "window")
            ):
                continue
            kept[name] = value
        return kept

    def make(self, pick: Callable[[str, tuple[Any, ...]], Any]) -> Choice:
        """A choice, its values picked one by one, by name: always the same names, as a search by crossing needs."""
        choice = {name: pick(name, values) for name, values in self.model.items()}
        for i, (name, values) in itertools.product(range(max(self.model["depth"])), self.layer.items()):
            same = i > 0 and name in self.alike
            choice[f"{name}.{i}"] = choice[f"{name}.0"] if same else pick(f"{name}.{i}", values)
        return self.full(choice)

    def drawn(self, noise: random.Random) -> Choice:
        """A random choice."""
        return self.make(lambda _, values: noise.choice(values))

    def end(self, largest: bool, noise: random.Random) -> Choice:
        """The largest or the smallest choice; what has no size is drawn."""

        def pick(name: str, values: tuple[Any, ...]) -> Any:
            if name in ("pool", "tied", "bits") or name.startswith("mixer"):
                return noise.choice(values)
            if name.startswith("kv_heads"):
                return self.most_kv_heads if largest else min(v for v in values if v or not any(values))
            return max(values) if largest != (name == "patch") else min(values)  # small patches are many

        return self.make(pick)

    def uniform(self) -> Iterator[Choice]:
        """The page's own wiring at every size, all layers alike: shrinking without a search."""
        sized = [name for name in (*NEEDED, "vocab", "patch") if name in self.model]
        for chosen in itertools.product(*(self.model[name] for name in sized)):
            choice: Choice = {**dict(zip(sized, chosen, strict=True)), "bits": max(self.model["bits"])}
            choice |= {name: self.model[name][0] for name in ("pool", "tied") if name in self.model}
            most = {name: values[0] if name == "mixer" else max(values) for name, values in self.layer.items()}
            most |= {"kv_heads": self.most_kv_heads} if "kv_heads" in self.layer else {}
            yield self.full(choice | {f"{n}.{i}": v for i in range(choice["depth"]) for n, v in most.items()})


def space(
    base: Recipe[Any],
    tokens: int,
    values: Mapping[str, Sequence[Any]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Space:
    """The space of a recipe.

    Args:
        base: of a model with a stack of blocks.
        tokens: the longest text.
        values: other values than the usual ones, by the name of the choice.
        sizes: that the rows fix, by path.

    Raises:
        ValueError: for a recipe without these paths, an unknown choice, or values that do not build, with the path.
    """
    wanted: dict[str, tuple[Any, ...]] = {**MODEL, **LAYER}
    for name, some in (values or {}).items():
        if name not in wanted:
            raise ValueError(f"space: no choice {name!r}{nearest(name, list(wanted))}; there is {', '.join(wanted)}")
        if isinstance(some, str) or not some:
            raise ValueError(f"space: {name} must be a list of at least one value, got {some!r}")
        wanted[name] = tuple(dict.fromkeys(some))
    for name in ("dim", "depth", "vocab", "patch"):
        if bad := [value for value in wanted[name] if type(value) is not int or value < 1]:
            raise ValueError(f"space: {name} must be whole numbers from 1, got {bad[0]!r}")
    there, without = dict(base.walk()), {}
    for path, value in there.items():
        if isinstance(value, Recipe) and issubclass(value.part, RunningNorm):
            raise ValueError(
                f"{path} ({value.part.__name__}) keeps running means, which models cannot share: choose another --model"
            )
    for name, path in PATHS.items():
        if path not in (sizes or {}) and (there.get(path) is not None or (name in DERIVED and path in there)):
            continue
        why = f"the rows fix {path!r}" if path in (sizes or {}) else f"the recipe has no {path!r}"
        if name in NEEDED or name in (values or {}):
            raise ValueError(f"{why}, so {name} is no choice of {base.part.__name__}")
        without[name] = why.replace("'", "")
        del wanted[name]
    made = Space(base, _of(wanted, MODEL), _of(wanted, LAYER), tokens, without, sizes or {})
    for name in ("patch", "mixer"):
        made = fitting(made, name, _misfit)
    _check(made)
    return made


def fitting(made: Space, name: str, misfit: Callable[[Space, str, Any], str]) -> Space:
    """The space without those values of a choice that do not fit, with their reasons.

    Args:
        misfit: the reason why a value does not fit, or "".

    Raises:
        ValueError: if none fits.
    """
    here = made.model if name in made.model else made.layer
    why = {value: reason for value in here.get(name, ()) if (reason := misfit(made, name, value))}
    left = tuple(value for value in here.get(name, ()) if value not in why)
    if why and not left:
        raise ValueError(f"no {name} fits: {'; '.join(f'{k}: {w}' for k, w in why.items())}")
    changed = {**here, name: left} if left else here
    model, layer = (changed, made.layer) if here is made.model else (made.model, changed)
    return replace(
        made, model=model, layer=layer, without={**made.without, **{f"{name}={k}": w for k, w in why.items()}}
    )


def _check(made: Space) -> None:
    """Raises ValueError for values that do not go together, naming them: each width with each mixer and its heads."""
    if bad := [b for b in made.model.get("bits", ()) if b not in BITS]:
        raise ValueError(f"space: bits must be of {', '.join(map(str, BITS))}, got {bad[0]!r}")
    start = {**made.end(False, random.Random(0)), "depth": 1}
    names = [name for name in ("mixer", "heads", "kv_heads") if name in made.layer]
    every = list(itertools.product(*(made.layer[name] for name in names)))
    for dim, layer in [*((min(made.model["dim"]), e) for e in every), *((d, every[0]) for d in made.model["dim"])]:
        chosen = {f"{name}.0": value for name, value in zip(names, layer, strict=True)}
        try:
            count(made.recipe({**start, "dim": dim, **chosen}), tokens=8)
        except (ValueError, RuntimeError) as error:
            listed = ", ".join(f"{n} {v}" for n, v in {"dim": dim, **chosen}.items())
            raise ValueError(f"space: {listed} does not build: {error}") from None


def _of(wanted: Mapping[str, tuple[Any, ...]], names: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: wanted[name] for name in names if name in wanted}


def _misfit(made: Space, name: str, value: Any) -> str:
    """The reason why a patch or a mixer does not fit the skeleton, or ""."""
    if name == "mixer":
        if value not in MIXERS:
            raise ValueError(f"space: no mixer {value!r}{nearest(value, list(MIXERS))}; there is {', '.join(MIXERS)}")
        if MIXERS[value](made.base["blocks.0.mixer"]) is None:
            return f"{made.base['blocks.0.mixer'].part.__name__} has no window"
    smallest = {n: v for n, v in made.end(False, random.Random(0)).items() if not n.startswith(("heads", "kv_heads"))}
    smallest |= {n: "own" for n in smallest if n.startswith("mixer.")}
    try:
        count(made.recipe({**smallest, **{n: value for n in smallest if n.partition(".")[0] == name}}), tokens=8)
    except ValueError as error:
        return str(error)
    return ""


def key(choice: Choice) -> str:
    """The choice as text, for caches and files."""
    return json.dumps(choice, sort_keys=True)
