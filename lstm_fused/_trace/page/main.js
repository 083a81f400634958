// SPDX-License-Identifier: BSD-3-Clause
// What is shown, and what changes it.

const WINDOW = Math.min(DATA.steps, 120); // steps in the strips of the units
const best = findings();
const state = { layer: 0, tensor: "c", unit: 0, order: "periodic", at: 0, strip: -1 };

const sequence = new SequenceView(byId("sequence"), (step) => moveTo(step, true));
const chart = new ChartView(byId("chart"), (step) => moveTo(step, true));
const units = new UnitsView(byId("units"), (unit) => show({ unit }));

const layerOf = () => DATA.layers[state.layer];
const seriesOf = () => layerOf().tensors[state.tensor];
const kindOf = () => (state.tensor === "h" && isProjected(layerOf()) ? "Output" : "Unit");

/** Changes what is shown. Whatever is asked for last is what comes to be seen. */
let asked = 0;
async function show(changes) {
  const mine = ++asked;
  const before = { ...state };
  Object.assign(state, changes);
  const orders = ordersOf(layerOf(), state.tensor);
  if (!orders.some((order) => order.id === state.order)) state.order = "periodic";
  const order = orders.find((each) => each.id === state.order);
  const count = seriesOf().low.length;
  const isNewList = before.layer !== state.layer || before.tensor !== state.tensor || before.order !== state.order || changes.first;
  const bytes = await bytesOf(seriesOf().block);
  const followed = /^r\d/.test(state.order) ? DATA.features[Number(state.order.slice(1))] : null;
  const shadow = followed && (await bytesOf(followed.block));
  if (mine !== asked) return;
  if (isNewList) {
    fillSelect(byId("order"), orders.map((each) => [each.id, each.name]), state.order);
    units.list(count, order);
    state.strip = -1;
    // A new order shows what comes first in it, unless a unit was asked for.
    if (before.order !== state.order && changes.unit === undefined) state.unit = units.order[0];
  }
  state.unit = Math.max(0, Math.min(count - 1, state.unit));
  units.choose(state.unit);
  view.bytes = bytes;
  view.shadow = shadow;
  byId("layer").value = state.layer;
  document.querySelector(`#tensors input[value="${state.tensor}"]`).checked = true;
  byId("unit").max = count - 1;
  byId("unit").value = state.unit;
  byId("headline").textContent = `${kindOf()} ${state.unit}, ${NAMES[state.tensor]}`;
  byId("facts").replaceChildren(...facts());
  byId("chart-caption").replaceChildren(
    make("span", { textContent: labelOrStep(0) }),
    make("span", { textContent: followed ? `blue: ${kindOf().toLowerCase()} ${state.unit} · grey: ${followed.name}` : "all steps" }),
    make("span", { textContent: labelOrStep(DATA.steps - 1) }));
  byId("chart").setAttribute("aria-label", `${byId("headline").textContent} over all steps`);
  const full = seriesOf().full?.[state.unit];
  byId("legend-low").textContent = full === undefined ? "0 closed" : `${MINUS}${digits(full)}`;
  byId("legend-high").textContent = full === undefined ? "open 1" : `+${digits(full)}`;
  byId("units-note").textContent = `${count} ${kindOf().toLowerCase()}s, each with its ${NAMES[state.tensor]} near the chosen step.`;
  for (const button of byId("findings").querySelectorAll("button")) {
    const found = button.found;
    button.setAttribute("aria-pressed", ["layer", "tensor", "unit", "order"].every((key) => found[key] === state[key]));
  }
  sequence.colour(bytes, seriesOf(), state.unit);
  moveTo(state.at, changes.first);
}
const view = { bytes: null, shadow: null };

/** What is known of the unit, as terms and their descriptions. */
function facts() {
  const layer = layerOf(), series = seriesOf(), unit = state.unit;
  const told = [];
  const tell = (term, ...description) => told.push(make("div", {}, make("dt", { textContent: term }), make("dd", {}, ...description)));
  if (kindOf() === "Unit") {
    for (const [gate, name] of Object.entries(GATES)) {
      const open = layer.open[gate][unit], closed = layer.closed[gate][unit];
      const bar = make("div", { className: "shares" }, make("i"), make("i"));
      bar.firstChild.style.width = `${100 * closed}%`;
      bar.lastChild.style.width = `${100 * open}%`;
      const ends = make("div", { className: "ends" }, make("span", { textContent: `${percent(closed)} closed` }), make("span", { textContent: `${percent(open)} open` }));
      tell(name, ends, bar);
    }
    tell("half-life of its memory", layer.dead[unit] ? "dead: its output hardly moves" : `${short(layer.halfLife[unit])} steps`);
  }
  const followed = DATA.features.map((feature, k) => ({ name: feature.name, r: series.correlations[k][unit] }));
  followed.sort((a, b) => Math.abs(b.r) - Math.abs(a.r));
  if (followed.length > 0) tell(`follows ${followed[0].name}`, `r = ${digits(followed[0].r)}`);
  if (series.strength[unit] >= 0.25) tell(`repeats itself, r = ${digits(series.strength[unit])}`, `every ${series.period[unit]} steps`);
  return told;
}

