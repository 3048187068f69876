// Charts as SVG, drawn at the size they are shown. Each keeps its elements, so a poll disturbs neither a pointer
// that reads a value nor an open table.

import { el, say, svg, table } from "./dom.js";
import { range, short, thin, ticks } from "./scale.js";

const HEIGHT = 190;
const LEFT = 42;
const RIGHT = 14;
const TOP = 10;
const BOTTOM = 24;
const TABLE_ROWS = 25;

class Chart {
  constructor(host, { title, about, xName, format, tick = short, nothing }) {
    Object.assign(this, { title, xName, format, tick, nothing });
    this.readout = el("span", { class: "readout" });
    this.legend = el("ul", { class: "legend" });
    this.canvas = svg("svg", { role: "img" });
    this.empty = el("p", { class: "empty" });
    this.rows = el("table");
    this.details = el("details", { ontoggle: () => this.fillTable() }, el("summary", {}, "Table"),
      el("div", { class: "scroll", tabindex: "0" }, this.rows));
    host.replaceChildren(
      el("figcaption", {}, el("h3", {}, title), this.readout),
      el("p", { class: "about" }, about),
      this.legend, this.canvas, this.empty, this.details,
    );
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => { this.cursor = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(host);
  }

  show(hasData, summary) {
    this.canvas.toggleAttribute("hidden", !hasData);
    this.details.hidden = !hasData;
    say(this.empty, hasData ? "" : this.nothing);
    this.empty.hidden = hasData;
    this.canvas.setAttribute("aria-label", `${this.title}. ${summary}`);
    this.summary = summary;
    this.draw();
    if (this.details.open) this.fillTable();
  }

  frame([x0, x1], [y0, y1]) {
    this.width = Math.max(240, this.canvas.parentElement.clientWidth - 32);
    this.canvas.setAttribute("width", this.width);
    this.canvas.setAttribute("height", HEIGHT);
    this.x = (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (this.width - LEFT - RIGHT);
    this.y = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0 || 1)) * (HEIGHT - TOP - BOTTOM);
    return ticks(y0, y1, 5).map((value) => svg("g", {},
      svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(value), y2: this.y(value) }),
      svg("text", { class: "tick", x: LEFT - 8, y: this.y(value) + 4, "text-anchor": "end" }, this.tick(value))));
  }

  label(x, text, anchor = "middle") {
    return svg("text", { class: "tick", x, y: HEIGHT - 6, "text-anchor": anchor }, text);
  }
}

/** Lines over a shared x axis. Data: series of {name, points: [{x, y}], trend?: points, last}. */
export class LineChart extends Chart {
  constructor(host, options) {
    super(host, options);
    this.include = options.include ?? [];
    this.series = [];
  }

  update(series) {
    this.series = series.filter((one) => one.points.length > 0);
    const names = this.series.length > 1 ? this.series.map((one) => one.name) : [];
    if (this.names !== names.join("\n")) {
      this.names = names.join("\n");
      this.legend.replaceChildren(...names.map((name, index) => el("li", { class: `s${index % 6}` }, name)));
    }
    const told = this.series.map((one) => {
      const [first, last] = [(one.trend ?? one.points)[0], (one.trend ?? one.points).at(-1)];
      return `${one.name}: ${this.format(first.y)} at ${this.xName} ${first.x}, ${this.format(last.y)} at ${last.x}`;
    });
    this.show(this.series.length > 0, told.join("; "));
  }

  draw() {
    if (this.series.length === 0) return;
    const xs = this.series.flatMap((one) => one.points.map((point) => point.x));
    const span = [Math.min(...xs), Math.max(...xs)];
    const grid = this.frame(span[0] === span[1] ? [span[0] - 1, span[1] + 1] : span,
      range(this.series.flatMap((one) => one.points.map((point) => point.y)), this.include));
    const marks = ticks(...span, Math.max(2, Math.floor(this.width / 90)), true)
      .map((value) => this.label(this.x(value), short(value)));
    const lines = this.series.flatMap((one, index) => this.line(one, `s${index % 6}`));
    this.canvas.replaceChildren(...grid, ...marks, ...lines, ...this.cursorMarks());
  }

