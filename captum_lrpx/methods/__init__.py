"""Attribution methods by name, for ``explain()`` and the command line.

Each takes a :class:`~captum_lrpx.targets.Query`, one explained value for each text of a batch, and
returns a relevance per token. To add one, write a function in :mod:`captum_lrpx.methods.functions`.
"""

from captum_lrpx.methods.functions import Attributed
from captum_lrpx.methods.registry import (
    METHODS,
    Option,
    attribute,
    check_options,
    check_several_inputs,
    description,
    options_of,
)

__all__ = [
    "METHODS",
    "Attributed",
    "Option",
    "attribute",
    "check_options",
    "check_several_inputs",
    "description",
    "options_of",
]
