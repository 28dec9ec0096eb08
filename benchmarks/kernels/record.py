"""Runs every launch in Triton's interpreter at a GPU's block sizes, and prints what was launched.

One JSON object a kernel: its signature and constants, for `compiled.py`, and the bytes that it asks
of global memory. A process of its own, which must have TRITON_INTERPRET=1 from its first import:

    python -m benchmarks.kernels.record sm_90 bfloat16
"""

from __future__ import annotations

import collections
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from benchmarks.kernels.launches import LAUNCHES, ROLES, Launch, tensors_in
from tokenprune.ops.common import launch

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
}
ALIGNMENT = 16  # bytes, or a divisor: what the compiler makes use of


class Recorder:
    """Stands between launches and the interpreter; one record for each kernel and its constants."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.current: dict[str, Any] = {}
        self.spans: list[tuple[int, int, str]] = []  # [first, last) address and role

    def attach(self) -> None:
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        run = executor.__call__
        multiply = builder.create_dot

        def launched(grid: Any, *args: Any, **kwargs: Any) -> None:
            self._begin(grid, args, kwargs)
            run(grid, *args, **kwargs)

        def dot(own: Any, left: Any, right: Any, *rest: Any) -> Any:
            self.current["flop"] += 2 * left.data.size * right.data.shape[-1]
            return multiply(own, left, right, *rest)

        executor.__call__ = launched
        builder.create_dot = dot
        builder.create_masked_load = self._counted(builder.create_masked_load, mask_at=1)
        builder.create_masked_store = self._counted(builder.create_masked_store, mask_at=2)
        for name in ("create_atomic_rmw", "create_atomic_cas"):
            setattr(builder, name, _not_counted)

    def _counted(self, access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        """An access to global memory; of masked elements nothing is asked."""

        def counted(builder: Any, pointers: Any, *rest: Any) -> Any:
            mask = rest[mask_at - 1].data
            if asked := int(np.count_nonzero(mask)):
                size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
                role = self._role(int(pointers.data.flat[mask.argmax()]))
                self.current["bytes"][role] += asked * size
            return access(builder, pointers, *rest)

        return counted

    def _role(self, address: int) -> str:
        found = {role for first, last, role in self.spans if first <= address < last}
        if len(found) != 1:
            raise RuntimeError(f"an access to {found or 'no argument'} of {self.current['kernel']}")
        return found.pop()

    def _begin(self, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = inspect.getfullargspec(grid.fn).args
        own = {name: value for name, value in kwargs.items() if name in names}
        given = inspect.getcallargs(grid.fn, *args, **own)
        record = describe(given, grid.constexprs) | {
            "kernel": f"{grid.fn.__module__}:{grid.fn.__name__}",
            "options": {name: value for name, value in kwargs.items() if name not in own},
        }
        self.current = self.records.setdefault(
            json.dumps(record), record | {"blocks": 0, "flop": 0, "held": {}, "bytes": {}}
        )
        self.current["bytes"] = collections.Counter(self.current["bytes"])
        self.current["blocks"] += torch.Size(grid.grid).numel()
        self.spans = []
        held: collections.Counter[str] = collections.Counter()
        for name, value in given.items():
            if isinstance(value, Tensor):
                role = ROLES.get(name, "scratch")
                held[role] += value.numel() * value.element_size()
                self.spans.append((*span(value), role))
        self.current["held"] = dict(held)


def _not_counted(*_: Any) -> Any:
    raise NotImplementedError("bytes of atomics are not counted")


def span(tensor: Tensor) -> tuple[int, int]:
    """[first, last) address of a tensor's elements."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps) + 1
    return tensor.data_ptr(), tensor.data_ptr() + last * tensor.element_size()


def describe(given: dict[str, Any], constexprs: list[str]) -> dict[str, Any]:
    """A kernel's signature as its compiler takes it, from the arguments of one launch.

    Numbers are never taken for constants: a launch of one crop is compiled like one of many.
    """
    signature, constants, aligned = {}, {}, []
    for name, value in given.items():
        if name in constexprs or value is None:
            signature[name], constants[name] = "constexpr", getattr(value, "value", value)
        elif isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if value.data_ptr() % ALIGNMENT == 0:
                aligned.append(name)
        elif isinstance(value, int):
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % ALIGNMENT == 0:
                aligned.append(name)
        else:
            signature[name] = "fp32"
    if "UPCAST" in constants:
        constants["UPCAST"] = False  # the interpreter alone multiplies wide
    return {"signature": signature, "constants": constants, "aligned": aligned}


def least_bytes(called: Launch, result: Any) -> int:
    """Features read once, results written once."""
    tensors = [*called.features, *tensors_in(result)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    configs, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    read = launch.read_configs
    launch.read_configs = lambda _: read(configs)  # type: ignore[assignment]
    recorder = Recorder()
    recorder.attach()
    for name, make in LAUNCHES.items():
        called = make(dtype)
        recorder.records.clear()
        result = called.run()
        of_operator = {
            "operator": name,
            "dtype": sys.argv[2],
            "crops": called.crops,
            "feature_bytes": sum(t.numel() * t.element_size() for t in called.features),
            "least_bytes": least_bytes(called, result),
        }
        for record in recorder.records.values():
            print(json.dumps(of_operator | record))


if __name__ == "__main__":
    main()
