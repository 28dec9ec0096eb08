"""The Auto classes of transformers learn of the model when they are imported, not before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTERING = ("geollava.model.modeling", "geollava.model.processing")  # at their ends
# What those two import and transformers with it: it may be the reason why transformers comes.
BENEATH = {
    "geollava.model.configuration",
    "geollava.model.image_processing",
    "geollava.model.tokenizing",
    "geollava.model.token_reduction",
    "geollava.model.vision_tower",
}


def register_with_transformers() -> None:
    """Now, where transformers is imported already, else right after it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, AfterTransformers())


def register() -> None:
    if not BENEATH & sys.modules.keys():
        for name in REGISTERING:
            import_module(name)


class AfterTransformers(MetaPathFinder):
    """Finds transformers as it would be found without it, and registers when it is there."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
