"""What a release must be: its lists of files, its version, silence."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import release  # noqa: E402

FILES = ["tokenprune/__init__.py", "geollava/py.typed", "tests/test_a.py", "README.md"]
INFO = "tokenprune_vlm-1.2.3.dist-info"
WHEEL = [*FILES[:2], f"{INFO}/METADATA", f"{INFO}/licenses/LICENSE"]
SDIST = [*FILES[:2], *release.IN_SOURCE, "setup.cfg", "tokenprune_vlm.egg-info/SOURCES.txt"]


def write(path: Path, names: list[str]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "")
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(f"tokenprune_vlm-1.2.3/{name}"), io.BytesIO())
    return path


@pytest.mark.parametrize(("kind", "right"), [("wheel", WHEEL), ("sdist", SDIST)])
def test_a_distribution_has_what_the_checkout_has_and_no_more(tmp_path, kind, right):
    path = tmp_path / ("a.whl" if kind == "wheel" else "a.tar.gz")

    def check(names):
        release.check_contents(kind, release.contents(write(path, names)), FILES, "1.2.3")

    check(right)
    with pytest.raises(release.ReleaseError, match=f"the {kind} lacks: geollava/py.typed"):
        check([name for name in right if name != "geollava/py.typed"])
    with pytest.raises(release.ReleaseError, match="beside what it should: tests/test_a"):
        check([*right, "tests/test_a.py"])


def test_a_release_has_one_version():
    changelog = "# Changelog\n\n## Unreleased\n\n## 1.2.3 (2026-11-28)\n"
    citation = 'version: "1.2.3"\ndate-released: 2026-11-28\n'
    release.check_version("1.2.3", changelog, citation, ["v1.2.3"])
    for given, said in (
        (("1.2.4", changelog, citation, []), "a section '## 1.2.4"),
        (("1.2.3", changelog, citation.replace("28", "27"), []), "date-released: 2026-11-28"),
        (("1.2.3", changelog, "version: 1.2.2", []), "must say 'version: 1.2.3'"),
        (("1.2.3", changelog, citation, ["v1.2.2"]), "tag here is v1.2.2"),
    ):
        with pytest.raises(release.ReleaseError, match=re.escape(said)):
            release.check_version(*given)


def test_this_checkout_is_ready_for_its_tag():
    text = (ROOT / "tokenprune" / "version.py").read_text()
    assert f'"{release.version_of_checkout()}"' in text
    assert release.read("CHANGELOG.md").index("## Unreleased") < release.read("CHANGELOG.md").index(
        "## 0.1.0"
    )


def test_a_command_that_warns_is_refused(tmp_path):
    def run(code, **how):
        return release.run([sys.executable, "-c", code], folder=tmp_path, **how)

    assert run("print('kept')") == "kept\n"
    note = "import sys; print('note: seconds', file=sys.stderr)"
    assert run(note, may_say=True) == ""
    for code, how in (
        ("import warnings; warnings.warn('old', DeprecationWarning)", {"may_say": True}),
        ("import sys; print('UserWarning: it', file=sys.stderr)", {"may_say": True}),
        (note, {}),
        ("raise SystemExit(3)", {"may_say": True}),
    ):
        with pytest.raises(release.ReleaseError):
            run(code, **how)


@pytest.mark.parametrize(
    ("module", "name"), [("tokenprune.cli", "tokenprune"), ("geollava", "geollava")]
)
def test_a_command_says_its_version(module, name):
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name} {release.version_of_checkout()}\n"


def test_geollava_completes_what_is_typed(tmp_path):
    code = "from geollava.commands.main import main; import sys; sys.argv[0] = 'geollava'; main()"
    env = {
        "_GEOLLAVA_COMPLETE": "complete_bash",
        "COMP_WORDS": "geollava ask --over",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == ["--overlay"]
