"""Accuracy on held-out problems, always with an interval."""
