"""A rule that takes its time, and says when it has begun."""

import os
import time
from pathlib import Path

from torch import Tensor

from forkpoint.selection.candidates import Candidates
from forkpoint.selection.rules import everything as every_token

MARK = "FORKPOINT_TESTS_MARK"
"""The environment's variable with the path of a file that is made when the rule is at work."""


def everything(candidates: Candidates) -> Tensor:
    Path(os.environ[MARK]).touch()
    time.sleep(1.5)
    return every_token(candidates)
