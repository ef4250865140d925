"""Certificates: checks of an explanation, and the digest that seals both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from captum_lrpx.explanation.record import Explanation

__all__ = ["LEDGER_TOLERANCES", "Certificate", "sealed", "verified"]

LEDGER_TOLERANCES: Final[dict[str, float]] = {
    "float64": 1e-5,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 2e-1,
}
"""Open share of a ledger that is tolerated in each precision, relative to its largest number.

The tolerance of float64 is wide because several families compute norms or attention in float32
whatever the precision of the model. Other precisions (quantized weights) get bfloat16's.
"""


@dataclass(frozen=True)
class Certificate:
    """Checks made when an explanation was created.

    Precision, recipe, versions, ids and relevances are fields of the explanation: the digest seals
    them together with the findings.

    Attributes:
        forward_unchanged: Whether the explained value is the same, to the last bit, in a forward
            pass without rules; in an audit also whether it equals, up to rounding, the value read
            from the outputs of the given object.
        operations: Number of operations between the embeddings and the explained value.
        ruled: Number of non-linear ones with a rule.
        unruled: Number of non-linear ones without a rule.
        ledger_tolerance: Open share of the ledger that is tolerated in this precision, see
            :data:`LEDGER_TOLERANCES`.
        ledger_residual: Open amount of the recorded value with the recorded relevances,
            relative to the largest absolute number in the ledger (the explained value, an entry, or
            the relevance of a token). None if there is no ledger.
        ledger_missing: Reason why there is no ledger. None if there is one.
        ledger_delta: The delta of the explanation by kind of ledger line
            (``"softmax"``, ``"bias"``, ``"positions"``, ...; see
            :class:`captum_lrpx.conservation.Entry`). None if there is no ledger, and in records of
            older versions.
        relevance_difference: The largest difference between a recorded relevance and the same
            relevance in the audit's observed pass, relative to the largest relevance. None if it
            was not compared.
        audited: Whether this explanation was audited (coverage, ledger, relevances), or, if False,
            an earlier one of the same model, method, rules and kinds of inputs. None in records of
            older versions, where each explanation was audited.
        digest: SHA-256 over everything else in the explanation and its certificate. It shows
            whether a record was edited or damaged; it is no signature, and does not prove who made
            the record.
    """

    forward_unchanged: bool
    operations: int
    ruled: int
    unruled: int
    ledger_tolerance: float
    ledger_residual: float | None = None
    ledger_missing: str | None = None
    ledger_delta: tuple[tuple[str, float], ...] | None = None
    relevance_difference: float | None = None
    audited: bool | None = None
    digest: str = ""

    @property
    def coverage_complete(self) -> bool:
        """Whether every non-linear operation has a rule."""
        return self.unruled == 0

    @property
    def ledger_closes(self) -> bool:
        """Whether there is a ledger, open by no more than rounding."""
        return self.ledger_residual is not None and self.ledger_residual <= self.ledger_tolerance

    @property
    def relevances_confirmed(self) -> bool:
        """Whether the observed pass found no other relevance."""
        difference = self.relevance_difference
        return difference is None or difference <= self.ledger_tolerance

    @property
    def holds(self) -> bool:
        """Whether every check was made and passed."""
        accounted = self.ledger_closes or self.audited is False
        return not self.failed and accounted

    @property
    def failed(self) -> bool:
        """Whether a check failed; a check that could not be made has not failed."""
        ledger_open = self.ledger_residual is not None and not self.ledger_closes
        passed = self.forward_unchanged and self.coverage_complete and self.relevances_confirmed
        return not passed or ledger_open

    def __str__(self) -> str:
        """The findings in one line."""
        verdict = "NOT certified" if self.failed else "certified in part"
        if self.holds:
            verdict = "certified"
        relevances = "" if self.relevances_confirmed else ", relevances DIFFER in a second pass"
        return f"{verdict}: {self._forward()}, {self._coverage()}, {self._ledger()}{relevances}"

    def _forward(self) -> str:
        return "forward unchanged" if self.forward_unchanged else "forward CHANGED by the rules"

    def _coverage(self) -> str:
        if self.coverage_complete:
            return f"{self.operations} operations covered"
        return f"{self.unruled} of {self.operations} operations WITHOUT a rule"

    def _ledger(self) -> str:
        if self.audited is False:
            return "ledger closed when the first explanation of this form was audited"
        if self.ledger_residual is None:
            return f"ledger: not available ({self.ledger_missing})"
        if self.ledger_closes:
            return f"ledger closed to {self.ledger_residual:.0e}{self._delta()}"
        return f"ledger OPEN by {self.ledger_residual:.1e} (tolerance {self.ledger_tolerance:.0e})"

    def _delta(self) -> str:
        """Name the parts of the model that hold the delta."""
        amounts = {kind: amount for kind, amount in self.ledger_delta or () if amount}
        largest = max(map(abs, amounts.values()), default=0.0)
        named = [
            f"{_PARTS.get(kind, kind)} {amount:+.4f}"
            for kind, amount in sorted(amounts.items(), key=lambda item: -abs(item[1]))
            if abs(amount) >= _NEGLIGIBLE * largest and abs(amount) >= _SHOWN
        ]
        return f"; the delta went to {', '.join(named)}" if named else ""


def sealed(explanation: Explanation, certificate: Certificate) -> Explanation:
    """Attach a certificate with the digest of both."""
    certified = replace(explanation, certificate=certificate)
    return replace(certified, certificate=replace(certificate, digest=_digest(certified)))


def verified(explanation: Explanation) -> Explanation:
    """Return the explanation if it matches its certificate, or has none.

    Raises:
        ValueError: If it does not match.
    """
    certificate = explanation.certificate
    if certificate is not None and certificate.digest != _digest(explanation):
        raise ValueError(
            "The explanation is not the one that was certified: its content does not have the "
            "digest in its certificate, so it was edited or damaged. Explain again, or remove the "
            "certificate to keep it as an uncertified record."
        )
    return explanation


_PARTS: Final = {
    "softmax": "the softmax of attention",
    "bias": "biases",
    "positions": "position embeddings",
    "token_types": "token type embeddings",
    "mlp": "MLPs",
    "score_bias": "constants added to attention scores",
    "absorbed": "rules of linear layers",
    "rule": "rules that do not conserve",
    "output": "the explained quantity itself",
    "tokens": "the residual stream of the tokens",
}
_NEGLIGIBLE: Final = 0.005
"""Parts below this share of the largest are not named."""
_SHOWN: Final = 5e-5
"""Smallest amount that is not printed as zero."""


def _digest(explanation: Explanation) -> str:
    """SHA-256 of the content in a canonical form: sorted names, shortest exact digits, ASCII."""
    content = asdict(explanation)
    del content["certificate"]["digest"]
    # None values are left out, so that new fields do not break older digests.
    for part in (content, content["certificate"]):
        for name in [name for name, value in part.items() if value is None]:
            del part[name]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
