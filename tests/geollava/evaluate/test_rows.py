"""Every form of data gives the same rows and images."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from geollava.evaluate.rows import Data
from tests.geollava.conftest import noise
from tests.geollava.evaluate.parrot import XLRS, write


@pytest.mark.parametrize("kind", ["saved", "parts", "parquet", "folder", "jsonl"])
def test_forms_of_data(questions, tmp_path, kind):
    rows = json.loads(questions.read_text())
    opened = [{**row, "image": [Image.open(questions.parent / row["image"][0])]} for row in rows]
    columns = ("index", "question", "multi-choice options", "answer", "category", "image")
    table = datasets.Dataset.from_list([{k: row[k] for k in columns} for row in opened])
    source, split = tmp_path / "data", None
    if kind == "saved":
        table.save_to_disk(source)
    elif kind == "parts":
        datasets.DatasetDict({"train": table, "other": table.select([0])}).save_to_disk(source)
        with pytest.raises(ValueError, match="has the parts other, train: choose one by --split"):
            Data(XLRS, str(source))
        split = "train"
    elif kind == "parquet":
        source.mkdir()
        table.to_parquet(source / "0.parquet")
    elif kind == "folder":
        (tmp_path / "train.json").write_text("[]")
        write(tmp_path / "test.json", rows)
        source = tmp_path
    else:
        source = tmp_path / "rows.jsonl"
        source.write_text("\n".join(json.dumps(row) for row in rows))
    data = Data(XLRS, str(source), split, questions.parent if kind in ("folder", "jsonl") else None)
    examples = data.examples(blind=False, limit=None)
    assert [example.problem for example in examples] == [None] * 40
    assert [example.index for example in examples] == [row["index"] for row in rows]
    assert len({example.images for example in examples}) == 5
    with data.open(examples[39]) as (scene,):
        assert np.array_equal(scene.read_rows(0, 300, 1), np.asarray(noise(640, 300, 4)))
