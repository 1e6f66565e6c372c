"""Seconds of one trivial test in the sandbox, from completion to verdict; a line of JSON."""

import argparse
import json
import statistics
import time

from forkpoint.verifiers import CodeVerifier
from forkpoint.verifiers.sandbox import find_sandbox

CASES = {
    "standard input": ("print(sum(map(int, input().split())))", {"inputs": ["1 2"]}),
    "function": ("def add(a, b): return a + b", {"inputs": ["1\n2"], "fn_name": "add"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20)
    parser.add_argument("--python", help="the Python of the sandbox; default: this one's")
    given = parser.parse_args()
    verifier = CodeVerifier("tests", find_sandbox(given.python, seconds=6, memory_gb=2.0))
    found = {}
    for name, (program, tests) in CASES.items():
        columns = {"tests": {"outputs": ["3"], **tests}}
        seconds = []
        for _ in range(given.programs):
            begun = time.perf_counter()
            assert verifier(columns, f"```python\n{program}\n```") == 1.0
            seconds.append(time.perf_counter() - begun)
        found[name] = {
            "median_s": round(statistics.median(seconds), 4),
            "least_s": round(min(seconds), 4),
            "most_s": round(max(seconds), 4),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
