"""The laboratory world: its rules and probabilities by hand, its truth against enumeration."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.lab import EOS, GameWorld, draw_problem, verify
from forkpoint.lab.game import OPERATORS, Game, Move, legal_moves
from forkpoint.lab.problems import HELD_OUT_SHARE, split_of
from forkpoint.lab.world import IllegalWordError, demonstrate
from forkpoint.randomness import stream

SMALL = GameWorld(numbers=2, max_result=9, max_tries=2, again_probability=0.25)


def next_words(
    world: GameWorld, numbers: Sequence[int], goal: int, prefix: Sequence[str]
) -> dict[str, float]:
    """The demonstration policy's next-word distribution after ``prefix``."""
    walk = Game(world, numbers, goal)
    for word in prefix:
        walk.advance(word)
    return walk.distribution()


def said(text: str) -> list[str]:
    return text.split()


def after(text: str, numbers: Sequence[int] = (1, 2), goal: int = 3) -> dict[str, float]:
    return next_words(SMALL, numbers, goal, said(text))


def demonstrations(
    world: GameWorld, count: int, seed: int = 0
) -> list[tuple[tuple[int, ...], int, list[str]]]:
    """(numbers, goal, words) of random plays of training problems."""
    made = []
    for serial in range(count):
        columns = draw_problem(world, seed=seed, serial=serial, split="train").columns
        numbers, goal = columns["numbers"], columns["goal"]
        words = demonstrate(world, columns, stream(seed, "test demonstration", serial))
        made.append((numbers, goal, words))
    return made


# ---- rules --------------------------------------------------------------------------------------


def test_legal_moves_by_hand() -> None:
    # 1 - 2 < 0 is not legal
    assert legal_moves(SMALL, [1, 2]) == [
        Move(1, 2, "+", 3),
        Move(1, 2, "*", 2),
        Move(2, 1, "+", 3),
        Move(2, 1, "-", 1),
        Move(2, 1, "*", 2),
    ]
    # 9 + 9 and 9 * 9 are above 9; the two nines give the same move twice
    assert legal_moves(SMALL, [9, 9]) == [Move(9, 9, "-", 0)] * 2


def test_next_words_by_hand() -> None:
    # of the five moves above two begin with 1, three with 2
    assert after("") == {"pick": 1}
    assert after("pick") == {"n1": pytest.approx(2 / 5), "n2": pytest.approx(3 / 5)}
    assert after("pick n2") == {"and": 1}
    assert after("pick n2 and") == {"n1": 1}
    assert after("pick n2 and n1 : n2") == pytest.approx({"+": 1 / 3, "-": 1 / 3, "*": 1 / 3})
    assert after("pick n1 and n2 : n1") == {"+": 1 / 2, "*": 1 / 2}


def test_equal_numbers_are_one_word_with_their_joint_probability() -> None:
    # 1, 1, 2: (1, 1) has 3 moves twice; (1, 2) has + and * twice; (2, 1) has 3 moves twice:
    # 6 + 4 + 6 = 16, of which 10 begin with 1, and 6 of those go on with 1
    assert after("pick", (1, 1, 2)) == {"n1": 10 / 16, "n2": 6 / 16}
    assert after("pick n1 and", (1, 1, 2)) == {"n1": 6 / 10, "n2": 4 / 10}
    # 2, 2 is no choice at all
    assert after("pick", (2, 2)) == {"n2": 1}


def test_a_win_ends_the_text() -> None:
    won = "pick n2 and n1 : n2 + n1 = n3 ; check n3 = n3 yes"
    assert after(won) == {EOS: 1}
    assert after(f"{won} {EOS}") == {}


def test_a_failure_may_be_followed_by_another_try_until_the_last() -> None:
    lost = "pick n2 and n1 : n2 - n1 = n1 ; check n1 = n3 no"
    assert after(lost) == {"again": 0.25, "stop": 0.75}
    assert after(f"{lost} stop") == {EOS: 1}
    assert after(f"{lost} again") == {"pick": 1}
    assert after(f"{lost} again {lost}") == {"stop": 1}
    assert after(f"{lost} again {lost} stop {EOS}") == {}


@pytest.mark.parametrize(("again", "word"), [(0.0, "stop"), (1.0, "again")])
def test_a_certain_answer_is_not_a_choice(again: float, word: str) -> None:
    world = GameWorld(numbers=2, again_probability=again)
    lost = said("pick n2 and n1 : n2 - n1 = n1 ; check n1 = n3 no")
    assert next_words(world, [1, 2], 3, lost) == {word: 1}


BY_VERBOSITY = {
    0: "n3 n5 + n8 ; n8 n2 * n16 ; check n16 = n16 yes",
    1: "pick n3 and n5 : n3 + n5 = n8 ; pick n8 and n2 : n8 * n2 = n16 ; check n16 = n16 yes",
    2: "pick n3 and n5 : n3 + n5 = n8 ; left n2 n8 | "
    "pick n8 and n2 : n8 * n2 = n16 ; check n16 = n16 yes",
}


