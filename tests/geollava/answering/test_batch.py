"""Many scenes: one row per scene and question, whatever happens on the way."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from geollava.answering import batch, source
from geollava.answering.session import Session
from geollava.imagery import read_image
from geollava.model.default_model import DEMONSTRATION, default_checkpoint
from tests.geollava.conftest import noise, vrt

parquet = pytest.importorskip("pyarrow.parquet")
QUESTIONS = ["How many ships?", "Land or sea?"]


@pytest.fixture
def job(tmp_path, complete_checkpoint):
    """Makes a folder of scenes, a file of questions, and the command line about them."""

    def job(count, *options):
        folder = tmp_path / "scenes"
        folder.mkdir()
        for number in range(count):
            noise(120, 80, seed=number).save(folder / f"{number:04}.png")
        (tmp_path / "q.txt").write_text("\n".join(QUESTIONS) + "\n\n")
        return [
            "batch", folder, "--questions", tmp_path / "q.txt", "--out", tmp_path / "a.parquet",
            "--model", complete_checkpoint, "--max-new-tokens", 3, *options,
        ]  # fmt: skip

    return job


def rows_of(path):
    return parquet.read_table(path).to_pylist()


def check_complete(path, count):
    keys = [(row["scene"], row["question"]) for row in rows_of(path)]
    names = [f"{number:04}.png" for number in range(count)]
    assert [(scene[-8:], question) for scene, question in keys] == [
        (name, question) for name in names for question in QUESTIONS
    ]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.parquet", "q.txt", "scenes"]


def test_rows(run, job, tmp_path, pair):
    code, out, err = run(*job(3))
    assert (code, out) == (0, ""), err
    assert "6 rows in" in err
    assert DEMONSTRATION not in err
    check_complete(tmp_path / "a.parquet", 3)
    for row in rows_of(tmp_path / "a.parquet"):
        image = read_image(row["scene"])
        expected = Session.of(*pair).see(image).ask(row["question"], max_new_tokens=3)
        assert row["answer"] == expected.text
        assert row["error"] is None
        assert row["crops"] == expected.crops
        assert row["tokens_after"] == expected.tokens_after < row["tokens_before"]
        assert row["seconds"] > 0


def test_the_demonstration_model_says_so_once(run, job):
    code, _, err = run(*job(2, "--model", default_checkpoint()))
    assert code == 0, err
    assert err.count(DEMONSTRATION) == 1


def test_a_bad_scene_is_a_row_with_its_error(run, job, tmp_path):
    command = job(3)
    (tmp_path / "scenes" / "0001.png").write_text("no picture")
    code, _, err = run(*command)
    assert code == 0
    assert "2 of them with an error" in err
    rows = rows_of(tmp_path / "a.parquet")
    assert [row["answer"] is None for row in rows] == [False, False, True, True, False, False]
    assert all("0001.png must be an image" in row["error"] for row in rows[2:4])
    check_complete(tmp_path / "a.parquet", 3)


def test_what_in_a_folder_is_a_scene(run, job, tmp_path):
    """...what is left out, and what is neither."""
    command = job(1)
    folder = tmp_path / "scenes"
    for name in ("0000.png.aux.xml", "0000.ovr", "0000.pgw", "about.TXT", ".DS_Store", "x.geojson"):
        (folder / name).write_text("no picture")
    for name in (".git", "a.parquet.parts"):
        (folder / name).mkdir()
        (folder / name / "0.parquet").write_text("no table")
    for name in ("cut.parquet", "list.npy", "scene", "x.gif"):
        (folder / name).write_text("no picture")
    (folder / "gone.tif").symlink_to("nothing")
    (folder / "more").symlink_to(tmp_path)
    (folder / "own.lst").write_text("What?")
    command[3], command[5] = folder / "own.lst", folder / "b.parquet"
    earlier = [*command[:5], folder / "earlier.parquet", *command[6:], "--num-keep", 2]
    for arguments in (earlier, command):
        code, _, err = run(*arguments)
        assert code == 0, err
    rows = {row["scene"].rpartition("/")[2]: row["error"] for row in rows_of(folder / "b.parquet")}
    names = ["0000.png", "cut.parquet", "gone.tif", "list.npy", "more", "scene", "x.gif"]
    assert list(rows) == names
    assert [name for name in rows if rows[name] is None] == ["0000.png"]
    assert "gone.tif does not exist" in rows["gone.tif"]
    assert "more holds scenes that are not asked about: the folder is a link" in rows["more"]
    for name in ("cut.parquet", "list.npy", "scene", "x.gif"):
        assert f"{name} must be an image that geollava reads (.jpg, .jpeg, " in rows[name]


def test_a_folder_without_any_scene(run, job, tmp_path):
    command = job(0)
    (tmp_path / "scenes" / "x.gif").write_text("no picture")
    code, _, err = run(*command)
    assert code == 0, err
    assert [row["error"] is None for row in rows_of(tmp_path / "a.parquet")] == [False, False]


def test_a_question_that_does_not_fit_is_a_row_with_its_error(run, job, tmp_path):
    command = job(1)
    (tmp_path / "q.txt").write_text("Short?\n" + "long " * 20_000)
    assert run(*command)[0] == 0
    short, long = rows_of(tmp_path / "a.parquet")
    assert short["error"] is None
    assert "positions: keep fewer tokens" in long["error"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_of_scenes(kind, job, run, tmp_path):
    command = job(2)
    names = ["scenes/0001.png", "scenes/0000.png", "scenes/0001.png", "https://host/a.tif"]
    source = tmp_path / f"list.{kind}"
    if kind == "csv":
        with source.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "Image"], *enumerate(names)])
    else:
        import pyarrow

        parquet.write_table(pyarrow.table({"Image": names}), source)
    command[1] = source
    assert run(*command)[0] == 0
    rows = rows_of(tmp_path / "a.parquet")
    assert [row["scene"].rsplit("/", 1)[-1] for row in rows[::2]] == [
        "0001.png",
        "0000.png",
        "a.tif",
    ]
    assert [row["error"] for row in rows[4:]] == [
        "https://host/a.tif must be a file on this machine, network paths are not read"
    ] * 2


def test_a_method_that_needs_the_question(run, job, tmp_path):
    code, _, err = run(*job(1, "--method", "cdpruner", "--num-keep", 1))
    assert code == 0, err
    assert [row["tokens_after"] for row in rows_of(tmp_path / "a.parquet")] == [
        row["crops"] for row in rows_of(tmp_path / "a.parquet")
    ]


def test_finished_rows_are_not_computed_again(run, job, tmp_path, monkeypatch):
    command = job(2)
    assert run(*command)[0] == 0
    asked = []
    original = batch.SceneAnswerer.__call__
    monkeypatch.setattr(
        batch.SceneAnswerer,
        "__call__",
        lambda self, task: asked.append(task) or original(self, task),
    )
    noise(60, 60).save(tmp_path / "scenes" / "0002.png")
    with (tmp_path / "q.txt").open("a") as file:
        file.write("A third?\n")
    assert run(*command)[0] == 0
    assert [(task.scene[-8:], len(task.questions)) for task in asked] == [
        ("0000.png", 1), ("0001.png", 1), ("0002.png", 3),
    ]  # fmt: skip
    assert len(rows_of(tmp_path / "a.parquet")) == 9
    before = rows_of(tmp_path / "a.parquet")
    code, _, err = run(*command, "--max-new-tokens", 4)
    assert code == 2
    assert rows_of(tmp_path / "a.parquet") == before
    assert "answers with other settings" in err


@pytest.fixture
def asked(monkeypatch):
    """Collects (scene's number, questions) of all tasks that are worked on."""
    asked = []
    original = batch.SceneAnswerer.__call__

    def call(self, task):
        asked.append((int(task.scene[-8:-4]), list(task.questions)))
        return original(self, task)

    monkeypatch.setattr(batch.SceneAnswerer, "__call__", call)
    return asked


def test_other_questions_leave_the_finished_rows(run, job, tmp_path, asked):
    command = job(2)
    assert run(*command)[0] == 0
    before = rows_of(tmp_path / "a.parquet")
    (tmp_path / "q.txt").write_text("A third?\n")
    code, _, err = run(*command)
    assert code == 0
    assert "6 rows in" in err
    after = rows_of(tmp_path / "a.parquet")
    assert [row["question"] for row in after[:2]] == ["A third?"] * 2
    assert after[2:] == before
    (tmp_path / "scenes" / "0000.png").unlink()
    assert run(*command)[0] == 0
    assert len(rows_of(tmp_path / "a.parquet")) == 6
    assert asked[2:] == [(0, ["A third?"]), (1, ["A third?"])]


def test_what_changed_is_answered_anew(run, job, tmp_path, asked, checkpoint_copy):
    command = job(2)
    command[command.index("--model") + 1] = checkpoint_copy
    assert run(*command)[0] == 0
    before = rows_of(tmp_path / "a.parquet")
    noise(140, 90, seed=5).save(tmp_path / "scenes" / "0001.png")
    assert run(*command)[0] == 0
    assert asked[2:] == [(1, QUESTIONS)]
    after = rows_of(tmp_path / "a.parquet")
    assert after[:2] == before[:2]
    assert not {row["fingerprint"] for row in after[2:]} & {row["fingerprint"] for row in before}

    (checkpoint_copy / "README.md").touch()
    assert run(*command)[0] == 0
    assert len(asked) == 3
    os.utime(checkpoint_copy / "model.safetensors", (1, 1))
    assert run(*command)[0] == 0
    assert asked[3:] == [(0, QUESTIONS), (1, QUESTIONS)]
    assert len(rows_of(tmp_path / "a.parquet")) == 4


def test_exif(run, job, tmp_path, pair):
    command, exif = job(0), Image.Exif()
    exif[274] = 6
    image = noise(120, 80)
    image.save(tmp_path / "scenes" / "0000.png", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    for options, shown in (((), image), (("--exif", "applied"), turned)):
        command[5] = tmp_path / f"{len(options)}.parquet"
        code, _, err = run(*command, *options)
        assert code == 0, err
        assert [row["answer"] for row in rows_of(command[5])] == [
            Session.of(*pair).see(shown).ask(question, max_new_tokens=3).text
            for question in QUESTIONS
        ]
    assert '"exif"' not in batch.Settings("x").of_answers()  # outputs of earlier versions fit
    code, _, err = run(*command)
    assert (code, "answers with other settings" in err) == (2, True)


def test_a_vrt_is_answered_anew_when_a_source_changed(run, job, tmp_path, asked):
    pytest.importorskip("rasterio")
    command, folder = job(0), tmp_path / "scenes"
    noise(64, 48).save(folder / "tile.tiff")
    noise(64, 48).save(folder / "0001.tif")
    (folder / "0000.vrt").write_text(vrt("tile.tiff"))
    list_file = tmp_path / "list.csv"
    list_file.write_text("image\nscenes/0000.vrt\nscenes/0001.tif\n")
    command[1] = list_file
    for _ in range(2):
        assert "0 of them with an error" in run(*command)[2]
    assert [number for number, _ in asked] == [0, 1]
    noise(64, 48, seed=1).save(folder / "tile.tiff")
    os.utime(folder / "tile.tiff", (1, 1))
    assert run(*command)[0] == 0
    assert [number for number, _ in asked[2:]] == [0]
    noise(32, 24).save(folder / "0001.tif.ovr", format="tiff")
    assert run(*command)[0] == 0
    assert [number for number, _ in asked[3:]] == [1]


def test_rows_with_an_error_are_tried_again(run, job, tmp_path, asked, monkeypatch):
    command = job(2)
    with monkeypatch.context() as patch:
        patch.setattr(source, "open_scene", lambda path, **options: 1 / 0)
        assert "4 of them with an error" in run(*command)[2]
    code, _, err = run(*command)
    assert (code, "0 of them with an error" in err) == (0, True)
    assert len(asked) == 4
    check_complete(tmp_path / "a.parquet", 2)


def test_two_runs_into_one_output(run, job, tmp_path):
    command = job(1)
    assert run(*command)[0] == 0
    arguments = [
        sys.executable, "-c", "import sys, time; from pathlib import Path; "
        "from geollava.answering.finished import Finished\n"
        "with Finished(Path(sys.argv[1]), '').locked(): print(flush=True); time.sleep(1000)",
        tmp_path / "a.parquet",
    ]  # fmt: skip
    other = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    other.stdout.readline()
    code, out, err = run(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a.parquet must have one run at a time, another one is writing it" in err
    other.kill()
    other.wait()
    (tmp_path / ".a-0123abcd.parquet").write_text("left by a kill")
    assert run(*command)[0] == 0
    check_complete(tmp_path / "a.parquet", 1)


def test_names_that_are_no_utf_8_and_of_two_lines(run, job, tmp_path):
    command = job(0)
    for name in (b"a\xe9.png", b"b\nc.png"):
        path = os.path.join(os.fsencode(tmp_path / "scenes"), name)
        with open(path, "wb") as file:
            file.write(b"no picture")
    for _ in range(2):
        assert run(*command)[0] == 0
        rows = rows_of(tmp_path / "a.parquet")
        names = [row["scene"].rpartition("/")[2] for row in rows]
        assert names == ["a\\udce9.png"] * 2 + ["b\nc.png"] * 2
        assert "a\\udce9.png must be an image" in rows[0]["error"]
        assert "b\\nc.png must be an image" in rows[2]["error"]


def killed_and_resumed(command, target, count):
    """Kills the command when some parts are there, and lets it run again. -> rows kept."""
    script = (
        "import sys; from geollava.answering import batch; from geollava.commands import main; "
        "batch.SECONDS_PER_PART = 0.05; main.main(sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", script, *map(str, command)]
    process = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.PIPE)
    parts = target.with_name(target.name + ".parts")
    deadline = time.monotonic() + 100
    while len(list(parts.glob("part-*"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists()
    before = {}
    for path in parts.glob("part-*"):
        before |= {(r["scene"], r["question"]): r["seconds"] for r in rows_of(path)}
    assert 0 < len(before) < count * len(QUESTIONS)
    again = subprocess.run(arguments, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    after = {(r["scene"], r["question"]): r["seconds"] for r in rows_of(target)}
    assert {key: after[key] for key in before} == before


def test_survives_being_killed(job, tmp_path):
    command = job(20)
    killed_and_resumed(command, tmp_path / "a.parquet", 20)
    check_complete(tmp_path / "a.parquet", 20)


@pytest.mark.slow
def test_survives_being_killed_on_ray(job, tmp_path):
    pytest.importorskip("ray")
    command = job(100, "--engine", "ray", "--workers", 2)
    (tmp_path / "scenes" / "0050.png").write_text("no picture")
    killed_and_resumed(command, tmp_path / "a.parquet", 100)
    check_complete(tmp_path / "a.parquet", 100)
    errors = [row for row in rows_of(tmp_path / "a.parquet") if row["error"]]
    assert {row["scene"][-8:] for row in errors} == {"0050.png"}


def test_bad_usage(run, job, tmp_path):
    command = job(1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "names.csv").write_text("name\nx.png\n")
    (tmp_path / "other.parquet").write_text("no table")
    for changes, message in (
        ({1: "/nowhere"}, "/nowhere does not exist"),
        ({1: tmp_path / "empty"}, "at least one scene"),
        ({1: tmp_path / "names.csv"}, "must have a column image or scene, got name"),
        ({1: tmp_path / "other.parquet"}, "must be a Parquet file"),
        ({3: "/nowhere.txt"}, "/nowhere.txt does not exist"),
        ({3: tmp_path / "empty.txt"}, "a question on each line"),
        ({5: tmp_path / "a.csv"}, "must end in .parquet"),
        ({5: "/nowhere/a.parquet"}, "folder /nowhere does not exist"),
        ({5: tmp_path / "other.parquet"}, "must be an output of geollava batch"),
        ({7: "/nowhere"}, "/nowhere does not exist"),
    ):
        changed = [changes.get(place, argument) for place, argument in enumerate(command)]
        code, out, err = run(*changed)
        assert (code, out) == (2, ""), err
        assert message in err
        assert err.count("\n") == 1, err
    code, _, err = run(*command, "--engine", "spark")
    assert (code, err.count("\n")) == (2, 1)
    assert "'spark' is not one of 'local', 'ray'" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert "pip install 'tokenprune-vlm[ray]'" in run(*command, "--engine", "ray")[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert "pip install 'tokenprune-vlm[batch]'" in run(*command)[2]
