"""Each damaged file is one line that names it, and exit code 2."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pytest

from geollava import GeoLlavaConfig, GeoLlavaProcessor
from geollava.model.default_model import default_checkpoint
from tests.geollava.conftest import noise

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


@pytest.fixture
def ask_own(refused, tmp_path):
    """Asks the shipped model, in our own form, with settings of one of its files changed."""

    def ask_own(name, **changes):
        noise(60, 60).save(tmp_path / "a.png")
        folder = shutil.copytree(default_checkpoint(), tmp_path / "own")
        edit(folder / name, **changes)
        return refused("ask", tmp_path / "a.png", "What?", "--model", folder)

    return ask_own


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
        ({"image_grid_pinpoints": 7}, "image_grid_pinpoints must be pairs of pixels or a range"),
        ({"torch_dtype": "float33"}, "float33"),
        ({"model_type": []}, "model_type must be geollava or llava_qwen, got []"),
        ({"bos_token_id": 10**80}, "bos_token_id must be a token's id, got 1000"),
        # What would be listed or built before the weights show that it is not there.
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 512, got 1000000000"),
        ({"image_grid_pinpoints": "(1x1),...,(99999x99999)"}, "at most 10,000 crops"),
        ({"image_grid_pinpoints": [[56 * 10**6, 56]]}, "at most 10,000 crops"),
    ],
)
def test_config_of_wrong_types(ask, checkpoint_copy, changes, message):
    edit(checkpoint_copy / "config.json", **changes)
    line = ask()
    assert str(checkpoint_copy / "config.json") in line
    assert message in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"num_channels": 0}}, "vision_config.num_channels must be 3, got 0"),
        ({"vision_tower_name": ["x"]}, "vision_tower_name must be a string, got list"),
        ({"merge_cycles": 0}, "merge_cycles must be one of official, merge, got 0"),
        ({"merge_max_iters": 10**9}, "merge_max_iters must be at most 1000, got 1000000000"),
        ({"max_crops": 10**9}, "max_crops must be at most 10000, got 1000000000"),
        ({"image_std": [1, 0, 1]}, "image_std must be above 0, got"),
        ({"image_mean": [1, math.inf, 1]}, "image_mean must be three finite numbers, got"),
        ({"vision_config": {"model_type": []}}, "vision_config.model_type must be a string"),
    ],
)
def test_own_config_of_settings_that_cannot_be(ask_own, changes, message):
    line = ask_own("config.json", **changes)
    assert "config.json: the configuration cannot be used" in line
    assert message in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_crops": 10**9}, "max_crops must be at most 10000"),
        ({"crop_size": 2**63}, "crop_size must be at most 4096, got 92233720"),
        ({"max_crops": 1}, "must allow a canvas of at least two crops, got 1 and 49"),
        ({"image_std": [1, 0, 1]}, "image_std must be above 0"),
    ],
)
def test_image_processors_that_cannot_be(ask_own, changes, message):
    saved = json.loads((default_checkpoint() / "processor_config.json").read_text())
    line = ask_own("processor_config.json", image_processor=saved["image_processor"] | changes)
    assert "processor_config.json: the image processor cannot be made of it" in line
    assert message in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_hidden_states": 1.5}, "output_hidden_states must be true or false, got 1.5"),
        ({"max_length": "x"}, "max_length must be a whole number, got 'x'"),
        ({"temperature": []}, "temperature must be a number, got []"),
        ({"num_beams": 10**9}, "num_beams must be between 1 and 64, got 1000000000"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id must be a token's id, got 'x'"),
        ({"cache_implementation": "x"}, "the model cannot generate with it"),
    ],
)
def test_generation_settings(ask_own, changes, message):
    line = ask_own("generation_config.json", **changes)
    assert "generation_config.json: " in line
    assert message in line


def test_marks_that_the_tokenizer_numbers_otherwise(ask_own):
    line = ask_own("config.json", image_token_id=3)
    assert "own: the tokenizer must have image_token_id = 3, got" in line


def test_a_tokenizer_with_more_words_than_the_model(refused, tmp_path):
    """The one that ends an answer is unknown to it, and is added at its end."""
    noise(60, 60).save(tmp_path / "a.png")
    folder = shutil.copytree(default_checkpoint(), tmp_path / "own")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|other|>"))
    line = refused("ask", tmp_path / "a.png", "What?", "--model", folder)
    assert f"{folder}: the tokenizer must number words below the model's " in line
    row = {"index": 0, "question": "What?", "multi-choice options": ["(A) x", "(B) y"]}
    row |= {"answer": "A", "category": "Counting/Overall counting", "image": "a.png"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    line = refused(
        "evaluate", "xlrs", "--data", tmp_path / "rows.json", "--out", tmp_path / "results",
        "--model", folder,
    )  # fmt: skip
    assert "the tokenizer must number words below the model's " in line


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": "\xe9"}'])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_no_json_object(ask, checkpoint_copy, name, content):
    (checkpoint_copy / name).write_bytes(content)
    assert f"{checkpoint_copy / name} must " in ask()


def test_json_text_that_utf_8_cannot_write(ask, checkpoint_copy):
    path = checkpoint_copy / "tokenizer_config.json"
    edit(path, note="\U0001f600")  # a whole pair
    edit(path, note="\ud83d")
    assert f"{path}: its text must be such that UTF-8 can write it" in ask()


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
    monkeypatch.setattr("geollava.model.templates.SECONDS", 0.5)
    noise(60, 60).save(tmp_path / "a.png")
    folder = shutil.copytree(default_checkpoint(), tmp_path / "own")
    (folder / "chat_template.jinja").write_text(template)
    line = refused("ask", tmp_path / "a.png", "What?", "--model", folder)
    assert (
        "chat_template.jinja: the chat template cannot be used: a template must be rendered in"
        in line
    )
    assert sys.gettrace() is None


def test_a_chat_template_that_marks_no_image(refused, tmp_path):
    noise(60, 60).save(tmp_path / "a.png")
    folder = shutil.copytree(default_checkpoint(), tmp_path / "own")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<image>", "<video>"))
    line = refused("ask", tmp_path / "a.png", "What?", "--model", folder)
    assert f"{folder}: the chat template must write one <image> for an image, got 0" in line


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


def test_an_output_whose_columns_hold_something_else(refused, complete_checkpoint, tmp_path, run):
    (tmp_path / "q.txt").write_text("What?\n")
    noise(60, 60).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image\na.png\n")
    out = tmp_path / "out.parquet"
    command = [
        "batch", tmp_path / "list.csv", "--questions", tmp_path / "q.txt", "--out", out,
        "--model", complete_checkpoint, "--max-new-tokens", 2,
    ]  # fmt: skip
    assert run(*command)[0] == 0
    table = parquet.read_table(out)
    place = table.column_names.index("crops")
    parquet.write_table(table.set_column(place, "crops", pyarrow.array(["x"])), out)
    assert f"{out}: it must be an output of geollava batch" in refused(*command)


def test_training_rows_that_utf_8_cannot_write(run, tmp_path):
    talk = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "2"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": "\ud800", "conversations": talk}]))
    code, out, _ = run("validate", path)
    assert code == 2
    assert r"a row must be text that UTF-8 can write, got '\ud800'" in out


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


def test_benchmark_data_without_rows(refused, tmp_path):
    pytest.importorskip("datasets")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"question": ["What?"]}).slice(0, 0), path)
    line = refused("evaluate", "xlrs", "--data", path, "--out", tmp_path / "out")
    assert str(path) in line
    assert "An error occurred" not in line


@pytest.mark.parametrize("place", ["question", "answer"])
def test_benchmark_rows_that_json_or_utf_8_cannot_write(refused, run, tmp_path, place):
    pytest.importorskip("datasets")
    noise(60, 60).save(tmp_path / "a.png")
    row = {
        "index": 0, "question": "What?", "multi-choice options": ["(A) x", "(B) y"], "answer": "A",
        "category": "Counting/Overall counting", "image": "a.png",
    }  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row | {place: "\ud800"}]))
    options = ["--out", tmp_path / "out", "--max-new-tokens", 2]
    line = refused("evaluate", "xlrs", "--data", path, *options)
    assert f"{path}: its text must be such that UTF-8 can write it" in line
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row | {"index": b"x"}]), path)
    assert run("evaluate", "xlrs", "--data", path, *options)[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'model: a/b\noutput: "\\ud800"\ndata: {files: [a.json]}',
            "a path in it cannot be used",
        ),
        (
            "model: a/b\noutput: run\ndata: {files: [a.json]}\nlora: {rank: 1000000000}",
            "lora.rank: input should be less than or equal to 4096",
        ),
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
    pytest.importorskip("pydantic")
    recipe = tmp_path / "run.yaml"
    recipe.write_text('model: "\\ud800"\noutput: run\ndata: {files: [a.json]}')
    assert r"a hub name, \ud800 does not exist" in refused("train", recipe)
    (tmp_path / "a\nb.png").write_text("no picture")
    assert r"a\nb.png must be an image" in refused("ask", tmp_path / "a\nb.png", "What?")
    noise(60, 60).save(tmp_path / "a.png")
    line = refused("ask", tmp_path / "a.png", "Wh\udce9t?")
    assert r"must be text that UTF-8 can write, got 'Wh\udce9t?'" in line
