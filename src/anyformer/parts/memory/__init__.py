"""Mixers that read a memory of earlier segments: recurrent, compressed, searched, learned."""
