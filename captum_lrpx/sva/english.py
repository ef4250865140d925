"""The two forms of English verbs that agree with their subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captum_lrpx.sva.samples import Number


_IRREGULAR = {
    "is": ("are", "were"),
    "was": ("were", "are"),
    "has": ("have",),
    "does": ("do",),
}
"""Singular forms that are not the plural with an ending, and their plural counterparts;
some minimal pairs differ in tense as well ("is" and "were")."""

_DOUBLED = ("s", "z")
"""Consonants that are doubled before the ending ("quizzes", "gasses")."""


def number_of_verb(verb: str, foil: str) -> Number | None:
    """Infer the number of a verb in the third person from both of its forms.

    Args:
        verb: One form, in lower case; it may end in "n't".
        foil: The other form.

    Returns:
        The number of ``verb``; ``None`` if the two are not the forms of one verb.
    """
    if verb.endswith("n't") != foil.endswith("n't"):
        return None
    verb, foil = verb.removesuffix("n't"), foil.removesuffix("n't")
    if _are_forms(verb, foil):
        return "singular"
    return "plural" if _are_forms(foil, verb) else None


def in_case_of(word: str, model: str) -> str:
    """Write a word in lower case, capitals or with an initial capital, like another word."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def _are_forms(singular: str, plural: str) -> bool:
    if plural in _IRREGULAR.get(singular, ()):
        return True
    regular = {plural + "s", plural + "es"}
    if plural.endswith("y"):
        regular.add(plural[:-1] + "ies")
    if plural.endswith(_DOUBLED):
        regular.add(plural + plural[-1] + "es")
    return singular in regular
