"""The former place of `tokenprune.hosts.families`, for one release."""

import importlib
import pkgutil
import sys
import warnings

from tokenprune.hosts import families

warnings.warn(
    "tokenprune.adapters has moved to tokenprune.hosts.families; the old name goes in the next "
    "release",
    DeprecationWarning,
    stacklevel=2,
)
for _module in pkgutil.iter_modules(families.__path__):
    sys.modules[f"{__name__}.{_module.name}"] = importlib.import_module(
        f"{families.__name__}.{_module.name}"
    )
