"""`geollava ask`: questions about one image, from the command line, a pipe or a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from geollava.answering.prompts import check_question
from geollava.commands.console import quiet_transformers, show_rows
from geollava.commands.options import JsonOption, SettingsOptions, local_path
from geollava.commands.records import spread


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
    for each question. The first answer's seconds hold what is done once.
    """
    questions = question or []
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
        with stopwatch.stage("load"):
            session = settings.session()
        seen = session.see(scene)
        limit = settings.max_new_tokens
        for text in questions:  # what cannot be asked is said before the image is encoded
            seen.prepare(text, limit)
        asked = AskedScene(session, scene, limit, as_json, files, stopwatch.seconds)
        asked.may_follow = len(questions) != 1
        if not questions and sys.stdin is not None and sys.stdin.isatty():
            asked.announce()
            converse(asked, seen, typed_lines())
            return
        for text in questions or piped_lines(sys.stdin.buffer if sys.stdin else io.BytesIO()):
            if asked.may_follow and not as_json:
                show_rows([("question", text)])
            asked.answer(text, seen.ask, seen)
            if asked.answered == 1:
                asked.announce()


def piped_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines that say something, each as soon as it comes.

    Raises:
        ValueError: none of them does; one is not UTF-8.
    """
    empty = True
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the standard input must be text in UTF-8, line {number} is not"
            ) from error
        if text:
            empty = False
            yield text
    if empty:
        raise ValueError(
            "a question must stand on the command line or on a line of the standard input, got none"
        )
