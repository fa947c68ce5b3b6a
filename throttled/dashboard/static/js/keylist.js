/** The keys that stand out, of all limits: those that fit the filter, so many at a time. */

import { byId, count, fill, say } from "./text.js";

/** Rows at first, and so many more each time. */
const ROWS = 25;

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
      this.draw();
    });
    byId("keys-more").addEventListener("click", () => {
      this.rows += ROWS;
      this.draw();
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
    const shown = all.slice(0, this.rows);
    fill(table, shown, (each) => [
      { text: each.key, class: "key", title: each.key, href: this.href(each) },
      each.limit.name,
      { text: count(each.number), class: "n" },
    ]);
    say(byId("keys-count"), all.length ? `${count(shown.length)} of ${count(all.length)} keys, of the last 30 to 60 seconds` : "No keys in the last minute.");
    byId("keys-more").hidden = all.length <= shown.length;
  }

  /** Where more is said of a key; nowhere, if all there is of it is a digest. */
  href({ limit, key }) {
    if (this.about.keys !== "named" || limit.hides_keys || /^sha256:[0-9a-f]{16}$/.test(key)) return undefined;
    return `#/key?${new URLSearchParams({ policy: limit.name, key })}`;
  }
}
