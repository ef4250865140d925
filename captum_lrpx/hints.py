"""What no pass can tell, as data: which results are keys of a recurrence, which factor is a signal.

A hint names a class of modules of transformers (the family's own code or paper is the reason) and a
result inside of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from captum_lrpx.trace.graph import Edge, Graph

__all__ = ["constants_of"]


def constants_of(graph: Graph, places: Mapping[int, tuple[str, str, str]]) -> list[Edge]:
    """Results that are held constant.

    Args:
        graph: A graph.
        places: For its nodes: path and class of the module, function.
    """
    del graph, places
    return []
