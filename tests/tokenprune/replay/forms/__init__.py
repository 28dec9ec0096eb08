"""How each recorded form is given to the library's method, and what of its result is compared."""

from __future__ import annotations

from .. import Form
from . import images, language, merging, selection, videos

FORMS: dict[str, Form] = {
    **images.FORMS,
    **language.FORMS,
    **merging.FORMS,
    **selection.FORMS,
    **videos.FORMS,
}
