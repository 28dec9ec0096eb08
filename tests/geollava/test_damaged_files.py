"""Each damaged file is one line that names it, and exit code 2."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from geollava import GeoLlavaConfig, GeoLlavaProcessor
from geollava.default_model import default_checkpoint

from .conftest import noise

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.fixture
def refused(run):
    """Runs a command that must be refused -> its one line."""

    def refused(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), err
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    return refused


@pytest.fixture
def ask(refused, checkpoint_copy, tmp_path):
    noise(60, 60).save(tmp_path / "a.png")
    return lambda: refused("ask", tmp_path / "a.png", "What?", "--model", checkpoint_copy)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "many"}, "vocab_size"),
        ({"hidden_size": 1.5}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"hidden_act": "nope"}, "hidden_act must be an activation"),
        ({"mm_spatial_pool_stride": "x"}, "video_pool_stride must be an int, got str"),
        ({"mm_vision_select_layer": "x"}, "vision_feature_layer must be an int, got str"),
        ({"image_grid_pinpoints": 7}, "no image processor can be made of it"),
        ({"torch_dtype": "float33"}, "float33"),
        ({"model_type": []}, "model_type must be geollava or llava_qwen, got []"),
    ],
)
def test_config_of_wrong_types(ask, checkpoint_copy, changes, message):
    edit(checkpoint_copy / "config.json", **changes)
    line = ask()
    assert str(checkpoint_copy / "config.json") in line
    assert message in line


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": "\xe9"}'])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_no_json_object(ask, checkpoint_copy, name, content):
    (checkpoint_copy / name).write_bytes(content)
    assert f"{checkpoint_copy / name} must " in ask()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        # The first makes the tokenizers library panic.
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}),
        ("tokenizer.json", {"added_tokens": None}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", {"tokenizer_class": 3}),
    ],
)
def test_tokenizers_that_cannot_be(ask, checkpoint_copy, name, changes):
    edit(checkpoint_copy / name, **changes)
    assert ask().startswith(f"error: {checkpoint_copy / name}: ")


def test_a_panic_prints_nothing_itself(checkpoint_copy, capfd):
    changes = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    edit(checkpoint_copy / "tokenizer.json", **changes)
    for loader in (GeoLlavaConfig, GeoLlavaProcessor):
        with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizer cannot be loaded"):
            loader.from_pretrained(checkpoint_copy)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{% for %}", "{{ range(10**9)|list }}", "{{ a.b }}", b"\xe9"],
)
def test_chat_templates(refused, tmp_path, template):
    noise(60, 60).save(tmp_path / "a.png")
    folder = shutil.copytree(default_checkpoint(), tmp_path / "own")  # the published form has none
    path = folder / "chat_template.jinja"
    path.write_bytes(template if isinstance(template, bytes) else template.encode())
    line = refused("ask", tmp_path / "a.png", "What?", "--model", folder)
    assert line.startswith(f"error: {path}: the chat template cannot be ")


LOOP = "{% for x in range(99999) %}"


@pytest.mark.parametrize(
    "template",
    [
        LOOP * 3 + "{% endfor %}" * 3,
        LOOP * 2 + "{% set y = x %}" + "{% endfor %}" * 2,
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        LOOP + "{{ range(99999)|map('string')|select('eq', 'x')|list }}{% endfor %}",
    ],
)
def test_chat_templates_that_run_for_hours(refused, tmp_path, template, monkeypatch):
    monkeypatch.setattr("geollava.templates.SECONDS", 0.5)
    noise(60, 60).save(tmp_path / "a.png")
    folder = shutil.copytree(default_checkpoint(), tmp_path / "own")
    (folder / "chat_template.jinja").write_text(template)
    line = refused("ask", tmp_path / "a.png", "What?", "--model", folder)
    assert (
        "chat_template.jinja: the chat template cannot be used: a template must be rendered in"
        in line
    )
    assert sys.gettrace() is None


@pytest.fixture
def batch(refused, complete_checkpoint, tmp_path):
    (tmp_path / "q.txt").write_text("What?\n")
    noise(60, 60).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image\na.png\n")

    def batch(scenes="list.csv"):
        line = refused(
            "batch", tmp_path / scenes, "--questions", tmp_path / "q.txt",
            "--out", tmp_path / "out.parquet", "--model", complete_checkpoint,
        )  # fmt: skip
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]
        return line

    return batch


def damaged_table(path, column):
    """Its strings are no UTF-8: libraries that trust the type fail over them later."""
    cells = pyarrow.array([b"good.png", b"\xff\xfe.png"], pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, cells.buffers())
    parquet.write_table(pyarrow.table({column: strings}), path)


def test_lists_of_scenes(batch, tmp_path):
    damaged_table(tmp_path / "rows.parquet", "image")
    assert f"{tmp_path / 'rows.parquet'}: its rows must be readable" in batch("rows.parquet")
    (tmp_path / "long.csv").write_text("image,text\na.png," + "x" * 200_000 + "\n")
    assert f"{tmp_path / 'long.csv'}: it must be a CSV file" in batch("long.csv")
    (tmp_path / "latin.csv").write_bytes(b"image\na\xe9.png\n")
    assert f"{tmp_path / 'latin.csv'}: it must be a CSV file" in batch("latin.csv")


def test_questions_that_are_no_utf_8(batch, tmp_path):
    (tmp_path / "q.txt").write_bytes(b"O\xf9?\n")
    assert f"{tmp_path / 'q.txt'}: it must be a text file in UTF-8" in batch()


def test_benchmark_rows(refused, tmp_path):
    pytest.importorskip("datasets")
    path = tmp_path / "rows.parquet"
    damaged_table(path, "Text")
    line = refused("evaluate", "xlrs", "--data", path, "--out", tmp_path / "out")
    assert f"{path}: its rows must be readable" in line
    row = {
        "index": 0, "question": "What?", "multi-choice options": ["(A) x", "(B) y"], "answer": "A",
        "category": "Complex reasoning/x", "l2-category": "y", "l1-category": "Perception",
    }  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    line = refused("evaluate", "xlrs", "--data", path, "--out", tmp_path / "out")
    assert "row" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!timestamp x", "timestamp"),
        ("model: !!int x", "invalid literal"),
        ("model: !!python/name:os.system x", "could not determine a constructor"),
        ("model: *nowhere", "line 1, column 8: found undefined alias"),
        (BOMB, "expected at most 8 aliases"),
        (f"model: [{'x, ' * 100_000}]", "..."),
    ],
)
def test_yaml(refused, tmp_path, text, message):
    pytest.importorskip("pydantic")
    path = tmp_path / "run.yaml"
    path.write_text(text)
    line = refused("train", path)
    assert str(path) in line
    assert message in line
    assert len(line) < 2000


def test_names_and_questions_stay_one_line(refused, tmp_path):
    (tmp_path / "a\nb.png").write_text("no picture")
    assert r"a\nb.png must be an image" in refused("ask", tmp_path / "a\nb.png", "What?")
    noise(60, 60).save(tmp_path / "a.png")
    line = refused("ask", tmp_path / "a.png", "Wh\udce9t?")
    assert r"must be text that UTF-8 can write, got 'Wh\udce9t?'" in line
