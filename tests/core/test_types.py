"""Types: what a type checker tells a user of the library, and that it ships."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import anyformer as af

PACKAGE = Path(af.__file__).parent

RIGHT = """
from torch import Tensor, nn
import anyformer as af
from anyformer.train import Settings, finetune, train
from anyformer.core.part import Part
from anyformer.parts import Attention, Block, GatedMLP, Logits, RMSNorm, Rotary, SoftCap, Tokens, Window

norm = RMSNorm.of(eps=1e-5)
mixer = Attention.of(heads=4, positions=Rotary.of(), mask=Window(3), scores=[SoftCap.of(30.0)])
block = Block.of(mixer=mixer, norm=norm, ffn=GatedMLP.of(hidden=48)).but(wiring="post")
lm = af.CausalLM.of(32, Tokens.of(vocab=16), [block] * 2, norm=norm, head=Logits.of(vocab=16), context=64)
model: af.CausalLM = af.build(lm, seed=0)
attention: Attention = mixer.build(32)
page = af.build("llama", "tiny", overrides={"depth": 1}, kv_heads=1)
module: nn.Module = page.eval()
texts = page.generate([[1, 2]], max_new_tokens=5, temperature=0.5)
loaded = af.load("folder", device="cpu", fresh=["heads.*"], depth=3)
count = sum(p.numel() for p in loaded.parameters()) + page.embed.vocab + page.blocks[0].mixer.heads
loaded.save("elsewhere", overwrite=True)

class Mine(Part):
    def __init__(self, dim: int, gain: float = 1.0):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

mine: Mine = Mine.of(gain=0.5).build(8)
loss: float = train("gpt", "tiny", data="a.txt", steps=3, grad_clip=0.5, lr_multipliers={"embed.*": 0.1}).loss
rank: Settings = Settings(3, lr=1e-3, activation_checkpointing=["blocks.*"])
folder = finetune("minilm", "a.csv", "dora", rank=4, min_lr_ratio=0.1).folder
"""

WRONG = """
import anyformer as af
from anyformer.train import Settings, finetune, train
from anyformer.parts import Attention, Block, GatedMLP, RMSNorm, SoftCap, Tokens

norm, mixer = RMSNorm.of(), Attention.of()
Attention.of(head=8)  # call-arg
Attention.of(heads="8")  # arg-type
Block.of(mixer=norm, norm=norm)  # arg-type
Block.of(mixer=mixer, norm=mixer)  # arg-type
Block.of(mixer=Attention, norm=norm)  # arg-type
Block.of(mixer=mixer)  # call-arg
Attention.of(scores=[norm])  # list-item
SoftCap.of(vaule=3.0)  # call-arg
af.CausalLM.of(32, Tokens.of(vocab=16), [], norm=norm, head=norm)  # arg-type
af.CausalLM.of(32, Tokens.of(vocab=16), [], norm=norm, contxt=3)  # call-arg
model = af.build("llama", "tiny")
model.generate([[1]], max_new_token=5)  # call-arg
model.generate([[1]], temperature="hot")  # arg-type
model.save("folder", overwrites=True)  # call-arg
af.load("folder", dtype="bfloat16")  # arg-type
af.build("llama", 3)  # call-overload
attention: RMSNorm = mixer.build(32)  # assignment
train("gpt", "tiny", step=3)  # call-arg
train("gpt", lr="high")  # arg-type
finetune("minilm", "a.csv", "lroa")  # arg-type
finetune("minilm", "a.csv").bits  # attr-defined
Settings(3, clip=1.0)  # call-arg
"""


def errors(folder: Path, text: str) -> dict[int, str]:
    """The lines of a user's file in which mypy finds a mistake, and its kind."""
    (folder / "user.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "user.py"]
    places = {
        "MYPYPATH": str(PACKAGE.parent),
        "PATH": "",
        "MYPY_CACHE_DIR": str(PACKAGE.parents[1] / ".mypy_cache/user"),
    }
    run = subprocess.run(command, cwd=folder, env=places, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return {int(line): kind for line, kind in re.findall(r"^user\.py:(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.M)}


@pytest.mark.slow
def test_a_users_type_checker_finds_each_mistake_and_nothing_else(tmp_path):
    told = {n: line.rpartition("# ")[2] for n, line in enumerate(WRONG.splitlines(), 1) if "  # " in line}
    assert errors(tmp_path, WRONG) == told


@pytest.mark.slow
def test_a_users_type_checker_accepts_what_is_right(tmp_path):
    assert errors(tmp_path, RIGHT) == {}


def test_types_ship_with_the_package():
    assert (PACKAGE / "py.typed").exists()
