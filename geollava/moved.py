"""Import paths of the last release: where what they name lies now.

An old path gives the module at its new path, the same object: no class exists twice. It warns once
with a `DeprecationWarning` that points at the line of the import. A module that was split gives
each name from the new module that holds it. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

# Old path: new path, both below `geollava`. Several new paths, with spaces between: the module was
# split, and a name is looked for in this order.
MOVED = {
    "answer": "answering.session answering.encoding answering.generating answering.loading "
    "answering.measures answering.prompts",
    "batch": "answering.batch answering.scene_list answering.settings",
    "checkpoint": "model.checkpoint model.published model.generation_settings",
    "cli": "commands.main",
    "configuration": "model.configuration",
    "console": "commands.console commands.options",
    "data": "training.rows training.validation training.checks common.boxes",
    "default_model": "model.default_model",
    "evaluate.ablation": "evaluate.studies.ablation",
    "evaluate.answerer": "evaluate.models.answerer",
    "evaluate.background": "evaluate.models.background",
    "evaluate.background_share": "evaluate.studies.background_share",
    "evaluate.commands": "commands.evaluate",
    "evaluate.controls": "evaluate.models.controls",
    "evaluate.failures": "evaluate.studies.failures",
    "evaluate.lmms_model": "evaluate.models.lmms_model",
    "evaluate.lmms_plugin": "evaluate.models.lmms_plugin",
    "evaluate.lrs_vqa": "evaluate.benchmarks.lrs_vqa",
    "evaluate.mme_realworld_rs": "evaluate.benchmarks.mme_realworld_rs",
    "evaluate.own_model": "evaluate.models.geollava_model",
    "evaluate.pilot_commands": "commands.pilots",
    "evaluate.scenes_open": "evaluate.benchmarks.scenes_open",
    "evaluate.sweep": "evaluate.studies.sweep",
    "evaluate.transformers_model": "evaluate.models.transformers_model",
    "evaluate.xlrs_caption": "evaluate.benchmarks.xlrs_caption",
    "evaluate.xlrs_grounding": "evaluate.benchmarks.xlrs_grounding",
    "extras": "common.extras",
    "finished": "answering.finished",
    "geojson": "answering.geojson",
    "malloc": "common.malloc",
    "modeling": "model.modeling model.vision",
    "outputs": "common.outputs",
    "overlay": "answering.overlay",
    "processing": "model.processing model.image_processing model.tokenizing",
    "projector": "model.projector",
    "readable": "common.readable",
    "registration": "model.registration",
    "scene_drawing": "scenes.draw scenes.shapes",
    "sharding": "model.sharding",
    "streaming": "answering.streaming answering.memory",
    "templates": "model.templates",
    "token_reduction": "model.token_reduction",
    "train": "training.run training.trainer training.export training.folder training.loading "
    "training.machine training.parts training.samples",
    "train_config": "training.config",
    "train_data": "training.packs training.tokens",
    "train_plan": "training.plan",
    "vision_tower": "model.vision_tower",
}
# Modules that are still there, and names that they gave to others: each serves them with
# `names_of`. The package `commands` serves none of the module that it was: its files are named as
# those functions were.
GAVE_AWAY = {
    "evaluate.models": {"evaluate.models.opening": "open_model digest_of"},
    "evaluate.report": {"common.plots": "require_matplotlib"},
    "evaluate.runner": {"evaluate.results_folder": "software SETTINGS PREDICTIONS RESULTS"},
    "scenes": {
        "scenes.scene": "COLORS PURPLE PALETTE COLOR_NAMES KINDS VEHICLES LANDMARKS LAND_USES "
        "DIRECTIONS REACH Color Spot color_name land_use_at quarter_distance",
        "scenes.layout": "MIN_SIZE ROOMY_SIZE GAPS ATTEMPTS TEST_EVERY NoRoomError Planner "
        "ask_shuffled plan_once",
        "scenes.questions": "CHOICES_FOLLOW INSTRUCTION DESCRIBE READING_BAND conversation "
        "more_questions options_of prompt_of varied words_for",
    },
}
# Names that nothing has any more, and what does their work.
GONE = {
    "answer.answer": "geollava.Session(model).see(image).ask(question)",
    "answer.ask_for": "geollava.Session(model).see(image).ask(question)",
    "imagery.fitted_size": "geollava.imagery.Canvas(...).fitted_size",
    "imagery.image_box": "geollava.imagery.Canvas(...).image_box",
}
# These stay, and do not warn: the public contract allows both spellings.
ALIASES = {
    "evaluate.xlrs": "evaluate.benchmarks.xlrs",
}
# Of these modules no frame is the importer's.
MACHINERY = ("importlib", "_frozen_importlib", "_frozen_importlib_external", "runpy", "pkgutil")


def serve_old_paths() -> None:
    sys.meta_path.append(OldPaths())


class OldPaths(MetaPathFinder):
    """The last finder: it is asked for what no file has."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = name.removeprefix("geollava.")
        new = new_paths((MOVED | ALIASES).get(old))
        if old == name or not new:
            return None
        there = util.find_spec(new[0])
        origin = there.origin if there is not None else None
        return ModuleSpec(name, OldPath(name, new, warns=old in MOVED), origin=origin)


