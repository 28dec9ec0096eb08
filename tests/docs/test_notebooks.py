"""The notebooks run as they are committed, without a network, and lie there without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PICTURES = {"apply-to-a-vlm": 1, "ask-a-scene": 2, "reduce-any-tensor": 2}
SAID = {  # what only comes out where the notebook worked
    "apply-to-a-vlm": ["0      256       64        0      192", "\nverified\n", "whole        -"],
    "ask-a-scene": ["What kind of vehicle is purple?", "9,216 visual tokens -> 384"],
    "reduce-any-tensor": ["keep_indices  [4, 24]", "576 get a gradient"],
}
PNG = "image/png"

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == sorted(PICTURES)


@by_name
def test_committed_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert 0 < len(code) < 10
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


@pytest.mark.slow
@by_name
def test_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # other tests' own
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    streams = [out for out in outputs if out.output_type == "stream"]
    assert [out.text for out in streams if out.name == "stderr"] == []
    printed = "".join(out.text for out in streams)
    assert [text for text in SAID[path.stem] if text not in printed] == []
    pictures = [out for out in outputs if PNG in out.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    assert list(tmp_path.iterdir()) == []
