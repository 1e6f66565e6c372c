"""The results of ``bench.py`` as Markdown."""

import statistics
from typing import Any

BARS = {
    "trl_over_sparse_time_half_zero": "at least 7",
    "trl_over_sparse_time_no_zero": "at least 3.5",
    "trl_over_sparse_peak_memory": "at least 3",
    "dense_over_sparse_time": "at least 1",
    "dense_over_sparse_time_keep_all": "at least 1",
    "sparse_over_local_time": "at least 1.7",
    "generate_over_engine_time": "at least 1.5",
    "entropy_capture_overhead": "under 0.03",
    "flop_rate_fraction_152k": "at least 0.6",
    "gradient_relative_error": "under 1e-5",
}


def markdown(result: dict[str, Any]) -> str:
    """Headline, raw medians, growth."""
    raw = result["raw"]
    parts = [
        f"Made by `make bench` on {result['date']} in {result['minutes']} minutes: "
        f"{result['machine']['cpu_count']} cores, {result['machine']['threads']} threads, "
        f"{result['machine']['cpu_capability']}, torch {result['versions']['torch']}."
        + "".join(
            f" Again, alone, on {told['date']}: {part}."
            for part, told in result.get("again", {}).items()
        ),
        _table(
            ("ratio", "measured", "bar"),
            [(f"`{k}`", _short(result[k]), BARS.get(k, "")) for k in result["headline"]],
        ),
        "Seconds of one optimizer step on SmolLM2-135M, 32 sequences, medians:",
        _steps(raw),
        "Memory of a step beyond weights, gradients and optimizer, GB, 8 sequences in a pass:",
        _memory(raw),
        "Random Qwen3, 152k words, 4 layers of 1024, no zero-variance group:",
        _wide(raw),
        "The dial of the local gradient on no_zero; `kept`: no first hop, keys at hand:",
        _dial(raw["dial"]),
        "Growth, 4 layers of 256: seconds (GB) of one gradient",
        _growth(raw["growth"]["points"]),
    ]
    return "\n\n".join(parts) + "\n"


def _steps(raw: dict[str, Any]) -> str:
    ways = ("trl", "dense", "sparse")
    rows = [
        (name, *(_short(statistics.median(sides[way]["seconds"])) for way in ways))
        for name, sides in raw["steps"].items()
    ]
    if sides := raw.get("without_flat"):
        trl, sparse = (_short(statistics.median(sides[w]["seconds"])) for w in ("trl", "sparse"))
        rows.insert(1, ("half_zero, TRL without flat groups", trl, "", sparse))
    for name, sides in raw.get("in_trl", {}).items():
        trl, forking = (_short(statistics.median(sides[w]["seconds"])) for w in ("trl", "forking"))
        rows.append((f"{name}, TRL's trainer and `ForkingGRPOTrainer`", trl, "", forking))
    return _table(("workload", *ways), rows)


def _memory(raw: dict[str, Any]) -> str:
    ways = ("dense", "sparse")
    trl = raw["trl_batch_sizes"]["8"]["memory_gb"]
    values = (trl, *(raw["memory"][way]["memory_gb"] for way in ways))
    return _table(("trl", *ways), [tuple(_short(v) for v in values)])


def _wide(raw: dict[str, Any]) -> str:
    sides = {"trl": raw["wide_trl"], **raw["wide"]}
    rows = [
        (name, _short(statistics.median(side["seconds"])), _short(side["memory_gb"]))
        for name, side in sides.items()
    ]
    return _table(("way", "seconds", "GB"), rows)


def _dial(sides: dict[str, Any]) -> str:
    sparse = statistics.median(sides["sparse"]["seconds"])
    rows = []
    for name, side in sides.items():
        seconds, live = statistics.median(side["seconds"]), side.get("work/live_fraction")
        share = "" if live is None else f"{100 * live:.0f} %"
        memory = _short(side["memory_gb"])
        rows.append((name, share, _short(seconds), _short(sparse / seconds), memory))
    return _table(("way", "live", "seconds", "sparse / it", "GB"), rows)


def _growth(points: list[dict[str, Any]]) -> str:
    rows = []
    for point in points:
        cells = [
            f"{_short(way['seconds'])} ({_short(way['memory_gb'])})"
            for way in point["ways"].values()
        ]
        few = f", group = {point['group']:g}" if point["axis"] == "length" else ""
        rows.append((f"{point['axis']} = {point[point['axis']]:g}{few}", *cells))
    return _table(("size", *points[0]["ways"]), rows)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _short(value: float) -> str:
    return f"{value:.3g}"
