"""The page of commands lists what `--help` lists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from geollava.commands.app import app
from tokenprune import cli

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

import commands as page  # noqa: E402
import geollava_lists as lists  # noqa: E402

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SECTIONS = page.markdown(page.commands_of("geollava")).split("## ")[1:]
EVALUATE = ("evaluate xlrs", "evaluate scenes-open", "evaluate sweep", "evaluate ablation")
COMMANDS = ("app", "ask", "batch", "validate", "train", "export", "scenes", *EVALUATE)


def section_of(name: str, sections: list[str]) -> str:
    head = re.compile(rf"\A`{name}`$|^- `{name}`: ", re.M)
    (found,) = filter(head.search, sections)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_that_its_help_shows(name):
    wide = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env=wide).output
    options = set(OPTION.findall(shown)) - {"--help"}
    written = {
        option
        for line in section_of(f"geollava {name}", SECTIONS).splitlines()
        if line.startswith("`--")
        for option in OPTION.findall(line)
    }
    # Texts of the help may name options of others.
    assert written
    assert written <= options
    assert {option for option in options if re.search(rf"^\W*{option}\b", shown, re.M)} <= written


def test_every_command_has_a_section():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output
    names = set(re.findall(r"^[\s│|]*([a-z]+) {2,}\S", shown, re.M))
    assert {"ask", "batch", "train", "evaluate"} <= names
    assert names == {re.match(r"`geollava ([a-z]+)", section)[1] for section in SECTIONS}


@pytest.mark.parametrize("name", ["methods", "verify"])
def test_tokenprune_too(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    options = set(OPTION.findall(capsys.readouterr().out)) - {"--help"}
    sections = page.markdown(page.commands_of("tokenprune")).split("## ")[1:]
    assert options == set(OPTION.findall(section_of(f"tokenprune {name}", sections)))


def test_defaults_and_choices_are_shown():
    text = section_of("geollava ask", SECTIONS)
    assert "`--resize <pillow|fast>`" in text
    assert "\\[default: 4GiB\\]" in text
    assert str(ROOT) not in text  # the shipped model's folder is one of this machine


def test_every_benchmark_is_in_the_table():
    from geollava.evaluate.benchmark import list_benchmarks

    assert re.findall(r"^\| `([\w-]+)` \|", lists.benchmarks(), re.M) == list_benchmarks()


def test_every_key_of_a_training_file_is_in_its_table():
    from geollava.training.config import DataConfig, LoraSection, TrainConfig

    text = lists.train_keys()
    for section in (TrainConfig, DataConfig, LoraSection):
        for key in section.model_fields:
            assert f"| `{key}` |" in text
    assert "| `schedule` | `cosine`, `linear`, `constant_with_warmup` | `cosine` |" in text
    assert "| `warmup` | a number from 0 below 1 | `0.1` |" in text


def test_a_method_is_listed_by_when_it_chooses():
    once, each = lists.crop_methods().splitlines()
    assert "`background_anchored`" in once
    assert "`fastv`" in each
