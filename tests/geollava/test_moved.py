"""Old import paths work for one release more, and say so; nothing here uses one."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

import geollava
from geollava import moved

ROOT = Path(geollava.__file__).parents[1]
# Every module of the release before, below geollava.
LAST_RELEASE = [
    "answer", "batch", "checkpoint", "cli", "commands", "configuration", "console", "data",
    "default_model", "evaluate", "evaluate.ablation", "evaluate.answerer",
    "evaluate.background", "evaluate.background_share", "evaluate.benchmark",
    "evaluate.commands", "evaluate.controls", "evaluate.evaluation", "evaluate.failures",
    "evaluate.lmms_model", "evaluate.lmms_plugin", "evaluate.lrs_vqa",
    "evaluate.mme_realworld_rs", "evaluate.models", "evaluate.own_model",
    "evaluate.pilot_commands", "evaluate.processes", "evaluate.report", "evaluate.rows",
    "evaluate.runner", "evaluate.scenes_open", "evaluate.scores", "evaluate.sweep",
    "evaluate.transformers_model", "evaluate.xlrs", "evaluate.xlrs_caption",
    "evaluate.xlrs_grounding", "extras", "finished", "geojson", "imagery", "imagery.canvas",
    "imagery.crops", "imagery.files", "imagery.isolated", "imagery.orientation",
    "imagery.picture", "imagery.raster", "imagery.reader", "imagery.resample",
    "imagery.resample_compiled", "imagery.resizer", "imagery.scene", "imagery.stretch",
    "imagery.vrt", "imagery.worker", "malloc", "modeling", "outputs", "overlay", "processing",
    "projector", "readable", "registration", "scene_drawing", "scenes", "sharding",
    "streaming", "templates", "token_reduction", "train", "train_config", "train_data",
    "train_plan", "vision_tower",
]  # fmt: skip
# What the documentation and the examples of the release before imported.
DOCUMENTED = [
    "geollava.GeoLlavaForConditionalGeneration", "geollava.console.progress_bar",
    "geollava.default_model.default_checkpoint", "geollava.imagery.cut_crops",
    "geollava.imagery.normalize_crops", "geollava.malloc.keep_freed_memory",
    "geollava.processing.IMAGE_TOKEN", "geollava.processing.VIDEO_TOKEN",
    "geollava.scene_drawing.draw", "geollava.scenes.COLORS", "geollava.scenes.Planner",
    "geollava.scenes.Scene", "geollava.scenes.describe", "geollava.scenes.plan",
    "geollava.scenes.training_row", "geollava.token_reduction.AffinityHead",
    "geollava.train_config.TrainConfig", "geollava.train_data.join",
    "geollava.train_data.tokenize", "geollava.train_plan.memory",
    "geollava.modeling.GeoLlavaForConditionalGeneration", "geollava.evaluate.rows.Data",
    "geollava.evaluate.models.open_model", "geollava.modeling.check_num_crops",
]  # fmt: skip
# The package that a module imports and an installation may lack.
NEEDS_MORE = {"evaluate.lmms_model": "lmms_eval"}


@pytest.fixture
def forgotten(monkeypatch):
    """Old paths as nobody has imported them yet."""

    def forget():
        for old in moved.MOVED | moved.ALIASES:
            monkeypatch.delitem(sys.modules, f"geollava.{old}", raising=False)
            package, _, name = f"geollava.{old}".rpartition(".")
            monkeypatch.delattr(sys.modules.get(package), name, raising=False)

    forget()
    yield
    forget()


def run(*arguments, check=True):
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 or not check, done.stderr
    return done


def skip_without(old):
    if (needed := NEEDS_MORE.get(old)) and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")


@pytest.mark.parametrize("old", LAST_RELEASE)
def test_every_path_of_the_last_release_is_there(old):
    assert find_spec(f"geollava.{old}") is not None
    stays = ROOT.joinpath("geollava", *old.split("."))
    is_file = stays.with_suffix(".py").is_file() or stays.is_dir()
    assert is_file != (old in moved.MOVED | moved.ALIASES)


def test_the_table_names_no_path_that_was_never_released():
    assert set(moved.MOVED | moved.ALIASES | moved.GAVE_AWAY) <= set(LAST_RELEASE)


@pytest.mark.parametrize("old", sorted(moved.MOVED))
def test_a_moved_module_warns_and_is_the_same_object(old, forgotten):
    skip_without(old)
    new = [f"geollava.{path}" for path in moved.MOVED[old].split()]
    text = f"geollava.{old} is now {' and '.join(new)}; the old one goes with the next release"
    with pytest.warns(DeprecationWarning, match=rf"^{re.escape(text)}$") as caught:
        module = importlib.import_module(f"geollava.{old}")
    assert [one.filename for one in caught if one.category is DeprecationWarning] == [__file__]
    homes = [importlib.import_module(name) for name in new]
    if len(homes) == 1:
        assert module is homes[0]
        assert module.__name__ == module.__spec__.name == new[0]
    for home in homes:
        for name, value in vars(home).items():
            if getattr(value, "__module__", None) == home.__name__:
                assert getattr(module, name) is value
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert importlib.import_module(f"geollava.{old}") is module


@pytest.mark.parametrize("path", DOCUMENTED)
def test_documented_names_are_found(path, forgotten):
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert getattr(importlib.import_module(module), name) is not None


def test_the_warning_points_at_the_importing_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import geollava.readable\nfrom geollava import (\n    outputs,\n)\n"
        "from geollava.evaluate import scenes_open\n"
    )
    said = [line for line in run(script).stderr.splitlines() if "DeprecationWarning" in line]
    assert [line.split(":")[:2] for line in said] == [
        [str(script), "1"],
        [str(script), "2"],
        [str(script), "5"],
    ]


def test_a_split_module_serves_names_from_its_parts(monkeypatch):
    monkeypatch.setitem(moved.MOVED, "both", "common.extras common.readable")
    with pytest.warns(DeprecationWarning, match=r"geollava\.common\.extras and geollava\.common\."):
        both = importlib.import_module("geollava.both")
    from geollava.common import extras, readable

    try:
        assert both.install is extras.install
        assert both.one_line is readable.one_line
        with pytest.raises(AttributeError, match=r"'geollava\.both' has no attribute 'nothing'"):
            both.nothing  # noqa: B018
        with pytest.raises(ImportError, match="cannot import name 'nothing'"):
            from geollava.both import nothing  # noqa: F401
        with pytest.raises(ModuleNotFoundError, match="not a package"):
            importlib.import_module("geollava.both.deeper")
    finally:
        del sys.modules["geollava.both"], geollava.both


@pytest.mark.parametrize("module", sorted(moved.GAVE_AWAY))
def test_names_that_a_module_gave_away(module):
    old = importlib.import_module(f"geollava.{module}")
    for path, names in moved.GAVE_AWAY[module].items():
        home = importlib.import_module(f"geollava.{path}")
        for name in names.split():
            assert name not in vars(old)
            expected = f"geollava.{module}.{name} is now geollava.{path}.{name}; the old one goes "
            with pytest.warns(DeprecationWarning, match=expected) as caught:
                assert getattr(old, name) is getattr(home, name)
            assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        old.nothing  # noqa: B018


@pytest.mark.parametrize("path", sorted(moved.GONE))
def test_a_name_that_is_gone_says_what_to_use(path, forgotten):
    old, _, name = f"geollava.{path}".rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(old)
    text = f"module {old!r} has no attribute {name!r}: use {moved.GONE[path]}"
    with pytest.raises(AttributeError, match=f"^{re.escape(text)}$"):
        getattr(module, name)


def test_both_spellings_of_the_contract_do_without_a_warning():
    run(
        "-W",
        "error::DeprecationWarning",
        "-c",
        "import geollava.evaluate.xlrs\nfrom geollava.evaluate import xlrs\n"
        "from geollava.evaluate.benchmarks import xlrs as new\n"
        "assert xlrs is new is geollava.evaluate.xlrs and xlrs.build_prompt",
    )


def test_importing_geollava_and_looking_for_an_old_path_do_not_warn():
    run(
        "-W",
        "error::DeprecationWarning",
        "-c",
        "import geollava, importlib.util, sys\n"
        "assert importlib.util.find_spec('geollava.modeling').origin.endswith('modeling.py')\n"
        "assert 'geollava.model.modeling' not in sys.modules\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & sys.modules.keys()",
    )


def test_commands_run_by_their_old_path():
    for arguments in (("--help",), ("ask", "--help")):
        old, new = run("-m", "geollava.cli", *arguments), run("-m", "geollava", *arguments)
        assert old.stdout.split("\n\n", 1)[1] == new.stdout.split("\n\n", 1)[1]  # below Usage
        assert "DeprecationWarning: geollava.cli is now geollava.commands.main;" in old.stderr
        assert "Warning" not in new.stderr
    refused = run("-m", "geollava.cli", "ask", "nowhere.png", "", check=False)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: ")


def test_other_names_are_refused_as_python_does():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'geollava\.nothing'"):
        importlib.import_module("geollava.nothing")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'geollava\.evaluate\.cli'"):
        importlib.import_module("geollava.evaluate.cli")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from geollava import nothing  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        geollava.nothing  # noqa: B018
    assert find_spec("geollava.nothing") is None


def paths_in(text):
    """(line, dotted path) of all that a file imports, and of every string that could be a path."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_nothing_here_uses_an_old_path():
    old = tuple(f"geollava.{path}." for path in moved.MOVED)
    folders = ("geollava", "tokenprune", "tests", "benchmarks", "examples", "tools")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    used = [
        f"{file.relative_to(ROOT)}:{line} {path}"
        for file in files
        if file != Path(__file__)
        for line, path in paths_in(file.read_text())
        if f"{path}.".startswith(old)
    ]
    assert used == []
