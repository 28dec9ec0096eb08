"""list_hosts(): every type of vision-language models that transformers has, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.hosts.compat import imported, transformers_version
from tokenprune.hosts.mechanisms import NOT_TESTED, reason_of
from tokenprune.hosts.registry import known_adapters
from tokenprune.hosts.tested import is_tested, release_for, results

TYPES = "transformers.models.auto.modeling_auto", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"


@dataclass(frozen=True)
class Host:
    """A type of models, and whether `apply` is shown to be exact in it.

    Attributes:
        model_type: as in `config.model_type`.
        supported: the tests passed with the installed transformers, or the tested release of it
            that comes nearest before.
        adapter: the name of the class that serves it, None where it is refused.
        positions: "one axis" or "several axes" (mRoPE), None where it is not supported.
        video: whether tokens of videos are reduced; where not, videos are refused.
        reason: why it is not supported, one sentence; None where it is.
        offers: the fields of `VisionTokens` that methods are handed, ascending, as tried on the
            tiny model that was tested: another tower may give more or less, see `Adapter.offers`.
            Empty where the host is not supported.
    """

    model_type: str
    supported: bool
    adapter: str | None
    positions: str | None
    video: bool
    reason: str | None
    offers: tuple[str, ...] = ()


def list_hosts() -> list[Host]:
    """Every model type that the installed transformers maps to image-text-to-text.

    `supported` is read from committed test results: on a tiny model of the type, a reduction was
    shown to be the masked model. `apply` takes other models, too, where they keep the conventions
    of transformers; it then warns once that the type was never tested.

    Example::

        supported = [host.model_type for host in tokenprune.list_hosts() if host.supported]
    """
    own = known_adapters()
    return [_host(name, own.get(name)) for name in sorted(imported(*TYPES))]


def _host(model_type: str, own: type | None) -> Host:
    shown = results()[1].get(model_type)
    if shown is not None and is_tested(model_type):
        video = release_for(transformers_version()) in shown.video
        return Host(model_type, True, shown.adapter, shown.positions, video, None, shown.offers)
    if shown is not None or own is not None:
        adapter = own.__name__ if own is not None else None
        return Host(model_type, False, adapter, None, False, NOT_TESTED)
    return Host(model_type, False, None, None, False, reason_of(model_type))