@pytest.mark.parametrize("verbosity", BY_VERBOSITY)
def test_a_try_in_words(verbosity: int) -> None:
    world = GameWorld(verbosity=verbosity)
    text = BY_VERBOSITY[verbosity]
    walk = Game(world, (3, 5, 2), 16)
    for word in text.split():
        assert word in walk.distribution()
        walk.advance(word)
    assert walk.won
    assert not walk.ended
    walk.advance(EOS)
    assert walk.ended
    columns = {"numbers": (3, 5, 2), "goal": 16}
    assert verify(world, columns, text) == 1
    assert verify(GameWorld(verbosity=(verbosity + 1) % 3), columns, text) == 0


def test_what_is_left_keeps_its_order_and_the_result_comes_last() -> None:
    # 5, 4, 1, 6 without 5 and 1, and then 5 - 1: 4, 6, 4; another try starts from all of them
    world = GameWorld(numbers=4)
    first = "pick n5 and n1 : n5 - n1 = n4 ;"
    rest = "left n4 n6 n4 | pick n4 and n4 : n4 - n4 = n0 ; left n6 n0 | "
    rest += "pick n6 and n0 : n6 * n0 = n0 ; check n0 = n9 no again"
    for before in ("", f"{first} {rest}"):
        words: list[str] = []
        for _ in range(5):
            spoken = [*said(f"{before} {first}"), *words]
            (word,) = next_words(world, (5, 4, 1, 6), 9, spoken)
            words.append(word)
        assert words == ["left", "n4", "n6", "n4", "|"]


@pytest.mark.parametrize(
    ("prefix", "word"),
    [
        ("", "n1"),  # forced: pick
        ("pick", "n3"),  # not among the numbers
        ("pick n1 and", "n1"),  # there is only one 1
        ("pick n1 and n2 : n1", "-"),  # below 0
        ("pick n1 and n2 : n1 + n2 =", "n2"),  # false
        ("pick n1 and n2 : n1 + n2 = n3 ; check n3 = n3", "no"),
        (f"pick n1 and n2 : n1 + n2 = n3 ; check n3 = n3 yes {EOS}", "pick"),  # it has ended
    ],
)
def test_an_illegal_word_is_refused_by_name(prefix: str, word: str) -> None:
    assert word not in after(prefix)
    with pytest.raises(IllegalWordError, match=re.escape(repr(word))):
        after(f"{prefix} {word}")


def test_the_vocabulary_has_every_word_that_is_said() -> None:
    world = GameWorld()
    words = world.vocabulary()
    assert len(words) == len(set(words))
    assert set(OPERATORS) <= set(words)
    for verbosity in BY_VERBOSITY:
        for _, _, said in demonstrations(GameWorld(verbosity=verbosity), 30):
            assert set(said) - {EOS} <= set(words)


# ---- verifier -----------------------------------------------------------------------------------

MOVE = r"pick n(\d+) and n(\d+) : n(\d+) ([-+*]) n(\d+) = n(\d+)(?: ; left ([n\d ]+))?"


def reread(world: GameWorld, numbers: Sequence[int], goal: int, text: str) -> bool:
    """Whether a text of verbosity 2 is a win: a parser that shares nothing with ``Game``."""
    tries = text.split(" again ")
    results = [read_try(world, list(numbers), goal, t) for t in tries]
    lost = all(result is not None and result != goal for result in results[:-1])
    return len(tries) <= world.max_tries and lost and results[-1] == goal


def read_try(world: GameWorld, left: list[int], goal: int, text: str) -> int | None:
    """The last number of a well-formed try, None for anything else."""
    steps, marker, verdict = text.partition(" ; check ")
    moves = [re.fullmatch(MOVE, step) for step in steps.split(" | ")]
    if not marker or len(moves) != len(left) - 1:
        return None
    for index, move in enumerate(moves):
        if move is None or (move[1], move[2]) != (move[3], move[5]):
            return None
        a, b, result = int(move[1]), int(move[2]), int(move[6])
        if Counter([a, b]) - Counter(left) or not 0 <= result <= world.max_result:
            return None
        if result != {"+": a + b, "-": a - b, "*": a * b}[move[4]]:
            return None
        left.remove(a)
        left.remove(b)
        left.append(result)
        spelled = " ".join(f"n{n}" for n in left) if index < len(moves) - 1 else None
        if move[7] != spelled:
            return None
    word = "yes" if left[0] == goal else "no"
    return left[0] if verdict == f"n{left[0]} = n{goal} {word}" else None


def test_winning_demonstrations_are_accepted_and_others_are_not() -> None:
    world = GameWorld()
    wins = 0
    for numbers, goal, words in demonstrations(world, 200):
        text = " ".join(words[:-1])
        assert words[-1] == EOS
        expected = words[-2] == "yes"
        assert verify(world, {"numbers": numbers, "goal": goal}, text) == expected
        assert reread(world, numbers, goal, text) == expected
        wins += expected
    assert 0 < wins < 200


