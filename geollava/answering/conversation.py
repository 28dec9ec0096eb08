"""Questions that follow one another about a scene, each with all before it."""

from __future__ import annotations

from geollava.answering.prompts import Turn
from geollava.answering.session import Answer, Seen


class Conversation:
    """A conversation about what a session has seen.

    Attributes:
        seen: what is asked about; another view of the same scene may take its place.
        turns: questions and answers so far, which the model reads again with each question.
    """

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.turns: list[Turn] = []

    def ask(self, question: str, *, max_new_tokens: int = 128) -> Answer:
        """As `Seen.ask`; the answer becomes part of the conversation."""
        answer = self.seen.ask(question, max_new_tokens=max_new_tokens, history=self.turns)
        self.turns.append((question, answer.text))
        return answer
