"""The playground's tokenizer, trained on the spot on the playground's own sentences.

A unigram model of whole words with single characters and bytes to fall back on: every word of the playground is one token (the same one at
the start of a text and inside it), and any other text is spelt and survives a round trip, but for its capitals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tpo_heads.playground import phrases
from tpo_heads.playground.scenes import ACTIONS, COLOURS, SHAPES, SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SECONDS = tuple(f"<{tenths / 10:.1f} seconds>" for tenths in range(100))
"""Time stamps that Qwen3-VL's processor puts before every frame; one token each, up to 9.9 s (later ones are spelt)."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}{{ part['text'] if part['type'] == 'text' else '' }}{%- endfor -%}{%- endif -%}"
    "<|end|>{%- endgeneration -%}"
    "{%- else -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'video' -%}<|video_pad|>"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|end|>"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def sentences() -> Iterator[str]:
    """Yield sentences that hold every word of the playground, with the words of a chat beside them."""
    for table in (phrases.ASK, phrases.HELD_OUT, phrases.TALK, phrases.TALK_HELD_OUT, phrases.DESCRIBE):
        for ways in table.values():
            for way in ways:
                yield way.replace("{", " ").replace("}", " ")
    yield from (phrases.NOT_THERE, phrases.OPTIONS.replace("{", " ").replace("}", " "))
    yield from (*phrases.ROWS, *phrases.COLUMNS, *phrases.TIMES, *phrases.RELATIONS, *phrases.DIRECTIONS, *phrases.NUMBERS)
    yield from phrases.CELLS
    yield from (*COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), "crosses", *SIZES, *ACTIONS, *phrases.THIRD_PERSON.values())
    yield from ("object objects", "leftmost rightmost top bottom", "moving stays early late", "it yes no a an the one two three four")
    yield from ("it is at", "they are at", "none", "not sure", "here", "there", "from to", "seconds", "box boxes", "frames", "answer")


def train_tokenizer(corpus: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """Return the tokenizer: one piece for each word of the corpus, pieces for printable characters, bytes for the rest."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    counts = Counter(word for text in (sentences() if corpus is None else corpus) for word in _words(text))
    total = sum(counts.values())
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [(f"▁{word}", math.log(count / total)) for word, count in sorted(counts.items()) if len(word) > 1]
    pieces += [(f"▁{letter}", -11.0) for letter in letters if letter.isalnum()]
    pieces += [("▁", -14.0), *((letter, -12.0) for letter in letters)]
    pieces += [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([("<unk>", -100.0), *pieces], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in SECONDS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="right")


def _words(text: str) -> list[str]:
    return "".join(char if char.isalnum() or char in "-'" else " " for char in text.lower()).split()
