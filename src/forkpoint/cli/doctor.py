"""``forkpoint doctor``."""

from forkpoint.cli.terminal import SafeConsole


def doctor() -> int:
    """Say what is installed, what will run here and what will not."""
    from forkpoint.environment import CORE_PACKAGES, EXTRAS, package_version

    console = SafeConsole(highlight=False)
    missing = False
    console.print("[bold]core[/bold]")
    for name in CORE_PACKAGES:
        found = package_version(name)
        missing = missing or found is None
        console.print(f"  {name:<16}{found or '[red]missing[/red]'}")
    console.print("[bold]extras[/bold]")
    for extra, (package, purpose) in EXTRAS.items():
        found = package_version(package)
        hint = found or f"not installed: pip install 'forkpoint\\[{extra}]'"
        console.print(f"  {package:<16}{hint}  ({purpose})")
    if missing:
        return 2
    console.print("[bold]machine[/bold]")
    for line in _machine():
        console.print(f"  {line}")
    return 0


def _machine() -> list[str]:
    import torch

    from forkpoint.lab import BASE_POLICY

    lab = (BASE_POLICY / "model.safetensors").is_file()
    lines = [
        f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}",
        "laboratory policy shipped: forkpoint demo will run"
        if lab
        else "laboratory policy missing",
    ]
    if torch.cuda.is_available():
        lines.append(f"CUDA: {torch.cuda.get_device_name()} (training on CUDA is untested so far)")
    else:
        lines.append("no CUDA device: training runs on the CPU")
    return lines
