"""`geollava ask`: what it prints, and how it says no."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from geollava.commands import main as cli
from geollava.model.default_model import DEMONSTRATION, default_checkpoint
from geollava.model.token_reduction import check_method
from tests.geollava.conftest import noise
from tests.geollava.imagery.test_imagery import bad_files


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.jpg"
    noise(900, 600).resize((1200, 800)).save(path)
    return path


def test_json(run, scene):
    code, out, err = run("ask", scene, "How many ships?", "--json", "--max-new-tokens", 4)
    assert code == 0
    report = json.loads(out)
    assert report["image_size"] == [1200, 800]
    assert report["canvas_size"] == [1344, 1008]
    assert report["crops"] == 12
    assert report["tokens_before"] == 12 * 576
    assert report["tokens_after"] == 12 * 24
    assert set(report["seconds"]) == {"read", "load", "crop", "encode", "prefill", "answer"}
    assert all(value >= 0 for value in report["seconds"].values())
    assert report["peak_memory_mib"] > 0
    assert isinstance(report["answer"], str)
    assert report["untrained"] is False
    assert report["demonstration"] is True
    assert err == f"note: {DEMONSTRATION}\n"
    assert "--model initiacms/GeoLLaVA-8K" in err


def test_untrained_weights_are_said_to_be(run, scene, default_pair, tmp_path):
    model, processor = default_pair
    folder = tmp_path / "untrained"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"untrained": True}))
    code, out, err = run(
        "ask", scene, "How many ships?", "--json", "--max-new-tokens", 1, "--model", folder
    )
    assert (code, json.loads(out)["untrained"]) == (0, True)
    assert "weights are untrained" in err


def test_the_demonstration_model_by_its_path_is_still_one(run, scene):
    arguments = ("ask", scene, "What?", "--json", "--max-new-tokens", 1)
    _, out, err = run(*arguments, "--model", default_checkpoint())
    assert json.loads(out)["demonstration"] is True
    assert DEMONSTRATION in err


def test_text(run, scene):
    code, out, err = run("ask", scene, "How many ships?", "--max-new-tokens", 4)
    assert code == 0
    assert "6,912 -> 288 (24 times fewer)" in err
    assert "visual tokens" not in out


def test_num_keep(run, scene):
    code, out, _ = run("ask", scene, "What?", "--num-keep", 7, "--json", "--max-new-tokens", 1)
    assert code == 0
    assert json.loads(out)["tokens_after"] == 12 * 7


@pytest.mark.parametrize("method", ["random", "spatial_pool", "fastervlm", "divprune"])
def test_method(run, scene, method):
    arguments = ("ask", scene, "How many?", "--json", "--max-new-tokens", 1, "--num-keep", 5)
    code, out, _ = run(*arguments, "--method", method)
    assert code == 0
    report = json.loads(out)
    assert report["method"] == method
    assert report["tokens_after"] == 12 * 5


def test_methods_that_cannot_be(run, scene):
    for method, message in (
        ("best", "method must be one of"),
        ("sparsevlm", "needs text"),
        ("fastv", "works in the language model's layers"),
    ):
        code, out, err = run("ask", scene, "How many?", "--method", method)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_a_typo_lists_the_methods_that_can_be(run, scene):
    _, _, err = run("ask", scene, "How many?", "--method", "divprun")
    listed = err.removeprefix("error: method must be one of ").split(", got")[0].split(", ")
    assert {"background_anchored", "divprune", "spatial_pool"} < set(listed)
    assert not {"fastv", "pyramiddrop", "cdpruner", "sparsevlm"} & set(listed)
    for name in listed:
        check_method(name)  # raises where it is refused


def test_published_checkpoint(run, scene, complete_checkpoint):
    arguments = ("ask", scene, "What?", "--model", complete_checkpoint, "--json")
    code, out, err = run(*arguments, "--max-new-tokens", 3)
    assert code == 0, err
    report = json.loads(out)
    assert report["model"] == str(complete_checkpoint)
    assert report["tokens_after"] == report["crops"] * 5
    assert report["demonstration"] is False
    assert err == ""


def test_overlay(run, scene, tmp_path):
    target = tmp_path / "overlay.png"
    arguments = ("ask", scene, "What?", "--overlay", target, "--json", "--max-new-tokens", 1)
    assert run(*arguments)[0] == 0
    picture = Image.open(target)
    assert picture.width / (picture.height - picture.width // 80 * 2) == pytest.approx(
        1.5, abs=0.05
    )
    pixels = np.asarray(picture).astype(int)
    colored = (pixels[..., 0] - pixels[..., 2]) > 60  # frames around kept tokens
    assert 0 < colored.mean() < 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.png", "scene.jpg"]


def test_exif(run, tmp_path):
    exif, path = Image.Exif(), tmp_path / "scene.jpg"
    exif[274] = 6
    noise(900, 600).save(path, exif=exif)
    arguments = ("ask", path, "What?", "--json", "--max-new-tokens", 1, "--tokens-geojson")
    for options, size in (((), [900, 600]), (("--exif", "applied"), [600, 900])):
        code, out, err = run(*arguments, tmp_path / "tokens.json", *options)
        assert code == 0, err
        assert json.loads(out)["image_size"] == size
        features = json.loads((tmp_path / "tokens.json").read_text())["features"]
        boxes = np.array([feature["properties"]["pixel_box"] for feature in features])
        right, bottom = boxes.max(0)[2:]
        assert (right > 600, bottom > 600) == (size[0] == 900, size[1] == 900)
    check_refusal(run("ask", path, "What?", "--exif", "turned"), "--exif must be one of stored, ap")


def check_refusal(result, message):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert message in err


def test_bad_images(run, tmp_path):
    for name in bad_files(tmp_path):
        check_refusal(run("ask", tmp_path / name, "What?"), name if name != "." else "not a file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["What?", "--num-keep", 0], "--num-keep must be at least 1, got 0"),
        (["What?", "--num-keep", 577], "num_keep must be between 1 and the 576 tokens"),
        (["What?", "--num-keep", "many"], "'--num-keep'"),
        (["What?", "--model", "/nowhere"], "/nowhere does not exist"),
        (["What?", "--overlay", "/nowhere/overlay.png"], "folder /nowhere does not exist"),
        (["What?", "--overlay", "overlay.txt"], "must end in .png"),
        (["What?", "--dtype", "int8"], "--dtype must be one of"),
        (["What?", "--device", "tpu"], "--device tpu is not available"),
        (["What?", "--nonsense"], "No such option: --nonsense"),
        (["  "], "the question must say something"),
        ([], "Missing argument 'question'"),
    ],
)
def test_bad_usage(run, scene, arguments, message):
    check_refusal(run("ask", scene, *arguments), message)


def test_no_command(run):
    assert run()[0] == 2
    assert run("fly")[0] == 2


def last_line(result):
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_answer_that_cannot_fit(run, scene):
    line = last_line(run("ask", scene, "What?", "--max-new-tokens", 40_000))
    assert "must fit the model's 32768 positions" in line


def test_question_with_a_mark(run, scene):
    assert "expected 1, got 2" in last_line(run("ask", scene, "What is <image>?"))


def test_damaged_checkpoint(run, scene, checkpoint_copy):
    tensors = load_file(checkpoint_copy / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint_copy / "model.safetensors")
    result = run("ask", scene, "What?", "--model", checkpoint_copy)
    check_refusal(result, "missing model.norm.weight")


def test_features_that_are_not_finite(run, scene, checkpoint_copy):
    tensors = load_file(checkpoint_copy / "model.safetensors")
    name = "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, checkpoint_copy / "model.safetensors")
    result = run("ask", scene, "What?", "--model", checkpoint_copy)
    check_refusal(result, "features must be finite")


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
    # geollava has one place for it; tokenprune does without geollava.
    assert released == checked_out == ["extras.py", "cli.py", "launch.py"]


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


def test_as_a_process(scene):
    command = [sys.executable, "-m", "geollava", "ask", str(scene)]
    good = subprocess.run(
        [*command, "What?", "--json", "--max-new-tokens", "2"], capture_output=True, text=True
    )
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["crops"] == 12
    bad = subprocess.run([*command, ""], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: the question must say something, it is empty\n"
