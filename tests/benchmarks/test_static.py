"""The static gate: it reads code and bytes right, and a worse row turns it red."""

from __future__ import annotations

import sys

import pytest

from benchmarks import static
from benchmarks.kernels import compiled, gate, predict
from benchmarks.kernels.architectures import ARCHITECTURES

SM_80, SM_90, _ = ARCHITECTURES
COMMITTED = gate.read(gate.path_of(static.pinned()))
DISASSEMBLY = """
	.section	.text.kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0030*/              @UP0 LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   SHFL.BFLY PT, R7, R2, 0x1, 0x1f ;
        /*0070*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*10080*/                  STL [R1], R2 ;
        /*10090*/                  NOP ;
        /*0010*/ 	.byte	0xff, 0xff, 0xff, 0xff
"""


def select(architecture="sm_90", dtype="bfloat16", **wanted):
    (row,) = [
        row
        for row in COMMITTED
        if (row["architecture"], row["dtype"]) == (architecture, dtype)
        and all(row[name] == value for name, value in wanted.items())
    ]
    return row


def test_instructions_are_read_off_the_machine_code():
    code = compiled.opcodes(DISASSEMBLY)
    assert [opcode.split(".")[0] for opcode in code] == (
        ["LDC", "LDG", "LDG", "LDGSTS", "LDG", "BAR", "SHFL", "HGMMA", "STL"]
    )
    loads = [opcode for opcode in code if compiled.GLOBAL_LOADS.match(opcode)]
    assert [compiled.load_bits(opcode) for opcode in loads] == [128, 32, 128, 16]
    assert [op for op in code if compiled.TENSOR_CORES.match(op)] == ["HGMMA.64x64x16.F32.BF16"]


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "warps", "blocks"),
    [
        (128, 0, 8, 2),  # 65,536 registers among 512 threads
        (129, 0, 8, 1),
        (32, 0, 4, 16),  # 64 warps
        (32, 0, 1, 32),  # 32 blocks
        (255, 0, 8, 1),
        (32, 75 * 1024, 4, 3),  # 228 KiB, and one more for each block
        (32, 76 * 1024, 4, 2),
        (32, 227 * 1024, 4, 1),
        (32, 228 * 1024, 4, 0),
    ],
)
def test_occupancy(registers, shared_bytes, warps, blocks):
    assert SM_90.blocks_per_sm(registers, shared_bytes, warps) == blocks


def test_architectures_differ_in_shared_memory():
    assert SM_80.blocks_per_sm(32, 164 * 1024, 4) == 0
    assert SM_80.blocks_per_sm(32, 163 * 1024, 4) == 1


def test_bytes_are_those_of_the_launch():
    """A kernel that reads each token once, and its crop's anchor once a block of 32 tokens."""
    row = select(kernel="_anchor_score_fwd_kernel")
    assert row["bytes"] == {
        "features": 2 * 576 * 1024,
        "weights": 576 // 32 * 4 * (1024 + 1),
        "scratch": 4 * 576,
    }
    wide = select(kernel="_anchor_score_fwd_kernel", dtype="float32")
    assert wide["bytes"]["features"] == 2 * row["bytes"]["features"]


def test_block_sizes_are_the_architectures():
    """Tap vectors are read once a block: of 126 tokens on sm_80, of 316 on sm_90."""
    for name, blocks in (("sm_80", 5), ("sm_90", 2)):
        row = select(
            kernel="_background_score_fwd_kernel", operator="background_score", architecture=name
        )
        assert row["bytes"]["weights"] == blocks * 81 * 1024 * 2


def test_an_operator_has_the_sum_of_its_kernels():
    of_operator = [
        row
        for row in COMMITTED
        if (row["operator"], row["architecture"], row["dtype"])
        == ("background_anchored", "sm_90", "bfloat16")
    ]
    *kernels, together = of_operator
    for role, asked in together["bytes"].items():
        assert asked == sum(row["bytes"][role] for row in kernels)
    asked = sum(together["bytes"].values())
    assert together["times_features"] == pytest.approx(asked / (2 * 576 * 1024), abs=1e-3)
    assert together["times_least"] < together["times_features"]  # results are written, too


