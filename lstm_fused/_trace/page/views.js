// SPDX-License-Identifier: BSD-3-Clause
// The three views: the sequence, the chart of all steps, the list of units.

/** Paints the children of a scrolling box, those in sight or near it at once, others when they come
 * near: what a choice costs does not grow with the sequence, nor with the number of units. */
class PaintedWhenNear {
  constructor(box, paint) {
    this.paint = paint;
    this.near = new Set();
    this.stale = new Set();
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.near.add(target);
        else this.near.delete(target);
        if (isIntersecting && this.stale.delete(target)) this.paint(target);
      }
    }, { root: box, rootMargin: "100% 0px" });
  }

  watch(children) {
    this.observer.disconnect();
    this.near.clear();
    this.children = children;
    for (const child of children) this.observer.observe(child);
  }

  repaint() {
    this.stale = new Set(this.children);
    for (const child of this.near) if (this.stale.delete(child)) this.paint(child);
  }
}

/** The labels in reading order, each on the colour of its value; a slider over the steps. */
class SequenceView {
  constructor(box, onMove) {
    this.box = box;
    this.spans = [];
    this.at = 0;
    box.setAttribute("aria-valuemax", DATA.steps);
    const lines = document.createDocumentFragment();
    let line = null;
    for (let step = 0; step < DATA.steps; step++) {
      if (line === null) lines.append((line = make("div", { className: DATA.isText ? "line" : "line tokens" })));
      const label = DATA.labels[step];
      const span = make("b", { textContent: label === "\n" ? "↵" : label, step });
      if (label === "\n") span.className = "end";
      this.spans.push(span);
      line.append(span);
      // Lines of their own let the browser leave out what is out of sight.
      if (label === "\n" || line.childElementCount >= 400) line = null;
    }
    box.append(lines);
    this.painted = new PaintedWhenNear(box, (line) => {
      for (const span of line.children) {
        span.style.backgroundColor = palette.css[this.colours[this.bytes[this.first + span.step]]];
      }
    });
    this.painted.watch([...box.children]);
    box.addEventListener("click", (event) => {
      if (event.target.step !== undefined) onMove(event.target.step);
    });
    box.addEventListener("keydown", (event) => {
      const step = this.stepFor(event.key);
      if (step === null) return;
      event.preventDefault();
      onMove(Math.max(0, Math.min(DATA.steps - 1, step)));
    });
  }

  stepFor(key) {
    switch (key) {
      case "ArrowRight": return this.at + 1;
      case "ArrowLeft": return this.at - 1;
      case "ArrowDown": return this.stepBeside(1);
      case "ArrowUp": return this.stepBeside(-1);
      case "PageDown": return this.at + 100;
      case "PageUp": return this.at - 100;
      case "Home": return 0;
      case "End": return DATA.steps - 1;
      default: return null;
    }
  }

  /** The step below or above the present one on the screen. */
  stepBeside(direction) {
    const from = this.spans[this.at].getBoundingClientRect();
    let best = null;
    for (let step = this.at + direction; this.spans[step]; step += direction) {
      const box = this.spans[step].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < 4) continue;
      if (best !== null && Math.abs(box.top - best.top) > 4) break;
      const distance = Math.abs(box.left - from.left);
      if (best === null || distance < best.distance) best = { step, top: box.top, distance };
    }
    return best === null ? this.at : best.step;
  }

  colour(bytes, series, unit) {
    this.bytes = bytes;
    this.first = unit * DATA.steps;
    this.colours = coloursOf(series, unit);
    this.painted.repaint();
  }

  moveTo(step, text, follows) {
    this.spans[this.at].classList.remove("at");
    this.at = step;
    const span = this.spans[step];
    span.classList.add("at");
    this.box.setAttribute("aria-valuenow", step + 1);
    this.box.setAttribute("aria-valuetext", text);
    if (!follows) return;
    // Within the box alone: scrollIntoView would move the page as well.
    const inner = span.getBoundingClientRect(), outer = this.box.getBoundingClientRect();
    if (inner.top < outer.top + 24 || inner.bottom > outer.bottom - 24) {
      this.box.scrollTop += inner.top - outer.top - outer.height / 2;
    }
  }
}

