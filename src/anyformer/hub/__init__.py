"""Files that others wrote and read: Hugging Face directories, GGUF, and the maps between their names and ours."""

from anyformer.hub.load import load
from anyformer.hub.save import save
from anyformer.hub.save_gguf import save_gguf
from anyformer.hub.save_gptq import save_gptq

__all__ = ["load", "save", "save_gguf", "save_gptq"]
