"""Scaling laws, and plans of large runs.

laws.py                    E + A / N^alpha + B / D^beta; published ones
runs.py  ladder.py         runs from a file; runs that are trained here
surface.py  approaches.py  the three ways to the best size
study.py                   all of them side by side, with intervals, held-out runs and a plot
shape.py  plan.py          layouts on many GPUs: memory, time, energy
gpus.py  quantities.py     data sheets; 7b, 64xh100, 5days
"""

from anyformer.scale.ladder import climb
from anyformer.scale.laws import Law
from anyformer.scale.runs import Runs, read
from anyformer.scale.study import Study, draw, study

__all__ = ["Law", "Runs", "Study", "climb", "draw", "read", "study"]
