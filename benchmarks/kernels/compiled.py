"""Compiles recorded kernels for a GPU that need not be there, and prints what their code takes.

Reads records of `record.py`, prints each with `code` added. A process of its own: under
TRITON_INTERPRET=1 there is nothing to compile.

    python -m benchmarks.kernels.compiled 90 < records.jsonl
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
TENSOR_CORES = re.compile(r"(?:[HIDQ]|HG|IG|QG|BG)MMA\b|UTC\w*MMA")
# From global memory to registers, or past them to shared memory.
GLOBAL_LOADS = re.compile(r"LDG\b|LDGSTS\b")
BITS = re.compile(r"\.[USF]?(8|16|32|64|128|256)\b")


def compile_record(record: dict[str, Any], capability: int) -> Any:
    """What Triton makes of a kernel with its signature, constants and options."""
    module, name = record["kernel"].split(":")
    kernel = getattr(importlib.import_module(module), name)
    index = {argument: (at,) for at, argument in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=record["signature"],
        constexprs={index[name]: value for name, value in record["constants"].items()},
        attrs={index[name]: [["tt.divisibility", 16]] for name in record["aligned"]},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=record["options"])


def opcodes(disassembly: str) -> list[str]:
    """The instructions of a kernel, such as LDG.E.128, predicates and operands left away."""
    found = INSTRUCTION.findall(disassembly)
    return [opcode for opcode in found if opcode != "NOP"]


def load_bits(opcode: str) -> int:
    """How much a thread loads with it; 32 where the instruction does not say."""
    found = BITS.search(opcode)
    return int(found[1]) if found else 32


def resources(compiled: Any) -> dict[str, Any]:
    """Read off the finished code: Triton may assemble it with another ptxas than it ships."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = tool("cuobjdump", "-res-usage", cubin.name)
        code = opcodes(tool("nvdisasm", cubin.name))
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if used is None or not code:
        raise RuntimeError(f"no code or no registers in {usage!r}")
    registers, stack, local = map(int, used.groups())
    loads = [load_bits(opcode) for opcode in code if GLOBAL_LOADS.match(opcode)]

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, opcode)) for opcode in code)

    return {
        "warps": compiled.metadata.num_warps,
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "spilled_bytes": stack + local,
        "local_memory_instructions": count(r"LDL\b|STL\b"),
        "load_bits": round(statistics.mean(loads), 1) if loads else 0,
        "load_instructions": len(loads),
        "barriers": count(r"BAR\b"),
        "shuffles": count(r"SHFL\b"),
        "tensor_core_instructions": sum(bool(TENSOR_CORES.match(opcode)) for opcode in code),
        "fused_multiply_adds": count(r"FFMA2?\b"),
        "instructions": len(code),
    }


def tool(name: str, *arguments: str) -> str:
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    capability = int(sys.argv[1])

    @functools.cache
    def code(described: str) -> dict[str, Any]:
        return resources(compile_record(json.loads(described), capability))

    for line in sys.stdin:
        record = json.loads(line)
        parts = ("kernel", "signature", "constants", "aligned", "options")
        described = json.dumps({part: record[part] for part in parts})
        print(json.dumps(record | {"code": code(described)}), flush=True)


if __name__ == "__main__":
    main()