@settings(deadline=None, max_examples=60)
@given(data=st.data(), serial=st.integers(0, 10**6), position=st.integers(0, 10**6))
def test_a_changed_word_is_refused_unless_the_game_is_still_won(
    data: st.DataObject, serial: int, position: int
) -> None:
    numbers_count = data.draw(st.integers(2, 4))
    world = GameWorld(numbers=numbers_count, max_tries=8, again_probability=0.9)
    columns = draw_problem(world, seed=3, serial=serial, split="train").columns
    numbers, goal = columns["numbers"], columns["goal"]
    words = demonstrate(world, columns, stream(3, "test demonstration", serial))[:-1]
    position %= len(words)
    others = data.draw(st.lists(st.sampled_from(world.vocabulary()), min_size=3, max_size=8))
    for word in [*others, *OPERATORS, "again", "yes", ""]:
        changed = " ".join([*words[:position], word, *words[position + 1 :]])
        assert verify(world, columns, changed) == reread(world, numbers, goal, changed)
    assert verify(world, columns, " ".join(words[:position])) == 0


def test_a_changed_operator_may_still_win() -> None:
    columns = {"numbers": (2, 2, 3), "goal": 7}
    for operator in "+*":  # 2 + 2 = 2 * 2
        text = f"pick n2 and n2 : n2 {operator} n2 = n4 ; left n3 n4 | "
        text += "pick n3 and n4 : n3 + n4 = n7 ; check n7 = n7 yes"
        assert verify(GameWorld(), columns, text) == 1
    assert verify(GameWorld(), columns, text.replace("*", "-")) == 0


@pytest.mark.parametrize("rest", [EOS, "again", "yes", "pick", "stop"])
def test_nothing_may_follow_a_win(rest: str) -> None:
    columns = {"numbers": (3, 5, 2), "goal": 16}
    assert verify(GameWorld(), columns, BY_VERBOSITY[2]) == 1
    assert verify(GameWorld(), columns, f"{BY_VERBOSITY[2]} {rest}") == 0


@pytest.mark.parametrize("text", ["", " ", "n16", "banana", "check n16 = n16 yes", EOS])
def test_anything_else_is_zero_and_never_an_error(text: str) -> None:
    assert verify(GameWorld(), {"numbers": (3, 5, 2), "goal": 16}, text) == 0


# ---- problems -----------------------------------------------------------------------------------


def reachable(numbers: tuple[int, ...], most: int) -> set[int]:
    """Every result of playing the numbers down to one, results within 0..most."""
    if len(numbers) == 1:
        return set(numbers)
    found: set[int] = set()
    for a, b, *rest in itertools.permutations(numbers):
        for result in (a + b, a - b, a * b):
            if 0 <= result <= most:
                found |= reachable((*rest, result), most)
    return found


def test_problems_can_be_solved_and_say_what_they_are() -> None:
    world = GameWorld()
    for serial in range(40):
        problem = draw_problem(world, seed=1, serial=serial, split="train")
        numbers, goal = problem.columns["numbers"], problem.columns["goal"]
        assert len(numbers) == world.numbers
        assert all(1 <= n <= world.max_number for n in numbers)
        assert goal >= 1
        assert goal in reachable(numbers, world.max_result)
        spoken = " ".join(f"n{n}" for n in numbers)
        assert problem.prompt == f"{spoken} goal n{goal} :"
        assert problem.id == f"lab/train/{'-'.join(map(str, numbers))}={goal}"


def test_training_and_held_out_problems_are_apart_in_any_order_of_their_numbers() -> None:
    world = GameWorld()
    seen = {
        split: {
            (tuple(sorted(p.columns["numbers"])), p.columns["goal"])
            for p in (draw_problem(world, seed=2, serial=n, split=split) for n in range(700))
        }
        for split in ("train", "held_out")
    }
    assert not seen["train"] & seen["held_out"]
    assert min(goal for keys in seen.values() for _, goal in keys) == 1  # 0 is no goal
    assert min(map(len, seen.values())) > 150
    for split, keys in seen.items():
        for numbers, goal in keys:
            assert {
                split_of(GameWorld(), {"numbers": order, "goal": goal})
                for order in itertools.permutations(numbers)
            } == {split}


def test_a_quarter_of_distinct_problems_is_held_out() -> None:
    keys = [(n, goal) for n in itertools.combinations(range(1, 10), 3) for goal in range(1, 40)]
    held = sum(
        split_of(GameWorld(), {"numbers": numbers, "goal": goal}) == "held_out"
        for numbers, goal in keys
    )
    share = 1 / HELD_OUT_SHARE
    assert abs(held / len(keys) - share) < 4 * math.sqrt(share * (1 - share) / len(keys))


def test_problems_are_named_by_seed_serial_and_split() -> None:
    world = GameWorld()
    streams = [(s, split) for s in (0, 1) for split in ("train", "held_out")]
    made = {
        key: [draw_problem(world, seed=key[0], serial=n, split=key[1]) for n in range(8)]
        for key in streams
    }
    assert len({tuple(p.id.split("/")[-1] for p in row) for row in made.values()}) == len(streams)
    assert len({p.id for p in made[0, "train"]}) > 1
    for (seed, split), row in made.items():  # in any order, each on its own
        for n in (7, 0, 3):
            assert draw_problem(world, seed=seed, serial=n, split=split) == row[n]
