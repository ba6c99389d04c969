"""Training-only encoders that make moments and sentences comparable, and the dummies' conditioning on the words.

Legend: N queries, T clips, L words, K dummies, C hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpo_heads.temporal.layers import EncoderLayer


class DummyEncoder(nn.Module):
    """Learnt dummies that read the words: they stand for what the question does not ask."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, *, layers: int, dummies: int) -> None:
        super().__init__()
        self.token_KC = nn.Parameter(torch.randn(dummies, width))
        self.place_KC = nn.Parameter(torch.randn(dummies, width))
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))

    def forward(self, text_NLC: Tensor, valid_NL: Tensor) -> Tensor:
        """Return the dummies (N, K, C) of each query."""
        rows, dummies = text_NLC.shape[0], self.token_KC.shape[0]
        token_NKC, place_NKC = (part.to(text_NLC.dtype).expand(rows, -1, -1) for part in (self.token_KC, self.place_KC))
        x = torch.cat((token_NKC, text_NLC), 1)
        place = torch.cat((place_NKC, torch.zeros_like(text_NLC)), 1)
        seen = torch.cat((valid_NL.new_ones(rows, dummies), valid_NL), 1)[:, None, None]
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            if index == 0:
                # The dummies are the same in every row, so their projections are made once.
                shared = layer.project(token_NKC[:1], place_NKC[:1])
                own = layer.project(text_NLC, text_NLC.new_zeros(()))
                query_key, value = (torch.cat((a.expand(rows, -1, -1), b), 1) for a, b in zip(shared, own))
            else:
                query_key, value = layer.project(x, place)
            query, key = query_key.chunk(2, -1)
            # Words are not read after the last layer.
            kept = dummies if index == len(self.layers) - 1 else x.shape[1]
            x = layer.finish(x[:, :kept], query[:, :kept], key, value, seen)
        return x[:, :dummies]


class MomentEncoder(nn.Module):
    """A token that sums up the clips of the moment, and one for the other clips, in one pass: the two groups do not see each other."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, *, layers: int) -> None:
        super().__init__()
        self.token_C = nn.Parameter(torch.randn(width))
        self.place_C = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))

    def forward(self, video_NTC: Tensor, place_NTC: Tensor, valid_NT: Tensor, moment_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the moment's token (N, C), the other clips' token (N, C), and all clips (N, T, C), each seen within its group."""
        rows = video_NTC.shape[0]
        x = torch.cat((self.token_C.to(video_NTC.dtype).expand(rows, 2, -1), video_NTC), 1)
        place = torch.cat((self.place_C.to(place_NTC.dtype).expand(rows, 2, -1), place_NTC), 1)
        group = torch.cat((valid_NT.new_tensor([True, False]).expand(rows, 2), moment_NT), 1)
        there = torch.cat((valid_NT.new_ones(rows, 2), valid_NT), 1)
        seen = ((group[:, :, None] == group[:, None]) & there[:, None])[:, None]
        for layer in self.layers:
            x = layer(x, place, seen)
        return x[:, 0], x[:, 1], x[:, 2:]


class SentenceEncoder(nn.Module):
    """A token that sums up the words, and one for the dummies, in one pass: the two groups do not see each other.

    The rows of words and dummies that come out serve a target that takes no gradient, so they are computed without one.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float, *, layers: int) -> None:
        super().__init__()
        self.token_C = nn.Parameter(torch.randn(width))
        self.place_C = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))

    def forward(self, dummy_NKC: Tensor, dummy_place_KC: Tensor, text_NLC: Tensor, valid_NL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the words' token (N, C), the dummies' token (N, C), and dummies and words (N, K + L, C) without gradient."""
        rows, dummies = dummy_NKC.shape[:2]
        token = self.token_C.to(text_NLC.dtype).expand(rows, 2, -1)
        x = torch.cat((token, dummy_NKC, text_NLC), 1)
        place = torch.cat((self.place_C.expand(2, -1), dummy_place_KC, torch.zeros_like(text_NLC[0]))).to(x.dtype)[None]
        words = torch.cat((valid_NL.new_tensor([True, False] + [False] * dummies).expand(rows, -1), torch.ones_like(valid_NL)), 1)
        there = torch.cat((valid_NL.new_ones(rows, 2 + dummies), valid_NL), 1)
        seen = ((words[:, :, None] == words[:, None]) & there[:, None])[:, None]
        for layer in self.layers[:-1]:
            x = layer(x, place, seen)
        last = self.layers[-1]
        assert isinstance(last, EncoderLayer)
        query_key, value = last.project(x, place)
        query, key = query_key.chunk(2, -1)
        tokens = last.finish(x[:, :2], query[:, :2], key, value, seen[:, :, :2])
        with torch.no_grad():
            others = last.finish(x[:, 2:], query[:, 2:], key, value, seen[:, :, 2:])
        return tokens[:, 0], tokens[:, 1], others
