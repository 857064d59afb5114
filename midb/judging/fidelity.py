"""Is an answer in the language of its question? An English answer may win a Thai question, and is counted separately.

Knows texts and language codes. Short texts, code and mixtures have no result.
"""

from midb.identify import ISO_15924, glance, languages, letters, prose, scripts, together, twins, width
from midb.languages import BY_CODE

SHORTEST = 40  # letters; below it an identifier guesses
UNLIKELY = 0.05


def off_language(text: str, language: str) -> bool | None:
    """Whether the text is in another language than `language`; None if that cannot be decided.

    A language with its own script is identified by its letters, the others by a language identifier, in which close
    languages such as Malay and Indonesian count as one.

    Args:
        language: ISO 639-1 code; the result for an unknown code is None.
    """
    if not twins(language):
        return None
    plain = prose(text)
    if width(plain) < SHORTEST:
        return None
    known = BY_CODE.get(language)
    if known and known.script != "Latn" and known.script in ISO_15924:
        counts = scripts(plain)
        share = int(counts[ISO_15924[known.script]]) / max(int(counts.sum()), 1)
        return False if share >= 0.5 else True if share <= 0.1 and letters(counts) >= SHORTEST else None
    if glance(plain) in twins(language):
        return False
    odds = languages(plain)
    share = together(odds, twins(language))
    return True if share <= UNLIKELY else False if share >= 0.5 else None
