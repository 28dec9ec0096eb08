"""What is done to a good file: to its bytes, or to what its format says, checksums kept right."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

NUMBERS = [b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"]
WORDS = [b"null", b"[]", b"{}", b"-1", b"1e999", b'"x"', b"\n", b"%", b"&a [*a]", b"../", b"NaN"]
WORDS += [b"[" * 5000, b"{{", b"{% for a in b %}", b"}}", b"{{ raise_exception('a\nb') }}"]
VALUES = [None, [], {}, -1, 0, 1, 1.5, True, 1e999, -1e999, 10**9, 2**63, 10**400]
VALUES += ["", "x", "../x", "a\nb", "\ud800", ["x"], {"x": 1}]
SAME_NAME = "\x01"  # marks the second of two keys that are to be written with one name


def mutate(name: str, data: bytes, draw: random.Random) -> bytes:
    """The content of a file of such a name, changed."""
    by_format = FORMATS.get(name.rpartition(".")[2])
    if by_format is not None and draw.random() < 0.6:
        return by_format(data, draw)
    return mutate_bytes(data, draw)


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, numbers, words, pieces cut, doubled or moved."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not out:
            return bytes(out)
        # Headers decide most: half of the changes are at the beginning.
        at = draw.randrange(min(len(out), 512) if draw.random() < 0.5 else len(out))
        kind = draw.randrange(6)
        size = draw.choice([1, 2, 4, 16, 200])
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            number = draw.choice(NUMBERS)
            out[at : at + len(number)] = number
        elif kind == 2:
            out[at:at] = draw.choice(WORDS)
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = out[at : at + size]
        else:
            del out[draw.choice([at, len(out) // 2, len(out) - 1]) :]
    return bytes(out)


def mutate_tree(tree: Any, draw: random.Random) -> Any:
    """One to three values of parsed JSON or YAML replaced, taken away or doubled."""
    for _ in range(draw.randint(1, 3)):
        if not isinstance(tree, (dict, list)) or not tree or draw.random() < 0.02:
            return value(draw)
        node: Any = tree
        while True:  # a random way down, for most values of a tokenizer are its words
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            if not isinstance(node[key], (dict, list)) or not node[key] or draw.random() < 0.3:
                break
            node = node[key]
        kind = draw.randrange(8)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[f"{key}{SAME_NAME}"] = value(draw)
        elif kind == 1:
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = value(draw)
    return tree


def value(draw: random.Random) -> Any:
    if draw.random() < 0.03:
        nested: Any = []
        for _ in range(draw.choice([50, 400])):
            nested = [nested] if draw.random() < 0.5 else {"x": nested}
        return nested
    return copy.deepcopy(draw.choice(VALUES))  # it is changed in its turn


def as_json(tree: Any, infinity: str = "1e999") -> bytes:
    text = json.dumps(tree).replace(json.dumps(SAME_NAME)[1:-1], "")
    return text.replace("Infinity", infinity).encode()


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    return as_json(mutate_tree(json.loads(data), draw))


def mutate_yaml(data: bytes, draw: random.Random) -> bytes:
    import yaml

    return as_json(mutate_tree(yaml.safe_load(data), draw), ".inf")


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    """The header as JSON; its length stays true."""
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutate_parquet(data: bytes, draw: random.Random) -> bytes:
    """A column with other values or another name, or without rows."""
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    place = draw.randrange(table.num_columns)
    name = table.column_names[place]
    kind = draw.randrange(4)
    if kind == 0:
        table = table.rename_columns(
            [draw.choice(["", "x", "IMAGE", table.column_names[0]]) if n == name else n
             for n in table.column_names]
        )  # fmt: skip
    elif kind == 1:
        table = table.drop_columns([name]) if draw.random() < 0.5 else table.slice(0, 0)
    else:
        cell = draw.choice([v for v in VALUES if v not in (2**63, 10**400, "\ud800")])
        cell = draw.choice([cell, b"\xff", b"", "/", "://", "\0"])
        column = pyarrow.array([cell] * table.num_rows)
        table = table.set_column(place, name, column)
    out = io.BytesIO()
    try:
        parquet.write_table(table, out)
    except pyarrow.ArrowException:  # not every type can be stored
        return mutate_bytes(data, draw)
    return out.getvalue()


def mutate_tiff(data: bytes, draw: random.Random) -> bytes:
    """Entries of the first directory: other tags, types, counts or values."""
    order = "<" if data[:2] == b"II" else ">"
    out, (start,) = bytearray(data), struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    for _ in range(draw.randint(1, 2)):
        at = start + 2 + 12 * draw.randrange(count)
        big = draw.choice([0, 1, 2, 7, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, len(data) - 1])
        kind = draw.randrange(4)
        if kind == 0:
            tag = draw.choice([254, 258, 259, 262, 277, 284, 317, 330, 338, 339, 347, 700, 33_550])
            struct.pack_into(order + "H", out, at, tag)
        elif kind == 1:
            struct.pack_into(order + "H", out, at + 2, draw.randrange(20))
        else:
            struct.pack_into(order + "I", out, at + 4 * (kind - 1), big)
    return bytes(out)


def mutate_png(data: bytes, draw: random.Random) -> bytes:
    """The content of a chunk; its length and checksum stay true."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = draw.randrange(len(chunks))
    kind, content = chunks[chosen]
    chunks[chosen] = (kind, mutate_bytes(content, draw))
    if draw.random() < 0.2:
        chunks.insert(draw.randrange(len(chunks)), draw.choice(chunks))
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + zlib.crc32(kind + content).to_bytes(4)
        for kind, content in chunks
    )


FORMATS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": mutate_json,
    "yaml": mutate_yaml,
    "safetensors": mutate_safetensors,
    "parquet": mutate_parquet,
    "tif": mutate_tiff,
    "png": mutate_png,
}
