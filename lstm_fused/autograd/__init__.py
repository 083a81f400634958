# SPDX-License-Identifier: BSD-3-Clause
"""One LSTM layer as a differentiable function.

`layer.lstm_layer` chooses who runs a call and differentiates it:

- `eager_function`: a plain eager call; `fast_path` takes the same way for the modules, with fewer
  checks. `backward_function` is its backward where that is to be differentiated too.
- `functorch_function`: the transforms of torch.func, tensor subclasses and forward mode; with
  `function_apply` and `vmap`. It holds `FusedLSTMFunction`.
- `compiled_layer`: a trace of torch.compile.
- `composite`: what no kernel computes, by torch's own operations; `double_backward` is the second
  derivative, by the `linearization` of the layer about what its forward saved.
- `cell_function`: the one step of a FusedLSTMCell.
"""

from lstm_fused.autograd.functorch_function import FusedLSTMFunction
from lstm_fused.autograd.layer import lstm_layer

__all__ = ["FusedLSTMFunction", "lstm_layer"]
