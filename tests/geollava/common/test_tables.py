"""Tables in Markdown stay tables, whatever their cells hold."""

from __future__ import annotations

from geollava.common.tables import property_table, table


def test_lines_of_a_table():
    assert table(("name", "%"), [("a", 50.0), ("b", "-")]) == [
        "| name | % |",
        "|---|---|",
        "| a | 50.0 |",
        "| b | - |",
    ]
    assert property_table({"size": [1, 2], "limit": None}) == [
        "| | |",
        "|---|---|",
        "| size | [1, 2] |",
        "| limit | null |",
    ]


def test_a_cell_is_one_cell():
    assert table(("a | b",), [("c\nd\r| é",)]) == [
        "| a \\| b |",
        "|---|",
        "| c\\nd\\r\\| é |",
    ]
