// Small helpers to build the page. Text always goes in as text: what a model wrote never becomes markup.

/** An element with attributes and children; `onclick` and the like take functions. Strings become text nodes. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Set the text of an element, only when it changed: screen readers are not told the same thing twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A table from column definitions and rows, in place. Each column: {head, cell(row), kind?}, kind its classes. */
export function table(host, caption, columns, rows, empty) {
  const head = el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.kind }, column.head)));
  const body = rows.map((row) =>
    el("tr", {}, columns.map((column, index) => {
      const cell = column.cell(row);
      return index === 0
        ? el("th", { scope: "row", class: column.kind }, cell)
        : el("td", { class: column.kind }, cell);
    })),
  );
  const focused = host.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  const nothing = el("tr", {}, el("td", { colspan: columns.length, class: "empty" }, empty));
  host.replaceChildren(
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, head),
    el("tbody", {}, rows.length ? body : nothing),
  );
  if (focused) [...host.querySelectorAll("[aria-label]")].find((one) => one.ariaLabel === focused)?.focus();
}

const formats = new Map();

/** A number for people: grouped thousands, at most `digits` decimals; a dash for nothing. */
export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!formats.has(digits)) {
    formats.set(digits, new Intl.NumberFormat("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }));
  }
  return formats.get(digits).format(value);
}

/** The start of a text, for a table. */
export const clipped = (text) => (text.length > 160 ? `${text.slice(0, 160)}…` : text);

/** A state as a pill, in its colour. */
export const chip = (state) => el("span", { class: "chip", "data-state": state }, state);

/** A share as a percentage. */
export const percent = (value) => (value === null || value === undefined ? "–" : `${number(100 * value, 1)}%`);

/** A duration for people. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${number(seconds / 3600, 1)} h`;
}

/** How long ago an ISO moment was. */
export const ago = (moment) => `${duration(Math.max(0, (Date.now() - Date.parse(moment)) / 1000))} ago`;
