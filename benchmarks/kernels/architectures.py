"""What a multiprocessor holds, and so how many blocks of a kernel run on it at a time."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32  # threads
REGISTER_UNIT = 256  # registers of a warp are given out in multiples of it
RESERVED_SHARED = 1024  # bytes of each block that the driver takes for itself


@dataclass(frozen=True)
class Architecture:
    """Limits of one multiprocessor.

    Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".

    Attributes:
        capability: 10 x major + minor.
        registers: of 32 bits.
        warps: that may be resident.
        blocks: that may be resident.
        shared_bytes: of all resident blocks.
        shared_bytes_of_block: at most.
    """

    capability: int
    registers: int = 65_536
    warps: int = 64
    blocks: int = 32
    shared_bytes: int = 228 * 1024
    shared_bytes_of_block: int = 227 * 1024

    @property
    def name(self) -> str:
        return f"sm_{self.capability}"

    def blocks_per_sm(self, registers: int, shared_bytes: int, warps: int) -> int:
        """Blocks that one multiprocessor holds, 0 if not even one fits.

        Args:
            registers: of each thread.
            shared_bytes: of each block.
            warps: of each block.
        """
        if shared_bytes > self.shared_bytes_of_block:
            return 0
        of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        # Each of the four schedulers has a quarter of the registers, and whole warps.
        fitting = 4 * (self.registers // 4 // max(of_warp, REGISTER_UNIT))
        return min(
            self.blocks,
            min(self.warps, fitting) // warps,
            self.shared_bytes // (shared_bytes + RESERVED_SHARED),
        )


ARCHITECTURES = (
    Architecture(80, shared_bytes=164 * 1024, shared_bytes_of_block=163 * 1024),
    Architecture(90),
    Architecture(100),
)
