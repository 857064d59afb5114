"""The 16 languages of MIDB as one table, and how a user's way of naming a language becomes a code.

Any other ISO 639 code works everywhere too. What the table adds: English names, the script that the guards expect, and
the groups by which MIDB reports its results.
"""

import re
from typing import NamedTuple


class Language(NamedTuple):
    """One language: English name, ISO 639-1 code, region group, resource level, ISO 15924 script."""

    name: str
    code: str
    region: str
    resource: str
    script: str


# Resource levels: the README of the published MIDB repository.
LANGUAGES = (
    Language("Italian", "it", "Europe", "high", "Latn"),
    Language("Spanish", "es", "Europe", "high", "Latn"),
    Language("French", "fr", "Europe", "high", "Latn"),
    Language("German", "de", "Europe", "high", "Latn"),
    Language("Russian", "ru", "Europe", "high", "Cyrl"),
    Language("Arabic", "ar", "Middle East", "medium", "Arab"),
    Language("Turkish", "tr", "Middle East", "medium", "Latn"),
    Language("Japanese", "ja", "East Asia", "medium", "Jpan"),
    Language("Korean", "ko", "East Asia", "medium", "Kore"),
    Language("Portuguese", "pt", "Europe", "medium", "Latn"),
    Language("Czech", "cs", "Europe", "low", "Latn"),
    Language("Greek", "el", "Europe", "low", "Grek"),
    Language("Indonesian", "id", "Southeast Asia", "low", "Latn"),
    Language("Thai", "th", "Southeast Asia", "low", "Thai"),
    Language("Vietnamese", "vi", "Southeast Asia", "low", "Latn"),
    Language("Malay", "ms", "Southeast Asia", "low", "Latn"),
)

# The language that the other sixteen were translated from.
ENGLISH = Language("English", "en", "Europe", "high", "Latn")

BY_CODE = {language.code: language for language in (*LANGUAGES, ENGLISH)}

_BY_NAME = {language.name.casefold(): language for language in BY_CODE.values()}
_ISO3 = {
    "ita": "it", "spa": "es", "fra": "fr", "fre": "fr", "deu": "de", "ger": "de", "rus": "ru", "ara": "ar", "arb": "ar",
    "tur": "tr", "jpn": "ja", "kor": "ko", "por": "pt", "ces": "cs", "cze": "cs", "ell": "el", "gre": "el", "ind": "id",
    "tha": "th", "vie": "vi", "msa": "ms", "may": "ms", "zsm": "ms", "eng": "en",
}  # fmt: skip
_TAG = re.compile(r"([a-z]{2,3})(?:[-_][a-z0-9]{2,8})*")


def language_code(language: str) -> str:
    """Read a language as people write it (`"French"`, `"fr"`, `"fra"`, `"pt-BR"`, `"arb_Arab"`) as its ISO 639 code.

    A code outside the table is returned as it is, without region or script.

    Raises:
        ValueError: The text is neither a language name of the table nor shaped like an ISO 639 code.
    """
    text = language.strip().casefold()
    if text in _BY_NAME:
        return _BY_NAME[text].code
    tag = _TAG.fullmatch(text)
    if tag is None:
        raise ValueError(
            f"{language!r} is not a language we know; give an ISO 639 code such as 'fr', or one of the names in midb.languages.LANGUAGES"
        )
    return _ISO3.get(tag[1], tag[1])
