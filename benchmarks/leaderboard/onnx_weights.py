"""Named tensors and linear layers of an ONNX file, without the package onnx.

Source: onnx.proto3 of ONNX and Protocol Buffers' encoding; only what exported towers hold is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLOAT32 = 1  # TensorProto.DataType
GRAPH = 7  # field of ModelProto
NODE, INITIALIZER = 1, 5  # fields of GraphProto
INPUT, NODE_NAME, OP_TYPE = 1, 3, 4  # fields of NodeProto
DIMS, DATA_TYPE, TENSOR_NAME, RAW_DATA = 1, 2, 8, 9  # fields of TensorProto


@dataclass(frozen=True)
class OnnxWeights:
    """What is read of a file.

    Attributes:
        tensors: float32 initializers by name.
        products: of each MatMul node with a weight, the node's name and the weight's.
    """

    tensors: dict[str, Tensor]
    products: dict[str, str]


def read_onnx(path: Path) -> OnnxWeights:
    """
    Raises:
        ValueError: the file holds no graph.
    """
    graphs = [value for field, value in fields_of(memoryview(path.read_bytes())) if field == GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"{path.name} must hold one graph, it has {len(graphs)}")
    tensors: dict[str, Tensor] = {}
    nodes: list[memoryview] = []
    for field, value in fields_of(graphs[0]):
        if field == INITIALIZER:
            tensors |= tensor_of(value)
        elif field == NODE:
            nodes.append(value)
    products = {}
    for node in nodes:
        parts = list(fields_of(node))
        inputs, (name,), (kind,) = (
            [bytes(value).decode() for field, value in parts if field == wanted]
            for wanted in (INPUT, NODE_NAME, OP_TYPE)
        )
        if kind == "MatMul" and inputs[1] in tensors:
            products[name] = inputs[1]
    return OnnxWeights(tensors, products)


def tensor_of(message: memoryview) -> dict[str, Tensor]:
    """One tensor by its name, nothing where it is not float32."""
    shape: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for field, value in fields_of(message):
        if field == DIMS:
            shape += [value] if isinstance(value, int) else list(packed(value))
        elif field == DATA_TYPE:
            kind = value
        elif field == TENSOR_NAME:
            name = bytes(value).decode()
        elif field == RAW_DATA:
            raw = value
    if kind != FLOAT32 or not raw:
        return {}
    return {name: torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(shape)}


def fields_of(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int, or the bytes of what has a length or a fixed width."""
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type must be 0, 1, 2 or 5, got {kind}")
        if place + length > len(message):
            raise ValueError(f"a field of {length} bytes ends {place + length} in {len(message)}")
        yield key >> 3, message[place : place + length]
        place += length


def varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place


def packed(message: memoryview) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = varint(message, place)
        yield value
