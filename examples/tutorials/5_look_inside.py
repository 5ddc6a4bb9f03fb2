"""Look inside a model.

Every activation, weight and adapter has the same kind of name: its path. The script reads activations with taps,
and draws attention.
"""

# %% [markdown]
# ## Read activations
#
# `Taps` records by path pattern. Recording attention weights does not change the output, whatever kernel computes it.

# %%
import torch

import anyformer as af

model = af.build("llama", "tiny", seed=0).eval()
ids = torch.tensor([[5, 9, 2, 9, 5, 7]])
plain = model(input_ids=ids).logits
with af.Taps(model, "blocks.*", "blocks.1.mixer.weights") as taps:
    seen = model(input_ids=ids).logits
for path, tensor in taps.items():
    print(path, tuple(tensor.shape))
print("unchanged:", torch.allclose(plain, seen, atol=1e-5))

# %% [markdown]
# ## Where a prediction is made: the logit lens
#
# The final norm and the head, applied to the stream after each block, show what the model would predict if it ended
# there.

# %%
with torch.no_grad():
    for i in range(len(model.blocks)):
        early = model.head.proj(model.norm(taps[f"blocks.{i}"]))
        print(f"after block {i}: token {int(early[0, -1].argmax())}")
print(f"the model:     token {int(plain[0, -1].argmax())}")

# %% [markdown]
# ## Compare two architectures
#
# `differences` compares recipes; `anyformer diff llama qwen2` prints the same.

# %%
from anyformer.explain.diff import differences

for change in differences(af.recipe("llama", "tiny"), af.recipe("qwen2", "tiny")):
    print(f"{change.path}: {change.one} -> {change.other}")

# %% [markdown]
# ## Draw attention

# %%
from anyformer.explain.attention import attention_picture

print(attention_picture(model, [5, 9, 2, 9, 5, 7], "attention.png"))
