"""`geollava ask`: questions about one image, from the command line, a pipe or a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from geollava.answering.prompts import check_question
from geollava.commands.console import complain, quiet_transformers, show_rows
from geollava.commands.errors import first_line
from geollava.commands.options import JsonOption, SettingsOptions, local_path
from geollava.commands.records import spread

if TYPE_CHECKING:
    from geollava.answering.session import Seen
    from geollava.commands.answers import AskedScene


@spread
def ask(
    image: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="IMAGE",
            help="JPEG, PNG, WebP, TIFF; GeoTIFF, COG, JPEG 2000, VRT (extra geo)",
        ),
    ],
    question: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION",
            show_default=False,
            help="What to ask (default: each line of the standard input; on a terminal a "
            "conversation, where /help lists commands)",
        ),
    ] = None,
    *,
    settings: SettingsOptions,
    overlay: Annotated[
        Path | None, typer.Option(help="Draw what was kept over the image, into this file")
    ] = None,
    tokens_geojson: Annotated[
        Path | None, typer.Option(help="Write what was kept as polygons, into this file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about an image: one question, several, or in a conversation.

    It is read and encoded once. Answers go to the standard output, and what
    they took to the standard error; with --json both are one object on a line
    for each question. The first answer's seconds hold what is done once. A
    line of a pipe that cannot be asked is one error, and the others go on.
    """
    questions = question or []
    piped = not questions and not (sys.stdin is not None and sys.stdin.isatty())
    for text in questions:
        check_question(text)

    from geollava.answering.measures import Stopwatch
    from geollava.commands.answers import AskedScene, Files
    from geollava.commands.conversation import converse, typed_lines
    from geollava.imagery import open_scene

    files = Files(overlay, tokens_geojson)
    quiet_transformers()
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        opened = open_scene(image, **settings.of_scenes())
    with opened as scene:
        if piped:
            lines = piped_lines(sys.stdin.buffer if sys.stdin else io.BytesIO())
        with stopwatch.stage("load"):
            session = settings.session()
        seen = session.see(scene)
        limit = settings.max_new_tokens
        for text in questions:  # what cannot be asked is said before the image is encoded
            seen.prepare(text, limit)
        asked = AskedScene(session, scene, limit, as_json, files, stopwatch.seconds)
        asked.may_follow = len(questions) != 1
        if piped:
            if not answer_lines(asked, seen, lines):
                raise typer.Exit(2)
            return
        if not questions:
            asked.announce()
            converse(asked, seen, typed_lines())
            return
        for text in questions:
            answer_one(asked, seen, text)


def answer_one(asked: AskedScene, seen: Seen, text: str) -> None:
    """Answers a question; after the first, says what the model is."""
    if asked.may_follow and not asked.as_json:
        show_rows([("question", text)])
    asked.answer(text, seen.ask, seen)
    if asked.answered == 1:
        asked.announce()


def answer_lines(asked: AskedScene, seen: Seen, lines: Iterable[tuple[int, str]]) -> bool:
    """Answers numbered lines; one that cannot be asked is one error. -> Whether all could be.

    Raises:
        ValueError: an image that cannot be read, which no question changes.
    """
    all_asked = True
    for number, text in lines:
        prepared = False
        try:
            seen.prepare(text, asked.max_new_tokens)
            prepared = True
            answer_one(asked, seen, text)
        except (ValueError, NotImplementedError) as error:
            if prepared and not (asked.answered or seen.nbytes):  # the image was not encoded
                raise
            complain(f"line {number}: {first_line(error, [text])}")
            all_asked = False
    return all_asked


def piped_lines(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines that say something, with their numbers. The first is waited for here, before a model is
    loaded; each of the others comes as soon as it is there.

    What is not UTF-8 becomes lone surrogates, which `check_question` refuses.

    Raises:
        ValueError: no line says anything.
    """
    lines = (
        (number, text)
        for number, line in enumerate(stream, 1)
        if (text := line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip())
    )
    first = next(lines, None)
    if first is None:
        raise ValueError(
            "a question must stand on the command line or on a line of the standard input, got none"
        )
    return chain([first], lines)
