"""Fine-tune a classifier with LoRA.

A pretrained encoder learns a new task from rows with a text and a label. Only small low-rank matrices beside its
weights are trained. To need no download, this script first makes a tiny encoder; with real weights, write
`model="minilm"`.
"""

# %% [markdown]
# ## Data
#
# Rows of a CSV file. The names of the columns decide the task: `text` and `label` mean classification.

# %%
import csv
import random

draw = random.Random(0)
good, bad = ("fine", "lovely", "great"), ("dull", "awful", "poor")
with open("reviews.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["text", "label"])
    for i in range(200):
        words = good if i % 2 else bad
        rows.writerow([f"a {draw.choice(words)} film with a {draw.choice(words)} end", "good" if i % 2 else "bad"])

# %% [markdown]
# ## A model to start from

# %%
import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer

encoder = af.build("bert", "tiny", vocab=300, seed=0)
encoder.tokenizer = Tokenizer.bytes_level()
encoder.save("encoder")

# %% [markdown]
# ## Fine-tune
#
# As a command: `anyformer finetune --model encoder --data reviews.csv --method lora --out run`.

# %%
from anyformer.train import finetune

tuned = finetune("encoder", "reviews.csv", method="lora", epochs=12, lr=1e-2, out="run", quiet=True)
print("task:", tuned.task, "classes:", tuned.classes)
print(f"{tuned.learned} of {tuned.parameters} parameters are trained")
print(f"wrong labels on held-out rows: {tuned.before:.0%} before, {tuned.after:.0%} after")

# %% [markdown]
# ## Use it
#
# The folder `run/model` holds the merged model. It opens in transformers, too.

# %%
import torch

model = af.load("run/model")
ids = model.tokenizer.encode("a lovely film with a great end")
logits = model(input_ids=torch.tensor([ids])).logits
print(tuned.classes[int(logits.argmax())])
