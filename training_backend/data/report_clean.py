"""Reports as the text stage of MedCoSS reads them (its section on data, after MGCA): lower-case words, nothing else.

Numbers that end with a full stop part sentences, decimals included, and letters beyond ASCII are lost: what the
published weights were taught on, not what a report looks like. Nothing of a report is ever written from here.
"""

from __future__ import annotations

import re

FEWEST_WORDS = 3
"""A report with fewer words is no report."""

_NUMBERED = re.compile(r"[0-9]+\.")
_WORD = re.compile(r"\w+")


def cleaned_sentences(text: str) -> list[str]:
    """Sentences of `text` as words divided by blanks; empty where fewer than `FEWEST_WORDS` words are left."""
    pieces = [piece for part in _NUMBERED.split(" ".join(text.splitlines())) for piece in part.split(".")]
    found = [sentence for piece in pieces if (sentence := _sentence(piece))]
    return found if sum(sentence.count(" ") + 1 for sentence in found) >= FEWEST_WORDS else []


def cleaned(text: str) -> str:
    """`text` as one line of words, or an empty string where too little is left."""
    return " ".join(cleaned_sentences(text))


def joined_parts(impression: str, findings: str) -> str:
    """The text that the published pre-processing cleans: the impression comes first."""
    return f"{impression} {findings}"


def _sentence(piece: str) -> str:
    words = _WORD.findall(piece.replace("\ufffd\ufffd", " ").lower())
    if len(words) < 2:
        return ""
    plain = (word.encode("ascii", "ignore").decode() for word in words)
    return " ".join(word for word in plain if word)
