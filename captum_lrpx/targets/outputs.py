"""Forward modules around other forward modules: functions of outputs ``[B, C]``.

The inner module is any module with one number per class, token or position: ``TokenLogits``,
``ClassLogits``, ``AnswerLogits``, or one of your own. Its arguments come after the outer
module's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from captum_lrpx.targets.forward import per_row
from captum_lrpx.targets.quantity import in_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.targets.quantity import Quantity

__all__ = ["LogProbabilities", "OutputFunction", "OutputSum", "Probabilities"]


class _Outputs(nn.Module):
    """Outputs of a forward module, converted to another quantity.

    Args:
        forward: The forward module.
    """

    quantity: ClassVar[Quantity]

    def __init__(self, forward: nn.Module) -> None:
        super().__init__()
        self.inner = forward

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Compute the outputs of the inner module in the quantity of the class.

        Args:
            x: Inputs of the inner module.
            *args: Its other arguments.

        Returns:
            ``[B, C]``.
        """
        return in_quantity(self.inner(x, *args), self.quantity)


class Probabilities(_Outputs):
    """Probabilities of the outputs of a forward module: ``target`` as for the inner module.

    The softmax is an ordinary function here, with its own gradient. The relevances for
    ``p_t`` decompose ``sum_v (dp_t / dz_v) z_v`` over the logits ``z``, not ``p_t``: the
    convergence delta is no measure of quality here.

    Args:
        forward: The forward module.
    """

    quantity = "prob"


class LogProbabilities(_Outputs):
    """Log-probabilities of the outputs of a forward module: ``target`` as for the inner module.

    As with :class:`Probabilities`, the relevances for ``log p_t`` decompose ``z_t - sum_v p_v
    z_v``, the logit minus the expected logit. The difference of two log-probabilities equals the
    difference of the two logits, with the same relevances.

    Args:
        forward: The forward module.
    """

    quantity = "log_prob"


class OutputSum(nn.Module):
    """Weighted sum of outputs of a forward module. No ``target``.

    Args:
        forward: The forward module.
    """

    def __init__(self, forward: nn.Module) -> None:
        super().__init__()
        self.inner = forward

    def forward(
        self,
        x: Tensor,
        choices: Sequence[int] | Tensor,
        weights: Sequence[float] | Tensor | None = None,
        *args: Any,
    ) -> Tensor:
        """Compute the weighted sum over the choices of each row.

        Args:
            x: Inputs of the inner module, ``[B, ...]``.
            choices: Indices ``[B, K]`` of outputs; ``[1, K]`` or a sequence of ``K`` integers is
                the same for every row.
            weights: ``[B, K]``, likewise. Default: 1.
            *args: Other arguments of the inner module.

        Returns:
            ``[B]``.

        Raises:
            ValueError: If shapes do not fit.
            IndexError: If a choice is out of range.
        """
        outputs: Tensor = self.inner(x, *args)
        wanted = per_row("choices", choices, x)
        size = outputs.shape[1]
        if bool(((wanted < 0) | (wanted >= size)).any()):
            raise IndexError(f"A choice is out of range for {size} outputs: {wanted.tolist()}.")
        values = outputs.gather(1, wanted)
        return (values if weights is None else values * per_row("weights", weights, x)).sum(1)


class OutputFunction(nn.Module):
    """A function of the outputs of a forward module, with its ordinary gradient.

    Args:
        forward: The forward module.
        function: Maps outputs ``[B, C]`` to one value per row ``[B]``, or to ``[B, ...]``, from
            which Captum's ``target`` selects.
    """

    def __init__(self, forward: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = forward
        self.function = function

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Compute the function of the inner module's outputs.

        Args:
            x: Inputs of the inner module.
            *args: Its other arguments.

        Returns:
            The result of the function.

        Raises:
            ValueError: If the result does not have one entry per row.
        """
        result = self.function(self.inner(x, *args))
        if not isinstance(result, Tensor) or result.shape[:1] != x.shape[:1]:
            shown = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"The function of the outputs returned {shown}: it must return a tensor with one "
                f"value per row, [{x.shape[0]}]."
            )
        return result
