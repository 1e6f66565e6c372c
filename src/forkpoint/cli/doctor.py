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
        console.print(f"  {name:<18}{found or '[red]missing[/red]'}")
    console.print("[bold]extras[/bold]")
    for extra, (package, purpose) in EXTRAS.items():
        found = package_version(package)
        hint = found or f"not installed: pip install 'forkpoint\\[{extra}]'"
        console.print(f"  {package:<18}{hint}  ({purpose})")
    if missing:
        return 2
    console.print("[bold]machine[/bold]")
    import torch

    from forkpoint.lab import BASE_POLICIES

    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    console.print(f"  {threads} CPU threads, {capability}")
    for name, folder in BASE_POLICIES.items():
        there = (folder / "model.safetensors").is_file()
        console.print(f"  policy {name} {'is shipped' if there else 'is missing'}")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        console.print(f"  CUDA: {name}")
    else:
        console.print("  no CUDA device: training runs on the CPU")
    console.print("[bold]recipes[/bold]")
    _recipes(console)
    return 0


def _recipes(console: SafeConsole) -> None:
    """What of the shipped recipes can run here."""
    import logging

    from forkpoint.config import load_config
    from forkpoint.config.load import RECIPES
    from forkpoint.hub import prepare_hub
    from forkpoint.plan.here import missing_here

    prepare_hub()
    logging.getLogger("forkpoint.plan").setLevel(logging.ERROR)  # where a shape comes from
    for path in sorted(RECIPES.glob("*.toml")):
        missing = missing_here(load_config(path, []))
        console.say(f"  {path.stem:<22}{'needs ' + '; '.join(missing) if missing else 'can run'}")
