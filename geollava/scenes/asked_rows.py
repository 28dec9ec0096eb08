"""Questions in many words as rows: to evaluate on, and as conversations to train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from geollava.scenes.facts import facts_of
from geollava.scenes.families import Asked, ask_in_words
from geollava.scenes.questions import conversation
from geollava.scenes.scene import Scene

QUESTIONS = 16  # of a conversation, at least


def asked_rows(scene: Scene, image: str) -> list[dict[str, Any]]:
    """A row for each question; `geollava evaluate scenes-words` reads them.

    In words of all templates, those that are for testing only marked `held_out`.
    """
    rng = np.random.default_rng([scene.seed, scene.size, 6])
    rows = []
    for number, asked in enumerate(ask_in_words(facts_of(scene), rng)):
        name = f"scene-{scene.seed}-{number}"
        rows.append(
            {
                "id": name,
                "image": [image],
                "conversations": conversation([(asked.question, asked.answer)]),
                "index": name,
                **row_of(asked),
                "scale": scene.scale,
            }
        )
    return rows


def row_of(asked: Asked) -> dict[str, Any]:
    """The columns of a question itself."""
    return {
        "question": asked.question,
        "answer": asked.answer,
        "family": asked.family,
        "choices": list(asked.choices),
        "letters": asked.letters,
        "held_out": asked.held_out,
    }


def asked_training_row(
    scene: Scene, image: str, variant: int = 0, *, choices: bool = True
) -> dict[str, Any]:
    """One conversation about a scene, in random order, in none of the words for testing.

    Args:
        variant: other questions in other words.
        choices: whether some of the questions list choices and ask for a letter.
    """
    rng = np.random.default_rng([scene.seed, scene.size, 7, variant])
    facts = facts_of(scene)
    turns: dict[str, str] = {}
    while len(turns) < QUESTIONS:
        for asked in ask_in_words(facts, rng, "train", letters=0.3 * choices):
            turns.setdefault(asked.question, asked.answer)
    said = list(turns.items())
    return {
        "id": f"scene-{scene.seed}-{variant}",
        "image": [image],
        "conversations": conversation([said[index] for index in rng.permutation(len(said))]),
    }
