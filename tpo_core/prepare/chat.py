"""Messages -> chat text with task tokens and markers -> ids, labels, words, slots.

The family's own chat template and processor run once per sample. Four markers (temporary special tokens) show afterwards which ids are
the assistant's words and which the user's; they are taken out of every per-token list. See BACKBONES: counting on prefixes of the
template mislabels silently on some families, markers do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpo_core.errors import BackboneError
from tpo_core.router.vocabulary import ANSWER_CLOSE, ANSWER_OPEN, MARKERS, WORDS_CLOSE, WORDS_OPEN, TaskVocabulary


@dataclass(frozen=True)
class Tokenised:
    """One sample's ids after the markers are gone.

    Args:
        ids: token ids; task tokens beyond the vocabulary, prompts as -1.
        extra: other per-token lists.
        learn: positions whose next token is learnt. labels: the ids of those next tokens.
        words: per user turn (a turn ends where the assistant speaks), the positions of its words.
        turns: index of the user turn that stands before each position (-1 before the first).
        opens: those of `learn` whose next token opens an answer in words.
        starts: position of every start token, in order.
        prompts: position of every spatial prompt, in order.
    """

    ids: list[int]
    extra: dict[str, list[int]]
    learn: list[int]
    labels: list[int]
    words: list[list[int]]
    turns: list[int]
    opens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)


class ChatReader:
    """Adds the task strings to a copy of the tokenizer's table and reads rendered samples back into task ids.

    Args:
        processor: the backbone's processor; its tokenizer gains special tokens (strings only, no rows in the model).
        vocabulary: ids and strings of the task tokens.
        closing: ids that may close an assistant turn (end of turn, end of sequence).
    """

    def __init__(self, processor: Any, vocabulary: TaskVocabulary, closing: frozenset[int]) -> None:
        self.vocabulary = vocabulary
        self.closing = closing
        tokenizer = processor.tokenizer
        strings = vocabulary.id_of()
        tokenizer.add_tokens(_special([*MARKERS, *strings]))
        self._markers = {tokenizer.convert_tokens_to_ids(marker): marker for marker in MARKERS}
        self._ids = {tokenizer.convert_tokens_to_ids(text): token for text, token in strings.items()}
        self._starts = {vocabulary.start_id(name) for name in vocabulary.names}
        self._slots = {token for name in vocabulary.names for token in vocabulary.slot_ids(name)}

    def read(self, ids: Sequence[int], extra: Mapping[str, Sequence[int]]) -> Tokenised:
        """Take the markers out and say what each position is.

        Raises:
            BackboneError: the template lost or doubled a marker.
        """
        out = Tokenised([], {key: [] for key in extra}, [], [], [], [])
        state = _State()
        for index, token in enumerate(ids):
            marker = self._markers.get(token)
            if marker is not None:
                state.turn(marker, out)
                continue
            mapped = self._ids.get(token, token)
            position = len(out.ids)
            out.ids.append(mapped)
            out.turns.append(len(out.words) - 1)
            for key, values in extra.items():
                out.extra[key].append(values[index])
            if mapped in self._starts:
                out.starts.append(position)
            elif mapped == -1:
                out.prompts.append(position)
            if state.words and mapped != -1:
                out.words[-1].append(position)
            if state.learns(token in self.closing) and position > 0 and mapped not in self._slots:
                if state.opening and mapped not in self._starts:
                    out.opens.append(position - 1)
                out.learn.append(position - 1)
                out.labels.append(mapped)
            state.opening = False
        if state.answer or state.words:
            raise BackboneError(
                "the chat template dropped a marker at the end of a turn; use a template that renders message text as it is"
            )
        return out


@dataclass
class _State:
    """Where the reader stands: inside an answer (or before its first token), inside a user's words, or shortly behind an answer."""

    answer: bool = False
    words: bool = False
    new_turn: bool = True
    closing_left: int = 0
    opening: bool = False

    def turn(self, marker: str, out: Tokenised) -> None:
        expected = {ANSWER_OPEN: not self.answer, ANSWER_CLOSE: self.answer, WORDS_OPEN: not self.words, WORDS_CLOSE: self.words}
        if not expected[marker]:
            raise BackboneError("the chat template doubled or reordered a marker; use a template that renders message text as it is")
        if marker in (ANSWER_OPEN, ANSWER_CLOSE):
            self.answer = self.opening = marker == ANSWER_OPEN
            self.new_turn = True
        else:
            self.words = marker == WORDS_OPEN
            if self.words and self.new_turn:
                out.words.append([])
                self.new_turn = False
        # The token that closes the turn may stand one or two tokens (a line break) behind the words.
        self.closing_left = 3 if marker == ANSWER_CLOSE else 0

    def learns(self, closing: bool) -> bool:
        if self.answer:
            return True
        learnt = closing and self.closing_left > 0
        self.closing_left = 0 if learnt else max(self.closing_left - 1, 0)
        return learnt


def mark_answer(text: str) -> str:
    """Return an assistant's text between markers."""
    return f"{ANSWER_OPEN}{text}{ANSWER_CLOSE}"


def mark_words(text: str) -> str:
    """Return a user's text between markers."""
    return f"{WORDS_OPEN}{text}{WORDS_CLOSE}"


def _special(texts: Sequence[str]) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(text, special=True, normalized=False) for text in texts]
