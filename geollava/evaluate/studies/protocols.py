"""How replies to XLRS-Bench are scored in use: which letters a code reads, and what it averages.

Written after the codes themselves, without a model that judges replies: what each does beyond that
is said in `Protocol.left_out`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from geollava.evaluate.benchmark import Row, options_of
from geollava.evaluate.benchmarks.xlrs import PUBLISHED, SUBTASKS, extract_letters

# Of `scores.summarize`. A mean of subtasks weighted by their rows is the mean over rows.
AVERAGES = {
    "micro": "micro, weighted by rows",
    "macro": f"macro, {len(SUBTASKS)} subtasks",
    "macro_present": "macro, groups with rows",
}
Choices = Mapping[str, str]  # letter -> its text


@dataclass(frozen=True)
class Protocol:
    """One way to score replies. A row is right if exactly the letters of its answer are read.

    Attributes:
        code: what it follows.
        read: (reply, choices of the row) -> the letters that are read.
        reports: names of `AVERAGES`; the first is the figure that is quoted.
        needs_choices: `read` looks at the choices, which predictions do not hold.
        left_out: what of the code is not done here.
    """

    code: str
    read: Callable[[str, Choices], set[str]]
    reports: tuple[str, ...]
    needs_choices: bool = False
    left_out: str = ""


@dataclass(frozen=True)
class Published:
    """Figures that others published, and the protocol that they are said to be of.

    Attributes:
        protocol: a name of `PROTOCOLS`. average: a name of `AVERAGES`.
        source: who says so, and what is not said.
    """

    figures: str
    protocol: str
    average: str
    source: str


def choices_of(row: Row) -> dict[str, str]:
    """Letter -> text of a row's choices, such as "(A) 3 ships". ValueError for other forms."""
    found = {}
    for option in options_of(row):
        match = re.fullmatch(r"\(([A-Z])\)\s*(.*)", option, re.DOTALL)
        if match is None:
            raise ValueError(
                f"row {row.get('index', '?')}: a choice must be such as (A) 3 ships, got {option!r}"
            )
        found[match[1]] = match[2]
    return found


# -- which letters are read ------------------------------------------------------------------------


def read_published(reply: str, choices: Choices) -> set[str]:
    return set(extract_letters(reply))


REASONING = (("<think>", "</think>"), ("<analysis>", "</analysis>"))


def read_lmms_eval(reply: str, choices: Choices) -> set[str]:
    return set(extract_letters(without_reasoning(reply)))


def without_reasoning(reply: str) -> str:
    """A reply without what stands between tags of reasoning, whose opening the prompt may hold.

    An opening without a closing after it stays, as lmms-eval has it.
    """
    for opening, closing in REASONING:
        between = re.compile(f"{opening}.*?{closing}", re.DOTALL)
        while between.search(reply):
            reply = between.sub("", reply, count=1)
        if opening not in reply:
            reply = reply.rpartition(closing)[2]
    return reply


NO_CHOICE = "Z"
FAILED = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST_WORDS = 5  # a letter counts where it stands first among the last so many minus one
# Without the end of a word after it: "the answer is a boat" names A.
ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)


def read_heuristically(reply: str, choices: Choices) -> set[str]:
    """One letter alone: that which is named as a word, or whose text the reply holds; else Z."""
    letter = named_letter(reply, choices) if FAILED not in reply else None
    return {letter or letter_of_text(reply, choices) or NO_CHOICE}


def named_letter(reply: str, choices: Choices) -> str | None:
    if any(refusal in reply for refusal in REFUSALS):
        return NO_CHOICE
    words = reply.translate(PUNCTUATION).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - LAST_WORDS:
        return named[0]
    if not named and NO_CHOICE in words:
        return NO_CHOICE
    match = ANSWER_IS.search(reply)
    return match[1].upper() if match and match[1].upper() in choices else None


def letter_of_text(reply: str, choices: Choices) -> str | None:
    text = reply.lower()
    if len(text) > 2 * sum(map(len, choices.values())):
        return None
    held = [letter for letter, choice in choices.items() if choice.lower() in text]
    return held[0] if len(held) == 1 else None


def read_any_letter(reply: str, choices: Choices) -> set[str]:
    return set(reply.upper()) & set("ABCDEF")


# -- the protocols, and what was published by them -------------------------------------------------

PROTOCOLS = {
    "published": Protocol(
        "the evaluation of XLRS-Bench's authors, as `geollava evaluate xlrs`",
        read_published,
        ("macro", "micro"),
    ),
    "lmms-eval": Protocol(
        "the task xlrs-lite of lmms-eval 0.7.3, which removes what stands between tags of "
        "reasoning",
        read_lmms_eval,
        ("macro", "micro"),
    ),
    "vlmevalkit": Protocol(
        "the class XLRSBench of VLMEvalKit (August 2026), as it is without a judge",
        read_published,
        ("macro_present", "micro"),
        left_out="the judge, by default gpt-4o-mini where a key is set, which reads every reply in "
        "place of these letters; its prompt, which is not ours",
    ),
    "vlmevalkit-matching": Protocol(
        "how VLMEvalKit (August 2026) matches replies of multiple-choice sets in general, its "
        "can_infer, which XLRSBench does not use",
        read_heuristically,
        ("micro",),
        needs_choices=True,
        left_out="the judge that is asked where nothing matches: the row is wrong here",
    ),
    "uhr-bat": Protocol(
        "the script by which UHR-BAT (arXiv 2604.13565) answers and checks XLRS rows: every letter "
        "a to f of a reply counts",
        read_any_letter,
        ("micro",),
        left_out="removal of special tokens, of which replies here have none",
    ),
}

PUBLISHED_BY = (
    Published(
        ", ".join(f"{model} {percent}" for model, percent in PUBLISHED.items()),
        "published",
        "macro",
        "XLRS-Bench's README: Avg. of XLRS-Bench-lite is the macro average; which code read the "
        "letters, the later papers do not all say",
    ),
    Published(
        "the tables of XLRS-Bench's own paper, on the whole benchmark",
        "published",
        "micro",
        "XLRS-Bench's README",
    ),
    Published(
        "Intern-S1-mini 51.63, GLM-4.1V 49.8, MiMo-VL-7B-RL-2508 12.29",
        "vlmevalkit",
        "macro_present",
        "the model card of Intern-S1-mini names VLMEvalKit, not whether a judge read the replies; "
        "without one somebody got 14.51 for it (VLMEvalKit #1331)",
    ),
    Published(
        "UHR-BAT",
        "uhr-bat",
        "micro",
        "its paper reports a weighted average, its script divides right rows by rows",
    ),
)
