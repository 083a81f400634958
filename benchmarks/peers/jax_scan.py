# SPDX-License-Identifier: BSD-3-Clause
"""JAX: jax.lax.scan over time, the input's product hoisted out of it, under jax.jit.

This is what flax's RNN over an OptimizedLSTMCell comes to, with the hoisting that a user who cares
for speed does by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.case import Case
from benchmarks.data import Data
from benchmarks.peers.base import Call, Setting, refuse, refuse_dtypes

DTYPES = {
    "float32": jnp.float32,
    "float64": jnp.float64,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}


def prepare(case: Case, data: Data, setting: Setting) -> Call:
    refuse(case, "JAX scan", "op", "ragged", "grad_input")
    refuse_dtypes(case, "JAX on the CPU", *DTYPES)
    jax.config.update("jax_enable_x64", case.dtype == "float64")

    def array(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, DTYPES[case.dtype])

    weights = {name: array(values) for name, values in data.weights.items()}
    x, h_0, c_0 = array(data.x), array(data.h_0), array(data.c_0)
    keep = array(~data.resets)[:, :, None] if case.resets else None

    def forward(x, weights):
        return _stack(case, x, h_0, c_0, weights, keep)

    def train(x, weights, grad_y):
        (y, h_n, c_n), pull = jax.vjp(forward, x, weights)
        zeros = jnp.zeros_like(h_n), jnp.zeros_like(c_n)
        return (y, h_n, c_n), pull((grad_y, *zeros))

    # Compiled here and not by the first call, so that a measured call never compiles.
    arguments = (x, weights, array(data.grad_y)) if case.training else (x, weights)
    compiled = jax.jit(train if case.training else forward).lower(*arguments).compile()

    def run():
        return jax.block_until_ready(compiled(*arguments))

    def results() -> dict[str, np.ndarray]:
        found = run()
        outputs = found[0] if case.training else found
        named = dict(zip(("y", "h_n", "c_n"), outputs, strict=True))
        if case.training:
            grad_x, by_weight = found[1]
            named |= {"grad_x": grad_x, **{f"grad_{n}": g for n, g in by_weight.items()}}
        wide = jnp.float64 if case.dtype == "float64" else jnp.float32
        return {name: np.asarray(value.astype(wide)) for name, value in named.items()}

    return Call(run, results)


def _stack(case: Case, x, h_0, c_0, weights, keep):
    final_h, final_c = [], []
    for layer in range(case.layers):
        outputs = []
        for direction, suffix in enumerate(("", "_reverse")[: case.directions]):
            block = layer * case.directions + direction
            end = f"_l{layer}{suffix}"
            y, h_n, c_n = _layer(x, h_0[block], c_0[block], weights, end, bool(direction), keep)
            outputs.append(y)
            final_h.append(h_n)
            final_c.append(c_n)
        x = jnp.concatenate(outputs, axis=-1)
    return x, jnp.stack(final_h), jnp.stack(final_c)


def _layer(x, h, c, weights, end, reverse, keep):
    w_hh, w_hr = weights["weight_hh" + end], weights.get("weight_hr" + end)
    bias = weights["bias_ih" + end] + weights["bias_hh" + end]
    projected = x @ weights["weight_ih" + end].T + bias

    def step(carry, inputs):
        h, c = carry
        gates, kept = inputs
        if kept is not None:
            h, c = h * kept, c * kept
        i, f, g, o = jnp.split(gates + h @ w_hh.T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        if w_hr is not None:
            h = h @ w_hr.T
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (h, c), (projected, keep), reverse=reverse)
    return y, h, c
