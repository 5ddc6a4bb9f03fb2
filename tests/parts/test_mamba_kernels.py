"""The fused path of Mamba: when it is taken, and that mamba-ssm's own code gives what our plain operations give.

Without a GPU, mamba-ssm's formula of its CUDA kernel stands in for that kernel, and its Triton kernels run in Triton's
interpreter. On a GPU the last test runs the kernels themselves.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.core.flow import Flow
from anyformer.parts import Mamba, Mamba2
from anyformer.parts.recurrent import mamba_cuda
from tests.parts.mixing import flow, step_by_step

INSTALL = "MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-deps --no-build-isolation mamba-ssm"


@pytest.fixture
def packaged() -> None:
    """Skips without mamba-ssm, Triton and einops."""
    for name in ("mamba_ssm", "triton", "einops"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {INSTALL}; pip install triton einops")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that any device may take, made of our recurrences; which were called."""
    from anyformer.parts.recurrent.chunked import decayed
    from anyformer.parts.recurrent.mamba import scan

    calls: list[str] = []

    def selective(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, return_last_state: bool) -> Any:
        calls.append("selective")
        h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
        y, h = scan(u.mT, step.mT, A, B.mT, C.mT, h)
        return y.mT, h

    def chunks(
        u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, size: int, initial_states: Tensor, **_: bool
    ) -> Any:
        calls.append("chunks")
        k, q = (t.repeat_interleave(u.shape[2] // t.shape[2], 2).transpose(1, 2) for t in (B, C))
        v, fade = (u * step[..., None]).transpose(1, 2), (step * A).mT
        y, last = decayed(q, k, v, fade, initial_states.mT, size)
        return y.transpose(1, 2), last.mT

    names = {"selective_scan_fn": selective, "mamba_chunk_scan_combined": chunks}
    monkeypatch.setattr(mamba_cuda, "load_kernel", lambda module, name: names[name])
    monkeypatch.setattr(mamba_cuda, "fits", lambda like, time: time > 1)
    return calls


MIXERS = {
    "selective": lambda: Mamba(12, hidden=20, state=6),
    "chunks": lambda: Mamba2(12, heads=4, hidden=24, state=6, groups=2),
}


@pytest.mark.parametrize("kind", MIXERS)
def test_the_fused_path_gives_the_same(kind: str, taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer, x = MIXERS[kind](), torch.randn(2, 30, 12, requires_grad=True)
    fused = mixer(x, flow(30))
    assert taken == [kind]
    fast = torch.autograd.grad(fused.square().sum(), (x, *mixer.parameters()))
    monkeypatch.setattr(mamba_cuda, "fits", lambda like, time: False)
    plain = mixer(x, flow(30))
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast, torch.autograd.grad(plain.square().sum(), (x, *mixer.parameters())))
    assert taken == [kind]


def test_what_a_kernel_cannot_do_is_plain(taken: list[str]) -> None:
    """Mamba's has no first state, no documents and no gradient of its last state; no kernel takes a single token."""
    mixer, x = MIXERS["selective"](), torch.randn(1, 6, 12)
    packed = flow(6)
    packed.documents, packed.positions = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    mixer(x, packed)
    assert taken == []
    whole = mixer(x, flow(6))
    assert taken == ["selective"]
    with torch.no_grad():
        torch.testing.assert_close(step_by_step(mixer, x, [3, 2, 1]), whole)
    assert taken == ["selective"] * 2  # of the three pieces the first
    step_by_step(mixer, x, [3, 3])
    assert taken == ["selective"] * 2


def test_a_package_that_does_not_work_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_cuda, "PACKAGE", "json")  # is there, and has no such module
    mamba_cuda.load_kernel.cache_clear()
    with pytest.warns(UserWarning, match="ops.x.f cannot be used .*built for this torch"):
        assert mamba_cuda.load_kernel("ops.x", "f") is None
    monkeypatch.setattr(mamba_cuda, "PACKAGE", "no_such_package")
    mamba_cuda.load_kernel.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mamba_cuda.load_kernel("ops.x", "f") is None
    mamba_cuda.load_kernel.cache_clear()


INTERPRETED = """
import contextlib, sys, types
import torch, triton.runtime.autotuner as tuner
sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")  # the compiled one needs a GPU
first = tuner.Autotuner.__init__
tuner.Autotuner.__init__ = lambda self, fn, names, configs, *a, **k: first(self, fn, names, configs[:1], *a, **k)
torch.cuda.device = lambda *_: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=4)
from mamba_ssm.ops import selective_scan_interface as interface
from anyformer.parts import Mamba, Mamba2
from anyformer.parts.recurrent import mamba_cuda
from tests.parts.mixing import flow, step_by_step

interface.selective_scan_fn = interface.selective_scan_ref
torch.manual_seed(0)
for mixer in (Mamba(12, hidden=20, state=6), Mamba2(12, heads=4, hidden=64, state=16, groups=2)):
    x, found = torch.randn(2, 150, 12, requires_grad=True), []
    for fused in (True, False):
        mamba_cuda.fits = lambda like, time: fused and time > 1
        y = mixer(x, flow(150))
        with torch.no_grad():
            pieces = step_by_step(mixer, x, [100, 1, 49])
        found.append((y, pieces, *torch.autograd.grad(y.square().sum(), (x, *mixer.parameters()))))
    for a, b in zip(*found, strict=True):
        worst = (a - b).abs().max() / b.abs().max()
        assert worst < 1e-5, (type(mixer).__name__, worst)
print("same")
"""


def test_mamba_ssms_own_code_gives_the_same(packaged: None) -> None:
    """The formula of its CUDA kernel and its Triton kernels, forward, backward and continued."""
    given = {**os.environ, "TRITON_INTERPRET": "1"}  # read when Triton is imported
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=given, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("same"), done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", MIXERS)
def test_the_kernels_on_a_gpu(kind: str, packaged: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer, x = MIXERS[kind]().cuda(), torch.randn(2, 300, 12, device="cuda", requires_grad=True)
    fused = mixer(x, Flow(torch.arange(300, device="cuda"), causal=True))
    monkeypatch.setattr(mamba_cuda, "fits", lambda like, time: False)
    plain = mixer(x, Flow(torch.arange(300, device="cuda"), causal=True))
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4)