@pytest.mark.parametrize("metric", [*gate.LESS_IS_BETTER, *gate.MORE_IS_BETTER])
def test_a_worse_row_is_red(metric):
    sign = 1 if metric in gate.LESS_IS_BETTER else -1
    outer, _, inner = metric.partition(".")

    def row(value):
        return dict.fromkeys(gate.KEY, "x") | {outer: {inner: value} if inner else value}

    assert gate.failures([row(100 + 11 * sign)], [row(100)]) == [
        f"x: x x x x: {metric}: 100 -> {100 + 11 * sign}"
    ]
    assert gate.failures([row(100 + 9 * sign)], [row(100)]) == []
    assert gate.failures([row(100 - 50 * sign)], [row(100)]) == []
    if sign == 1:
        assert gate.failures([row(1)], [row(0)])  # the first spilled byte


def test_a_row_that_is_new_or_gone_is_red():
    row = COMMITTED[0]
    assert gate.failures([row], []) == [f"{gate.name_of(row)}: no committed row"]
    assert gate.failures([], [row]) == [f"{gate.name_of(row)}: committed, but nothing launches it"]


def worsened(rows):
    return [rows[0] | {"registers": 2 * rows[0]["registers"]}, *rows[1:]]


def test_a_worse_row_needs_a_reason():
    rows = worsened(COMMITTED)
    with pytest.raises(ValueError, match=r"a reason is needed, .*registers: \d+ -> \d+"):
        gate.updated(rows, COMMITTED, "")
    changed = gate.updated(rows, COMMITTED, "larger blocks")
    assert changed[0]["reason"].endswith("larger blocks")
    assert [row["reason"] for row in changed[1:]] == [row["reason"] for row in COMMITTED[1:]]
    assert gate.failures(rows, changed) == []


@pytest.mark.parametrize(
    "rows", [COMMITTED, worsened(COMMITTED), []], ids=["same", "worse", "none"]
)
def test_the_command(rows, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["static.py"])
    monkeypatch.setattr(static, "measure", lambda: rows)
    monkeypatch.setattr(static.importlib.metadata, "version", lambda _: static.pinned())
    if rows is COMMITTED:
        static.main()
        assert "none worse" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match=r"kernels are worse than their committed rows"):
            static.main()


def test_the_pinned_release_must_have_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["static.py"])
    monkeypatch.setattr(static, "measure", lambda: COMMITTED)
    monkeypatch.setattr(gate, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match="no committed row"):
        static.main()
    monkeypatch.setattr(static.importlib.metadata, "version", lambda _: "3.9.9")
    static.main()
    assert "not compared" in capsys.readouterr().out


def test_a_prediction_takes_the_longest_bound():
    code = {
        "instructions": 100,
        "load_instructions": 1,
        "load_bits": 128,
        "warps": 4,
        "barriers": 0,
        "tensor_core_instructions": 0,
    }
    record = {"crops": 1, "blocks": 1000, "flop": 0, "options": {}, "code": code}
    record |= {"bytes": {"features": 10**6}, "held": {"features": 10**6}}
    times = predict.times_s(record, blocks_per_sm=16)
    assert times["memory"] == pytest.approx(predict.CROPS * 1e6 / 3.35e12)
    again = predict.times_s(record | {"bytes": {"features": 3 * 10**6}}, blocks_per_sm=16)
    assert again["memory"] == times["memory"]  # the second time it is in the cache
    assert again["cache"] == pytest.approx(3 * times["cache"])
    assert predict.times_s(record, blocks_per_sm=1)["latency"] > 10 * times["latency"]
    assert times["tensor"] == 0
    fed = record | {"flop": 10**12, "code": code | {"tensor_core_instructions": 1}}
    assert predict.predicted(fed, 16)["bound"] == "tensor"
    assert select(operator="background_anchored", kernel=None)["predicted"]["us"] > 0
    assert (
        select(operator="background_anchored", kernel=None, architecture="sm_80")["predicted"]
        is None
    )
