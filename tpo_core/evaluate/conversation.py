"""Whether words are right, and what words alone (no picture, no clip) would have scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_LETTER = re.compile(r"^\(?([a-z])\)?[.:)]?(\s|$)")
_WORD = re.compile(r"[^\W_]+")


def normalised(text: str) -> str:
    """Return the words in lower case, without punctuation."""
    return " ".join(_WORD.findall(text.casefold()))


def is_right(words: str, expected: str, choices: Sequence[str] | None = None, answer: int | None = None) -> bool:
    """Return whether an answer in words is right: equal words; of a multiple-choice question, the choice's words or its letter.

    An answer that cannot be read is wrong; it is never left out.
    """
    said = normalised(words)
    if choices is None or answer is None:
        return bool(said) and said == normalised(expected)
    if said == normalised(choices[answer]):
        return True
    letter = _LETTER.match(words.strip().casefold())
    return letter is not None and ord(letter.group(1)) - ord("a") == answer


class BlindBaseline:
    """Answers from the question's words alone: the most common answer to the most similar questions that training held.

    Similarity is the share of common words; ties between questions are counted together. With templated questions this is the
    majority answer of the template.

    Args:
        pairs: (question, answer) in words, from training data.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._answers: dict[frozenset[str], Counter[str]] = {}
        everything: Counter[str] = Counter()
        for question, answer in pairs:
            self._answers.setdefault(_words(question), Counter())[normalised(answer)] += 1
            everything[normalised(answer)] += 1
        self._fallback = everything.most_common(1)[0][0] if everything else ""

    def answer(self, question: str) -> str:
        """Return the guess; the most common answer of all where no training question shares a word."""
        asked = _words(question)
        best, votes = 0.0, Counter[str]()
        for words, answers in self._answers.items():
            shared = len(asked & words)
            similarity = shared / max(len(asked | words), 1)
            if similarity > best:
                best, votes = similarity, Counter(answers)
            elif similarity == best and shared:
                votes.update(answers)
        # Ties by name, so that the guess does not depend on the order of the data.
        return min(votes, key=lambda text: (-votes[text], text)) if votes else self._fallback


def _words(text: str) -> frozenset[str]:
    return frozenset(normalised(text).split())
