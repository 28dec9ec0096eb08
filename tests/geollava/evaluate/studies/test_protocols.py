"""Letters that each protocol reads, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geollava.evaluate.studies.protocols import PROTOCOLS, PUBLISHED_BY, choices_of
from tests.geollava.evaluate.lmms import needs_lmms_eval

CHOICES = {"A": "a car", "B": "a truck", "C": "a boat", "D": "nothing"}
ORDER = ("published", "lmms-eval", "vlmevalkit", "vlmevalkit-matching", "uhr-bat")


@pytest.mark.parametrize(
    ("reply", "letters"),
    [
        ("B", ("B", "B", "B", "B", "B")),
        ("(B) a truck", ("B", "B", "B", "B", "ABC")),
        # Tags of reasoning: lmms-eval removes them; VLMEvalKit's words end at spaces alone.
        ("<think>A or C?</think>B", ("ABC", "B", "ABC", "Z", "ABC")),
        ("A or C?</think> B", ("ABC", "B", "ABC", "Z", "ABC")),
        ("<analysis>D</analysis>(b)", ("B", "", "B", "Z", "ABD")),
        ("<think>B", ("B", "B", "B", "Z", "B")),
        ("<think>A</think>C<think>A</think>", ("AC", "C", "AC", "Z", "AC")),
        ("A</think>B<think>", ("AB", "AB", "AB", "Z", "AB")),
        ("<think>A<think>B</think>C", ("ABC", "C", "ABC", "Z", "ABC")),
        # Small letters count beside a capital, or wherever they stand.
        ("Both A and B", ("ABD", "ABD", "ABD", "Z", "ABD")),
        ("I see a boat", ("", "", "", "C", "ABE")),
        ("E", ("E", "E", "E", "Z", "E")),
        ("F", ("", "", "", "Z", "F")),
        # One letter as a word: near the end, or after "answer is", if only as a beginning.
        ("the answer is a boat", ("", "", "", "A", "ABE")),
        ("B is right, is it?", ("B", "B", "B", "Z", "B")),  # the first of five words
        ("B is right, no?", ("B", "B", "B", "B", "B")),  # of four
        ("B is what one sees so far", ("ABE", "ABE", "ABE", "Z", "ABEF")),
        ("it is B as far as I see", ("ABE", "ABE", "ABE", "Z", "ABEF")),
        ("see here: it is **B**, as I see", ("ABE", "ABE", "ABE", "B", "ABE")),
        ("A is right: the answer is **A** as one can see well", ("ACE", "ACE", "ACE", "A", "ACE")),
        ("Cannot determine the answer: B", ("ABCDE", "ABCDE", "ABCDE", "Z", "ABCDE")),
        ("Failed to obtain answer via API: truck", ("ABCDE", "ABCDE", "ABCDE", "Z", "ABCDEF")),
        ("a car and a truck", ("", "", "", "Z", "ACD")),
        ("it is nothing that one can see from so far above, whatever", ("", "", "", "Z", "ABCEF")),
        ("", ("", "", "", "Z", "")),
    ],
)
def test_letters(reply, letters):
    assert tuple(PROTOCOLS) == ORDER
    found = {name: PROTOCOLS[name].read(reply, CHOICES) for name in ORDER}
    assert found == {name: set(text) for name, text in zip(ORDER, letters, strict=True)}


PIECES = [
    "A", "B", "E", "F", "a", "d", " ", "\n", ".", ",", "(", ")", "(c)", "and", "答案是",
    "The answer", "The answer is", "The best answer is", "Best answer:Best option:",
    "The best option isThe correct option is", "<think>", "</think>", "<analysis>", "</analysis>",
]  # fmt: skip


@needs_lmms_eval
@settings(deadline=None)  # the first example imports lmms-eval
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=9).map("".join))
def test_letters_of_lmms_eval(reply):
    from lmms_eval.api.reasoning import strip_reasoning_tags
    from lmms_eval.tasks.xlrs.mcq_utils import extract_characters_regex

    bare = strip_reasoning_tags(reply, [["<think>", "</think>"], ["<analysis>", "</analysis>"]])
    for name, text in (("published", reply), ("lmms-eval", bare)):
        assert PROTOCOLS[name].read(reply, {}) == set(extract_characters_regex(text)), name


def test_the_text_of_a_choice_counts_after_a_failure():
    read = PROTOCOLS["vlmevalkit-matching"].read
    choices = {"A": "a boat of more than forty letters, I believe", "B": "a truck"}
    assert read("Failed to obtain answer via API: B, a truck", choices) == {"B"}
    assert read("Cannot determine the answer: B, a truck", choices) == {"Z"}
    assert read("A Truck", choices) == {"A"}  # a word before a text
    assert read("it: A TRUCK.", {"B": "a truck"}) == {"B"}
    assert read("I see: A TRUCK.", {"B": "a truck"}) == {"Z"}  # more than twice as long


def test_choices():
    row = {"index": 3, "multi-choice options": ["(A) 3 ships", "(B)", "(C) (A) or\n(B)"]}
    assert choices_of(row) == {"A": "3 ships", "B": "", "C": "(A) or\n(B)"}
    with pytest.raises(
        ValueError, match=r"row 3: a choice must be such as \(A\) 3 ships, got 'B\."
    ):
        choices_of({"index": 3, "multi-choice options": ["B. 3 ships"]})


def test_published_figures_name_what_there_is():
    for published in PUBLISHED_BY:
        assert published.average in PROTOCOLS[published.protocol].reports
