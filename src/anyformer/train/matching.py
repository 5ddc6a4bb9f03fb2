"""The former place of `objectives.Matching`, for code that imports it from here."""

from anyformer.train.objectives import Matching as Matching
