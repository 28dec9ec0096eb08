"""A conversation on a terminal: what is said in it counts, and no mistake ends it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from PIL import Image

from geollava.answering.conversation import Conversation
from geollava.answering.session import Seen, Session
from geollava.model.default_model import DEMONSTRATION


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def talk(run, scene, monkeypatch):
    """Types lines into `geollava ask IMAGE` -> its exit code, standard output and error."""

    def talk(*lines, options=("--max-new-tokens", 4)):
        monkeypatch.setattr("sys.stdin", Terminal("".join(f"{line}\n" for line in lines)))
        return run("ask", scene, *options)

    return talk


@pytest.fixture
def prompts(monkeypatch):
    """What the model reads, as text, and how many visual tokens are in it."""
    found, reply = [], Seen.reply

    def noted(seen, prompts, *arguments, **options):
        model, tokenizer = seen.session.model, seen.session.processor.tokenizer
        for ids in prompts:
            marks = ids == model.config.image_token_id
            found.append((tokenizer.decode(ids[~marks]), int(marks.sum())))
        return reply(seen, prompts, *arguments, **options)

    monkeypatch.setattr(Seen, "reply", noted)
    return found


def errors_of(err):
    lines = (line.removeprefix("> ") for line in err.splitlines())
    return [line for line in lines if line.startswith("error: ")]


def test_what_was_said_counts(talk, prompts):
    code, out, err = talk("How many ships?", "", "  And cars?  ", "/quit", "Never asked")
    assert (code, len(prompts), errors_of(err)) == (0, 2, [])
    first, second = (text for text, _ in prompts)
    answer = out.splitlines()[0].removeprefix("> ").lstrip()
    assert first.count("How many ships?") == second.count("How many ships?") == 1
    assert "And cars?" not in first
    assert second.index("How many ships?") < second.index(answer) < second.index("And cars?")
    assert DEMONSTRATION in err
    assert err.count("MiB, for more questions") == 1


def test_the_end_of_input_ends_it(talk):
    assert talk()[0] == 0


def test_tokens(talk):
    code, _, err = talk("/tokens", "What?", "/tokens")
    assert code == 0
    assert err.count("1,200 x 800 px, 12 crops") == 3  # before, with the answer, after
    assert err.count("6,912 -> 288 (24 times fewer)") == 3
    assert "0.0 of 4,096 MiB" in err


def test_budget(talk, prompts):
    code, _, err = talk("How many ships?", "/budget 7", "And cars?", "/tokens")
    assert (code, errors_of(err)) == (0, [])
    assert [count for _, count in prompts] == [12 * 24, 12 * 7]
    assert "How many ships?" in prompts[1][0]
    assert err.count("6,912 -> 84 (82 times fewer)") == 2


@pytest.mark.parametrize("budget", ["0", "577", "many", ""])
def test_a_budget_that_cannot_be(talk, prompts, budget):
    code, _, err = talk(f"/budget {budget}", "What?")
    assert (code, len(errors_of(err))) == (0, 1)
    assert [count for _, count in prompts] == [12 * 24]


def test_overlay(talk, tmp_path):
    target = tmp_path / "what was kept.png"
    code, _, err = talk(f"/overlay {target}", "/budget 3", "What?")
    assert (code, errors_of(err)) == (0, [])
    assert Image.open(target).width > 0
    assert str(target) in err


def test_mistakes_are_one_line_each_and_it_goes_on(talk, prompts):
    code, _, err = talk(
        "/fly",
        "/overlay",
        "/overlay /nowhere/kept.png",
        "/overlay kept.txt",
        "Where is <image>?",
        "What?",
    )
    assert (code, len(prompts)) == (0, 1)
    unknown, bare, nowhere, text, mark = errors_of(err)
    assert "/overlay FILE, /budget N, /help, /quit, got /fly" in unknown
    assert "such as /overlay kept.png" in bare
    assert "folder /nowhere does not exist" in nowhere
    assert "must end in .png" in text
    assert "expected 1, got 2" in mark


def test_a_conversation_that_becomes_too_long(talk, prompts):
    code, _, err = talk("What?", "many " * 40_000, "And?")
    assert (code, len(prompts)) == (0, 2)
    (error,) = errors_of(err)
    assert "must fit the model's 32,768 positions" in error
    assert "many many" not in prompts[1][0]


def test_help_lists_the_commands(talk):
    _, _, err = talk("/help")
    for command in ("/tokens", "/overlay FILE", "/budget N", "/help", "/quit"):
        assert any(line.removeprefix("> ").startswith(command) for line in err.splitlines())


def test_json(talk):
    _, out, _ = talk("How many ships?", "And cars?", options=("--json", "--max-new-tokens", 2))
    lines = [json.loads(line.removeprefix("> ")) for line in out.splitlines()]
    assert [line["question"] for line in lines] == ["How many ships?", "And cars?"]
    assert set(lines[1]["seconds"]) == {"prefill", "answer"}


def test_an_interrupt_stops_the_answer_alone(talk, monkeypatch, prompts):
    generate, calls = Seen.encode, []

    def interrupted_once(seen, **options):
        calls.append(seen)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return generate(seen, **options)

    monkeypatch.setattr(Seen, "encode", interrupted_once)
    code, _, err = talk("How many ships?", "And cars?")
    assert (code, len(prompts)) == (0, 1)
    assert "interrupted" in err
    assert "How many ships?" not in prompts[0][0]


def test_an_interrupt_at_the_prompt_ends_it(run, scene, monkeypatch):
    def interrupted(*prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", interrupted)
    code, _, err = run("ask", scene)
    assert (code, err.splitlines()[-1]) == (130, "> error: interrupted")


def test_tokens_alone_cannot_be_reduced_again(default_pair, scene):
    session = Session.of(*default_pair)
    with session.see(scene) as seen:
        held = session.hold(seen.encode())
    with pytest.raises(ValueError, match="the scene must be there to be seen again"):
        Conversation(held).reduce(3)


def test_it_opens_on_a_terminal(scene):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "geollava", "ask", str(scene), "--max-new-tokens", "2"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "dumb", "COLUMNS": "200"},
        start_new_session=True,
    )
    os.close(slave)
    shown = ""
    for awaited, line in (("> ", "/tokens"), ("for more questions", "/quit")):
        deadline = time.monotonic() + 100
        while awaited not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 1)[0]:
                shown += os.read(master, 4096).decode()
        os.write(master, f"{line}\n".encode())
    assert process.wait(timeout=60) == 0
    os.close(master)
    assert "1,200 x 800 px, 12 crops" in shown
