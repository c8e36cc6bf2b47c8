"""Responses to one prompt in one pass that computes the prompt once, and no padding token.

All tokens stand in one row: the distinct prompts, then the responses, prompt after prompt. Every prompt and every
response attends to itself; a response attends to its prompt besides. Dimensions: S tokens of the row, N response
tokens, n segments of one shape, L tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tpg.policies.flash import attend, attend_backward
from tpg.trajectories import Trajectories

PADDED = 1.25
"""Segments attend together if their tokens, padded to the longest, are at most so many times their own."""


class Span(NamedTuple):
    """So many tokens of the row from here on."""

    start: int
    length: int


class Pair(NamedTuple):
    """A prompt and all of its responses' tokens."""

    prompt: Span
    responses: Span


@dataclass(frozen=True, eq=False)
class Tile:
    """Segments whose attention to themselves is computed at once."""

    segments: int
    length: int
    """Of the longest."""
    first: int | None
    """Where they start if they lie end to end, all as long; else None, and the tokens are gathered."""
    tokens: Tensor
    """Places in the row, a segment padded with its last token."""
    kept: Tensor
    """Places among those that are no padding."""
    padding: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Its tokens of (1, heads, S, D) as (n, heads, L, D)."""
        if self.first is not None:
            tokens = values[0, :, self.first : self.first + self.segments * self.length]
        else:
            tokens = values[0].index_select(1, self.tokens)
        return tokens.unflatten(1, (self.segments, self.length)).transpose(0, 1)

    def put(self, target: Tensor, values: Tensor) -> None:
        """Write (n, heads, L, ...) to its tokens of (1, heads, S, ...)."""
        values = values.transpose(0, 1)
        if self.first is not None:
            place = target[0, :, self.first : self.first + self.segments * self.length]
            place.unflatten(1, (self.segments, self.length)).copy_(values)
        else:
            target[0].index_copy_(
                1, self.tokens[self.kept], values.flatten(1, 2).index_select(1, self.kept).to(target.dtype)
            )


@dataclass(frozen=True, eq=False)
class Layout:
    """Where everything stands in the row."""

    ids_S: Tensor
    positions_S: Tensor
    predicts_N: Tensor
    """The place of the token whose state predicts each response token, in the order of `response_mask_BT`."""
    tiles: tuple[Tile, ...]
    pairs: tuple[Pair, ...]

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """What `Decoder` takes."""
        out: Tensor = _SharedPrefixAttention.apply(query, key, value, scale, self)
        return out


def layout_of(trajectories: Trajectories) -> Layout:
    """The row of these trajectories. A response's last token predicts nothing and is left out."""
    prompts = _rows(trajectories.prompt_ids_BP, trajectories.prompt_mask_BP)
    responses = _rows(trajectories.response_ids_BT, trajectories.response_mask_BT)
    members: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        members.setdefault(tuple(prompt), []).append(row)
    # By length, so that equal ones lie end to end.
    groups = sorted(members.values(), key=lambda rows: len(prompts[rows[0]]))
    ids: list[int] = []
    positions: list[int] = []
    shared: list[Span] = []
    for rows in groups:
        prompt = prompts[rows[0]]
        shared.append(Span(len(ids), len(prompt)))
        ids += prompt
        positions += range(len(prompt))
    pairs: list[Pair] = []
    own: list[Span] = []
    predicts: list[list[int]] = [[] for _ in responses]
    for span, rows in zip(shared, groups, strict=True):
        first = len(ids)
        for row in sorted(rows, key=lambda row: len(responses[row])):
            read = responses[row][:-1]
            predicts[row] = [span.start + span.length - 1, *range(len(ids), len(ids) + len(read))]
            if read:
                own.append(Span(len(ids), len(read)))
            ids += read
            positions += range(span.length, span.length + len(read))
        if len(ids) > first:
            pairs.append(Pair(span, Span(first, len(ids) - first)))
    places = [place for row, response in zip(predicts, responses, strict=True) for place in row[: len(response)]]
    device = trajectories.response_ids_BT.device
    return Layout(
        torch.tensor(ids, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(places, dtype=torch.long, device=device),
        (*_tiles(shared, device), *_tiles(own, device)),
        tuple(pairs),
    )


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The tokens that exist, row by row."""
    return [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]


def _tiles(spans: Sequence[Span], device: torch.device) -> list[Tile]:
    """Segments of equal length that lie end to end as they are, the others with those of similar length."""
    alike: list[list[Span]] = []
    for span in spans:
        last = alike[-1][-1] if alike else None
        if last is not None and last.length == span.length and last.start + last.length == span.start:
            alike[-1].append(span)
        else:
            alike.append([span])
    tiles: list[list[Span]] = []
    tokens = 0
    for run in sorted(alike, key=lambda run: -run[0].length):
        tokens += sum(span.length for span in run)
        if not tiles or (len(tiles[-1]) + len(run)) * tiles[-1][0].length > PADDED * tokens:
            tiles.append([])
            tokens = sum(span.length for span in run)
        tiles[-1] += run
    return [_tile(segments, device) for segments in tiles]


def _tile(segments: Sequence[Span], device: torch.device) -> Tile:
    length = segments[0].length
    ends = [span.start + span.length for span in segments[:-1]]
    joined = all(span.length == length for span in segments) and ends == [span.start for span in segments[1:]]
    offsets = range(length)
    tokens = [span.start + min(offset, span.length - 1) for span in segments for offset in offsets]
    real = [offset < span.length for span in segments for offset in offsets]
    return Tile(
        len(segments),
        length,
        segments[0].start if joined else None,
        torch.tensor(tokens, device=device),
        torch.tensor([place for place, is_real in enumerate(real) if is_real], device=device),
        torch.tensor(real, device=device).logical_not().reshape(len(segments), 1, length, 1),
    )


class _SharedPrefixAttention(torch.autograd.Function):
    """Keeps queries, keys, values, the output and one number a token and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout) -> Tensor:
        device = query.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
        ctx.given = query.dtype, key.dtype, value.dtype
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        heads, tokens = query.shape[1:3]
        out = query.new_empty(1, tokens, heads, value.shape[-1]).transpose(1, 2)
        wide = torch.promote_types(query.dtype, torch.float32)
        logsumexp = torch.empty(1, heads, tokens, dtype=wide, device=query.device)
        with torch.autocast(device, enabled=False):
            for tile in layout.tiles:
                found, total = attend(tile.of(query), tile.of(key), tile.of(value), scale, causal=True)
                tile.put(out, found)
                tile.put(logsumexp, total)
            for prompt, responses in layout.pairs:
                keys, values = _part(prompt, key, value)
                found, total = attend(query.narrow(2, *responses), keys, values, scale, causal=False)
                own, own_total = _part(responses, out, logsumexp)
                own.copy_(torch.lerp(own.to(wide), found.to(wide), (total - own_total).sigmoid()[..., None]))
                own_total.copy_(torch.logaddexp(total, own_total))
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.scale, ctx.layout = scale, layout
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsumexp = ctx.saved_tensors
        layout: Layout = ctx.layout
        slope = slopes[0].transpose(1, 2)
        found = [torch.empty_like(tensor, dtype=logsumexp.dtype) for tensor in (query, key, value)]
        with torch.autocast(query.device.type, enabled=False):
            for tile in layout.tiles:
                own_slope, *given = (tile.of(tensor) for tensor in (slope, query, key, value, out))
                if tile.first is None:
                    own_slope = own_slope.masked_fill(tile.padding, 0.0)
                total = tile.of(logsumexp[..., None])[..., 0]
                parts = attend_backward((own_slope, *given, total), ctx.scale, causal=True)
                for target, part in zip(found, parts, strict=True):
                    tile.put(target, part)
            for prompt, responses in layout.pairs:
                keys, values = _part(prompt, key, value)
                own_slope, own_query, own_out, total = _part(responses, slope, query, out, logsumexp)
                parts = attend_backward((own_slope, own_query, keys, values, own_out, total), ctx.scale, causal=False)
                for target, span, part in zip(found, (responses, prompt, prompt), parts, strict=True):
                    target.narrow(2, *span).add_(part)
        return *(target.to(dtype) for target, dtype in zip(found, ctx.given, strict=True)), None, None


def _part(span: Span, *tensors: Tensor) -> Iterable[Tensor]:
    """Its tokens of each."""
    return [tensor.narrow(2, *span) for tensor in tensors]
