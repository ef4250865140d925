"""Kinds of PyTorch's operators, by the names of their nodes in the autograd graph.

An operator missing from these tables is unknown: it gets no rule and is refused by name.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from captum_lrpx.parallel import COLLECTIVES

Kind = Literal[
    "input",
    "linear",
    "projection",
    "activation",
    "gate function",
    "scale",
    "norm",
    "product",
    "quotient",
    "solution",
    "softmax",
    "kernel",
    "rule",
    "unknown",
]
"""Kind of an operation, with respect to the operands that depend on the input.

- ``"linear"``: views, sums, selections: the ordinary gradient gives the relevance;
- ``"projection"``: the same, with a matrix; a *product* if the matrix depends on the input;
- ``"activation"``: element-wise, 0 (or piecewise linear) at 0;
- ``"gate function"``: element-wise or a reduction, not 0 at 0: the constant of a product;
- ``"scale"``: the divisor of a norm;
- ``"norm"``: a whole normalization in one operator;
- ``"product"``, ``"quotient"``, ``"softmax"``;
- ``"solution"``: a solution of linear equations: linear in the right-hand side;
- ``"kernel"``: attention in one operator;
- ``"rule"``: a backward slope of this package.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LINEAR: Final = _names(
    "Add Sub Rsub Neg Sum Mean View UnsafeView ReshapeAlias Reshape Transpose T Permute Expand "
    "Repeat RepeatInterleave Slice Select Index IndexSelect Gather Take TakeAlongDim Cat Stack "
    "Split SplitWithSizes UnsafeSplit Unbind Unsqueeze Squeeze Clone ToCopy Copy CopySlices "
    "MaskedFill MaskedScatter MaskedSelect Where Unfold UnfoldBackward Roll Flip Tril Triu Cumsum "
    "ConstantPadNd IndexAdd IndexPut IndexPutImpl IndexCopy IndexFill Scatter ScatterAdd "
    "Alias "
    "AsStrided AsStridedScatter SliceScatter SelectScatter Diagonal DiagonalScatter Trace "
    "NativeDropout FusedDropout Fill Zero Lift LiftFresh Real Imag ViewAsReal ViewAsComplex Conj "
    "ViewAsRealCopy ViewAsComplexCopy FftR2C FftC2C FftC2R AvgPool1D AvgPool2D AvgPool3D "
    "AdaptiveAvgPool2D AdaptiveAvgPool3D ToDense AccumulateGrad Im2Col Col2Im Im2ColBackward "
    "PixelShuffle "
    "PixelUnshuffle UpsampleNearest1D UpsampleNearest2D UpsampleBilinear2D UpsampleBicubic2D "
    "UpsampleBicubic2DAa UpsampleBilinear2DAa UpsampleLinear1D ReflectionPad1D "
    "ReflectionPad2D ReplicationPad1D ReplicationPad2D Max Min Amax Amin Maximum Minimum Topk Sort "
    "Median MaxPool2DWithIndices MaxPool1D AdaptiveMaxPool2D MaxPool3DWithIndices Cummax "
    "BackwardHookFunction NestedViewFromBuffer "
    "BroadcastTo MeanVar Positive Complex Identity Glu"
)
"""Linear, if the choice of a maximum and the gate in ``F.glu`` are held constant."""

CHOICES: Final = _names("Topk Gather Max Sort")
"""Operators by which a router selects experts, or reads the weights of selected ones."""

PROJECTIONS: Final = _names(
    "Mm Bmm Matmul Mv Dot Vdot Ger Outer Linear MkldnnLinear Convolution ConvolutionOverrideable "
    "MkldnnConvolution CudnnConvolution Trilinear GroupedMm ScaledMm Addmm Baddbmm Addbmm Addmv "
    "Addr Embedding EmbeddingBag SparseMm Kron "
    "MatMul4Bit MatMul8bitLt"  # of bitsandbytes
)
_WITH_SUMMAND: Final = _names("Addmm Baddbmm Addbmm Addmv Addr Addcmul")
_WITH_BIAS: Final = _names(
    "Convolution ConvolutionOverrideable MkldnnConvolution CudnnConvolution Linear MkldnnLinear"
)
_PRODUCTS: Final = _names("Mul Addcmul")

_ACTIVATIONS: Final = _names(
    "Gelu Silu Relu LeakyRelu RreluWithNoise Prelu PreluKernel Elu Selu Celu Mish Hardswish "
    "Hardtanh Hardshrink Softshrink Tanh Erf Abs Square Pow Relu6 Threshold Sinh Atan Asinh Sgn "
    "GeLUFunction"
)
_CLAMPS: Final = _names("Clamp ClampMin ClampMax")
_GATE_FUNCTIONS: Final = _names(
    "Sigmoid Softplus Exp Exp2 Expm1 Hardsigmoid LogSigmoid Log Log1P Log2 Logsumexp Logcumsumexp "
    "Reciprocal Cumprod Prod Erfc Cos Sin Logaddexp Logit Cosh Asin Acos"
)
_SCALES: Final = _names("Rsqrt Sqrt LinalgVectorNorm Norm Std Var VarMean StdMean Frobenius")
_LENGTHS: Final = _names("LinalgVectorNorm Norm Std StdMean Frobenius")
"""Scales of the first degree in their operand: where one is added, its own gradient conserves."""
_LINEAR_WRITES: Final = _names(
    "__setitem__ copy_ fill_ zero_ add_ __iadd__ sub_ __isub__ neg_ masked_fill_ masked_scatter_ "
    "index_add_ index_copy_ index_fill_ index_put_ scatter_ scatter_add_ dropout dropout_ pad "
    "relu relu_ leaky_relu leaky_relu_"
)
_SCALING_WRITES: Final = _names("mul_ __imul__ div_ __itruediv__")
_PRODUCT_WRITES: Final = _names("addmm_ addmv_ addbmm_ baddbmm_ addr_ addcmul_")
_RULES: Final = _names("_Relay _RelayGenerated")
"""Function of this package, and its name under ``torch.func``."""
_WITH_MEAN: Final = _names("VarMean StdMean")
_NORMS: Final = _names("NativeLayerNorm NativeGroupNorm FusedRmsNorm")
_QUOTIENTS: Final = _names("Div GridSampler2D")
"""Linear in the first operand; the second one, a denominator or places to read at, is constant."""
_SOLUTIONS: Final = _names("LinalgSolveTriangular")
_SOFTMAX: Final = _names("Softmax SafeSoftmax")
_BATCH_NORMS: Final = _names("NativeBatchNorm CudnnBatchNorm MiopenBatchNorm BatchNormImplIndex")
_KERNEL: Final = re.compile(r"ScaledDotProduct\w*Attention|FlashAttention|EfficientAttention")