  line({ points, trend }, style) {
    const path = (some) => {
      const place = ({ x, y }) => `${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      return `M${thin(some, Math.floor(this.width / 2)).map(place).join("L")}`;
    };
    const last = (trend ?? points).at(-1);
    const shown = trend
      ? [svg("path", { class: `raw ${style}`, d: path(points) }), svg("path", { class: `curve ${style}`, d: path(trend) })]
      : [svg("path", { class: `curve ${style}`, d: path(points) })];
    return [...shown, svg("circle", { class: `dot ${style}`, cx: this.x(last.x), cy: this.y(last.y), r: 3.5 })];
  }

  point(event) {
    if (this.series.length === 0) return;
    const at = event.clientX - this.canvas.getBoundingClientRect().left;
    const xs = [...new Set(this.series.flatMap((one) => one.points.map((point) => point.x)))];
    this.cursor = xs.reduce((best, x) => (Math.abs(this.x(x) - at) < Math.abs(this.x(best) - at) ? x : best), xs[0]);
    this.draw();
  }

  cursorMarks() {
    const x = this.cursor ?? null;
    const at = (one) => (x === null ? (one.trend ?? one.points).at(-1) : one.points.find((point) => point.x === x));
    const values = this.series.map(at).filter(Boolean);
    const prefix = x === null ? "" : `${this.xName} ${short(x)}: `;
    const many = this.series.length > 1 && x === null;
    say(this.readout, many ? "" : prefix + values.map((point) => this.format(point.y)).join(" · "));
    if (x === null) return [];
    const line = svg("line", { class: "cursor", x1: this.x(x), x2: this.x(x), y1: TOP, y2: HEIGHT - BOTTOM });
    const dots = this.series.flatMap((one, index) => {
      const point = at(one);
      return point ? [svg("circle", { class: `dot s${index % 6}`, cx: this.x(x), cy: this.y(point.y), r: 3.5 })] : [];
    });
    return [line, ...dots];
  }

  fillTable() {
    const rows = this.series.flatMap((one) => one.points.slice(-TABLE_ROWS).map((point) => ({ ...point, name: one.name })));
    table(this.rows, `${this.title}, the newest values`, [
      { head: this.xName, kind: "number", cell: (row) => short(row.x) },
      { head: this.series.length > 1 ? "series" : "of", cell: (row) => row.name },
      { head: "value", kind: "number", cell: (row) => this.format(row.y) },
    ], rows.reverse(), "");
  }
}

/** Bars over whole numbers. Data: [{x, y}], and the sentence that stands for the whole. */
export class BarChart extends Chart {
  constructor(host, options) {
    super(host, options);
    this.bars = [];
  }

  update(bars, mean) {
    this.bars = bars;
    this.mean = mean;
    const told = bars.map(({ x, y }) => `${x}: ${this.format(y)}`).join(", ");
    this.show(bars.length > 0, `${this.xName} and share: ${told}`);
  }

  draw() {
    if (this.bars.length === 0) return;
    const [first, last] = [this.bars[0].x, this.bars.at(-1).x];
    const grid = this.frame([first - 0.6, last + 0.6], [0, Math.max(...this.bars.map((bar) => bar.y)) * 1.08]);
    const width = Math.min(56, ((this.width - LEFT - RIGHT) / (last - first + 1.2)) * 0.72);
    const every = Math.max(1, Math.ceil((last - first + 1) / (this.width / 28)));
    const shapes = this.bars.flatMap(({ x, y }) => [
      svg("rect", {
        class: this.cursor === x ? "bar s0 lit" : "bar s0", rx: 3, width, x: this.x(x) - width / 2,
        y: this.y(y), height: Math.max(1, this.y(0) - this.y(y)),
      }),
      ...((x - first) % every === 0 ? [this.label(this.x(x), String(x))] : []),
    ]);
    this.canvas.replaceChildren(...grid, ...shapes);
    const chosen = this.bars.find((bar) => bar.x === this.cursor);
    say(this.readout, chosen ? `${chosen.x} ${this.xName}: ${this.format(chosen.y)}` : this.mean);
  }

  point(event) {
    const at = event.clientX - this.canvas.getBoundingClientRect().left;
    this.cursor = this.bars.map((bar) => bar.x).find((x) => Math.abs(this.x(x) - at) < this.width / this.bars.length / 2);
    this.draw();
  }

  fillTable() {
    table(this.rows, this.title, [
      { head: this.xName, kind: "number", cell: (bar) => String(bar.x) },
      { head: "share", kind: "number", cell: (bar) => this.format(bar.y) },
    ], this.bars, "");
  }
}
