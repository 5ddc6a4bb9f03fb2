"""Counts of a pass: live bytes, and floating-point operations by part of the model, forward and backward.

A product of (m, k) and (k, n) is 2 m k n operations: a multiplication and an addition each. Sums, norms and activations
are not counted, as elsewhere. The counts are those of the kernels that run: PyTorch's table
(`torch.utils.flop_counter`) with what it lacks, since its `FlopCounterMode` counts 0 for attention on a CPU (PyTorch
2.13). They are also right for tensors without content (`shapes_of`), of which nothing is held.

B batch, H heads, T queries, S keys, K width of a head.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyformer.core.recipe import Recipe


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that live, and the operations of matrix products.

    Attributes:
        now, most: live bytes, and the most so far. flops: operations so far. pairs: those of attention's scores and
            sums alone, half of which a causal mask makes useless.
        parts: operations by path of the innermost module, if `model` is given.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.registry = registry()
        self.now = self.flops = self.most = self.pairs = 0
        self.seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.parts: Counter[str] = Counter()
        self.model, self.changed = model, list[tuple[nn.Module, Any]]()
        self.inside = [""]  # paths of the modules that run
        self.begins, self.owners = [0], [""]  # number of the first node of backward, and the path of its module

    def __enter__(self) -> Any:
        for path, module in self.model.named_modules() if self.model is not None else ():
            self.changed.append((module, vars(module).get("forward")))
            module.forward = self._followed(module.forward, path)  # hooks would lead parts off their fused ways
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        while self.changed:
            module, own = self.changed.pop()
            if own is None:
                del module.forward
            else:
                module.forward = own

    def add(self, tensor: Tensor) -> None:
        """A tensor is there; its memory may be that of another one."""
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            size = self.seen[storage] = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size

    def _followed(self, forward: Callable[..., Any], path: str) -> Callable[..., Any]:
        def follow(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(path)
            self._mark()
            try:
                return forward(*args, **kwargs)
            finally:
                self.inside.pop()
                self._mark()

        return follow

    def _mark(self) -> None:
        """The nodes of backward from here on belong to the module that runs now."""
        self.begins.append(torch._C._autograd._get_sequence_nr())
        self.owners.append(self.inside[-1])

    def _part(self) -> str:
        """The path of the module that the present operation belongs to."""
        node = torch._C._current_autograd_node()
        if len(self.inside) > 1 or node is None:  # also of a module that backward computes again
            return self.inside[-1]
        number: int = node._sequence_nr()
        return self.owners[bisect.bisect_right(self.begins, number) - 1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.registry:
            count = self.registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.flops += count
            if "attention" in func._overloadpacket.__name__:
                self.pairs += count
            if self.model is not None:
                self.parts[self._part()] += count
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def registry() -> dict[Any, Callable[..., int]]:
    """The operations of each kernel, by PyTorch's name of it."""
    from torch.utils.flop_counter import flop_registry

    aten = torch.ops.aten  # missing in PyTorch's table of operations
    back = aten._scaled_dot_product_flash_attention_for_cpu_backward
    cpu = {aten._scaled_dot_product_flash_attention_for_cpu: _attention, back: _attention_backward}
    own = {**cpu, aten.addmm_: flop_registry[aten.addmm], aten.convolution_backward: _convolution_backward}
    return {**flop_registry, **own}


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """2 B H T S (K + K'): the two products; masked pairs are counted, as elsewhere."""
    batch, heads, time, width = query.shape
    return 2 * batch * heads * time * key.shape[2] * (width + value.shape[3])


def _attention_backward(slope: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Five products, one of them the scores made again."""
    return 5 * _attention(query, key, value) // 2


def _convolution_backward(
    slope: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, turned: bool,
    padded: Any, groups: int, wanted: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """As forward, for the slope of the input and for that of the weight; PyTorch's table (2.13) forgets the groups."""
    return sum(wanted[:2]) * 2 * math.prod(weight.shape[1:]) * (x if turned else slope).numel()


@contextlib.contextmanager
def shapes_of(recipe: Recipe[Any], dtype: torch.dtype | None = None) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """A model of this recipe whose tensors have shapes, and no content and no memory. Its kernels are those of a CPU,
    unlike on the meta device.

    Yields the model, and a function that makes such a tensor of a tensor. It can only be used inside the block.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from anyformer.core import pages

    model = pages.empty(recipe)
    if dtype is not None:
        model = model.to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made, keep = dict[int, Tensor](), list[Tensor | None]()
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in list(store.items()):
                    keep.append(tensor)  # so that no other tensor gets its id
                    if tensor is not None and id(tensor) not in made:
                        like = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if is_parameter else like
                    store[name] = made[id(tensor)] if tensor is not None else None
        yield model, mode.from_tensor


def part_of(path: str) -> str:
    """The part that a parameter or a module belongs to in tables, layers summed: `blocks.*.mixer` of
    `blocks.3.mixer.q.weight`."""
    steps = ["*" if step.isdigit() else step for step in path.split(".")]
    depth = max((i + 2 for i, step in enumerate(steps) if step == "*"), default=2)  # the step after the last index
    return ".".join(steps[: min(depth, len(steps) - 1)]) or path
