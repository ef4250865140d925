"""Models sharded over several processes: the role of their communication in a graph.

Tensor parallelism splits the features of a layer over the processes of a group, and each of them
runs the same forward pass on its part. Their exchanges are linear: a sum over all, a part of a
shared tensor, or all parts concatenated. The functions listed here have the backward pass
of *one* value shared by all processes, so that every process ends with the same relevances.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn
    from torch.autograd.graph import Node


PASSING: Final = frozenset({"RegisterPostBackwardFunction"})
"""Operators that pass on each operand and only have a side effect in their backward pass.

The one of ``torch.distributed.fsdp.fully_shard`` frees the weights of a block.
"""

COLLECTIVES: Final = frozenset(
    (
        # torch.distributed.tensor: from a local part to the whole tensor, and back.
        *("_FromTorchTensor", "_ToTorchTensor", "Redistribute"),
        # transformers: a sum over processes with the identity as gradient, and the reverse.
        *("_AllReduceForward", "_AllReduceBackward", "_WaitTensor"),
        # torch.distributed: rows sent to the process of their expert, and back.
        "GeneratedBackwardFor__c10d_functional_all_to_all_single_default",
        "GeneratedBackwardFor__c10d_functional__wrap_tensor_autograd_default",
        *PASSING,
    )
)
"""Operators that exchange tensors between processes, by the names of their nodes.

Operators of ``torch.distributed.nn`` are not included: they have the gradient of the sum of the
values of all processes.
"""


def require_no_stages(model: nn.Module) -> None:
    """Refuse a model whose blocks run in different processes.

    Args:
        model: The model.

    Raises:
        ValueError: If it is a stage of a pipeline.
    """
    if "_pp_stage" in vars(model):  # of transformers
        raise ValueError(
            f"This {type(model).__name__} is a stage of a pipeline: other processes run the other "
            "blocks, and no gradient leads from one to the next. Shard the features instead of the "
            'blocks (tp_plan="auto"), the weights (fully_shard), or spread the blocks over devices '
            'of one process (device_map="auto").'
        )


def several_processes() -> bool:
    """Whether this is one of several processes that may run a model together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over processes, in parts, summands or copies."""
    return hasattr(tensor, "full_tensor")  # naming the class would import torch.distributed


def whole(tensor: Any) -> Any:
    """The full values of a sharded tensor, the same on each process; other tensors as they are."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def local(tensor: Any) -> Any:
    """The local part of a sharded tensor; other tensors as they are."""
    return tensor.to_local() if is_spread(tensor) else tensor


@dataclass(frozen=True)
class Split:
    """Features sharded evenly over the processes of a group.

    Attributes:
        group: The group.
        count: Its number of processes.
        place: Index of this process.
    """

    group: Any
    count: int
    place: int

    def joined(self, tensor: Tensor, dim: int) -> Tensor:
        """Concatenate the parts of all processes; each process of the group must call it."""
        part = tensor.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.count)]
        torch.distributed.all_gather(parts, part, group=self.group)
        return torch.cat(parts, dim)

    def own(self, tensor: Tensor, dim: int) -> Tensor:
        """This process's part of a whole tensor."""
        return tensor.chunk(self.count, dim)[self.place]

    def share(self, first: int, stop: int) -> tuple[int, int]:
        """This process's share of a range of work."""
        size = -(-(stop - first) // self.count)
        begin = min(first + self.place * size, stop)
        return begin, min(begin + size, stop)

    def summed(self, tensor: Tensor) -> Tensor:
        """Sum the tensors of all processes; each process of the group must call it."""
        total = tensor.detach().contiguous()
        torch.distributed.all_reduce(total, group=self.group)
        return total


def split_of(node: Node) -> Split | None:
    """Sharding of a tensor, if its node declares that it is a part of a whole one.

    Args:
        node: The node of any operation.

    Returns:
        None if it does not, or the tensor is the same on each process.

    Raises:
        ValueError: If it is sharded over several groups, or unevenly.
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
            f"{width} features are sharded over {mesh}, unevenly or by several of its dimensions. "
            "ALTI-Logit needs the same number of attention heads on each process: load the model "
            "with another tp_size."
        )
    return Split(mesh.get_group(places[0]), count, mesh.get_local_rank(places[0]))


def sharing(name: str, node: Any, before: Any) -> Any:
    """Processes that hold shares of the relevance at a node, which sum to all of it.

    Args:
        name: The operator of the node.
        node: The node.
        before: The same for its operands.

    Returns:
        A group of processes; None if each process holds all of it.
    """
    if name == "_ToTorchTensor":
        spec = node.dtensor_spec
        return _group_of(spec.mesh, (*spec.placements, *(node.grad_placements or ())))
    if name == "_AllReduceBackward":
        return node.process_group
    return None if name == "_AllReduceForward" else before


def sharing_of(*tensors: Tensor) -> Any:
    """Processes that hold shares of a product of tensors, some of which are sharded."""
    spread: list[Any] = [each for each in tensors if is_spread(each)]
    return _group_of(spread[0].device_mesh, [each for one in spread for each in one.placements])


def _group_of(mesh: Any, placements: Iterable[Any]) -> Any:
    if all(each.is_replicate() for each in placements):
        return None
    if mesh.ndim > 1:
        raise ValueError(f"There is no ledger of a model that is sharded over {mesh}.")
    return mesh.get_group()


def gathered(value: Any, group: Any) -> list[Any]:
    """Gather a value from each process of a group; each of them must call it."""
    found: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(found, value, group=group)
    return found


class Weights:
    """Weights of modules that are sharded until they run (``fully_shard``).

    A graph refers to the weights that its operations have used, which are freed after a module
    has run. Here they are gathered again, one module at a time, in each process.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[str, Any] = {}
        if several_processes():
            modules = model.named_modules()
            self._owners = {path: each for path, each in modules if hasattr(each, "unshard")}
        self._there: Any = None

    def need(self, path: str) -> None:
        """Gather the weights that a module runs with, and free another module's.

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
        """Free all gathered weights when a ``with`` block is left."""
        try:
            yield
        finally:
            self._there = None
            for owner in self._owners.values():
                owner.reshard()
