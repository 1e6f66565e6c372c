"""forkpoint: reinforcement learning with verifiable rewards, seen through token entropy."""

__version__ = "0.1.0"
