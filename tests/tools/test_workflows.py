"""Workflows and issue forms of the hosting site: they parse, and call what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_make_and_is_allowed_little(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["name"] == path.stem
    assert workflow[True]  # YAML 1.1 reads `on` so
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        assert set(job.get("permissions", {})) <= {"id-token"}
        for step in job["steps"]:
            if "run" in step:
                (target,) = re.fullmatch(r"make ([\w-]+)", step["run"]).groups()
                assert target in make_targets()
            else:
                assert re.search(r"@(v\d+|release/v1)$", step["uses"])


def test_there_is_a_workflow_for_each_habit():
    assert [path.stem for path in WORKFLOWS] == ["docs", "matrix", "tests", "wheels"]
    publish = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())["jobs"]["publish"]
    assert "workflow_dispatch" in publish["if"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert any(part.get("validations", {}).get("required") for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
    for part in form["body"]:
        assert part["type"] in {"markdown", "input", "textarea", "dropdown", "checkboxes"}
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]
        if part["type"] in {"dropdown", "checkboxes"}:
            assert part["attributes"]["options"]


def test_a_wrong_result_comes_with_its_proof():
    assert [path.stem for path in FORMS] == ["new-host", "new-method", "wrong-result"]
    assert "tokenprune verify" in FORMS[-1].read_text()
