"""The walk: its rules and probabilities by hand, its verdicts against a parser of its own."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.errors import DataError
from forkpoint.lab import EOS, WalkWorld, build_world, draw_problem, truth_of, verify
from forkpoint.lab.walk import DIRECTIONS, distances
from forkpoint.lab.world import IllegalWordError, demonstrate
from forkpoint.randomness import stream

WORLD = WalkWorld()


def problem(
    start: tuple[int, int], goal: tuple[int, int], *walls: tuple[int, int]
) -> dict[str, Any]:
    return {"start": start, "goal": goal, "walls": walls}


def after(text: str, columns: dict[str, Any], world: WalkWorld = WORLD) -> dict[str, float]:
    """What may be said after ``text``."""
    position = world.begin(columns)
    for word in text.split():
        position.advance(word)
    return position.distribution()


# ---- rules --------------------------------------------------------------------------------------


def test_choices_by_hand() -> None:
    """0.7 evenly on what is legal, 0.3 evenly on what leads nearer."""
    inside = problem((3, 3), (5, 6))
    assert after("", inside) == {"go": 1}
    assert after("go", inside) == pytest.approx(
        {"north": 0.175 + 0.15, "south": 0.175, "east": 0.175 + 0.15, "west": 0.175}
    )
    corner = problem((0, 0), (0, 4))
    assert after("go", corner) == pytest.approx({"north": 0.35 + 0.3, "east": 0.35})
    there = problem((3, 3), (3, 4))  # at the goal nothing leads nearer
    assert after("go north now x3 y4 go", there) == dict.fromkeys(DIRECTIONS, 0.25)


def test_a_wall_is_gone_around() -> None:
    # from (0, 0) to (2, 0) with (1, 0) walled: north first, four moves instead of two
    walled = problem((0, 0), (2, 0), (1, 0))
    assert distances(8, (2, 0), [(1, 0)])[0, 0] == 4
    assert after("go", walled) == {"north": 1}
    with pytest.raises(IllegalWordError, match="'east' where one of"):
        after("go east", walled)


@pytest.mark.parametrize(("verbosity", "share"), [(0, 8 / 21), (1, 8 / 41), (2, 8 / 81)])
def test_the_share_of_forks(verbosity: int, share: float) -> None:
    world = WalkWorld(verbosity=verbosity)
    for serial in range(20):
        columns = draw_problem(world, seed=0, serial=serial, split="train").columns
        words = demonstrate(world, columns, stream(0, "test", serial))
        truth = truth_of(world, columns, words)
        assert truth.legal_words == len(words)
        assert sum(truth.forks) / len(words) == pytest.approx(share)


BY_VERBOSITY = {
    0: "north west now x0 y3 " + "south north now x0 y3 " * 3,
    1: "go north now x1 y3 go west now x0 y3 " + "go south now x0 y2 go north now x0 y3 " * 3,
    2: "go north from x1 y2 so now x1 y3 | go west from x1 y3 so now x0 y3 | "
    + "go south from x0 y3 so now x0 y2 | go north from x0 y2 so now x0 y3 | " * 3,
}


@pytest.mark.parametrize("verbosity", BY_VERBOSITY)
def test_a_walk_in_words(verbosity: int) -> None:
    world, text = WalkWorld(verbosity=verbosity), BY_VERBOSITY[verbosity].strip()
    meets, misses = problem((1, 2), (0, 2)), problem((1, 2), (5, 5))
    assert after(text, meets, world) == {EOS: 1}
    assert after(f"{text} {EOS}", meets, world) == {}
    assert verify(world, meets, text) == 1  # it met the goal on its way
    assert verify(world, misses, text) == 0
    assert verify(world, meets, f"{text} go") == 0
    assert verify(world, meets, " ".join(text.split()[:-1])) == 0


def reread(columns: dict[str, Any], text: str) -> float:
    """The verdict on a text of verbosity 1, by a parser that shares nothing with ``Walk``."""
    if not re.fullmatch(r"(go \w+ now x\d y\d ?){8}", text):
        return 0.0
    x, y = columns["start"]
    met = False
    for way, a, b in re.findall(r"go (\w+) now x(\d) y(\d)", text):
        step = {"north": 1j, "south": -1j, "east": 1, "west": -1}.get(way)
        if step is None:
            return 0.0
        place = complex(x, y) + step
        x, y = int(place.real), int(place.imag)
        if (x, y) != (int(a), int(b)) or not (0 <= x < 8 and 0 <= y < 8):
            return 0.0
        met = met or (x, y) == tuple(columns["goal"])
    return float(met)


@given(serial=st.integers(0, 300), place=st.integers(0, 39), data=st.data())
@settings(deadline=None, max_examples=60)
def test_verdicts_are_those_of_another_parser(serial: int, place: int, data: st.DataObject) -> None:
    columns = draw_problem(WORLD, seed=3, serial=serial, split="train").columns
    words = demonstrate(WORLD, columns, stream(3, "test", serial))[:-1]
    assert verify(WORLD, columns, " ".join(words)) == reread(columns, " ".join(words))
    for word in data.draw(st.lists(st.sampled_from(WORLD.vocabulary()), min_size=4, max_size=9)):
        changed = " ".join([*words[:place], word, *words[place + 1 :]])
        assert verify(WORLD, columns, changed) == reread(columns, changed)


# ---- problems -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [{}, {"walls": 12, "moves": 12, "farthest": 9}, {"size": 12}])
def test_problems_are_read_back_and_can_be_solved(rules: dict[str, int]) -> None:
    world = WalkWorld(**rules)
    seen = set()
    for serial in range(200):
        for split in ("train", "held_out"):
            one = draw_problem(world, seed=1, serial=serial, split=split)
            assert world.read(one.prompt) == one.columns
            assert set(one.prompt.split()) <= set(world.vocabulary())
            walls = one.columns["walls"]
            far = distances(world.size, one.columns["goal"], walls)[one.columns["start"]]
            assert world.nearest <= far <= world.farthest <= world.moves
            assert not {one.columns["start"], one.columns["goal"]} & set(walls)
            seen.add((split, world.kind(one.columns)))
    assert not {k for s, k in seen if s == "train"} & {k for s, k in seen if s == "held_out"}
    assert WORLD.read("n3 n5 n2 goal n16 :") is None


def test_demonstrations_win_more_often_with_more_skill() -> None:
    wins = []
    for skill in (0.0, 0.3, 1.0):
        world = WalkWorld(skill=skill)
        drawn = [draw_problem(world, seed=0, serial=n, split="train") for n in range(150)]
        said = [demonstrate(world, p.columns, stream(0, "test", n)) for n, p in enumerate(drawn)]
        verdicts = [
            verify(world, p.columns, " ".join(words[:-1]))
            for p, words in zip(drawn, said, strict=True)
        ]
        wins.append(float(np.mean(verdicts)))
    assert wins[0] < wins[1] < wins[2] == 1


def test_rules_that_make_no_world_are_one_line() -> None:
    with pytest.raises(DataError, match="the world 'walk' has no 'moevs', but size, moves"):
        build_world("walk", {"moevs": 9})
    with pytest.raises(DataError, match="needs 1 <= nearest <= farthest <= moves"):
        build_world("walk", {"farthest": 9})


@pytest.mark.parametrize(
    ("world", "rules", "fault"),
    [
        ("walk", {"size": 2}, "on a grid of size 2 no goal is 3 moves away"),
        ("walk", {"size": 4.5}, "size = 4.5 is no whole number"),
        ("walk", {"skill": 2.0}, "walls >= 0, skill in"),
        ("walk", {"verbosity": 5}, "verbosity 0, 1 or 2"),
        ("game", {"numbers": 0}, "numbers >= 2"),
        ("game", {"numbers": 1}, "numbers >= 2"),
        ("game", {"numbers": 2.5}, "numbers = 2.5 is no whole number"),
        ("game", {"max_result": 0}, "1 <= max_number <= max_result"),
        ("game", {"max_number": 0}, "1 <= max_number <= max_result"),
        ("game", {"max_tries": 0}, "max_tries >= 1"),
        ("game", {"again_probability": 3.0}, "again_probability in"),
        ("game", {"verbosity": 3}, "verbosity 0, 1 or 2"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(
    world: str, rules: dict[str, float], fault: str
) -> None:
    with pytest.raises(DataError, match=f"the world '{world}'.*{fault}"):
        build_world(world, rules)


def test_a_goal_that_walls_leave_no_room_for_is_not_looked_for_endlessly() -> None:
    world = build_world("walk", {"size": 2, "walls": 60, "nearest": 2, "farthest": 2})
    with pytest.raises(DataError, match="in none is the goal 2 to 2 moves away: fewer than 60"):
        draw_problem(world, seed=0, serial=0, split="train")


def test_a_prompt_of_a_larger_world_is_not_read() -> None:
    assert WalkWorld().read("at x9 y9 goal x1 y1 :") is None
    assert WalkWorld(size=10).read("at x9 y9 goal x1 y1 :") is not None
