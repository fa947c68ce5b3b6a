/** Numbers and elements, as they are shown. */

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** @param {number | null | undefined} value */
export const count = (value) => (value == null ? "–" : whole.format(value));

/** A rate: one decimal below 100. @param {number | null | undefined} value */
export const rate = (value) => (value == null ? "–" : value < 100 ? one.format(value) : whole.format(Math.round(value)));

/** An amount: one decimal below 1,000, if there is one. @param {number} value @param {boolean} [always] */
export const few = (value, always = false) => (value < 1000 && (always || !Number.isInteger(value)) ? one.format(value) : whole.format(value));

/**
 * Seconds as a person says them, rounded up: who waits that long has waited enough.
 * @param {number | null | undefined} seconds
 */
export function duration(seconds) {
  if (seconds == null) return "never";
  if (seconds <= 0) return "now";
  if (seconds < 0.001) return `${Math.ceil(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.ceil(seconds * 1e3)} ms`;
  if (seconds < 60) return `${one.format(Math.ceil(seconds * 10) / 10)} s`;
  const left = Math.ceil(seconds);
  if (left < 3600) return `${Math.floor(left / 60)} min ${left % 60} s`;
  const minutes = Math.ceil(left / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** How long something took. @param {number | null | undefined} seconds */
export const took = (seconds) => (seconds == null ? "–" : seconds < 1 ? duration(seconds) : `${one.format(seconds)} s`);

/** An algorithm's name in words. @param {string} name */
export const worded = (name) => (name === "gcra" ? "GCRA" : name.replaceAll("_", " "));

/**
 * An element with attributes and children; text is always text.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text where it has changed. @param {Element} where @param {string} text */
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/**
 * Set a text unless nothing but its numbers has changed: what is announced is so once.
 * @param {Element} where @param {string} text
 */
export function announce(where, text) {
  const words = (said) => said.replace(/[\d.]+/g, "");
  if (words(where.textContent) !== words(text)) where.textContent = text;
}

/** Of a long text its ends, and how long it is. @param {string} text */
export function cut(text, most = 200) {
  if (text.length <= most) return text;
  const letters = [...text];
  return `${letters.slice(0, most - 60).join("")} … ${letters.slice(-20).join("")} (${count(letters.length)} characters)`;
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * The rows of a table, which are kept and filled anew: nothing moves that need not.
 * @param {HTMLTableElement} table
 * @param {any[]} items
 * @param {(item: any) => (string | {text?: string, class?: string, href?: string, title?: string, header?: boolean})[]} cells
 */
export function fill(table, items, cells) {
  const body = table.tBodies[0];
  while (body.rows.length > items.length) body.deleteRow(-1);
  let row = body.rows[0];
  for (const item of items) {
    row ??= body.appendChild(element("tr", { role: "row" }));
    cells(item).forEach((told, column) => put(table, row, column, typeof told === "string" ? { text: told } : told));
    row = row.nextElementSibling;
  }
}

/** Fill a cell with what it does not say already. */
function put(table, row, column, { text = "", class: kind = "", href, title, header }) {
  let cell = row.cells[column];
  if (!cell) {
    // The roles stay where rows are laid out as cards, each cell with a label of its own.
    cell = row.appendChild(header ? element("th", { scope: "row", role: "rowheader" }) : element("td", { role: "cell" }));
    cell.dataset.label = table.tHead.rows[0].cells[column].textContent;
    cell.said = {};
  }
  // The page is not asked for what it says: of a thousand rows that takes a while.
  const { said } = cell;
  if (said.kind !== kind) cell.className = kind;
  if (said.title !== title) cell.title = title ?? "";
  if (!href) {
    if (said.text !== text || said.href) cell.textContent = text;
  } else if (said.href) {
    const link = cell.firstElementChild;
    if (said.href !== href) link.setAttribute("href", href);
    if (said.text !== text) link.textContent = text;
  } else {
    cell.replaceChildren(element("a", { href }, text));
  }
  cell.said = { kind, title, href, text };
}
