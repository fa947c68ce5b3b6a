/** The keys that stand out, of all limits: those that fit the filter, so many at a time. */

import { byId, count, fill, say } from "./text.js";

/** Rows at first, and so many times as many each time that more are asked for. */
const ROWS = 25;
const MORE = 4;

/** Which key of which limit. */
const named = ({ limit, key }) => JSON.stringify([limit.name, key]);

export class KeyList {
  /** @param {any} about */
  constructor(about) {
    this.about = about;
    this.keys = { calls: [], refused: [] };
    this.rows = ROWS;
    this.form = byId("key-filter");
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => {
      this.rows = ROWS;
      this.order = undefined;
      this.draw();
    });
    byId("keys-more").addEventListener("click", () => {
      const first = this.rows;
      this.rows *= MORE;
      this.draw();
      // The button may be gone, and with it the place of who uses the keyboard.
      if (byId("keys-more").hidden) byId("keys").tBodies[0].rows[first]?.querySelector("a")?.focus();
    });
  }

  /** @param {any[]} limits */
  heard(limits) {
    for (const [what, which] of [["calls", "busiest"], ["refused", "most_refused"]]) {
      this.keys[what] = limits
        .flatMap((limit) => (limit.keys?.[which]?.top ?? []).map((each) => ({ limit, key: each.key, number: each[what] })))
        .sort((one, other) => other.number - one.number);
    }
    this.draw();
  }

  draw() {
    const { text, kind } = this.form.elements;
    const wanted = text.value.toLowerCase();
    const all = this.keys[kind.value].filter((each) => !wanted || each.key.toLowerCase().includes(wanted));
    const table = byId("keys");
    say(table.tHead.rows[0].cells[2], kind.value === "calls" ? "Calls" : "Refused");
    const shown = this.held(table, all).slice(0, this.rows);
    this.order = shown.map(named);
    fill(table, shown, (each) => [
      { text: each.key, class: "key", title: each.key, href: this.href(each) },
      { text: each.limit.name, class: "of", title: each.limit.name },
      { text: count(each.number), class: "n" },
    ]);
    say(byId("keys-count"), all.length ? `${count(shown.length)} of ${count(all.length)} keys, of the last 30 to 60 seconds` : "No keys in the last minute.");
    byId("keys-more").hidden = all.length <= shown.length;
  }

  /**
   * The keys in the order that they are shown in, while somebody points at one or has gone to one:
   * nothing is to slip away from under a finger.
   */
  held(table, all) {
    if (!this.order || !table.tBodies[0].matches(":hover, :focus-within")) return all;
    const places = new Map(this.order.map((name, place) => [name, place]));
    const place = (each) => places.get(named(each)) ?? Infinity;
    return [...all].sort((one, other) => (place(one) === place(other) ? 0 : place(one) - place(other)));
  }

  /** Where more is said of a key; nowhere, if all there is of it is a digest. */
  href({ limit, key }) {
    if (this.about.keys !== "named" || limit.hides_keys || /^sha256:[0-9a-f]{16}$/.test(key)) return undefined;
    return `#/key?${new URLSearchParams({ policy: limit.name, key })}`;
  }
}
