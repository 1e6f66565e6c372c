"""What an ablation is: a recipe, what each variant sets on top of it, and seeds."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from forkpoint.config import RunConfig, load_config
from forkpoint.config.load import RECIPES, parsed, recipe_path
from forkpoint.config.stages import Stage
from forkpoint.errors import ConfigError
from forkpoint.selection.rules import check_rules

OWN = frozenset({"training.seed", "task.seed", "name"})
"""What each run is given by the ablation."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Of a folder, too."""


class Variant(Stage):
    """One of the runs that are compared."""

    name: Name
    set: tuple[str, ...] = ()
    """``section.key=value``, on top of the ablation's own."""


class AblationRecipe(Stage):
    """The file that ``forkpoint ablate`` reads."""

    name: Name
    recipe: str | None = None
    """What all variants start from, as ``forkpoint train`` takes it; None: the defaults."""
    set: tuple[str, ...] = ()
    """``section.key=value``, for all variants."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Of sampling (``training.seed``) and of the order of problems (``task.seed``)."""
    reference: str | None = None
    """The variant that the others are compared with; default: the first."""
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "AblationRecipe":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("two variants of one name, or a seed twice")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference = {self.reference!r} is none of {', '.join(names)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One variant with one seed."""

    variant: str
    seed: int
    settings: tuple[str, ...]
    """What all runs of the variant set on top of the recipe."""
    own: tuple[str, ...]
    """What this one sets besides: its seeds and its name."""
    config: RunConfig
    folder: Path


def load_ablation(path: str | Path) -> AblationRecipe:
    """Read a TOML file, or one of that name that ships with the package.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    file = recipe_path(path, RECIPES / "ablations")
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return parsed(AblationRecipe, raw, f"{file} is no ablation")


def _check_free(variant: str, settings: Sequence[str]) -> None:
    if taken := [one for one in settings if one.partition("=")[0].strip() in OWN]:
        raise ConfigError(
            f"variant {variant}: {taken[0]}: seeds and names of runs are the ablation's own; write "
            "seeds = [...] in its file"
        )


def planned_runs(
    ablation: AblationRecipe, root: Path, overrides: Sequence[str] = ()
) -> list[PlannedRun]:
    """Every run, seed by seed, so that all variants are there when the first seed is through.

    Args:
        root: the folder of all; a run has ``root/VARIANT/seed_0``.
        overrides: ``section.key=value``, for all variants, on top of their own.

    Raises:
        ConfigError: the settings of a variant are wrong, or it does not end with an evaluation.
    """
    found = []
    for seed in ablation.seeds:
        for variant in ablation.variants:
            settings = (*ablation.set, *variant.set, *overrides)
            own = (f"training.seed={seed}", f"task.seed={seed}", f'name="{variant.name}"')
            _check_free(variant.name, settings)
            try:
                config = load_config(ablation.recipe, [*settings, *own])
                check_rules(config)
            except ConfigError as error:
                raise ConfigError(f"variant {variant.name}: {error}") from None
            if not config.evaluation.every:
                raise ConfigError(
                    f"variant {variant.name}: evaluation.every = 0, so there is nothing to compare"
                )
            folder = root / variant.name / f"seed_{seed}"
            found.append(
                PlannedRun(
                    variant=variant.name,
                    seed=seed,
                    settings=settings,
                    own=own,
                    config=config,
                    folder=folder,
                )
            )
    return found
