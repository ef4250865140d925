"""Processes of a run, started by ``accelerate launch``, and their shares of the work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from captum_lrpx.extras import imported

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Processes", "processes"]

_PATIENCE = timedelta(days=30)
"""Time that a finished process waits for the others."""


def _no_others() -> None:
    """Return at once, as there are no others."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Index of this process.
        count: Number of processes.
        group: Number of processes that share a model; they are adjacent, and do the same work.
        device: Device of this process. Default: the model's.
        wait: Waits until all processes have reached this point.
        end: Leaves the group of processes.
    """

    rank: int = 0
    count: int = 1
    group: int = 1
    device: str | None = None
    wait: Callable[[], None] = _no_others
    end: Callable[[], None] = _no_others

    @property
    def is_main(self) -> bool:
        """Whether this is the process that shows results."""
        return self.rank == 0

    @property
    def share(self) -> int:
        """Index of this process's share of the work."""
        return self.rank // self.group

    @property
    def shares(self) -> int:
        """Number of shares of the work."""
        return self.count // self.group

    @property
    def writes(self) -> bool:
        """Whether this process keeps the records of its group."""
        return self.rank % self.group == 0


def processes(group: int = 1) -> Processes:
    """Find the processes that ``accelerate launch`` (or ``torchrun``) started, or only this one.

    Args:
        group: Number of processes that share a model.

    Raises:
        ImportError: If there are several and Accelerate is not installed.
        ValueError: If they are not a multiple of a group.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if group < 1 or count % group:
        raise ValueError(
            f"{count} processes cannot share models by {group}: start a multiple of {group} "
            "(torchrun --nproc-per-node)."
        )
    if count == 1:
        return Processes()
    accelerate = imported(
        "accelerate", "Several processes need Accelerate: pip install 'captum-lrpx[accelerate]'."
    )
    # Otherwise Accelerate treats several processes on a machine without a GPU as one each.
    state = accelerate.PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    if state.num_processes != count:
        raise ValueError(
            f"{count} processes were started, but Accelerate knows of {state.num_processes}: "
            "check its configuration (`accelerate env`)."
        )
    return Processes(
        rank=state.process_index,
        count=state.num_processes,
        group=group,
        device=str(state.device) if group == 1 else None,  # a shared model stays on its devices
        wait=state.wait_for_everyone,
        end=state.destroy_process_group,
    )
