"""The time of a kernel on an H100, predicted from its bytes, instructions and occupancy.

A kernel takes the longest of five times, each a lower bound under its own assumption:

    memory    bytes that must come from or go to HBM, each once, at the memory's rate
    cache     bytes that the code asks for, again and again, at the L2 cache's rate
    tensor    multiplications and additions of matrix products at the tensor cores' rate
    issue     instructions of all warps, four a cycle and multiprocessor
    latency   the waves of blocks one after the other; in a block, a warp's instructions, one every
              ISSUE_CYCLES, its barriers and, once a pass and stage, a wait for memory

plus what a launch takes. Loops are not known to the disassembly: a kernel's instructions count as
often as its load instructions would have to run to ask for the bytes that it asks for ("passes").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.architectures import WARP

CROPS = 144  # of 576 tokens: the tiles of an image of 4,032 x 4,032 pixels


@dataclass(frozen=True)
class Device:
    """Rates of a GPU.

    Source: NVIDIA H100 Tensor Core GPU Architecture (SXM5) for multiprocessors, HBM, tensor cores
    and the clock that their peak rate implies; "Benchmarking and Dissecting the Nvidia Hopper GPU
    Architecture via Microbenchmarking" (arXiv 2402.13499) for the latency of global loads; the
    rest, and the L2 cache's rate, are round numbers that a measurement may correct.
    """

    multiprocessors: int = 132
    clock_hz: float = 1.83e9
    memory_bytes_per_s: float = 3.35e12
    cache_bytes_per_s: float = 5.5e12
    tensor_flop_per_s: float = 989e12  # bfloat16 and float16, dense
    instructions_per_cycle: int = 4  # of warps, of each multiprocessor
    issue_cycles: int = 4  # between two instructions of one warp
    barrier_cycles: int = 30
    load_cycles: int = 480
    launch_s: float = 3e-6


H100 = Device()


def times_s(record: dict[str, Any], blocks_per_sm: int, device: Device = H100) -> dict[str, float]:
    """What each bound says of a recorded and compiled kernel, over `CROPS` crops."""
    code = record["code"]
    scale = CROPS / record["crops"]
    blocks = record["blocks"] * scale
    asked = sum(record["bytes"].values())
    needed = sum(min(record["held"][role], asked) for role, asked in record["bytes"].items())
    at_once = code["load_instructions"] * code["load_bits"] / 8 * WARP * code["warps"]
    passes = max(1.0, asked / record["blocks"] / at_once) if at_once else 1.0
    executed = code["instructions"] * passes
    stages = record["options"].get("num_stages", 1)
    of_block = (
        executed * device.issue_cycles
        + code["barriers"] * passes * device.barrier_cycles
        + passes * device.load_cycles / stages
    )
    waves = math.ceil(blocks / (device.multiprocessors * max(blocks_per_sm, 1)))
    flop = record["flop"] if code["tensor_core_instructions"] else 0
    rate = device.multiprocessors * device.clock_hz * device.instructions_per_cycle
    return {
        "memory": needed * scale / device.memory_bytes_per_s,
        "cache": asked * scale / device.cache_bytes_per_s,
        "tensor": flop * scale / device.tensor_flop_per_s,
        "issue": blocks * code["warps"] * executed / rate,
        "latency": waves * of_block / device.clock_hz,
    }


def predicted(record: dict[str, Any], blocks_per_sm: int) -> dict[str, Any]:
    """{"us": microseconds, "bound": the longest of the five times}."""
    times = times_s(record, blocks_per_sm)
    bound = max(times, key=lambda name: times[name])
    return {"us": round(1e6 * (times[bound] + H100.launch_s), 1), "bound": bound}
