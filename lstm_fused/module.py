# SPDX-License-Identifier: BSD-3-Clause
"""`FusedLSTM`, the drop-in replacement of `torch.nn.LSTM`."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_fused._cell_options import (
    add_cell_parameters,
    cell_options,
    describe_options,
    run_one_layer,
    set_initial_cell_parameters,
)
from lstm_fused._convert.reasons import refuse_unlike
from lstm_fused._general_path import GeneralPath
from lstm_fused._ops.checks import (
    check_steps,
    check_tensors,
)
from lstm_fused._stream.of_module import stream_of
from lstm_fused._stream.stream import Stream
from lstm_fused._torch.fx import find_proxy, mark_leaf, record_call
from lstm_fused._torch.jit import refuse_script
from lstm_fused._torch.lstm_checks import Hidden
from lstm_fused._torch.module_state import OWN_OPTIONS, share_state, to_torch
from lstm_fused._variants import (
    add_learned_state,
    check_options,
    learned_states,
    set_initial_values,
    why_not_torchs,
)
from lstm_fused.autograd import fast_path


class FusedLSTM(GeneralPath):
    """`nn.LSTM` with fused kernels: same arguments, parameters, initial values and results.

    It is not a subclass of ``nn.LSTM``, because torch.compile breaks the graph at those. It never
    aliases or caches weights: they are read by name at each call, so that weight_norm, pruning,
    parametrizations, functional_call and FSDP work as on any module.

    Args:
        input_size: D, features of the input.
        hidden_size: H, features of the state.
        num_layers: stacked layers.
        bias: use b_ih and b_hh.
        batch_first: input and output are (N, T, features) in place of (T, N, features).
        dropout: probability of dropout on the outputs of all layers but the last, in training.
        bidirectional: run both directions (L = 2).
        proj_size: P, features of the output if > 0 (Sak et al. 2014); else P = H.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.
        backend: "auto", the fused kernels; or "cudnn", torch's own (cuDNN on CUDA devices, oneDNN
            on the CPU), with nn.LSTM's limits.
        recompute: save h and c for the backward but no gates, which it computes anew by
            products over many steps: less memory, a little more time. An attribute as well, which a
            converted module may be given.
        forget_bias: the initial bias of the forget gates (Jozefowicz et al. 2015): b_ih's share of
            it, b_hh's is 0.
        init: "orthogonal", W_hh of every gate with orthogonal columns or rows (Saxe et al. 2014);
            "chrono:STEPS", biases of the forget gates log(U[1, STEPS - 1]) and of the input gates
            minus that (Tallec & Ollivier 2018); or both, joined by "+". Other initial values are
            nn.LSTM's.
        learned_state: parameters initial_h (num_layers·L, P) and initial_c (num_layers·L, H), at
            first zero, take the place of zeros where hx is None.
        weight_dropout: in training, the probability with which elements of W_hh are zero, by one
            mask for a call, the others being scaled by 1 / (1 - p) (Merity et al. 2018).
        recurrent_dropout: in training, the probability with which elements of h_{t-1} are zero
            where it enters W_hh, by one mask for a sequence, the others being scaled by 1 / (1 -
            p) (Gal & Ghahramani 2016).
        zoneout: probabilities with which c and h keep their previous values, for each unit and
            step by masks in training, by their expectation else (Krueger et al. 2017); one number
            holds for both. That of h is not defined with proj_size.
        layer_norm: x·W_ih, h·W_hh and c are normalised over their features (Ba et al. 2016), by
            parameters gamma_l0 (2, 4H), gamma_c_l0 and beta_c_l0 (H) of each layer and direction.
        peephole: the gates i and f see c_{t-1} and o sees c_t (Gers et al. 2002), by parameters
            peephole_l0 (3, H), of i, f and o.
        cell_clip: c stays in [-cell_clip, cell_clip] (Sak et al. 2014), its gradient beyond is 0.
        coupled_gates: i = 1 - f, whatever the weights of i (Greff et al. 2017).

    Raises:
        ValueError, TypeError: as nn.LSTM, for another backend, for `recompute` and options of the
            cell with "cudnn", and for values of the options that cannot be.

    Example:
        >>> lstm = FusedLSTM(80, 256, num_layers=2, bidirectional=True)
        >>> x, lengths = torch.randn(100, 4, 80), torch.tensor([100, 7, 0, 63])
        >>> y, (h_n, c_n) = lstm(x, lengths=lengths)
        >>> y.shape, h_n.shape
        (torch.Size([100, 4, 512]), torch.Size([4, 4, 256]))
        >>> y[7:, 1].count_nonzero()  # past the row's length
        tensor(0)
    """

    _torch_class: type[nn.Module] = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        recompute: bool = False,
        forget_bias: float | None = None,
        init: str | None = None,
        learned_state: bool = False,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        peephole: bool = False,
        cell_clip: float | None = None,
        coupled_gates: bool = False,
    ) -> None:
        if backend not in ("auto", "cudnn"):
            raise ValueError(f'backend must be "auto" or "cudnn", got {backend!r}')
        if not isinstance(recompute, bool):
            raise TypeError(f"recompute must be a bool, got {type(recompute).__name__}")
        if recompute and backend == "cudnn":
            raise ValueError(f'recompute needs backend="auto", got backend={backend!r}')
        check_options(bias, forget_bias, init, learned_state, weight_dropout)
        of_cell = cell_options(
            *(recurrent_dropout, zoneout, layer_norm, peephole, cell_clip, coupled_gates),
            proj_size=proj_size,
        )
        if of_cell is not None and backend == "cudnn":
            raise ValueError(
                f'{describe_options(of_cell)} needs backend="auto", got backend={backend!r}'
            )
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.backend = backend
        self.recompute = recompute
        self.forget_bias, self.init = forget_bias, init
        self.learned_state, self.weight_dropout = learned_state, float(weight_dropout)
        if learned_state:
            add_learned_state(self, device, dtype)
        if of_cell is not None:
            self.cell_options = of_cell
            add_cell_parameters(self, device, dtype)
        set_initial_values(self)
        if self.cell_options is not None:
            set_initial_cell_parameters(self)
        mark_leaf(self)

    def reset_parameters(self) -> None:
        """Draws new initial values."""
        super().reset_parameters()
        set_initial_values(self)
        if self.cell_options is not None:
            set_initial_cell_parameters(self)

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        for name in OWN_OPTIONS:
            value = getattr(self, name)
            if name != "cell_options" and value != getattr(FusedLSTM, name):
                text += f", {name}={value!r}"
        return ", ".join(filter(None, (text, describe_options(self.cell_options))))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None = None,
        *,
        lengths: Tensor | None = None,
        reset_mask: Tensor | None = None,
        reset_state: Hidden | None = None,
        return_cell_states: bool = False,
    ) -> Any:
        """Runs the LSTM.

        Args:
            input: (T, N, D), (N, T, D) with ``batch_first``, (T, D) unbatched, or a
                PackedSequence, sorted or not.
            hx: h_0 (num_layers·L, N, P) and c_0 (num_layers·L, N, H), or without N when unbatched;
                zero if None, or the parameters of `learned_state`.
            lengths: int32 or int64 (N,), on any device, in any order, 0 ≤ length ≤ T. Outputs past
                a row's length are 0, h_n and c_n are the row's states at its own end (its initial
                ones for length 0), and the reverse direction starts at the row's own end.
            reset_mask: bool, of input's time and batch layout. True at t: the state that enters
                step t, in the direction of processing, is zero, and the gradient is cut there.
                Ignored past a row's length. The same mask holds for every layer.
            reset_state: h (num_layers·L, N, P) and c (num_layers·L, N, H), or without N for all
                rows: the state that enters where reset_mask is True, in the place of zeros.
            return_cell_states: also return every cell state of the last layer.

        Returns:
            ``y, (h_n, c_n)``, or ``y, (h_n, c_n), c`` with ``return_cell_states``. y has input's
            layout and L·P features, c has y's layout and L·H features; both are PackedSequences
            when input is one.

        Raises:
            ValueError, TypeError, RuntimeError: as nn.LSTM for its arguments, and for lengths and
                reset_mask that do not fit. lengths out of range raise RuntimeError.
        """
        if (
            lengths is None
            and reset_mask is None
            and reset_state is None
            and not return_cell_states
            and self.backend == "auto"
            and (hx is not None or not self.learned_state)
            and not (self.weight_dropout and self.training)
            and fast_path.can_run(input, hx, rank=3)
        ):
            directions, layers = 2 if self.bidirectional else 1, self.num_layers
            try:
                if self.cell_options is not None:
                    if layers == 1:
                        return run_one_layer(self, input, hx)
                elif layers == 1:
                    return fast_path.run_layer(
                        input, hx, self._weights(), directions, self.batch_first, self.recompute
                    )
                elif not (self.training and self.dropout):
                    results = fast_path.run_stack(
                        *(input, hx, self._weights(), layers, directions),
                        *(self.batch_first, self.recompute),
                    )
                    if results is not None:
                        return results
            except RuntimeError:
                # Where nn.LSTM has a sentence of its own, the op's is another one.
                self._refuse_misfits(input, hx)
                raise
        proxy = find_proxy(input, hx, lengths, reset_mask, reset_state)
        if proxy is not None:
            masks = {"lengths": lengths, "reset_mask": reset_mask, "reset_state": reset_state}
            flags = {"return_cell_states": return_cell_states}
            return record_call(proxy, self, input, hx, **masks, **flags)
        return self._forward_generally(
            input,
            hx,
            lengths=lengths,
            reset_mask=reset_mask,
            reset_state=reset_state,
            return_cell_states=return_cell_states,
        )

    def _refuse_misfits(self, input: Any, hx: Hidden | None) -> None:
        """Raises for tensors of a call of the fast path that do not fit together, as the general
        path does."""
        self._check_hidden_rank(hx)
        weights = self._weights()
        self._check_input(input, None, weights[0].dtype)
        if hx is not None:
            self._check_hidden(input, hx, None)
        blocks = self.num_layers * (2 if self.bidirectional else 1)
        check_tensors(input, hx or (), weights, blocks)
        check_steps(input.shape[1 if self.batch_first else 0])

    def stream(self, batch_size: int = 1) -> Stream:
        """A stream of this module: one step at a time on the CPU, the state kept in between, no
        dropout. It holds a snapshot of the weights, and begins with the learned state if there is
        one; see :class:`lstm_fused.Stream`.

        Args:
            batch_size: N, rows that take each step together.

        Raises:
            TypeError, ValueError: batch_size is no int of at least 1; the module is bidirectional;
                its weights are not on the CPU, or of mixed dtypes.
            RuntimeError: the compiled kernels did not load.

        Example:
            >>> stream = FusedLSTM(8, 32).stream(batch_size=1)
            >>> for x in torch.randn(100, 1, 8):
            ...     y = stream.step(x)
            >>> y.shape
            torch.Size([1, 32])
        """
        if self.bidirectional:
            raise ValueError("a stream has one direction, got a bidirectional FusedLSTM")
        if self.cell_options is not None:
            raise ValueError(
                f"a stream has nn.LSTM's cell, got {describe_options(self.cell_options)}"
            )
        stream = stream_of(
            self, self._weights, self.num_layers, batch_size, batch_first=self.batch_first
        )
        if self.learned_state:
            h_0, c_0 = learned_states(self, batch_size)
            stream.state = (h_0.detach(), c_0.detach())
        return stream

    # ---- From and to torch ----

    def __prepare_scriptable__(self) -> NoReturn:
        if reason := why_not_torchs(self):
            refuse_script(self, f"nn.LSTM, which can be, has no {reason}")
        refuse_script(self)

    @classmethod
    def from_torch(cls, module: nn.LSTM) -> FusedLSTM:
        """A FusedLSTM with the very Parameter objects, hooks and settings of an nn.LSTM.

        Raises:
            TypeError: it is no nn.LSTM, or computes what a FusedLSTM does not (a forward of its
                own, a complex dtype); the message says what.
        """
        # NOTE: not nn.LSTM, which may have been patched to be FusedLSTM since.
        if not isinstance(module, FusedLSTM._torch_class):
            raise TypeError(f"from_torch takes an nn.LSTM, got {type(module).__name__}")
        refuse_unlike(module, FusedLSTM._torch_class, cls)
        return share_state(module, cls)

    def to_torch(self) -> nn.LSTM:
        """An nn.LSTM with this module's very Parameter objects, hooks and settings; of a converted
        subclass, one of that class.

        Raises:
            ValueError: an option by which this module computes what nn.LSTM does not.
        """
        if reason := why_not_torchs(self):
            raise ValueError(f"nn.LSTM has no {reason}")
        module: nn.LSTM = to_torch(self)
        return module
