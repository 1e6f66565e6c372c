"""A reward function of a module that takes longer to import than the function may run."""

import time
from typing import Any

time.sleep(1.5)


def reward(completions: list[str], **columns: Any) -> list[float]:
    return [1.0]
