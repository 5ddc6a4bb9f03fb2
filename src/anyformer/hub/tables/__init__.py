"""Tables between published names and ours, read in both directions: weights, config keys, rope, families."""
