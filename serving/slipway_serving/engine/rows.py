"""The key/value cache of the answers under way: one row each, packed without a gap.

    row 0   k k k k k k . . .       every row begins at place 0, whatever its length
    row 1   k k k . . . . . .
    row 2   k k k k k . . . .       a row that ends is replaced by the last one

So a decoding step works on a slice of the buffers, with no copy but the one new place of each row, and what stands
behind a row's length is masked and overwritten later. Buffers grow by doubling, up to what the engine was made for.

It stands in for transformers' Cache where a model hands its keys and values over (`update`); masks are always given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FIRST_PLACES = 256


class RowCache:
    """Buffers [rows, heads, places, dim] of keys and of values for each layer, made when the first row comes."""

    def __init__(self, max_rows: int, max_places: int) -> None:
        self._max_rows = max_rows
        self._max_places = max_places
        self._places = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self.lengths: list[int] = []  # of the rows in use
        self._prefilled = 0  # rows that are being filled at their beginning; 0: one place each
        # Of a decoding step; numbers are shapes of tensors, for which torch.compile makes one program and not one each.
        self._rows: Tensor | None = None
        self._at: Tensor | None = None  # the place that each row writes to
        self._window: Tensor | None = None  # as long as the longest row

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Places in use, over all rows."""
        return sum(self.lengths)

    # --- steps ----------------------------------------------------------------------------------------------------

    def begin_prefill(self, lengths: list[int]) -> None:
        """The next forward pass fills new rows of these lengths, behind the others."""
        self.lengths += lengths
        self._prefilled = len(lengths)
        self._reserve(max(self.lengths))

    def begin_step(self, device: torch.device) -> None:
        """The next forward pass adds one place to each row."""
        self._prefilled = 0
        self._at = torch.tensor(self.lengths, device=device)
        self._rows = torch.arange(len(self.lengths), device=device)
        self.lengths = [length + 1 for length in self.lengths]
        self._window = torch.empty(max(self.lengths), device=device)
        self._reserve(max(self.lengths))

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by each layer with [rows, heads, new places, dim]; what it is to attend to."""
        if layer == len(self._keys):
            shape = (self._max_rows, keys.shape[1], self._places, keys.shape[3])
            self._keys.append(keys.new_zeros(shape))
            self._values.append(values.new_zeros((*shape[:3], values.shape[3])))
        if self._prefilled:
            first, last = self.rows - self._prefilled, self.rows
            self._keys[layer][first:last, :, : keys.shape[2]] = keys
            self._values[layer][first:last, :, : values.shape[2]] = values
            return keys, values
        rows, at, window = self._rows, self._at, self._window
        assert rows is not None and at is not None and window is not None
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        stored_keys[rows, :, at] = keys[:, :, 0]
        stored_values[rows, :, at] = values[:, :, 0]
        count, longest = rows.shape[0], window.shape[0]
        return stored_keys[:count, :, :longest], stored_values[:count, :, :longest]

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked for by models that are told no positions; ours always are."""
        return 0

    def remove(self, row: int, *, wipe: bool = False) -> None:
        """The last row takes this one's place. `wipe`: this one holds NaN, which no mask hides (0 times NaN is NaN)."""
        if wipe:
            for buffer in (*self._keys, *self._values):
                buffer[row].zero_()
        last = self.rows - 1
        if row != last:
            length = self.lengths[last]
            for buffers in (self._keys, self._values):
                for buffer in buffers:
                    buffer[row, :, :length] = buffer[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()

    def clear(self) -> None:
        """No rows; the buffers stay."""
        self.lengths = []

    def _reserve(self, places: int) -> None:
        if places <= self._places:
            return
        wanted = self._places or _FIRST_PLACES
        while wanted < places:
            wanted *= 2
        wanted = min(wanted, self._max_places)
        for buffers in (self._keys, self._values):
            for index, buffer in enumerate(buffers):
                larger = buffer.new_zeros((*buffer.shape[:2], wanted, buffer.shape[3]))
                larger[:, :, : self._places] = buffer
                buffers[index] = larger
        self._places = wanted
