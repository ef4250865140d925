"""The ledger, a completeness check: relevance line by line, and whether the account closes."""

from captum_lrpx.conservation.account import ledger, observed_ledger
from captum_lrpx.conservation.book import Entry, Ledger

__all__ = ["Entry", "Ledger", "ledger", "observed_ledger"]
