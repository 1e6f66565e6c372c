"""AdamW with linear warm-up, and its state as plain tensors.

Parameters and moments are float32, whatever a pass computes in: see ``policy.precision``.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from forkpoint.config.stages import OptimConfig
from forkpoint.errors import ModelError
from forkpoint.policy.precision import gathered, like, whole


class Optimizer:
    """Clips the gradient, sets the learning rate, updates, counts."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        """
        Args:
            model: after ``compute_in``, which replaces its parameters.

        Raises:
            ModelError: a parameter that is to be trained is not float32.
        """
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if coarse := [n for n, p in self._parameters.items() if p.dtype.itemsize < 4]:
            raise ModelError(f"{coarse[0]} is held in 16 bits, in which small updates are lost")
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
        found = nn.utils.clip_grad_norm_(self._parameters.values(), self._config.clip_norm)
        norm = float(whole(found))
        if torch.tensor(norm).isfinite():
            for group in self._adamw.param_groups:
                group["lr"] = self.lr
            self.updates += 1  # before the update: one that is broken off has moved weights, too
            self._adamw.step()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(
        self, *, keep: Callable[[str], bool] = lambda name: True
    ) -> dict[str, Tensor]:
        """``<moment>/<parameter>`` -> tensor; empty before the first update.

        Args:
            keep: whether this process wants those of a parameter; see ``gathered``.
        """
        state = {
            f"{moment}/{name}": value
            for name, parameter in self._parameters.items()
            for moment, value in self._adamw.state[parameter].items()
        }
        return gathered(state, keep=lambda key: keep(key.split("/", 1)[1]))

    def load_state_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take over some of ``state_tensors()``, one at a time."""
        for key, value in tensors:
            moment, name = key.split("/", 1)
            parameter = self._parameters[name]
            # Cloned: what is read from a file may lie at any alignment (see policy.load).
            value = value.clone().to(parameter.device)
            counts = moment == "step"  # one number, not one a weight
            self._adamw.state[parameter][moment] = value if counts else like(value, parameter)