VIEWS: Final = _names(
    "View UnsafeView ReshapeAlias Reshape Transpose T Permute Clone ToCopy Unsqueeze Squeeze Alias "
    "NativeDropout"
)
"""Operators that change no value; dropout only outside of training."""

ADDITIONS: Final = _names("Add Sub")

STREAM: Final = (
    VIEWS
    | ADDITIONS
    | _names(
        "Rsub Neg Mul Div Expand Copy Slice Select Index IndexSelect Gather MaskedFill Where "
        "FusedDropout NativeLayerNorm FusedRmsNorm Mean Sum Cat Split SplitWithSizes Unbind "
        "Identity Positive BackwardHookFunction"
    )
)
"""Operators that pass on a residual stream, or a part of it."""

ELEMENTWISE: Final = (
    _names("Add Sub Rsub Neg Mul Div Clone Alias ToCopy Copy Where MaskedFill NativeDropout")
    | _ACTIVATIONS
    | _CLAMPS
    | (_GATE_FUNCTIONS - _names("Logsumexp Logcumsumexp Cumprod Prod"))
)
"""Operators that treat each element separately."""

_KINDS: Final[dict[str, Kind]] = {
    **dict.fromkeys(_LINEAR | COLLECTIVES, "linear"),
    **dict.fromkeys(PROJECTIONS, "projection"),
    **dict.fromkeys(_PRODUCTS, "product"),
    **dict.fromkeys(_ACTIVATIONS | _CLAMPS, "activation"),
    **dict.fromkeys(_GATE_FUNCTIONS, "gate function"),
    **dict.fromkeys(_SCALES, "scale"),
    **dict.fromkeys(_NORMS, "norm"),
    **dict.fromkeys(_QUOTIENTS, "quotient"),
    **dict.fromkeys(_SOLUTIONS, "solution"),
    **dict.fromkeys(_SOFTMAX, "softmax"),
    **dict.fromkeys(_RULES, "rule"),
}


def is_kernel(name: str) -> bool:
    """Whether an operator is a whole attention, of queries, keys, values and perhaps a mask."""
    return "." not in name and _KERNEL.search(name) is not None


def summand_of(name: str) -> int | None:
    """Place of the operand that a product adds; None if it adds none."""
    if name in _WITH_SUMMAND:
        return 0
    return 2 if name in _WITH_BIAS else None


def has_held(name: str, kind: Kind) -> bool:
    """Whether the second operand is constant where the first one depends on the input.

    It is a part of the slope: the weight of a batch norm or of a PReLU.
    """
    return name in ("Prelu", "PreluKernel") or (name in _BATCH_NORMS and kind == "linear")


def is_clamp(name: str) -> bool:
    """Whether an operator limits values to a range and leaves others unchanged."""
    return name in _CLAMPS


def is_length(name: str) -> bool:
    """Whether an operator is a scale, homogeneous of the first degree."""
    return name in _LENGTHS


def is_mean(name: str, output: int) -> bool:
    """Whether a result is the mean that an operator returns beside a scale."""
    return output == 1 and name in _WITH_MEAN


def is_linear_write(function: str, *, factors: bool) -> bool:
    """Whether the ordinary gradient is right for a function that writes into a view.

    Args:
        function: Its name in Python, which the graph does not show.
        factors: Whether another operand than the overwritten one depends on the input.
    """
    return function in _LINEAR_WRITES or (function in _SCALING_WRITES and not factors)


def is_product_write(function: str) -> bool:
    """Whether a function adds a product to a view, which is linear if one factor is constant.

    Args:
        function: Its name in Python. The graph does not show which operand is which.
    """
    return function in _PRODUCT_WRITES


def kind_of(name: str, detail: Any = None) -> Kind:
    """The kind of an operator.

    Args:
        name: Its name (``"Mul"``).
        detail: The argument that decides about the kind, if any (see :meth:`Graph.detail`).
    """
    if name in _BATCH_NORMS:
        kinds: dict[object, Kind] = {"running": "linear", "row": "norm"}
        return kinds.get(detail, "unknown")
    if name == "ScatterReduce":
        return "unknown" if detail == "prod" else "linear"
    if name == "Pow":
        if isinstance(detail, (int, float)):
            return "activation" if detail >= 1 else "scale"
        return "unknown" if detail is None else "gate function"
    kind = _KINDS.get(name)
    if kind is None:
        return "kernel" if is_kernel(name) else "unknown"
    return kind