class OldPath(Loader):
    """Gives the module at the new path, or one that looks its names up in several."""

    def __init__(self, old: str, new: list[str], *, warns: bool) -> None:
        self.old, self.new, self.warns = old, new, warns

    def exec_module(self, module: ModuleType) -> None:
        self.warn()
        if len(self.new) == 1:
            sys.modules[self.old] = import_module(self.new[0])
        else:
            module.__dict__["__getattr__"] = lambda name: find(name, self.old, self.new)

    def get_code(self, name: str) -> CodeType | None:
        """What `python -m` runs."""
        self.warn()
        spec = util.find_spec(self.new[0])
        assert spec is not None
        return spec.loader.get_code(spec.name)  # type: ignore[union-attr]

    def warn(self) -> None:
        if self.warns:
            warn(self.old, " and ".join(self.new))


def names_of(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that gave names away or lost some, by its full name."""
    homes = {
        name: home
        for home, names in GAVE_AWAY.get(module.removeprefix("geollava."), {}).items()
        for name in names.split()
    }

    def moved_name(name: str) -> Any:
        if name not in homes:
            raise no_attribute(module, name)
        warn(f"{module}.{name}", f"geollava.{homes[name]}.{name}")
        return getattr(import_module(f"geollava.{homes[name]}"), name)

    return moved_name


def new_paths(entry: str | None) -> list[str]:
    return [f"geollava.{path}" for path in (entry or "").split()]


def find(name: str, old: str, new: list[str]) -> Any:
    """What has this name in the new modules of an old one."""
    if not name.startswith("__"):  # Python itself asks for these
        for home in new:
            names = vars(import_module(home))
            if name in names:
                return names[name]
    raise no_attribute(old, name)


def no_attribute(module: str, name: str) -> AttributeError:
    instead = GONE.get(f"{module}.{name}".removeprefix("geollava."))
    hint = f": use {instead}" if instead else ""
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")


def warn(old: str, new: str) -> None:
    frame = sys._getframe(1)
    while frame is not None and from_machinery(frame.f_globals.get("__name__", "")):
        frame = frame.f_back  # type: ignore[assignment]
    text = f"{old} is now {new}; the old one goes with the next release"
    if frame is None:  # python -m
        warnings.warn_explicit(text, DeprecationWarning, "<command line>", 1, "__main__")
        return
    warnings.warn_explicit(
        text,
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__", "__main__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def from_machinery(module: str) -> bool:
    return module == __name__ or module.partition(".")[0] in MACHINERY
