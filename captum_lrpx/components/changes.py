"""Changes the inputs or outputs of layers while a model runs."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from captum_lrpx.attr.capture import map_tensors
from captum_lrpx.onlookers import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    Change = Callable[[Any], Any]


@contextmanager
def changed(changes: Iterable[tuple[nn.Module, Change]], *, at_input: bool) -> Iterator[None]:
    """Change inputs or outputs of layers, in calls of this thread within the ``with`` block.

    Args:
        changes: Layers, each with a function that maps its input ``(args, kwargs)``, or its output,
            to a replacement; None leaves it as it is.
        at_input: Whether inputs are changed.
    """
    with ExitStack() as stack:
        for layer, change in changes:
            if at_input:
                hooks = hooked([layer], before=lambda _, *call, change=change: change(call))
            else:
                hooks = hooked([layer], after=lambda *call, change=change: change(call[-1]))
            stack.enter_context(hooks)
        yield


def of_first(function: Callable[[Tensor], Tensor]) -> Change:
    """A change of the first floating-point tensor by a function, which leaves the others."""

    def change(call: Any) -> Any:
        done = False

        def once(tensor: Tensor) -> Tensor:
            nonlocal done
            if done or not tensor.is_floating_point():
                return tensor
            done = True
            return function(tensor)

        return map_tensors(call, once)

    return change