/** Puts the mark on a step; the sequence scrolls to it where it is asked to follow. */
function moveTo(step, follows) {
  state.at = step;
  if (view.bytes === null) return;
  const value = valueOf(seriesOf(), state.unit, view.bytes[state.unit * DATA.steps + step]);
  sequence.moveTo(step, `step ${step + 1} of ${DATA.steps}, ${labelOf(step)}${wordAt(step)}, ${NAMES[state.tensor]} ${digits(value)}`, follows);
  chart.draw(view.bytes, state.unit, view.shadow, step);
  const begin = Math.max(0, Math.min(DATA.steps - WINDOW, WINDOW / 2 * Math.round((step - WINDOW / 2) / (WINDOW / 2))));
  if (begin !== state.strip) units.paint(view.bytes, seriesOf(), (state.strip = begin), WINDOW);
  tellStep(step);
}

/** Every quantity of the unit at a step. The other blocks are unpacked when they are first asked for. */
async function tellStep(step) {
  const layer = layerOf(), { unit, tensor } = state;
  const parts = [make("span", {}, "step ", make("b", { textContent: step + 1 })), make("span", {}, "read ", make("b", { textContent: labelOf(step) }))];
  const shown = kindOf() === "Unit" ? Object.keys(NAMES).filter((name) => name !== "h" || !isProjected(layer)) : ["h"];
  const all = await Promise.all(shown.map((name) => bytesOf(layer.tensors[name].block)));
  if (step !== state.at || unit !== state.unit || tensor !== state.tensor) return;
  shown.forEach((name, k) => {
    const value = valueOf(layer.tensors[name], unit, all[k][unit * DATA.steps + step]);
    parts.push(make("span", {}, `${name} `, make("b", { textContent: digits(value) })));
  });
  byId("readout").replaceChildren(...parts);
}

function wordAt(step) {
  if (!DATA.isText || !/\p{L}/u.test(DATA.labels[step])) return "";
  let begin = step, end = step;
  while (begin > 0 && /\p{L}/u.test(DATA.labels[begin - 1])) begin--;
  while (end < DATA.steps - 1 && /\p{L}/u.test(DATA.labels[end + 1])) end++;
  return end > begin ? ` in ${DATA.labels.slice(begin, end + 1).join("")}` : "";
}

const placeOf = ({ layer, tensor, unit, order }) => ({ layer, tensor, unit, order });

const labelOrStep = (step) => (DATA.isText ? `step ${step + 1}` : labelOf(step));

function fillSelect(select, choices, value) {
  select.replaceChildren(...choices.map(([id, name]) => make("option", { value: id, textContent: name })));
  select.value = value;
}

function build() {
  mixPalette();
  const sizes = new Set(DATA.layers.map((layer) => layer.dead.length));
  byId("subtitle").textContent = `${DATA.steps.toLocaleString("en")} steps, ${DATA.layers.length > 1 ? `${DATA.layers.length} layers and directions of ` : ""}${[...sizes].join(" and ")} units`;
  fillSelect(byId("layer"), DATA.layers.map((layer, at) => [at, layer.name]), 0);
  byId("layer-box").hidden = DATA.layers.length < 2;
  byId("tensors").append(...Object.entries(NAMES).map(([tensor, name]) => {
    const input = make("input", { type: "radio", name: "tensor", value: tensor });
    input.setAttribute("aria-label", name);
    return make("label", { title: name }, input, make("span", {}, make("b", { textContent: tensor }), make("small", { textContent: name })));
  }));
  for (const found of best.filter((each) => each.tensor)) {
    const where = DATA.layers.length > 1 ? `${DATA.layers[found.layer].name}, ` : "";
    const button = make("button", { type: "button", found },
      make("span", { textContent: found.feature }),
      make("small", { textContent: `${where}unit ${found.unit}, ${NAMES[found.tensor]}` }),
      make("em", { textContent: `r = ${digits(found.r)}` }));
    button.addEventListener("click", () => show(placeOf(found)));
    byId("findings").append(make("li", {}, button));
  }
  byId("findings-box").hidden = byId("findings").childElementCount === 0;
  byId("findings-note").textContent = "The highest correlation of all units and quantities, over this sequence. The best of many is high by chance, too: look at another sequence before you believe it.";
  byId("layer").addEventListener("change", (event) => show({ layer: Number(event.target.value) }));
  byId("tensors").addEventListener("change", (event) => show({ tensor: event.target.value }));
  byId("order").addEventListener("change", (event) => show({ order: event.target.value }));
  byId("unit").addEventListener("change", (event) => show({ unit: Math.round(Number(event.target.value)) || 0 }));
  byId("previous").addEventListener("click", () => show({ unit: units.beside(-1) }));
  byId("next").addEventListener("click", () => show({ unit: units.beside(1) }));
  new ResizeObserver(() => view.bytes && chart.draw(view.bytes, state.unit, view.shadow, state.at)).observe(byId("chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    mixPalette();
    state.strip = -1;
    show({});
  });
  const first = best.filter((each) => each.tensor).sort((a, b) => Math.abs(b.r) - Math.abs(a.r))[0];
  show(first ? { ...placeOf(first), first: true } : { first: true }).catch(tellFailure);
}

/** A page that stays empty should say why. */
function tellFailure(error) {
  byId("headline").textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old to unpack the page: it needs one of 2023 or newer."
    : `The page could not be shown: ${error.message}`;
}
build();
