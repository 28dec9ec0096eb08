"""The tool that installs, and the lock that it installs from."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import install  # noqa: E402

LOCKED = [
    Requirement(line)
    for line in install.LOCK.read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def requirements(extra: str) -> set[str]:
    """Names of all packages that an extra asks for, with the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names: set[str] = set()
    for one in map(Requirement, project["dependencies"] + project["optional-dependencies"][extra]):
        if one.name != project["name"]:
            names.add(canonicalize_name(one.name))
        else:
            names.update(*map(requirements, one.extras))
    return names


@pytest.mark.parametrize(
    ("system", "python"), [("posix", "bin/python"), ("nt", "Scripts/python.exe")]
)
def test_where_an_environment_has_its_python(monkeypatch, tmp_path, system, python):
    expected = tmp_path / python
    monkeypatch.setattr(install, "os", type("os", (), {"name": system}))
    assert install.python_of(tmp_path) == expected


@pytest.mark.parametrize("reached", [0, 1, None])
def test_the_cpu_build_is_looked_for_where_pip_looks_first(monkeypatch, capsys, reached):
    asked = []

    def pip(python, *arguments, quiet):
        asked.append(arguments)
        return len(asked) - 1 == reached

    monkeypatch.setattr(install, "pip", pip)
    install.install_cpu_torch(Path("python"))
    assert all(one[-1] == f"torch=={install.pinned_torch()}+cpu" for one in asked)
    assert [install.CPU_INDEX in one for one in asked] == [False, True][: len(asked)]
    assert ("was not reached" in capsys.readouterr().out) == (reached is None)


def test_no_environment_can_be_made_without_ensurepip(monkeypatch, tmp_path):
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="python3-venv"):
        install.make_environment(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_pip_shows_errors_and_nothing_else(capfd):
    python = Path(sys.executable)
    assert not install.pip(python, "--no-index", "no-such-package-of-ours")
    assert "No matching distribution found for no-such-package-of-ours" in capfd.readouterr().err
    assert install.pip(python, "--no-index", "pip")
    assert capfd.readouterr() == ("", "")


def test_the_lock_pins_everything_that_is_asked_for_on_every_python():
    asked = requirements("dev")
    for version in ("3.10", "3.11", "3.13"):
        there = default_environment() | {
            "python_version": version,
            "python_full_version": f"{version}.0",
            "sys_platform": "linux",
        }
        pins = [one for one in LOCKED if one.marker is None or one.marker.evaluate(there)]
        names = [one.name for one in pins]
        assert len(names) == len(set(names))
        assert asked <= set(names), asked - set(names)
        assert all(re.fullmatch(r"==[\w.+]+", str(one.specifier)) for one in pins)


def test_ci_runs_what_the_lock_says():
    if os.environ.get("CI") != "true":
        pytest.skip("a developer's environment may have other versions")
    locked = {one.name: one for one in LOCKED if one.marker is None or one.marker.evaluate()}
    others = {
        f"{name} {one.version}"
        for one in distributions()
        if (name := canonicalize_name(one.metadata["Name"])) in locked
        and not locked[name].specifier.contains(one.version, prereleases=True)
    }
    assert not others
