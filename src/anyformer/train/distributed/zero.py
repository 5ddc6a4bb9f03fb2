"""DeepSpeed's ZeRO, stages 1 and 2: moments (and gradients) in parts, weights whole (Rajbhandari et al., 2019;
arXiv:1910.02054). Stage 3 is FSDP2, in PyTorch itself.

```
all trained weights of a group, one after another:   |  q  |    k    |  v  |     up     |  …
                                                     |--- process 0 ---|--- process 1 ---|
```
Each process keeps the moments of its stretch, whichever parameters it cuts through.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anyformer.train.distributed.ddp import DDP


class Zero(DDP):
    """As `DDP`, with DeepSpeed between the gradients and the optimiser.

    Args:
        stage: 1: moments in parts. 2: gradients too.

    Raises:
        ImportError: if deepspeed is not installed.
    """

    def __init__(self, device: str, stage: float = 2):
        try:
            import deepspeed
        except ImportError:
            raise ImportError("parallel=zero needs DeepSpeed: pip install deepspeed; or use parallel=fsdp") from None
        super().__init__(1, device)
        deepspeed.utils.logger.setLevel("ERROR")
        # gloo is there; a module for shared memory, which DeepSpeed would compile first, takes a compiler and a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage = int(stage)

    @property
    def whole(self) -> bool:
        return False

    def replicate(self, loss: Any) -> Callable[..., Any]:
        if loss.precision == "fp16":
            raise ValueError("parallel=zero does not support a scaled fp16 loss; use bf16, fp32 or fsdp")
        self.loss = loss
        return lambda *inputs: self.engine(*inputs)

    def wrap_optimizer(self, optimizer: Any) -> Any:
        import deepspeed

        if not isinstance(optimizer, torch.optim.AdamW):
            raise ValueError("parallel=zero keeps one long row of all weights: optimizer=adamw only")
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # asked for, and used for nothing here
            "zero_optimization": {"stage": self.stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 40,
        }
        trained = [p for p in self.loss.parameters() if p.requires_grad]
        self.engine = deepspeed.initialize(
            model=self.loss, optimizer=optimizer, model_parameters=trained, config=settings, dist_init_required=False
        )[0]
        return ZeroOptimizer(self.engine)

    def gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.copies, scale_wrt_gas=False)

    def clip_grad_norm(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        zero = self.engine.optimizer  # shortens by itself, when the optimiser steps; 0 is its word for never
        zero.clip_grad = limit if math.isfinite(limit) else 0.0
        return torch.as_tensor(zero.scaled_global_norm())


class ZeroOptimizer:
    """DeepSpeed's optimiser, with a state by parameter like any other's. Reading and writing a state is for all
    processes together."""

    def __init__(self, engine: Any):
        self.engine, zero = engine, engine.optimizer
        self.param_groups = zero.param_groups
        self.state = {
            p: ShardedState(p, zero.optimizer.state, flat)
            for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
            for p in group
        }

    def step(self) -> None:
        """Updates the weights, and forgets the gradients."""
        self.engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """`step` has done it."""


class ShardedState(MutableMapping[str, Tensor]):
    """The state of one parameter, of which this process has a stretch, or nothing.

    Args:
        states: of the optimiser, by `flat`, this process's stretch of all weights of a group.
    """

    def __init__(self, parameter: Any, states: Any, flat: Tensor):
        self.parameter, self.states, self.flat = parameter, states, flat

    def __getitem__(self, key: str) -> Tensor:
        value = self.states[self.flat][key]
        if value.ndim == 0:  # the number of steps, one tensor for all parameters
            return value.clone()
        whole = torch.zeros_like(self.parameter).flatten()
        if (place := self._place()) is not None:
            whole[place[0]] = value[place[1]]
        dist.all_reduce(whole)
        return whole.view_as(self.parameter)

    def __setitem__(self, key: str, value: Tensor) -> None:
        state = self.states[self.flat]
        if value.ndim == 0:
            state[key] = value.clone()
            return
        if key not in state:
            state[key] = torch.zeros_like(self.flat)
        if (place := self._place()) is not None:
            state[key][place[1]] = value.flatten()[place[0]].to(self.flat)

    def _place(self) -> tuple[slice, slice] | None:
        """Where this process's stretch lies in the parameter, and in `flat`."""
        mapping = self.parameter._hp_mapping
        if mapping is None:
            return None
        spots = (mapping.lp_fragment_address, mapping.hp_fragment_address)
        ours, theirs = (slice(spot.start, spot.start + spot.numel) for spot in spots)
        return ours, theirs

    def __delitem__(self, key: str) -> None:
        raise TypeError("a slice of a state cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.states.get(self.flat, ())))

    def __len__(self) -> int:
        return len(self.states.get(self.flat, ()))
