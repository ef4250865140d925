"""Targets: forward modules for Captum, and their short form."""

from captum_lrpx.targets.decoder import DecoderLogits
from captum_lrpx.targets.encoding import Encoding, encode
from captum_lrpx.targets.forward import (
    AnswerLogits,
    ClassDifference,
    ClassLogits,
    LogitDifference,
    LogProbabilities,
    OutputFunction,
    OutputSum,
    Probabilities,
    TokenLogits,
    TokenSum,
)
from captum_lrpx.targets.head import last_token
from captum_lrpx.targets.place import Token
from captum_lrpx.targets.quantity import Quantity
from captum_lrpx.targets.query import Query
from captum_lrpx.targets.scene import Part
from captum_lrpx.targets.standing import Standing
from captum_lrpx.targets.target import Target, ask_batch
from captum_lrpx.targets.task import Task, task_of

__all__ = [
    "AnswerLogits",
    "ClassDifference",
    "ClassLogits",
    "DecoderLogits",
    "Encoding",
    "LogProbabilities",
    "LogitDifference",
    "OutputFunction",
    "OutputSum",
    "Part",
    "Probabilities",
    "Quantity",
    "Query",
    "Standing",
    "Target",
    "Task",
    "Token",
    "TokenLogits",
    "TokenSum",
    "ask_batch",
    "encode",
    "last_token",
    "task_of",
]
