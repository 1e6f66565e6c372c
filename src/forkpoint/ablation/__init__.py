"""Variants of a run, each with the same seeds, and how they compare."""
