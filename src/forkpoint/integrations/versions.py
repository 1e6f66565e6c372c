"""Which versions of another trainer an integration was made for."""

from importlib.metadata import PackageNotFoundError, version

from forkpoint.errors import ConfigError


def check_version(package: str, first: str, beyond: str) -> None:
    """Refuse a package that is missing, or of a version whose insides nobody looked at.

    Args:
        first: the first version that is taken, ``1.16``.
        beyond: the first that is not, ``1.17``.

    Raises:
        ConfigError: naming what to install.
    """
    wanted = f"{package}>={first},<{beyond}"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise ConfigError(f"{package} is not installed: pip install '{wanted}'") from None
    if not _numbers(first) <= _numbers(found) < _numbers(beyond):
        raise ConfigError(
            f"{package} {found} is not one that forkpoint.integrations.{package} was made for, "
            f"which extends its private methods: pip install '{wanted}'"
        )


def _numbers(text: str) -> tuple[int, ...]:
    """The release as numbers: 1.16.0.dev1 is (1, 16, 0)."""
    parts = []
    for part in text.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
