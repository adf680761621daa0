"""Reports as sentences and words; numpy-free, torch-free, and never written anywhere from here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Level = Literal["sentence", "clause"]
"""sentence: split at full stops, question and exclamation marks, and line ends. clause: at commas, semicolons and
colons too, as the published pre-training of MG-3D does."""

UNKNOWN = "<unk>"
"""Stands for words that a vocabulary lacks."""

_STOP = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+|(?<=[!?])(?=\w)|\r")
_CLAUSE = re.compile(r"(?<=[,;:])\s+")
_SHORT = re.compile(r"(?:^|[\s(])(?:dr|mr|mrs|ms|prof|fig|approx|ca|vs|st|e\.g|i\.e|[a-z])\.$", re.IGNORECASE)
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’-][^\W_]+)*\d*|\w+")


def sentences(text: str, level: Level = "sentence") -> list[str]:
    """Sentences (or clauses) of a report in order, each with its own punctuation; none of them is blank.

    Abbreviations ("Dr.", "no.", single letters) and numbers with decimals end no sentence.
    """
    found: list[str] = []
    for part in _STOP.split(text):
        part = " ".join(part.split())
        if not re.search(r"\w", part):
            continue
        if found and _SHORT.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    if level == "clause":
        found = [piece for sentence in found for piece in _CLAUSE.split(sentence) if re.search(r"\w", piece)]
    return found


def words(text: str) -> list[str]:
    """Lower-case words of a report; each sentence ends with ".", other punctuation is left out."""
    found: list[str] = []
    for sentence in sentences(text):
        inside = [word.lower() for word in _WORD.findall(sentence)]
        found += [*inside, "."] if inside else []
    return found


def vocabulary(reports: Iterable[str], least: int = 3) -> tuple[str, ...]:
    """Words that `reports` have at least `least` times, sorted."""
    counts = Counter(word for report in reports for word in words(report))
    return tuple(sorted(word for word, count in counts.items() if count >= least))


class Words:
    """Numbers of words: 1, 2, ... in the order given; 0 begins, ends and pads a text.

    Args:
        known: words, `UNKNOWN` among them or not.
    """

    def __init__(self, known: Sequence[str]) -> None:
        self.known = tuple(known)
        self._numbers = {word: number for number, word in enumerate(self.known, 1)}

    def __len__(self) -> int:
        """Number of words."""
        return len(self.known)

    def encode(self, text: str, longest: int) -> list[int]:
        """0, the numbers of the first words of `text`, 0; at most `longest` numbers.

        Unknown words are left out where the vocabulary has no word that stands for them.
        """
        stand_in = self._numbers.get(UNKNOWN)
        numbers = [self._numbers.get(word, stand_in) for word in words(text)]
        kept = [number for number in numbers if number is not None][: longest - 2]
        return [0, *kept, 0]

    def decode(self, numbers: Iterable[int]) -> str:
        """Text up to the first 0, as words divided by blanks; numbers that are no word are left out."""
        found = []
        for number in numbers:
            if number == 0:
                break
            if 0 < number <= len(self.known):
                found.append(self.known[int(number) - 1])
        return " ".join(found)


def readable(text: str) -> str:
    """Text of divided words as prose: a capital after each full stop, no blank before it."""
    said = [" ".join(part.split()) for part in f" {text} ".split(" . ")]
    whole = ". ".join(part[:1].upper() + part[1:] for part in said if part)
    return f"{whole}." if whole and not said[-1] else whole
