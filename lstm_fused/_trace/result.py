# SPDX-License-Identifier: BSD-3-Clause
"""What a trace holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lstm_fused._trace.layer import States
from lstm_fused._trace.summary import Summary, UnitSummary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class GateTrace:
    """One direction of one layer in one call.

    i, f, g and o are the activated input gate, forget gate, candidate and output gate, c the cell
    states, (T, N, H) each, and h the outputs (T, N, P), in the layout of the module's input: (N, T,
    features) with ``batch_first``, (T, features) unbatched. Index t is time in both directions.
    """

    name: str
    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor
    c: Tensor
    h: Tensor
    valid: Tensor | None = field(default=None, repr=False)  # bool, without features: inside a row
    time_dim: int = field(default=0, repr=False)

    def __repr__(self) -> str:
        return f"GateTrace({self.name!r}, c {tuple(self.c.shape)}, h {tuple(self.h.shape)})"

    @property
    def lengths(self) -> Tensor | None:
        """The steps of each row, int64 (N,); None where all have T."""
        return None if self.valid is None else self.valid.sum(dim=self.time_dim)

    @property
    def rows(self) -> int:
        """N; 1 of unbatched input."""
        return 1 if self.c.dim() == 2 else self.c.shape[1 - self.time_dim]

    def row(self, row: int = 0) -> States:
        """One sequence of the batch, cut to its length: i, f, g, o, c (T, H), h (T, P), detached.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"row must be between 0 and {self.rows - 1}, got {row}")
        return States._make(self._row_of(values.detach(), row) for values in self._states())

    def steps(self) -> States:
        """All steps of all rows, one after another: (M, H), M the sum of the lengths; detached."""
        if self.valid is None:
            return States._make(values.detach().flatten(0, -2) for values in self._states())
        valid = self.valid
        return States._make(values.detach()[valid] for values in self._states())

    def _states(self) -> Iterable[Tensor]:
        return self.i, self.f, self.g, self.o, self.c, self.h

    def _row_of(self, values: Tensor, row: int) -> Tensor:
        if values.dim() == 3:
            values = values.select(1 - self.time_dim, row)
        if self.valid is None or self.lengths is None:
            return values
        return values[: int(self.lengths.flatten()[row])]


class Trace(Mapping[str, GateTrace]):
    """What :func:`lstm_fused.trace` recorded: a :class:`.GateTrace` by name, in the order of the
    calls.

    Attributes:
        output: what the model returned.
    """

    def __init__(self, traces: Mapping[str, GateTrace], output: Any) -> None:
        self._traces = dict(traces)
        self.output = output

    def __getitem__(self, name: str) -> GateTrace:
        try:
            return self._traces[name]
        except (KeyError, TypeError):
            raise KeyError(f"the trace has {', '.join(self._traces)}, got {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._traces)

    def __len__(self) -> int:
        return len(self._traces)

    def __repr__(self) -> str:
        return f"Trace({', '.join(map(repr, self._traces.values()))})"

    def summary(self, *, open_above: float = 0.9, closed_below: float = 0.1) -> Summary:
        """What each unit does, over all steps of all rows: how often its gates are saturated, how
        long it remembers, and whether it is dead; see :class:`.UnitSummary`.

        Args:
            open_above, closed_below: a gate is saturated beyond these (Karpathy, Johnson & Li:
                Visualizing and understanding recurrent networks. ICLR workshop, 2016).

        Returns:
            A mapping from the trace's names to a :class:`.UnitSummary`; printed, a table.

        Raises:
            ValueError: not 0 ≤ closed_below < open_above ≤ 1.
        """
        if not 0 <= closed_below < open_above <= 1:
            raise ValueError(
                "summary needs 0 <= closed_below < open_above <= 1, got "
                f"closed_below={closed_below!r}, open_above={open_above!r}"
            )
        summaries: dict[str, UnitSummary] = {
            name: summarize(own.steps(), open_above, closed_below) for name, own in self.items()
        }
        return Summary(summaries, open_above, closed_below)

    def plot(
        self,
        name: str | None = None,
        *,
        row: int = 0,
        tensors: Sequence[str] = States._fields,
        units: Sequence[int] | None = None,
    ) -> Figure:
        """Heat maps of one sequence, units by steps, one for each tensor.

        Args:
            name: of the trace; None where it has only one.
            row: of the batch.
            tensors: which of i, f, g, o, c, h.
            units: which units, in this order from the top; None: all. Not for the h of a layer with
                projection, whose features are not units: it is drawn whole.

        Returns:
            A matplotlib Figure, to be shown or saved.

        Raises:
            ImportError: matplotlib is not installed.
            KeyError, ValueError, IndexError: a name, tensor, unit or row that is not there.
        """
        from lstm_fused._trace.plot import plot_states

        own = self[self.only_name("plot") if name is None else name]
        return plot_states(own.name, own.row(row), tensors, units)

    def save_html(
        self,
        path: str | os.PathLike[str],
        labels: Sequence[object] | None = None,
        *,
        row: int = 0,
        features: Mapping[str, Sequence[float] | Tensor] | None = None,
        names: Sequence[str] | None = None,
        title: str = "Gate trace",
    ) -> None:
        """Writes one page that shows a sequence coloured by what a unit did, and finds units.

        The file needs nothing else, and no network: it may be sent by mail. It shows the sequence
        under any tensor of any unit, values at any step, and all units in an order of choice: most
        periodic, most saturated, longest memory, most correlated with a feature. It keeps values in
        8 bits, compressed: 29 MB for 10,000 characters and 512 units.

        Args:
            path: the file to write.
            labels: one for each step of the row: a text, whose characters they are, or words, or
                time stamps, shown as ``str``; None: numbers from 0.
            row: of the batch.
            features: numbers for each step, by name, that units are correlated with (Pearson).
                Where labels are single characters, those of their place in the text are there
                already: position in the line, indentation, inside double quotes and others.
            names: which of the trace's names; None: all.
            title: of the page.

        Raises:
            ValueError: labels or features of another length than the row's, or not finite.
            TypeError: features that are no mapping of numbers.
            KeyError, IndexError: a name or row that is not there.
            OSError: the file cannot be written.
        """
        from lstm_fused._trace.page import write_page

        chosen = [self[name] for name in (self if names is None else names)]
        write_page(path, chosen, labels, row, features, title)

    def only_name(self, what: str) -> str:
        """The one name, for a call that was given none.

        Raises:
            ValueError: there are several.
        """
        if len(self) > 1:
            raise ValueError(f"{what} needs a name where a trace has several: {', '.join(self)}")
        return next(iter(self))
