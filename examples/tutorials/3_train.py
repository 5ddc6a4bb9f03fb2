"""Train a model, stop it, and resume it.

`train` is both a Python function and a command, with the same options. The script takes about twenty seconds on one
core.
"""

# %% [markdown]
# ## Train
#
# A tiny LLaMA learns a small text of its own. As a command:
#
# ```sh
# anyformer train --model llama --size tiny --data text.txt --steps 40 --out run
# ```
#
# The last tenth of the text is held out. Bits per byte do not depend on the tokenizer; a table of byte pairs, a
# bigram, is measured beside the model.

# %%
from typing import Any

from anyformer.train import train

text = "".join(f"the {a} sees the {b}. " for a in ("cat", "dog", "bird") for b in ("sun", "moon", "sea")) * 100
with open("text.txt", "w") as file:
    file.write(text)
options: dict[str, Any] = {
    "data": "text.txt",
    "vocab": 300,
    "batch": 8,
    "context": 32,
    "lr": 3e-3,
    "save_every": 20,
    "quiet": True,
}
result = train("llama", "tiny", steps=40, out="run", **options)
print(f"{result.steps} steps: {result.bits_per_byte:.1f} bits per byte, bigram {result.bigram_bits_per_byte:.1f}")

# %% [markdown]
# ## Resume
#
# A run that was killed goes on from its last checkpoint. Here a copy of the folder loses its last checkpoint, so that
# steps 21 to 40 are done again. The weights are equal to those of the run that was never stopped, bit for bit.

# %%
import shutil

import torch

import anyformer as af

shutil.copytree("run", "stopped")
shutil.rmtree("stopped/step-000040")
resumed = train("llama", "tiny", steps=40, out="stopped", resume=True, **options)
weights, again = result.model.state_dict(), resumed.model.state_dict()
print(all(torch.equal(weights[name], again[name]) for name in weights))

# %% [markdown]
# ## Use it
#
# A checkpoint is a Hugging Face directory: `af.load`, `anyformer chat` and transformers open it.

# %%
model = af.load(result.checkpoint)
print(model.generate("the cat", max_new_tokens=8, temperature=0))