/** All steps of one unit; behind it what it follows. */
class ChartView {
  constructor(canvas, onMove) {
    this.canvas = canvas;
    const move = (event) => {
      const box = canvas.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      onMove(Math.max(0, Math.min(DATA.steps - 1, Math.round(share * (DATA.steps - 1)))));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      move(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) move(event);
    });
  }

  draw(bytes, unit, followed, at) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
    const height = (canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio)));
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    pen.lineWidth = ratio;
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.beginPath();
    pen.moveTo(0, height / 2);
    pen.lineTo(width, height / 2);
    pen.stroke();
    if (followed) this.line(pen, followed, 0, width, height, style.getPropertyValue("--feature"), ratio, false);
    this.line(pen, bytes, unit * DATA.steps, width, height, style.getPropertyValue("--accent"), 1.5 * ratio, true);
    const x = (at / Math.max(1, DATA.steps - 1)) * width;
    pen.fillStyle = style.getPropertyValue("--ink");
    pen.fillRect(Math.min(width - 1.5 * ratio, Math.max(0, x - 0.75 * ratio)), 0, 1.5 * ratio, height);
  }

  /** The mean of each column as a line; the range of its values as a pale band around it. */
  line(pen, bytes, first, width, height, colour, thickness, hasBand) {
    const margin = 6 * (window.devicePixelRatio || 1);
    const y = (byte) => height - margin - (byte / 255) * (height - 2 * margin);
    const columns = Math.min(width, DATA.steps);
    const means = new Path2D(), band = new Path2D();
    for (let column = 0; column < columns; column++) {
      const begin = Math.floor((column * DATA.steps) / columns);
      const end = Math.max(begin + 1, Math.floor(((column + 1) * DATA.steps) / columns));
      let low = 255, high = 0, sum = 0;
      for (let step = begin; step < end; step++) {
        const byte = bytes[first + step];
        if (byte < low) low = byte;
        if (byte > high) high = byte;
        sum += byte;
      }
      const x = columns === 1 ? 0 : (column / (columns - 1)) * width;
      means.lineTo(x, y(sum / (end - begin)));
      if (end - begin > 1) {
        band.moveTo(x, y(low));
        band.lineTo(x, y(high));
      }
    }
    pen.strokeStyle = colour;
    if (hasBand) {
      pen.globalAlpha = 0.25;
      pen.lineWidth = 1;
      pen.stroke(band);
      pen.globalAlpha = 1;
    }
    pen.lineWidth = thickness;
    pen.stroke(means);
  }
}

/** All units in an order, each with a strip of its values near the present step; a listbox. */
class UnitsView {
  constructor(box, onChoose) {
    this.box = box;
    this.order = [];
    this.options = new Map();
    this.chosen = 0;
    this.painted = new PaintedWhenNear(box, (option) => this.paintStrip(option));
    box.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) onChoose(option.unit);
    });
    box.addEventListener("keydown", (event) => {
      const columns = getComputedStyle(box).gridTemplateColumns.split(" ").length;
      const jumps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: 10 * columns, PageUp: -10 * columns, Home: -Infinity, End: Infinity };
      if (!(event.key in jumps)) return;
      event.preventDefault();
      onChoose(this.beside(jumps[event.key]));
    });
  }

  /** The unit so many places behind the chosen one in this order. */
  beside(jump) {
    const place = this.order.indexOf(this.chosen) + jump;
    return this.order[Math.max(0, Math.min(this.order.length - 1, place))];
  }

  list(count, order) {
    const scores = Array.from({ length: count }, (_, unit) => order.score(unit));
    this.order = scores.map((_, unit) => unit).sort((a, b) => scores[b] - scores[a] || a - b);
    this.options.clear();
    const options = this.order.map((unit) => {
      const option = make("div", { id: `unit-${unit}`, unit },
        make("span", { textContent: unit }), make("small", { textContent: order.tell(unit) }), make("canvas", { height: 1 }));
      option.setAttribute("role", "option");
      option.setAttribute("aria-label", [`unit ${unit}`, order.tell(unit)].filter(Boolean).join(", "));
      option.setAttribute("aria-selected", "false");
      this.options.set(unit, option);
      return option;
    });
    this.box.replaceChildren(...options);
    this.painted.watch(options);
    this.box.scrollTop = 0;
  }

  choose(unit) {
    this.options.get(this.chosen)?.setAttribute("aria-selected", "false");
    this.chosen = unit;
    const option = this.options.get(unit);
    option.setAttribute("aria-selected", "true");
    this.box.setAttribute("aria-activedescendant", option.id);
    const top = option.offsetTop - this.box.offsetTop;
    if (top < this.box.scrollTop || top + option.offsetHeight > this.box.scrollTop + this.box.clientHeight) {
      this.box.scrollTop = top - this.box.clientHeight / 3;
    }
  }

  paint(bytes, series, begin, width) {
    this.strip = { bytes, series, begin, width };
    this.painted.repaint();
  }

  paintStrip(option) {
    const { bytes, series, begin, width } = this.strip;
    const canvas = option.lastChild;
    canvas.width = width;
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(width, 1);
    const first = option.unit * DATA.steps + begin, colours = coloursOf(series, option.unit);
    for (let x = 0; x < width; x++) {
      const colour = 3 * colours[bytes[first + x]];
      for (let k = 0; k < 3; k++) image.data[4 * x + k] = palette.rgb[colour + k];
      image.data[4 * x + 3] = 255;
    }
    pen.putImageData(image, 0, 0);
  }
}
