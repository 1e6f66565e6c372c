"""What verl imports of forkpoint: the entry point of ``verl.plugins``.

verl imports its plugins whenever anything of it is imported, in workers that never see a trainer
too, and says nothing of one that fails. So nothing is loaded here until verl loads its trainers.
"""

import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from forkpoint.errors import ConfigError

TRAINERS = "verl.trainer.ppo.v1.trainer_sync"
"""verl's module after which ours can be registered."""


def register_or_say_why_not() -> None:
    """``register``; with a verl it was not made for, an error in the log and verl without it."""
    from forkpoint.integrations.verl import MODE, register

    try:
        register()
    except ConfigError as error:
        message = "forkpoint: trainer.v1.trainer_mode=%s is not there: %s"
        logging.getLogger(__name__).error(message, MODE, error)


class AfterTrainers(MetaPathFinder):
    """Finds verl's trainers as Python would, and registers ours when they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of ``TRAINERS``, once; None for everything else."""
        if fullname != TRAINERS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                register_or_say_why_not()

            loader.exec_module = run_and_register
        return spec


if TRAINERS in sys.modules:
    register_or_say_why_not()
else:
    sys.meta_path.insert(0, AfterTrainers())
