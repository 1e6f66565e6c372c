"""The form of a completion."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FormatVerifier:
    """1.0 if the whole completion matches the pattern (dot matches newlines), else 0.0."""

    pattern: str

    def __call__(self, columns: Mapping[str, Any], text: str) -> float:
        return float(re.fullmatch(self.pattern, text, re.DOTALL) is not None)
