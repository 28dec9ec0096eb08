"""Makes torchvision's transforms importable beside a PyTorch that was built for CPUs alone.

The registry's torchvision is linked with CUDA. Beside such a PyTorch its compiled part does not
load, and then its Python part fails where it describes two operators that nobody has declared.
Imported when the interpreter starts, this module declares them just before torchvision is loaded.
"""

import sys

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class BeforeTorchvision:
    """A finder that finds nothing; it learns that torchvision is about to be loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            import torch

            for operator in OPERATORS:
                torch.library.define(f"torchvision::{operator}", SCHEMA)


sys.meta_path.insert(0, BeforeTorchvision())  # type: ignore[arg-type]
