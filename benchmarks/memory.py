"""Peak resident memory of this process, resettable (Linux)."""

from pathlib import Path


def reset_peak() -> None:
    """Forget the peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_gb(field: str = "VmRSS") -> float:
    """``VmRSS`` now, or ``VmHWM`` at most since ``reset_peak``, in 10^9 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e9
    raise SystemExit(f"/proc/self/status names no {field}")


def step_memory_gb(before_gb: float, parameters: int) -> float:
    """The peak beyond what was there, gradients (4 bytes) and AdamW's two moments (8 bytes)."""
    return resident_gb("VmHWM") - before_gb - 12 * parameters / 1e9
