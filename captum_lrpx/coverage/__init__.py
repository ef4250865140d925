"""What happens between the embeddings and the explained value, and which rule holds where.

LRP is right only if everything non-linear on that way has a rule. Here one forward pass is traced,
every operation on the way is named with its module and judged, and what no rule covers is refused.
"""

from captum_lrpx.coverage.operations import Coverage, Operation
from captum_lrpx.coverage.strict import Inquiry
from captum_lrpx.coverage.trace import Run, Traced, trace

__all__ = ["Coverage", "Inquiry", "Operation", "Run", "Traced", "trace"]
