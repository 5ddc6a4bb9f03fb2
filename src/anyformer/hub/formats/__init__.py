"""File formats: safetensors, GGUF, and the checks that an untrusted file must pass."""
