"""`geollava ask` with one question, with several and with a pipe's: what it prints and refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file

from geollava.answering.session import Seen, Session
from geollava.answering.settings import Settings
from geollava.commands.options import session_memory_size
from geollava.model.configuration import NO_REDUCTION
from geollava.model.default_model import DEMONSTRATION, default_checkpoint
from geollava.model.token_reduction import crop_methods, host_methods
from tests.geollava.commands.conftest import check_refusal
from tests.geollava.conftest import noise
from tests.geollava.imagery.test_imagery import bad_files


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


@pytest.mark.parametrize("method", sorted({*crop_methods(), *host_methods()} - {NO_REDUCTION}))
def test_every_method(run, scene, method):
    arguments = ("ask", scene, "How many?", "--json", "--max-new-tokens", 1, "--num-keep", 5)
    code, out, err = run(*arguments, "--method", method)
    assert code == 0, err
    report = json.loads(out)
    assert report["method"] == method
    if method != "pyramiddrop":  # keeps other numbers from stage to stage
        assert report["tokens_after"] == 12 * 5


def test_no_method_keeps_all(run, scene):
    code, out, err = run("ask", scene, "?", "--json", "--max-new-tokens", 1, "--method", "none")
    assert code == 0, err
    report = json.loads(out)
    assert report["tokens_after"] == report["tokens_before"] == 12 * 576


def test_methods_that_cannot_be(run, scene):
    for method, message in (
        ("best", "method must be one of"),
        ("hiprune", "the method hiprune needs received, which this model does not hand over"),
        ("sparsevlm", "the method sparsevlm needs a number of tokens to keep per crop, from 1 to"),
    ):
        code, out, err = run("ask", scene, "How many?", "--method", method)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_a_typo_lists_the_methods_that_can_be(run, scene):
    _, _, err = run("ask", scene, "How many?", "--method", "divprun")
    listed = err.removeprefix("error: method must be one of ").split(", got")[0].split(", ")
    assert listed == sorted([*crop_methods(), *host_methods()])


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
    check_refusal(
        run("ask", path, "What?", "--exif", "turned"),
        "'turned' is not one of 'stored', 'applied'",
    )


def test_bad_images(run, tmp_path):
    for name in bad_files(tmp_path):
        check_refusal(run("ask", tmp_path / name, "What?"), name if name != "." else "not a file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["What?", "--num-keep", 0], "'--num-keep': must be a number from 1, got 0"),
        (["What?", "--num-keep", 577], "num_keep must be between 1 and the 576 tokens"),
        (["What?", "--num-keep", "many"], "'--num-keep': must be a number from 1, got many"),
        (["What?", "--model", "/nowhere"], "/nowhere does not exist"),
        (["What?", "--overlay", "/nowhere/overlay.png"], "folder /nowhere does not exist"),
        (["What?", "--overlay", "overlay.txt"], "must end in .png"),
        (["What?", "--dtype", "int8"], "'int8' is not one of 'auto', 'float32', "),
        (["What?", "--device", "tpu"], "--device tpu is not available"),
        (["What?", "--nonsense"], "No such option: --nonsense"),
        (["  "], "the question must say something"),
        (["What?", "--bands", "red"], "'--bands': must be numbers such as 4,3,2, got red"),
        (["What?", "--max-megapixels", 0], "'--max-megapixels': must be a number from 1, got 0"),
        (["What?", "--session-memory", "much"], "memory must be a size such as 8GiB or 512MB, got"),
        (["What?", ""], "the question must say something"),
    ],
)
def test_bad_usage(run, scene, arguments, message):
    check_refusal(run("ask", scene, *arguments), message)


def last_line(result):
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_answer_that_cannot_fit(run, scene):
    line = last_line(run("ask", scene, "What?", "--max-new-tokens", 40_000))
    assert "must fit the model's 32,768 positions" in line


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


QUESTIONS = ["How many ships?", "Land or sea?", "Which color stands out?"]
ASKED = ("--json", "--max-new-tokens", 6)


@pytest.fixture
def piped(monkeypatch):
    """Gives bytes to the standard input."""

    def piped(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return piped


@pytest.fixture
def encoded(monkeypatch):
    """What is encoded."""
    calls, encode = [], Session.encode

    def counted(session, scene, **options):
        calls.append(scene)
        return encode(session, scene, **options)

    monkeypatch.setattr(Session, "encode", counted)
    return calls


def test_several_questions_are_one_by_one_in_one_load(run, scene, encoded):
    alone = [json.loads(run("ask", scene, text, *ASKED)[1]) for text in QUESTIONS]
    encoded.clear()
    code, out, err = run("ask", scene, *QUESTIONS, *ASKED)
    assert (code, len(encoded)) == (0, 1), err
    assert err == f"note: {DEMONSTRATION}\n"
    together = [json.loads(line) for line in out.splitlines()]
    assert [line["question"] for line in together] == QUESTIONS
    assert [line["answer"] for line in together] == [line["answer"] for line in alone]
    first, *later = (set(line["seconds"]) for line in together)
    assert first == {"read", "load", "crop", "encode", "prefill", "answer"}
    assert later == [{"prefill", "answer"}] * 2
    assert all(line.keys() == alone[0].keys() for line in together)
    assert together[0]["session_memory_mib"] > 0


def test_several_questions_as_text(run, scene, tmp_path):
    options = ("--max-new-tokens", 2, "--overlay", tmp_path / "kept.png")
    code, out, err = run("ask", scene, *QUESTIONS[:2], *options)
    assert (code, out.count("\n")) == (0, 2)
    assert err.count("question  ") == 2
    assert err.count("MiB, for more questions") == 1
    assert err.count("visual tokens  6,912 -> 288") == 1
    assert (tmp_path / "kept.png").exists()
    assert "anew" not in err


def test_keys_and_values_that_do_not_fit(run, scene):
    alone = run("ask", scene, *QUESTIONS[:2], *ASKED)[1]
    code, out, err = run("ask", scene, *QUESTIONS[:2], *ASKED, "--session-memory", "1MiB")
    assert code == 0
    assert "note: each question reads all visual tokens anew: --session-memory is too small" in err
    answers = [[json.loads(line)["answer"] for line in text.splitlines()] for text in (alone, out)]
    assert answers[0] == answers[1]
    assert json.loads(out.splitlines()[-1])["session_memory_mib"] <= 1


def test_all_questions_are_checked_before_the_image_is_encoded(run, scene, encoded):
    check_refusal(run("ask", scene, "What?", "Where is <image>?"), "expected 1, got 2")
    check_refusal(run("ask", scene, "What?", " "), "the question must say something")
    assert encoded == []


def test_piped_questions(run, scene, piped):
    piped("\ufeffHow many ships?\r\n\n  \nLand or sea?".encode())
    code, out, _ = run("ask", scene, *ASKED)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["question"] for line in lines] == QUESTIONS[:2]
    _, expected, _ = run("ask", scene, *QUESTIONS[:2], *ASKED)
    assert [line["answer"] for line in lines] == [
        json.loads(line)["answer"] for line in expected.splitlines()
    ]


@pytest.fixture
def loaded(monkeypatch):
    """Models that are loaded."""
    calls, load = [], Settings.session

    def counted(settings):
        calls.append(settings)
        return load(settings)

    monkeypatch.setattr(Settings, "session", counted)
    return calls


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_pipe_without_questions_is_refused_before_a_model_is_loaded(
    run, scene, piped, loaded, content
):
    piped(content)
    check_refusal(run("ask", scene), "a question must stand on the command line or on a line")
    assert loaded == []


def test_the_first_piped_question_is_there_before_a_model_is_loaded(
    run, scene, monkeypatch, loaded
):
    loads = []

    class Pipe(io.BytesIO):
        def __next__(self):
            loads.append(len(loaded))
            return super().__next__()

    stdin = io.TextIOWrapper(Pipe(b"\nHow many ships?\nLand or sea?\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, _ = run("ask", scene, *ASKED)
    assert (code, out.count("\n")) == (0, 2)
    assert loads == [0, 0, 1, 1]  # the last finds the end


def refused_lines(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_piped_questions_that_cannot_be_asked(run, scene, piped, encoded):
    lines = ["Where is <image>?", "How many ships?", "What?" * 50_000, "<image>", "Land or sea?"]
    piped("\n".join(lines).encode())
    code, out, err = run("ask", scene, *ASKED)
    assert (code, len(encoded)) == (2, 1)
    assert [json.loads(line)["question"] for line in out.splitlines()] == [lines[1], lines[4]]
    first, long, last = refused_lines(err)
    assert first.startswith("error: line 1: ")
    assert first.endswith("expected 1, got 2")
    assert long.startswith("error: line 3: ")
    assert "positions" in long
    assert last.startswith("error: line 4: ")
    assert len(err.splitlines()) == 4  # with the note about the model
    _, expected, _ = run("ask", scene, lines[1], lines[4], *ASKED)
    assert [json.loads(line)["answer"] for line in out.splitlines()] == [
        json.loads(line)["answer"] for line in expected.splitlines()
    ]


def test_piped_lines_that_are_not_utf8(run, scene, piped):
    piped(b"A caf\xe9?\nWhat?\n\nA caf\xe9?\n")
    code, out, err = run("ask", scene, "--max-new-tokens", 1)
    assert (code, out.count("\n")) == (2, 1)
    text = "the question must be text that UTF-8 can write, got 'A caf\\udce9?'"
    assert refused_lines(err) == [f"error: line 1: {text}", f"error: line 4: {text}"]


def test_a_piped_question_that_the_model_refuses(run, scene, piped, monkeypatch):
    """After the image is encoded, as a text encoder of a method does."""
    reply = Seen.reply

    def refusing(seen, prompts, *rest, **options):
        refusing.calls += 1
        if refusing.calls == 1:
            raise NotImplementedError("no such words\nfor this method")
        return reply(seen, prompts, *rest, **options)

    refusing.calls = 0
    monkeypatch.setattr(Seen, "reply", refusing)
    piped(b"What?\nWhat?\n")
    code, out, err = run("ask", scene, *ASKED)
    assert (code, out.count("\n")) == (2, 1)
    assert refused_lines(err) == ["error: line 1: no such words"]
    assert set(json.loads(out)["seconds"]) >= {"read", "load", "answer"}


def test_an_image_that_cannot_be_encoded_ends_a_pipe(run, scene, piped, monkeypatch):
    def damaged(session, scene, **options):
        raise ValueError("the image is damaged")

    monkeypatch.setattr(Session, "encode", damaged)
    piped(b"What?\nWhat?\n")
    check_refusal(run("ask", scene, *ASKED), "the image is damaged")


@pytest.mark.parametrize("text", ["0", "1", "2MiB"])
def test_session_memory_may_be_nothing(text):
    assert session_memory_size(text) == text


@pytest.mark.parametrize("text", ["", "-1", "0 things", "much"])
def test_other_session_memory_is_a_size(text):
    with pytest.raises(typer.BadParameter, match="memory must be a size such as 8GiB or 512MB"):
        session_memory_size(text)


def test_the_memory_budget_is_not_nothing(run, scene):
    refused = run("ask", scene, "What?", "--memory-budget", "0")
    check_refusal(refused, "memory must be a size such as 8GiB or 512MB, got 0")


def test_a_piped_question_is_answered_as_it_comes(scene):
    """The answer is there before the next question is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "geollava", "ask", str(scene), *map(str, ASKED)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for text in QUESTIONS[:2]:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        report = json.loads(process.stdout.readline())
        assert (report["question"], report["crops"]) == (text, 12)
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()
