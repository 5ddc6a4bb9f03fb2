"""anyformer: any transformer, from one set of parts.

```python
import anyformer as af

model = af.build("llama", "tiny")                                     # a published architecture
hybrid = af.recipe("llama", "tiny").but({"blocks.2::3.mixer": af.parts.Mamba.of()})
model = af.load("path/to/model")                                      # Hugging Face directory, hub id, or .gguf
```
"""

import importlib
from typing import TYPE_CHECKING

from anyformer import parts
from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.pages import build, names, page, pages, recipe
from anyformer.core.part import Part
from anyformer.core.recipe import Recipe
from anyformer.core.state import State
from anyformer.core.taps import Taps
from anyformer.skeletons.base import Output
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.dual_tower import DualTower
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.stack import Stack

if TYPE_CHECKING:  # imported when first used, see `__getattr__`
    from anyformer import generate
    from anyformer.hub import load, save

__version__ = "0.1.0"
__all__ = [
    "CausalLM", "DualTower", "Encoder", "EncoderDecoder", "Flow", "Mixer", "Output", "Part", "Recipe", "Stack", "State",
    "Taps", "build", "generate", "load", "names", "page", "pages", "parts", "recipe", "save",
]  # fmt: skip


def __getattr__(name: str):  # what reads and writes files is imported when it is first used
    if name in ("load", "save"):
        from anyformer import hub

        return getattr(hub, name)
    if name == "generate":  # the package: a function here would be replaced by it at its first import
        return importlib.import_module("anyformer.generate")
    raise AttributeError(f"module 'anyformer' has no attribute {name!r}")
