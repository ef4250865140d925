"""Models that are spread over several processes: what their communication does in a graph.

Tensor parallelism splits the features of a layer over the processes of a group, and each of them
runs the same forward pass on its part. What they exchange is linear: a sum over all, a part of what
all have, or all parts side by side. The functions listed here are those whose backward pass is that
of *one* value which all processes share, so that every process ends with the same relevances.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.module_tree import modules_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn
    from torch.autograd.graph import Node

__all__ = [
    "COLLECTIVES",
    "PASSING",
    "Split",
    "Weights",
    "gathered",
    "is_spread",
    "local",
    "require_no_stages",
    "sharing",
    "sharing_of",
    "split_of",
    "whole",
]

PASSING: Final = frozenset({"RegisterPostBackwardFunction"})
"""Operators that hand on each operand and are there for what their backward pass does beside.

That of ``torch.distributed.fsdp.fully_shard`` lets go of the weights of a block.
"""

COLLECTIVES: Final = frozenset(
    (
        # torch.distributed.tensor: from a part to the whole that it is of, and back.
        *("_FromTorchTensor", "_ToTorchTensor", "Redistribute"),
        # transformers: a sum over all with the identity as its gradient, and the reverse.
        *("_AllReduceForward", "_AllReduceBackward", "_WaitTensor"),
        # torch.distributed: rows that are sent to the process of their expert, and back.
        "GeneratedBackwardFor__c10d_functional_all_to_all_single_default",
        "GeneratedBackwardFor__c10d_functional__wrap_tensor_autograd_default",
        *PASSING,
    )
)
"""Operators that exchange tensors between processes, by the names of their nodes.

Those of ``torch.distributed.nn`` are not among them: their gradient is that of the sum of the
values of all processes.
"""


def require_no_stages(model: nn.Module) -> None:
    """Refuse a model of which each process runs other blocks.

    Args:
        model: The model.

    Raises:
        ValueError: If it is a stage of a pipeline.
    """
    if "_pp_stage" in vars(model):  # of transformers
        raise ValueError(
            f"This {type(model).__name__} is a stage of a pipeline: other processes run the other "
            "blocks, and no gradient leads from one to the next. Spread the features instead of "
            'the blocks (tp_plan="auto"), the weights (fully_shard), or the blocks over devices of '
            'one process (device_map="auto").'
        )


def is_spread(tensor: Tensor) -> bool:
    """Whether processes hold parts, summands or copies of a tensor, and it knows them."""
    return hasattr(tensor, "full_tensor")  # to ask for the class would load what has it


def whole(tensor: Any) -> Any:
    """The numbers of a tensor that is spread, as each process has them then; others as they are."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def local(tensor: Any) -> Any:
    """The part of a tensor that this process holds; one that is not spread as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor


@dataclass(frozen=True)
class Split:
    """Features that are spread over the processes of a group, the same number on each.

    Attributes:
        group: The group.
        count: Its number of processes.
        place: Of this process among them.
    """

    group: Any
    count: int
    place: int

    def joined(self, tensor: Tensor, dim: int) -> Tensor:
        """The parts of all processes side by side; each process of the group has to call it."""
        part = tensor.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.count)]
        torch.distributed.all_gather(parts, part, group=self.group)
        return torch.cat(parts, dim)

    def own(self, tensor: Tensor, dim: int) -> Tensor:
        """The part of this process of a tensor that is whole."""
        return tensor.chunk(self.count, dim)[self.place]

    def share(self, first: int, stop: int) -> tuple[int, int]:
        """The part of a range that is the work of this process."""
        size = -(-(stop - first) // self.count)
        begin = min(first + self.place * size, stop)
        return begin, min(begin + size, stop)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all processes; each process of the group has to call it."""
        total = tensor.detach().contiguous()
        torch.distributed.all_reduce(total, group=self.group)
        return total


def split_of(node: Node) -> Split | None:
    """How the tensor is spread that a node declares to be a part of a whole one.

    Args:
        node: The node of any operation.

    Returns:
        None if it does not declare this, or the tensor is the same on each process.

    Raises:
        ValueError: If it is spread over several groups, or unevenly.
    """
    found: Any = node
    placements = getattr(found, "forward_input_placements", ())
    places = [place for place, each in enumerate(placements) if each.is_shard()]
    if not places:
        return None
    mesh = found.forward_input_device_mesh
    count = mesh.size(places[0])
    width = found._input_metadata[0].shape[placements[places[0]].dim]  # noqa: SLF001
    if len(places) > 1 or width % count:
        raise ValueError(
            f"{width} features are spread over {mesh}, unevenly or by several of its dimensions. "
            "ALTI-Logit needs as many attention heads on each process: load the model with "
            "another tp_size."
        )
    return Split(mesh.get_group(places[0]), count, mesh.get_local_rank(places[0]))


def sharing(name: str, node: Any, before: Any) -> Any:
    """The processes that have shares of what flows through a node, which only sum to all of it.

    Args:
        name: The operator of the node.
        node: The node.
        before: Those of its operands.

    Returns:
        A group of processes; None if each of them has the same, and all.
    """
    if name == "_ToTorchTensor":
        spec = node.dtensor_spec
        return _group_of(spec.mesh, (*spec.placements, *(node.grad_placements or ())))
    if name == "_AllReduceBackward":
        return node.process_group
    return None if name == "_AllReduceForward" else before


def sharing_of(*tensors: Tensor) -> Any:
    """The processes that have shares of a product of tensors, some of which are spread."""
    spread: list[Any] = [each for each in tensors if is_spread(each)]
    return _group_of(spread[0].device_mesh, [each for one in spread for each in one.placements])


def _group_of(mesh: Any, placements: Iterable[Any]) -> Any:
    if all(each.is_replicate() for each in placements):
        return None
    if mesh.ndim > 1:
        raise ValueError(f"There is no ledger of a model that is spread over {mesh}.")
    return mesh.get_group()


def gathered(value: Any, group: Any) -> list[Any]:
    """What each process of a group gives; each of them has to call it."""
    found: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(found, value, group=group)
    return found


class Weights:
    """The weights of modules of which each process holds a part until they run (``fully_shard``).

    A graph refers to the weights that its operations have used, which are let go of when a module
    has run. Here they are asked for again, one module's at a time; each process has to.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[str, Any] = {}
        if any(hasattr(type(module), "unshard") for module in modules_of(model)):
            modules = model.named_modules()
            self._owners = {path: each for path, each in modules if hasattr(each, "unshard")}
        self._there: Any = None

    def need(self, path: str) -> None:
        """Have the weights that a module runs with, and let go of those of another one.

        Args:
            path: Path of the module.
        """
        if not self._owners:
            return
        while path not in self._owners and path:
            path = path.rpartition(".")[0]
        owner = self._owners.get(path)
        if owner is None or owner is self._there:
            return
        if self._there is not None:
            self._there.reshard()
        owner.unshard()
        self._there = owner

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let go of all that processes need not hold when a ``with`` block is left."""
        try:
            yield
        finally:
            self._there = None
            for owner in self._owners.values():
                owner.reshard()
