"""Mixers with a recurrent state: Mamba, Mamba-2, the delta rule, convolutions, and their shared chunked scans."""
