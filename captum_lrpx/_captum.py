"""Captum's private names that a plug-in needs, in one place.

Captum exports its algorithms, not their helpers. Everything imported here has
kept its name and signature from Captum 0.8 to 0.9.
"""

from captum._utils.common import (
    _expand_additional_forward_args as expand_additional_forward_args,
)
from captum._utils.common import _expand_target as expand_target
from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _format_output as format_output
from captum._utils.common import (
    _format_tensor_into_tuples as format_tensor_into_tuples,
)
from captum._utils.common import _is_tuple as is_tuple
from captum._utils.common import _run_forward as run_forward
from captum._utils.common import _select_targets as select_targets
from captum._utils.common import _verify_select_neuron as select_neuron
from captum._utils.typing import (
    ModuleOrModuleList,
    TargetType,
    TensorOrTupleOfTensorsGeneric,
)
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR as DEEP_LIFT_RULES
from captum.log import log_usage
