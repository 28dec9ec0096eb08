"""The door: exit codes, one line for whatever goes wrong, and a start that is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from geollava.commands import main as cli
from geollava.model.default_model import DEMONSTRATION
from tests.geollava.commands.conftest import check_refusal


def test_no_command(run):
    assert run()[0] == 2
    assert run("fly")[0] == 2


def test_anything_else_is_exit_code_1_and_no_traceback(run, scene, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of luck\nsecond line")

    monkeypatch.setattr("geollava.answering.session.Seen.ask", broken)
    code, out, err = run("ask", scene, "What?")
    assert (code, out) == (1, "")
    assert "RuntimeError: out of luck" in err
    assert "second line" not in err
    monkeypatch.setenv("GEOLLAVA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli.main(["ask", str(scene), "What?"])


def test_interrupted(run, scene, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("geollava.answering.session.Seen.ask", interrupted)
    code, out, err = run("ask", scene, "What?")
    assert (code, out, err.strip()) == (130, "", "error: interrupted")


@pytest.mark.parametrize("command", [("ask",), ("batch",), ("evaluate", "background")])
def test_a_url_is_shown_as_it_was_written(run, command, tmp_path):
    url = "https://example.org/scene.tif"
    rest = {"ask": ["What?"], "batch": ["--questions", "q.txt", "--out", "out.parquet"]}
    options = rest.get(command[0], ["--out", tmp_path])
    check_refusal(run(*command, url, *options), f"{url} is a URL")


@pytest.mark.parametrize("arguments", [["ask"], ["fly"], ["ask", "a.jpg", "What?", "--nonsense"]])
def test_messages_are_whole_in_narrow_terminals(run, arguments, monkeypatch):
    wide = run(*arguments)
    monkeypatch.setenv("COLUMNS", "5")
    assert run(*arguments) == wide
    assert "…" not in wide[2]
    assert wide[2].count("\n") == 1


def test_results_are_whole_in_narrow_terminals(run, scene, monkeypatch):
    monkeypatch.setenv("COLUMNS", "5")
    code, _, err = run("ask", scene, "How many ships?", "--max-new-tokens", 1)
    assert code == 0
    assert DEMONSTRATION in err
    assert "visual tokens  6,912 -> 288 (24 times fewer)\n" in err


def test_help_without_the_extra_is_one_line():
    script = (
        "import sys\n"
        "for name in ('transformers', 'typer', 'rich', 'PIL', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "from geollava.commands.main import main\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: geollava needs the extra hf, transformers, typer, rich not found: "
        "pip install 'tokenprune-vlm[hf]' (in a checkout: pip install '.[hf]')\n"
    )


def test_messages_say_how_to_install_what_is_not_released():
    found = {"pip install 'tokenprune-vlm[": [], "(in a checkout: pip install '.[": []}
    for package in ("geollava", "tokenprune"):
        for path in sorted((Path(__file__).parents[3] / package).rglob("*.py")):
            for command, places in found.items():
                places += [path.name] * path.read_text().count(command)
    released, checked_out = found.values()
    # geollava has one place for it; tokenprune, its operators and its server do without each other.
    assert released == checked_out == ["extras.py", "cli.py", "launch.py", "launch.py"]


def test_a_reader_that_has_read_enough(tmp_path):
    data = tmp_path / "train.json"
    data.write_text("[]")
    process = subprocess.Popen(
        [sys.executable, "-m", "geollava", "validate", str(data), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert "Broken" not in process.stderr.read()
    assert process.wait() in (0, 2)
    process.stderr.close()


def test_a_refusal_as_a_process(scene):
    """An answer as a process is in test_ask.py, question by question."""
    command = [sys.executable, "-m", "geollava", "ask", str(scene), ""]
    bad = subprocess.run(command, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: the question must say something, it is empty\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ask", "--help"],
        ["evaluate", "sweep", "--help"],
        ["ask"],
        ["ask", "a.tif", "What?", "--dtype", "int8"],
        ["ask", "a.tif", "What?", "--session-memory", "much"],
        ["ask", "a.tif", ""],
        ["batch", "scenes", "--bands", "red"],
        ["evaluate", "xlrs", "--on-bad-rows", "hide"],
    ],
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from geollava.commands.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*{'torch', 'transformers', 'numpy'} & set(sys.modules), 'imported')"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "imported", done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr


def test_choices_are_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for command, choices in (
        (("ask",), ["pillow", "applied", "bfloat16"]),
        (("batch",), ["local", "ray"]),
        (("evaluate", "xlrs"), ["refuse", "count-wrong", "skip"]),
        (("scenes",), ["mixed", "earth", "procedural", "both", "train", "test"]),
        (("export",), ["own", "published", "float16"]),
    ):
        code, out, _ = run(*command, "--help")
        assert code == 0
        for choice in choices:
            assert choice in out
