"""anyformer: any transformer, from one set of parts.

```python
import anyformer as af

model = af.build("llama", "tiny")                                     # a published architecture
hybrid = af.recipe("llama", "tiny").but({"blocks.2::3.mixer": af.parts.Mamba.of()})
model = af.load("path/to/model")                                      # Hugging Face directory, hub id, or .gguf
```

Names are imported on first use, so that `anyformer --help` does not wait for PyTorch.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from anyformer.core import shown

if TYPE_CHECKING:
    from anyformer import generate, parts
    from anyformer.core.flow import Flow
    from anyformer.core.mixer import Mixer
    from anyformer.core.pages import build, names, page, pages, recipe
    from anyformer.core.part import Part
    from anyformer.core.recipe import Recipe
    from anyformer.core.state import State
    from anyformer.core.taps import Taps
    from anyformer.generate.detecting import detect
    from anyformer.generate.forecasting import forecast
    from anyformer.generate.painting import paint
    from anyformer.hub import load, save
    from anyformer.skeletons.base import Output
    from anyformer.skeletons.decoder import CausalLM
    from anyformer.skeletons.dual_tower import DualTower
    from anyformer.skeletons.encoder import Encoder
    from anyformer.skeletons.encoder_decoder import EncoderDecoder
    from anyformer.skeletons.stack import Stack

__version__ = "0.1.0"
__all__ = [
    "CausalLM", "DualTower", "Encoder", "EncoderDecoder", "Flow", "Mixer", "Output", "Part", "Recipe", "Stack", "State",
    "Taps", "build", "detect", "forecast", "generate", "load", "names", "page", "pages", "paint", "parts", "recipe",
    "save",
]  # fmt: skip
_PACKAGES = ("core", "generate", "hub", "models", "parts", "skeletons")
_HOMES = {
    "core.flow": ("Flow",), "core.mixer": ("Mixer",), "core.pages": ("build", "names", "page", "pages", "recipe"),
    "core.part": ("Part",), "core.recipe": ("Recipe",), "core.state": ("State",), "core.taps": ("Taps",),
    "generate.detecting": ("detect",), "generate.forecasting": ("forecast",), "generate.painting": ("paint",),
    "hub": ("load", "save"),
    "skeletons.base": ("Output",), "skeletons.decoder": ("CausalLM",),
    "skeletons.dual_tower": ("DualTower",), "skeletons.encoder": ("Encoder",),
    "skeletons.encoder_decoder": ("EncoderDecoder",), "skeletons.stack": ("Stack",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def _notebook() -> ModuleType:
    """The module that draws in notebooks; the core, below it, cannot name it."""
    from anyformer.explain import notebook

    return notebook


shown.renderer = _notebook


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"anyformer.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'anyformer' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"anyformer.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
