"""Parts of protein folding: frames, pair updates, alignments, invariant point attention, atoms."""
