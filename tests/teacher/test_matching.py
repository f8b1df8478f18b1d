"""Generated texts against candidate titles, case by case."""

from __future__ import annotations

import pytest

from src.teacher.matching import match_title

TITLES = [
    "Alien",
    "Aliens",
    "Alien 3",
    "The Thing (1982)",
    "Thing",
    "",
    "  ",
    "Red Sun",
    "Sun Rise Again",
    "M",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Alien", 0),
        ("Aliens", 1),  # exact before the substring "Alien"
        (" aLIENS \nand more", 1),  # case, spaces, first line only
        ("Alien 3", 2),
        ("I would pick Alien 3.", 2),  # the longest of "Alien", "Alien 3" (and of "M": none)
        ("the thing (1982)", 3),
        ("The  Thing   (1982)", 3),
        ("The Thing (1982", 4),  # cut short: only "Thing" is whole
        ("Alien or Thing", None),  # two answers
        ("Aliens and Alien", None),  # "Alien" stands by itself, too
        ("Aliens, Aliens", 1),  # twice the same is one answer
        ("red sun rise again", 8),  # overlapping: the longer one
        ("", None),
        ("\nAlien", None),  # the first line is empty
        ("   ", None),  # no empty title
        ("same else", 9),  # a one-letter title is still a title, also inside a word
        ("nothing", 4),
        ("something", None),  # "Thing" and, outside of it, "M"
        ("a word", None),
    ],
)
def test_cases(text, expected):
    assert match_title(text, TITLES) == expected


def test_equal_lengths_that_overlap_are_two_answers():
    assert match_title("abc bcd", ["xabc", "abc b", "c bcd"]) is None
    assert match_title("abc bcd", ["abc", "bcd"]) is None


def test_a_shorter_title_beside_a_longer_one_counts():
    # "B" lies outside of the span that "A B C" claims
    assert match_title("a b c then b", ["A B C", "B"]) is None
    assert match_title("a b c then", ["A B C", "B"]) == 0
