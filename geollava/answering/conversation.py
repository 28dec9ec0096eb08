"""Questions that follow one another about a scene, each with all before it."""

from __future__ import annotations

from typing import Any

from geollava.answering.generating import Answer
from geollava.answering.prompts import Turn
from geollava.answering.session import Seen


class Conversation:
    """A conversation about what a session has seen.

    Attributes:
        seen: what is asked about; another view of the same scene may take its place.
        turns: questions and answers so far, which the model reads again with each question.
    """

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.turns: list[Turn] = []

    def ask(self, question: str, **options: Any) -> Answer:
        """As `Seen.ask`, of which the options are; the answer becomes part of the conversation."""
        answer = self.seen.ask(question, history=self.turns, **options)
        self.turns.append((question, answer.text))
        return answer

    def reduce(self, num_keep: int) -> None:
        """Sees the scene again, with so many visual tokens per crop; what was said stays.

        Raises:
            ValueError: more than a crop has, or none; a scene of which only the tokens are left.
        """
        before, session = self.seen, self.seen.session
        if before.canvases and not before.sources:
            raise ValueError("the scene must be there to be seen again, only its tokens are")
        reduction = session.reduction
        session.reduce(reduction.name, num_keep)
        try:
            self.seen = Seen(session, before.sources)
        except BaseException:
            session.reduction = reduction
            raise
        before.close()
