// SPDX-License-Identifier: BSD-3-Clause
"use strict";
// The trace: what the page was given, its values, and the orders that units can be put in.

const DATA = JSON.parse(document.getElementById("data").textContent);
if (DATA.isText) DATA.labels = Array.from(DATA.labels);
const GATES = { i: "input gate", f: "forget gate", o: "output gate" };
const NAMES = { ...GATES, g: "candidate", c: "cell state", h: "output" };
const MINUS = "\u2212";

const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** A number with so many digits after the point, and a minus sign of a figure's width. */
function digits(value, count = 2) {
  return value.toFixed(count).replace(/^-0(\.0*)?$/, "0$1").replace("-", MINUS);
}

function short(value) {
  if (value === null) return "∞";
  return value >= 1000 ? value.toPrecision(2).replace(/e\+/, "e") : value >= 100 ? digits(value, 0) : digits(value, 1);
}

const percent = (share) => `${Math.round(100 * share)} %`;

/** The bytes of a block, in which each unit's steps lie one after another; unpacked once. */
const unpacked = new Map();
function bytesOf(index) {
  if (!unpacked.has(index)) {
    const node = byId(`block-${index}`);
    const packed = Uint8Array.from(atob(node.textContent), (sign) => sign.charCodeAt(0));
    node.remove();
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(index, new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer)));
  }
  return unpacked.get(index);
}

/** What a byte of a unit stands for. */
function valueOf(series, unit, byte) {
  return series.low[unit] + (byte / 255) * (series.high[unit] - series.low[unit]);
}

/** The colour of each byte of a unit, of 256: full at the value that one step in a hundred exceeds. */
function coloursOf(series, unit) {
  const gain = series.high[unit] / (series.full?.[unit] || series.high[unit] || 1);
  return Uint8ClampedArray.from({ length: 256 }, (_, byte) => 127.5 + gain * (byte - 127.5));
}

/** 256 colours from low to high, as CSS and as numbers for canvases. */
const palette = { css: [], rgb: new Uint8ClampedArray(256 * 3) };
function mixPalette() {
  const style = getComputedStyle(document.documentElement);
  const ends = ["--low", "--middle", "--high"].map((name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number));
  for (let level = 0; level < 256; level++) {
    const place = level / 127.5;
    const from = place < 1 ? 0 : 1;
    const rgb = [0, 1, 2].map((k) => Math.round(ends[from][k] + (place - from) * (ends[from + 1][k] - ends[from][k])));
    palette.css[level] = `rgb(${rgb.join(" ")})`;
    palette.rgb.set(rgb, 3 * level);
  }
}

/** The orders of a tensor's units: a score, by which they fall, and what to tell of it. */
function ordersOf(layer, tensor) {
  const series = layer.tensors[tensor];
  const orders = [{ id: "number", name: "by number", score: (u) => -u, tell: () => "" }];
  const add = (id, name, score, tell) => orders.push({ id, name, score, tell });
  add("periodic", "most periodic", (u) => series.strength[u], (u) =>
    series.period[u] ? `every ${series.period[u]} (${digits(series.strength[u])})` : "no period");
  if (series.low.length === layer.dead.length && !(tensor === "h" && isProjected(layer))) {
    const gates = tensor in GATES ? [tensor] : Object.keys(GATES);
    const mean = (shares) => (u) => gates.reduce((sum, gate) => sum + shares[gate][u], 0) / gates.length;
    const open = mean(layer.open), closed = mean(layer.closed);
    const what = tensor in GATES ? "" : " gates";
    add("saturated", `most saturated${what}`, (u) => open(u) + closed(u), (u) => `${percent(open(u) + closed(u))} saturated`);
    add("open", `most often open${what}`, open, (u) => `${percent(open(u))} open`);
    add("closed", `most often closed${what}`, closed, (u) => `${percent(closed(u))} closed`);
    add("memory", "longest memory", (u) => layer.halfLife[u] ?? Infinity, (u) => `half-life ${short(layer.halfLife[u])}`);
  }
  DATA.features.forEach((feature, k) => {
    const r = series.correlations[k];
    add(`r${k}`, `follows ${feature.name}`, (u) => Math.abs(r[u]), (u) => `r = ${digits(r[u])}`);
  });
  return orders;
}

function isProjected(layer) {
  return layer.tensors.h.low.length !== layer.dead.length;
}

/** For each feature the unit, of any layer and tensor, that follows it most closely. */
function findings() {
  return DATA.features.map((feature, k) => {
    let best = { r: 0 };
    DATA.layers.forEach((layer, at) => {
      for (const [tensor, series] of Object.entries(layer.tensors)) {
        series.correlations[k].forEach((r, unit) => {
          if (Math.abs(r) > Math.abs(best.r)) best = { r, layer: at, tensor, unit };
        });
      }
    });
    return { feature: feature.name, order: `r${k}`, ...best };
  });
}

function labelOf(step) {
  const label = DATA.labels[step];
  return { " ": "space", "\n": "line end", "\t": "tab" }[label] ?? label;
}
