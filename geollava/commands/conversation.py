"""A conversation about a scene on a terminal: questions, and commands that begin with /."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from geollava.answering import overlay
from geollava.answering.conversation import Conversation
from geollava.answering.session import Seen
from geollava.commands.answers import AskedScene
from geollava.commands.console import complain, say, show_rows, stderr
from geollava.commands.errors import REFUSALS, first_line
from geollava.common.outputs import check_output

PROMPT = "> "
HELP = [
    ("/tokens", "how many visual tokens there are, and what is kept in memory"),
    ("/overlay FILE", "draw what was kept over the image, into this file"),
    ("/budget N", "keep so many visual tokens per crop; the conversation goes on"),
    ("/help", "this"),
    ("/quit", "end, as the end of input does; Ctrl-C stops an answer"),
]


def converse(asked: AskedScene, seen: Seen, lines: Iterable[str]) -> None:
    """Answers line by line, until they end or one says /quit.

    An answer that goes wrong is one line, and the conversation goes on. Ctrl-C during an answer
    stops that answer; while a line is waited for it is the caller's.
    """
    talk = Talk(asked, Conversation(seen))
    for line in lines:
        if line.strip() == "/quit":
            return
        try:
            talk.take(line.strip())
        except KeyboardInterrupt:
            say("interrupted")
        except REFUSALS as error:
            complain(first_line(error, [line.strip()]))


class Talk:
    """What the lines of a conversation do."""

    def __init__(self, asked: AskedScene, conversation: Conversation) -> None:
        self.asked, self.conversation = asked, conversation
        self.commands: dict[str, Callable[[str], None]] = {
            "/tokens": self.tokens,
            "/overlay": self.overlay,
            "/budget": self.budget,
            "/help": lambda rest: show_rows(HELP),
        }

    def take(self, line: str) -> None:
        """Answers a question or does a command; an empty line is neither.

        Raises:
            ValueError: no such command, or not so; see `Seen.ask`.
        """
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name not in self.commands:
                known = ", ".join(usage for usage, _ in HELP)
                raise ValueError(f"a command must be one of {known}, got {name}")
            self.commands[name](rest.strip())
        elif line:
            self.asked.answer(line, self.conversation.ask, self.conversation.seen)

    def tokens(self, rest: str) -> None:
        show_rows([*self.asked.of_tokens(self.conversation.seen), self.asked.of_memory()])

    def overlay(self, rest: str) -> None:
        if not rest:
            raise ValueError("/overlay must have a file, such as /overlay kept.png")
        path = Path(rest).expanduser()  # no shell has done it
        check_output(path, "the overlay", overlay.SUFFIXES)
        overlay.save(self.conversation.seen.overlay(), path)
        show_rows([("overlay", str(path))])

    def budget(self, rest: str) -> None:
        if not rest.isdecimal():
            raise ValueError(f"/budget must have a number of tokens per crop, got {rest or 'none'}")
        self.conversation.reduce(int(rest))
        show_rows(self.asked.of_tokens(self.conversation.seen))


def typed_lines() -> Iterator[str]:
    """Lines that somebody types, with a prompt before each, which never lands in a file."""
    with suppress(ImportError):
        import readline  # noqa: F401  # `input` takes its editing and history from it
    with suppress(EOFError):
        while True:
            if sys.stdout.isatty():
                yield input(PROMPT)
            else:
                stderr.print(PROMPT, end="")
                yield input()
    say("")  # the shell's prompt gets a line of its own
