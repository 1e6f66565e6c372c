"""JSON objects of a run directory, with errors that say which file and which key."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from forkpoint.errors import RunError
from forkpoint.runs.atomic import read_object
from forkpoint.runs.results import Estimate


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number; a metric that was not finite is null."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object somewhere in a JSON file. What is asked for must be there and be a number."""

    path: Path
    fields: dict[str, Any]
    place: str = ""
    """Of the object in the file: ``by_position[3].``."""

    @classmethod
    def read(cls, path: Path) -> "JsonObject | None":
        """None if there is no such file.

        Raises:
            RunError: it cannot be read, or is not an object.
        """
        return cls(path, read_object(path)) if path.exists() else None

    def fault(self, name: str, needs: str) -> RunError:
        """The error to raise when ``name`` is not what it should be."""
        return RunError(f"{self.path}: {self.place}{name} {needs}")

    def number(self, name: str) -> float:
        """The finite number under ``name``."""
        value = self.fields.get(name)
        if not is_number(value):
            raise self.fault(name, "must be a number")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self.fields.get(name) is None else self.number(name)

    def whole(self, name: str) -> int:
        return round(self.number(name))

    def text(self, name: str) -> str:
        """As it stands; a number or null becomes text."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def object(self, name: str) -> "JsonObject":
        """The object under ``name``."""
        value = self.fields.get(name)
        if not isinstance(value, dict):
            raise self.fault(name, "must be an object")
        return JsonObject(self.path, value, f"{self.place}{name}.")

    def objects(self, name: str) -> "list[JsonObject]":
        """The list of objects under ``name``; empty if it is missing."""
        values = self.fields.get(name) or []
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise self.fault(name, "must be a list of objects")
        places = (f"{self.place}{name}[{i}]." for i in range(len(values)))
        return [JsonObject(self.path, v, p) for v, p in zip(values, places, strict=True)]

    def numbers(self, name: str) -> list[float]:
        """The list of numbers under ``name``; empty if it is missing."""
        values = self.fields.get(name) or []
        if not isinstance(values, list) or not all(is_number(v) for v in values):
            raise self.fault(name, "must be a list of numbers")
        return [float(v) for v in values]

    def estimate(self, name: str | None = None) -> Estimate:
        """value, low, high and n under ``name``, or of this object.

        Without low and high the interval has no width, without n it is 0.
        """
        node = self.object(name) if name else self
        value = node.number("value")
        low, high = node.number_or_none("low"), node.number_or_none("high")
        return Estimate(
            value=value,
            low=value if low is None else low,
            high=value if high is None else high,
            n=round(node.number_or_none("n") or 0),
        )

    def estimates(self, name: str) -> list[Estimate | None]:
        """The list of estimates under ``name``; None where one is null or has no value."""
        values = self.fields.get(name) or []
        if not isinstance(values, list):
            raise self.fault(name, "must be a list")
        nodes = [
            JsonObject(self.path, v if isinstance(v, dict) else {}, f"{self.place}{name}[{i}].")
            for i, v in enumerate(values)
        ]
        return [None if n.fields.get("value") is None else n.estimate() for n in nodes]
