"""The state of the random generators of PyTorch, its GPUs, NumPy and Python: seeded, read, restored."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Seeds PyTorch, Python and NumPy."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Tensor]:
    """The states of the random generators of PyTorch, its GPUs, Python and NumPy."""
    _, words, gauss = random.getstate()
    name, keys, place, has, cached = np.random.get_state()
    assert name == "MT19937"
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), place]),
        "numpy_gauss": torch.tensor([has, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states |= {f"cuda_{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(states: dict[str, Tensor]) -> None:
    """The inverse of `random_states`. The states of GPUs that are not here are left out."""
    torch.set_rng_state(states["torch"].clone())
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *keys, place = states["numpy"].tolist()
    has, cached = states["numpy_gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), place, int(has), cached))
    for i in range(torch.cuda.device_count()):
        if f"cuda_{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda_{i}"].clone(), i)
