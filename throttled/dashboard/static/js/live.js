/** What is counted, as it comes: once a second. */

import { Bins, Chart, entry } from "./charts.js";
import { KeyList } from "./keylist.js";
import { Stream } from "./net.js";
import { announce, byId, count, element, fill, rate, say, took, worded } from "./text.js";

/** Seconds that the chart goes back. */
const BACK = 180;
const TILES = { rate: "Decisions / s", refused: "Refused / s", waiting: "Waiting", errors: "Errors", keys: "Keys in memory", stores: "Stores" };
const LINES = [
  { label: "admitted", colour: "good", fill: true },
  { label: "refused", colour: "bad", dash: [6, 3] },
];

/** Milliseconds after which a stream is asked for again. */
const AGAIN = 3000;

/** The time of day. @param {number} time seconds since the epoch */
const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export class Live {
  /** @param {any} about @param {(text: string) => void} tell */
  constructor(about, tell) {
    this.about = about;
    this.tell = tell;
    this.bins = new Bins(LINES.length, BACK);
    this.bins.clear(Date.now() / 1000, 1);
    this.chart = new Chart(byId("live-chart"), this.bins, LINES, clock);
    byId("live-legend").append(...LINES.map(entry));
    this.tiles = {};
    for (const [name, label] of Object.entries(TILES)) {
      this.tiles[name] = element("dd", {}, "–");
      byId("tiles").append(element("div", {}, element("dt", {}, label), this.tiles[name]));
    }
    this.keys = new KeyList(about);
    say(byId("live-lead"), this.lead());
    byId("live-seen").hidden = about.source === null;
  }

  lead() {
    if (this.about.made_up) return "These limits and their callers are made up, so that there is something to see.";
    if (this.about.source === null) return "There are no limits to watch here: give it policies, or the address of a service.";
    return `As counted by ${this.about.source}.`;
  }

  show() {
    if (this.about.source === null || this.stream) return;
    const lost = (problem) => {
      this.problem(`${problem.message} Trying again…`, true);
      clearTimeout(this.later);
      this.later = setTimeout(() => {
        this.hide();
        this.show();
      }, AGAIN);
    };
    this.stream = new Stream("api/live", (told) => this.heard(told), lost);
  }

  hide() {
    clearTimeout(this.later);
    this.stream?.close();
    this.stream = undefined;
  }

  /** @param {string} text @param {boolean} stale whether what is shown is not as of now */
  problem(text, stale) {
    announce(byId("live-problem"), text);
    byId("live-seen").classList.toggle("stale", stale);
  }

  heard({ at, stats, error }) {
    clearTimeout(this.later);
    if (error !== null) {
      this.problem(error, true);
      return;
    }
    const file = stats.policy_file?.error;
    this.problem(file ? `The policy file is wrong, what was in force stays: ${file}` : "", false);
    const limits = Object.entries(stats.policies).map(([name, limit]) => ({ name, ...limit }));
    this.paint(at, limits, stats);
    fill(byId("limits"), limits, (limit) => this.row(limit));
    fill(byId("stores"), Object.entries(stats.stores), storeRow);
    this.keys.heard(limits);
    byId("live-told").hidden = false;
  }

  paint(at, limits, stats) {
    const sum = (name) => limits.reduce((total, limit) => total + (limit[name] ?? 0), 0);
    const now = { at, allowed: sum("allowed") + sum("would_refuse"), refused: sum("refused"), each: {} };
    for (const limit of limits) now.each[limit.name] = limit.refused;
    const before = this.before;
    this.refusals = {};
    // The same again is what somebody else saw a moment ago; less than before is another process.
    if (before && at - before.at < 0.5) return;
    if (before && now.allowed >= before.allowed && now.refused >= before.refused) {
      const passed = at - before.at;
      const rates = [(now.allowed - before.allowed) / passed, (now.refused - before.refused) / passed];
      this.bins.push(at, rates);
      this.chart.draw();
      say(this.tiles.rate, rate(rates[0] + rates[1]));
      say(this.tiles.refused, rate(rates[1]));
      for (const name of Object.keys(now.each)) {
        if (name in before.each) this.refusals[name] = Math.max(now.each[name] - before.each[name], 0) / passed;
      }
    }
    this.before = now;
    const stores = Object.values(stats.stores);
    const memories = stores.filter((store) => store.keys !== undefined);
    const down = stores.filter((store) => store.state !== "closed").length;
    say(this.tiles.waiting, count(sum("waiting")));
    say(this.tiles.errors, count(sum("errors")));
    say(this.tiles.keys, memories.length ? count(memories.reduce((total, store) => total + store.keys, 0)) : "–");
    say(this.tiles.stores, down ? `${down} down` : "in order");
    this.tiles.stores.className = down ? "bad" : "good";
  }

  row(limit) {
    const rules = (limit.rules ?? []).map((rule) => `${rule.quota} ${worded(rule.algorithm)}`).join("; ");
    const more = limit.by_key ? [rules || "by key", rules && "(by key)"] : [rules, limit.enforce === false && "(not enforced)"];
    const href = this.about.keys === "named" ? `#/key?policy=${encodeURIComponent(limit.name)}` : undefined;
    const number = (text, kind = "") => ({ text, class: `n ${kind}`.trim() });
    const refused = this.refusals?.[limit.name];
    return [
      { text: limit.name, header: true, href, title: limit.name },
      { text: more.filter(Boolean).join(" "), class: "text" },
      number(rate(limit.per_second)),
      number(count(limit.allowed)),
      number(count(limit.refused + (limit.would_refuse ?? 0))),
      number(refused === undefined ? "–" : `${rate(refused)} / s`, refused > 0 ? "bad" : ""),
      number(count(limit.waiting)),
      number(count(limit.errors), limit.errors ? "bad" : ""),
      number(took(limit.decision_seconds?.p50)),
      number(took(limit.decision_seconds?.p99)),
    ];
  }
}

function storeRow([name, store]) {
  const when = store.last_error_at ? ` (${new Date(store.last_error_at * 1000).toLocaleTimeString()})` : "";
  const kind = store.keys === undefined ? store.kind : `${store.kind}, ${count(store.keys)} keys, ${count(store.evicted)} evicted`;
  return [
    { text: name, header: true },
    kind,
    { text: store.state, class: store.state === "closed" ? "good" : store.state === "open" ? "bad" : "warn" },
    { text: count(store.failures), class: "n" },
    { text: store.last_error ? `${store.last_error}${when}` : "none", class: "text" },
  ];
}
