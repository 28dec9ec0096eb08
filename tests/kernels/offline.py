"""Compiles every kernel for GPUs that need not be there, and prints what each takes as JSON.

Runs in a process of its own: under TRITON_INTERPRET=1 there is nothing to compile.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenprune.ops.anchored_select import kernel as select
from tokenprune.ops.attention_received import kernel as received
from tokenprune.ops.background_merge import kernel as merge
from tokenprune.ops.background_score import kernel as score
from tokenprune.ops.cls_attention import kernel as cls
from tokenprune.ops.cluster_mean import kernel as mean
from tokenprune.ops.common.launch import MAX_TOKENS, ROUNDING, read_configs
from tokenprune.ops.greedy_select import kernel as greedy
from tokenprune.ops.most_similar import kernel as similar

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPTIONS = ("num_warps", "num_stages", *ROUNDING)
ALIGNED = [["tt.divisibility", 16]]
POINTERS = {
    "features": "T", "vectors": "T", "anchors": "T", "means": "T", "grad_features": "T", "q": "T",
    "k": "T", "queries": "T", "keys": "T", "offsets": "fp32", "bias": "fp32", "products": "fp32",
    "logits": "fp32", "scores": "fp32", "grads": "fp32", "sums": "fp32", "keep_scores": "fp32",
    "shares": "fp32", "totals": "fp32", "weights": "fp32", "normalizers": "fp32",
    "received": "fp32",
    "parents": "i32", "pointers": "i32", "counts": "i32", "starts": "i32", "order": "i32",
    "cu_seqlens": "i32", "norms": "fp32", "values": "fp32", "pairs": "fp32", "factor": "fp32",
    "similarity": "fp32", "index": "i64", "chosen": "i64",
    "roots": "i64", "keep_indices": "i64", "crops": "i64", "slots": "i64", "valid": "i8",
}  # fmt: skip
GRIDS = (1024, MAX_TOKENS)  # tokens that one program holds
# Kernel, the name of its launch configuration, and the constants beside it.
JOBS = [
    (score._background_score_fwd_kernel, "background_score_fwd", {"FUSED": True, "UPCAST": False}),
    (score._background_score_fwd_kernel, "background_score_fwd", {"FUSED": False, "UPCAST": False}),
    (score._background_score_bwd_kernel, "background_score_bwd", {"UPCAST": False}),
    *(
        (
            merge._background_merge_fwd_kernel,
            "background_merge_fwd",
            {"PADDED": tokens, "MERGE": joined},
        )
        for joined in (False, True)
        for tokens in GRIDS
    ),
    (select._anchor_score_fwd_kernel, "anchor_score_fwd", {}),
    (
        select._anchored_select_fwd_kernel,
        "anchored_select_fwd",
        {"PADDED": 1024, "MERGE": False, "RAGGED": False},
    ),
    (
        select._anchored_select_fwd_kernel,
        "anchored_select_fwd",
        {"PADDED": 1024, "MERGE": True, "RAGGED": True},
    ),
    (mean._cluster_mean_fwd_kernel, "cluster_mean_fwd", {"RAGGED": False, "WEIGHTED": False}),
    (mean._cluster_mean_fwd_kernel, "cluster_mean_fwd", {"RAGGED": True, "WEIGHTED": False}),
    (mean._cluster_mean_fwd_kernel, "cluster_mean_fwd", {"RAGGED": False, "WEIGHTED": True}),
    (mean._cluster_mean_bwd_kernel, "cluster_mean_bwd", {"WEIGHTED": False}),
    (mean._cluster_mean_bwd_kernel, "cluster_mean_bwd", {"WEIGHTED": True}),
    (cls._cls_attention_fwd_kernel, "cls_attention_fwd", {"PADDED_D": 64}),
    (received._attention_stats_kernel, "attention_stats", {"PADDED_D": 64, "UPCAST": False}),
    (received._attention_received_fwd_kernel, "attention_stats", {"PADDED_D": 64, "UPCAST": False}),
    *(
        (
            greedy._greedy_order_fwd_kernel,
            f"{objective}_order_fwd",
            {"OBJECTIVE": objective, "PADDED": tokens, "UPCAST": False},
        )
        for objective in ("max_min", "dpp", "coverage", "mmr")
        for tokens in GRIDS
    ),
    (similar._most_similar_fwd_kernel, "most_similar_fwd", {"UPCAST": False}),
]  # fmt: skip


def compile_kernel(kernel, name, constants, dtype, capability):
    table = read_configs(f"sm_{capability}")[name]
    config = table.get("float32" if dtype == "fp32" else "half", table.get("any")) | ROUNDING
    options = {key: config.pop(key) for key in OPTIONS if key in config}
    constants = constants | config
    signature, aligned = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in POINTERS:
            signature[argument] = "*" + POINTERS[argument].replace("T", dtype)
            aligned[(index,)] = ALIGNED
        elif argument in ("scale", "mmr_lambda"):
            signature[argument] = "fp32"
        else:
            signature[argument] = "i64" if argument == "stride_batch" else "i32"
            if argument.startswith("stride") or argument == "width":
                aligned[(index,)] = ALIGNED
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
        attrs=aligned,
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


def resources(compiled):
    """Read off the finished code: Triton may assemble it with another ptxas than it ships."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = tool("cuobjdump", "-res-usage", cubin.name)
        code = tool("nvdisasm", cubin.name)
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert used is not None, usage
    registers, stack, local = map(int, used.groups())
    return {
        "registers": registers,
        "spilled_bytes": stack + local,
        "local_memory_instructions": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "fused_multiply_adds": len(re.findall(r"\bFFMA\b", code)),
        "shared_bytes": compiled.metadata.shared,
    }


def tool(name, *arguments):
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main():
    for capability in map(int, sys.argv[1:]):
        for dtype in ("bf16", "fp32"):
            for kernel, name, constants in JOBS:
                compiled = compile_kernel(kernel, name, constants, dtype, capability)
                row = {
                    "kernel": kernel.fn.__name__,
                    "constants": constants,
                    "dtype": dtype,
                    "capability": capability,
                }
                print(json.dumps(row | resources(compiled)), flush=True)


if __name__ == "__main__":
    main()
