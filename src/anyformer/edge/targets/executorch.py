"""ExecuTorch: a `.pte` file for phones, products by XNNPACK (`edge.pte`), sizes fixed: one row of the longest text.

A shorter text is padded, with its mask; a decoder's piece behind its end, which nothing before it sees. Tables of
tokens are whole numbers and scales in the file, and only the rows that are looked up are multiplied out; other matrices
are float32, or, with `--products int8`, in 8 bits with a scale an output, their inputs rounded as they come. What
`--coverage` counts here is the share of the products that XNNPACK takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.compress import few
from anyformer.core.rewrite import replace as put
from anyformer.edge import artefact, pte
from anyformer.edge.shared import GROUP
from anyformer.edge.space import Space
from anyformer.edge.targets.base import Target, Written
from anyformer.hub.formats.guard import atomic_write
from anyformer.parts.embeddings import Table
from anyformer.parts.quantised import GridTable, full, unpacked

WHY = "XNNPACK multiplies it in float32"
LOADED = (
    "import torch\nfrom executorch.runtime import Runtime",
    """Runtime.get()._legacy_module._unsafe_reset_threadpool(int(threads))
method = Runtime.get().load_program(path).load_method("forward")
given = [torch.from_numpy(feed[name]) for name in sorted(feed)]
run = lambda: method.execute(given)""",
)


class Executorch(Target):
    """ExecuTorch's runtime with XNNPACK."""

    name, file, packages = "executorch", "model.pte", ("executorch.runtime", "executorch.exir")
    install = "pip install executorch==1.5.1 (docs/edge.md, Phones and microcontrollers)"
    kinds, few_bits = ("float32", "int8"), False
    needs, imports = "executorch", "import torch\nfrom executorch.runtime import Runtime"
    opens = """\
Runtime.get()._legacy_module._unsafe_reset_threadpool(threads)
method = Runtime.get().load_program(folder / "model.pte").load_method("forward")
facts = json.loads((folder / "facts.json").read_text())
pad = lambda row, size: torch.nn.functional.pad(row, (0, size - row.shape[-1]))  # sizes are fixed
run = lambda given: method.execute([pad(torch.as_tensor(given[n]), size) for n, size in facts["inputs"].items()])[0]"""
    calls = "run(", ")"

    @classmethod
    def check(cls, products: str = "float32") -> None:
        super().check(products)
        if products == "int8":
            try:
                import torchao  # noqa: F401
            except ImportError as error:
                raise ImportError(f"--products int8 needs torchao ({error}): pip install torchao") from error

    def runtime(self) -> str:
        return f"ExecuTorch {version('executorch')}"

    def write(self, model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> Written:
        pte.check()
        grids = {p: m for p, m in model.named_modules() if isinstance(m, GridTable)}
        made = full(model).eval()
        for name, grid in grids.items():
            put(made, name, Rows(grid))
        content, report = pte.lowered(
            made, self._inputs(model), lambda output: {"logits": output.logits}, self.coverage, whole
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
        return Written(report.whole, report.products, report.nodes)

    def _inputs(self, model: Any) -> dict[str, Tensor]:
        """The inputs of one row in the order of their names: the file knows no names."""
        return dict(sorted(self.example(model).items()))

    def opened(self, path: Path) -> Any:
        from executorch.runtime import Runtime

        runtime = Runtime.get()
        if (pool := runtime._legacy_module)._threadpool_get_thread_count() != self.threads:
            pool._unsafe_reset_threadpool(self.threads)
        program = runtime.load_program(path.read_bytes())
        method = program.load_method("forward")

        def run(**given: Tensor) -> Tensor:
            made, length = list[Tensor](), max((t.shape[1] for t in given.values() if _padded(t)), default=0)
            for row in zip(*(given[name] for name in sorted(given)), strict=True):
                fixed = [F.pad(t, (0, self.tokens - length)) if _padded(t) else t.contiguous() for t in row]
                out = method.execute([t[None] for t in fixed])[0].clone()
                made.append(out[:, :length] if out.ndim == 3 else out)
            return torch.cat(made)

        run.program = program  # type: ignore[attr-defined]  # the method reads its memory
        return run

    def measured(self, path: Path, model: Any) -> list[list[float]]:
        return artefact.measured(path, self.example(model), self.threads, loaded=LOADED)

    def plan(self, model: Any, bits: int) -> list[few.Entry]:
        """Tables of tokens in 8 bits; other matrices are float32, or in 8 bits too if products are of whole numbers."""
        if self.products == "int8":
            return few.plan(model, bits, GROUP)
        tied = dict(model.recipe.walk()).get("head.tied")  # a table that is multiplied too
        tables = {p for p, m in model.named_modules() if isinstance(m, Table) and not tied}
        return [
            e if e.path in tables or e.bits is None else replace(e, bits=None, why=WHY)
            for e in few.plan(model, bits, GROUP)
        ]

    def files(self, model: Any, facts: Mapping[str, Any]) -> dict[str, bytes]:
        inputs = {name: t.shape[-1] for name, t in self._inputs(model).items()}
        return {"facts.json": json.dumps({**facts, "inputs": inputs}).encode()}

    def fitted(self, space: Space, asked: Any = ()) -> Space:
        """The space without fewer than 8 bits, and without what cannot be lowered."""
        if min(bits := space.model.get("bits", (8,))) < 8:
            if "bits" in asked:
                raise ValueError(f"--target {self.name}: bits = {min(bits)}: {WHY}, or in 8 bits")
            without = {f"bits={b}": f"{WHY}, or in 8 bits" for b in bits if b < 8}
            space = replace(space, model={**space.model, "bits": (8,)}, without={**space.without, **without})
        return super().fitted(space, asked)


def _padded(tensor: Tensor) -> bool:
    """True for ids and masks; the numbers of other media have one size."""
    return not tensor.is_floating_point()


class Rows(nn.Module):
    """A token table in few bits of which rows are looked up, in operators that ExecuTorch has: no bits are read as
    another type. Shape: ids (B, T) -> (B, T, D)."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, grid: GridTable):
        super().__init__()
        self.bits, self.group, self.columns = grid.bits, grid.group, grid.columns
        self.register_buffer("codes", grid.codes)
        for name in ("scale", "zero"):
            self.register_buffer(name, getattr(grid, name).view(torch.float16))

    def forward(self, ids: Tensor) -> Tensor:
        q = unpacked(self.codes[ids].flatten(0, 1), self.bits).unflatten(1, (-1, self.group)).float()  # (B T, G, g)
        scale, zero = (t[ids].flatten(0, 1).float()[..., None] for t in (self.scale, self.zero))
        return ((q - zero) * scale).flatten(1)[:, : self.columns].view(*ids.shape, self.columns)
