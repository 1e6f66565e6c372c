"""The model being trained: one file per way to take the gradient, behind one nn.Module."""

from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.policy.module import GRADIENTS, PolicyModule

__all__ = ["GRADIENTS", "LoadedModel", "PolicyModule", "load_model"]
