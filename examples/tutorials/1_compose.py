"""Compose a model that nobody published.

A recipe is a model whose weights do not exist yet. You take the recipe of an architecture, change it by path, and
build it. No class is subclassed and nothing is registered. The script runs in a few seconds on a CPU.
"""

# %% [markdown]
# ## A recipe, and its paths
#
# `af.recipe` returns the recipe of an architecture at one of its sizes. A path such as `blocks.0.mixer` names a place
# in it. The same path will name the module, its weights and its activations.

# %%
import anyformer as af

llama = af.recipe("llama", "tiny", depth=6)
print(llama["blocks.0.mixer"])

# %% [markdown]
# ## Swap a mixer
#
# `but` returns a new recipe; the old one stays as it is. `blocks.2::3` is a slice: block 2 and every third one after
# it. Here these blocks get Mamba, a recurrent layer, in place of attention.

# %%
from anyformer.explain.diff import differences
from anyformer.parts import Mamba, Window

hybrid = llama.but({"blocks.2::3.mixer": Mamba.of(state=8), "blocks.0.mixer.mask": Window(15)})
for change in differences(llama, hybrid):
    print(f"{change.path}: {change.one} -> {change.other}")

# %% [markdown]
# ## Build it
#
# `af.build` makes the modules and draws the first weights. The result is a `torch.nn.Module`, which generates, with a
# cache of keys and values for attention and a recurrent state for Mamba, side by side.

# %%
import torch

model = af.build(hybrid, seed=0)
logits = model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits
print(type(model.blocks[2].mixer).__name__, tuple(logits.shape))
print(sum(p.numel() for p in model.parameters()), "parameters")
cached = model.generate([[1, 2, 3]], max_new_tokens=8, temperature=0)
print("the cache changes nothing:", cached == model.generate([[1, 2, 3]], max_new_tokens=8, temperature=0, cache=False))

# %% [markdown]
# ## Mistakes are errors that name the option

# %%
try:
    llama.but({"blocks.*.mixer.kv_head": 2})
except ValueError as error:
    print(error)

# %% [markdown]
# ## Keep it
#
# A model is saved with its recipe, so that it can be loaded in another process without this script.

# %%
model.save("hybrid")
again = af.load("hybrid")
print(again.recipe == model.recipe, torch.equal(again(input_ids=torch.tensor([[1, 2, 3, 4]])).logits, logits))

# %% [markdown]
# ## A picture of the wiring
#
# `anyformer draw hybrid --out hybrid.svg` draws the same picture from the folder.

# %%
from anyformer.explain.wiring import draw

print(draw(hybrid, "hybrid.svg", "hybrid"))
