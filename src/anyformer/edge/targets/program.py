"""PyTorch: a `.pt2` program (`torch.export`), whose matrices are whole numbers and scales in the file.

```
codes uint8 ─ unpack ─ float ─(-)─(x)─ W float32        constant: folded once, when the file is loaded
```
Products are of float32, and so is the memory, but of a table of tokens: only the rows that are looked up are multiplied
out. Sizes are open, as those of the model are. What the exporter notes for its developers is taken out, and the rest
is compressed: both are most of a small file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.edge import artefact
from anyformer.edge.space import Choice
from anyformer.edge.targets.base import HELD, Target, Written
from anyformer.hub.formats.guard import atomic_write

NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
LOADED = (
    "import torch, torch._inductor.constant_folding",
    """torch.set_num_threads(int(threads)), torch.set_grad_enabled(False)
program = torch.export.load(path).module()
torch._inductor.constant_folding.constant_fold(program)
given = {name: torch.from_numpy(value) for name, value in feed.items()}
run = lambda: program(**given)""",
)


class Program(Target):
    """PyTorch's own runtime, without this package."""

    name, file, packages, install = "torch", "model.pt2", ("torch",), "pip install torch"
    needs, imports = "torch", "import torch\nimport torch._inductor.constant_folding"
    opens = """\
torch.set_num_threads(threads), torch.set_grad_enabled(False)
facts, program = json.loads((folder / "facts.json").read_text()), torch.export.load(folder / "model.pt2").module()
torch._inductor.constant_folding.constant_fold(program)  # matrices become floats, once
run = lambda given: program(**{name: torch.as_tensor(value) for name, value in given.items()})["logits"]"""
    calls = "run(", ")"

    def runtime(self) -> str:
        return f"PyTorch {torch.__version__}"

    def write(self, model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> Written:
        made, content = artefact.traced(model, lambda output: {"logits": output.logits}), io.BytesIO()
        for module in made.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                for name in NOTES:
                    node.meta.pop(name, None)
        made.example_inputs = None
        torch.export.save(made, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, _deflated(content))
        return Written()

    def opened(self, path: Path) -> Any:
        from torch._inductor.constant_folding import constant_fold

        program: Any = torch.export.load(path).module()
        constant_fold(program)

        def run(**given: Tensor) -> Tensor:
            with torch.no_grad():
                made: Tensor = program(**given)["logits"]
            return made

        return run

    def measured(self, path: Path, model: Any) -> list[list[float]]:
        return artefact.measured(path, self.example(model), self.threads, loaded=LOADED)

    def marks(self, choice: Choice) -> Choice:
        """The bits: unpacking four of a looked-up row costs more than eight."""
        return {HELD: choice.get("bits", 8)}


def _deflated(content: io.BytesIO) -> bytes:
    """The same archive, its files compressed."""
    made = io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(zipfile.ZipInfo(info.filename), old.read(info), zipfile.ZIP_DEFLATED)
    return made.getvalue()
