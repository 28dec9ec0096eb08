"""What answers the questions of an evaluation, one file each."""

from typing import TYPE_CHECKING

from geollava.moved import names_of

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
