"""AdamW with linear warm-up, and its state as plain tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forkpoint.config.stages import OptimConfig


class Optimizer:
    """Clips the gradient, sets the learning rate, updates, counts."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._config = config
        self._adamw = torch.optim.AdamW(
            self._parameters.values(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one walk over memory instead of eight
        )
        self.updates = 0
        """Updates made so far."""

    @property
    def lr(self) -> float:
        """The next update's learning rate: lr * min(1, (updates + 1) / warmup_steps)."""
        warmup = self._config.warmup_steps
        return self._config.lr * (min(1.0, (self.updates + 1) / warmup) if warmup else 1.0)

    def step(self) -> float:
        """Clip to ``clip_norm`` and update, unless the gradient is not finite.

        Returns:
            The norm before clipping; not finite means that nothing was updated.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self._config.clip_norm))
        if torch.tensor(norm).isfinite():
            for group in self._adamw.param_groups:
                group["lr"] = self.lr
            self.updates += 1  # before the update: one that is broken off has moved weights, too
            self._adamw.step()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """``<moment>/<parameter>`` -> tensor; empty before the first update."""
        return {
            f"{moment}/{name}": value
            for name, parameter in self._parameters.items()
            for moment, value in self._adamw.state[parameter].items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from ``state_tensors()``."""
        for key, value in tensors.items():
            moment, name = key.split("/", 1)
            # Cloned: what is read from a file may lie at any alignment (see policy.load).
            self._adamw.state[self._parameters[name]][moment] = value.clone()
        self.updates = updates
