"""What tests of the plug-ins for lmms-eval share: a run of lmms-eval itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOUND = importlib.util.find_spec("lmms_eval")
needs_lmms_eval = pytest.mark.skipif(FOUND is None, reason="lmms-eval is not installed")


def moved_tasks(sources, names, target):
    """A copy of folders of tasks in one, where old texts are new ones: data that lies here."""
    target.mkdir()
    for path in (path for source in sources for path in source.iterdir() if path.is_file()):
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(old, str(new))
        (target / path.name).write_text(text)
    return target


def run_lmms(folder, plugin, model_args, tasks_folder, tasks, *options):
    """Runs lmms-eval on the CPU -> (results, samples in order) of each task.

    Args:
        plugin: name of a model = module:manifest, which is found as an installation's.
    """
    info = folder / "site" / "plug-0.dist-info"  # for a checkout that is not installed
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[lmms_eval.models]\n{plugin}\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "LMMS_EVAL_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        "-m", "lmms_eval", "--model", plugin.split(" ")[0], "--model_args", model_args,
        "--tasks", ",".join(tasks), "--include_path", tasks_folder, "--device", "cpu",
        "--output_path", folder / "out", "--log_samples", *options,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = list((folder / "out").rglob("*_results.json"))
    assert len(found) == 1, (done.stdout + done.stderr)[-3000:]  # it logs errors, and returns 0
    results = json.loads(found[0].read_text())["results"]
    samples = {}
    for task in tasks:
        (path,) = (folder / "out").rglob(f"*samples_{task}.jsonl")
        lines = map(json.loads, path.read_text().splitlines())
        samples[task] = sorted(lines, key=lambda line: line["doc_id"])
    return {task: results[task] for task in tasks}, samples
