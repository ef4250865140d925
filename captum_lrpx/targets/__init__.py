"""What is explained: forward modules for Captum, and the short form that people write."""

from captum_lrpx.targets.encoding import Encoding, encode
from captum_lrpx.targets.forward import (
    AnswerLogits,
    ClassLogits,
    LogitDifference,
    TokenLogits,
    last_token,
)
from captum_lrpx.targets.target import Question, Target
from captum_lrpx.targets.task import Task, task_of

__all__ = [
    "AnswerLogits",
    "ClassLogits",
    "Encoding",
    "LogitDifference",
    "Question",
    "Target",
    "Task",
    "TokenLogits",
    "encode",
    "last_token",
    "task_of",
]
