"""ReductionConfig: a method, its options and its budget, as a file that travels with a model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from tokenprune.budget import Budget
from tokenprune.hub import absent
from tokenprune.method import BUDGET, Method, get_method, list_methods, method_class
from tokenprune.words import suggestion

FILE = "reduction_config.json"
POSITIONS = ("original", "compact")


@dataclass(frozen=True)
class ReductionConfig:
    """What `apply` is asked to do: `tokenprune.apply(model, config)`.

    Example::

        config = tokenprune.ReductionConfig("divprune", keep_ratio=0.25)
        config.save_pretrained("my-model")
        with tokenprune.apply(model, tokenprune.ReductionConfig.from_pretrained("my-model")):
            out = model.generate(**inputs)

    Attributes:
        method: a name of `list_methods()`.
        options: of the method; numbers, text, booleans, None, and lists of these.
        num_keep, keep_ratio: the budget, one of them, as `apply` takes it.
        per: "image" or "frame", what it counts for in videos.
        positions: "original" or "compact".

    Raises:
        ValueError, TypeError: what `apply` would not take, or options that JSON cannot hold, as a
            model's weights.
    """

    SCHEMA: ClassVar[int] = 1  # of the file; it grows when an older reader would be wrong

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_keep: int | None = None
    keep_ratio: float | None = None
    per: str = "image"
    positions: str = "original"

    def __post_init__(self) -> None:
        Budget(self.num_keep, self.keep_ratio, self.per)
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be 'original' or 'compact', got {self.positions!r}")
        if both := sorted(set(BUDGET) & set(self.options)):
            raise ValueError(f"the budget stands beside the options, got {', '.join(both)} in them")
        for name, value in self.options.items():
            if not is_json(value):
                raise TypeError(
                    f"options must be what JSON can hold, got a {type(value).__name__} for {name}"
                )
        self.build()

    @staticmethod
    def of(
        method: Method,
        *,
        num_keep: int | None = None,
        keep_ratio: float | None = None,
        per: str = "image",
        positions: str = "original",
    ) -> ReductionConfig:
        """The configuration of a method, whose own budget is taken where none is given.

        Raises:
            TypeError: a method without a name, as a `Chain`, or with weights.
        """
        names = [name for name in list_methods() if method_class(name) is type(method)]
        if not names:
            raise TypeError(
                f"method must be one that list_methods() names, got a {type(method).__name__}"
            )
        if num_keep is None and keep_ratio is None:
            num_keep, keep_ratio = method.num_keep, method.keep_ratio
        options = {
            option.name: value
            for option in fields(method)
            if option.name not in BUDGET
            and (value := getattr(method, option.name)) != option.default
        }
        return ReductionConfig(names[0], options, num_keep, keep_ratio, per, positions)

    def build(self) -> Method:
        """The method, with its budget."""
        budget = {"num_keep": self.num_keep, "keep_ratio": self.keep_ratio}
        return get_method(self.method, **self.options, **budget)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {"schema_version": self.SCHEMA, **values}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "the configuration") -> ReductionConfig:
        """
        Raises:
            ValueError: another schema, keys that are not known, or what `apply` would not take.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be an object, got a {type(values).__name__}")
        version = values.get("schema_version")
        if version != ReductionConfig.SCHEMA or isinstance(version, bool):
            raise ValueError(
                f"{where} must have schema_version {ReductionConfig.SCHEMA}, got {version!r}; a "
                "newer tokenprune may read it"
            )
        known = [field.name for field in fields(ReductionConfig)]
        given = {name: value for name, value in values.items() if name != "schema_version"}
        if unknown := {name: given[name] for name in given if name not in known}:
            raise ValueError(
                f"{where} holds {', '.join(known)}, got {', '.join(unknown)}"
                f"{suggestion(unknown, known)}"
            )
        if not isinstance(given.get("method"), str):
            raise ValueError(f"{where} must name its method, got {given.get('method')!r}")
        if not isinstance(given.get("options", {}), Mapping):
            raise ValueError(f"{where} must hold options as an object")
        try:
            return ReductionConfig(**given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    # -- files ------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `reduction_config.json` into a folder, which is made; returns the file's path."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{FILE}.{os.getpid()}")
        partial.write_text(self.to_json(), encoding="utf-8")
        os.replace(partial, path)
        return path

    @staticmethod
    def from_pretrained(name: str | os.PathLike[str], **options: Any) -> ReductionConfig:
        """Reads it from a folder, or from a hub's repository (needs the extra hf).

        Args:
            name: folder, or hub name.
            options: as `huggingface_hub.hf_hub_download` takes them, such as `revision`.

        Raises:
            ValueError: it is not there, or holds something else.
        """
        path = Path(name) / FILE
        if not path.parent.is_dir():
            path = downloaded(str(name), options)
        if not path.exists():
            raise ValueError(f"{name} must hold {FILE}, and does not")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} must be JSON: {error}") from error
        return ReductionConfig.from_dict(values, where=str(path))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Writes it into a hub's repository, which is made where it is not there.

        Needs the extra hf, and to be logged in.

        Args:
            repo_id: "owner/name".
            options: `private` for a repository that is made; the others as
                `huggingface_hub.HfApi.upload_file` takes them, such as `commit_message`.

        Returns:
            The address of what was written.
        """
        api = hub().HfApi(token=options.pop("token", None))
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        what = {"path_or_fileobj": self.to_json().encode(), "path_in_repo": FILE}
        return str(api.upload_file(**what, repo_id=repo_id, **options))


def is_json(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))


def hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "a model hub needs huggingface_hub; install tokenprune-vlm[hf]"
        ) from error
    return huggingface_hub


def downloaded(name: str, options: Mapping[str, Any]) -> Path:
    """
    Raises:
        ValueError: the hub does not give it.
    """
    client = hub()
    try:
        return Path(client.hf_hub_download(name, FILE, **options))
    except (OSError, client.errors.HFValidationError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(absent(name, reason)) from error
