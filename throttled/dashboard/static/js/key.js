/** One key: its state by every rule, counting down, and what the store holds for it. */

import { ask, Stream } from "./net.js";
import { ResetDialog } from "./reset.js";
import { byId, count, duration, element, fill, say, worded } from "./text.js";

/** Milliseconds between two looks, and between two numbers that count down. */
const LOOK = 1000;
const COUNT = 100;

export class KeyView {
  /** @param {any} about @param {(text: string) => void} tell */
  constructor(about, tell) {
    this.about = about;
    this.tell = tell;
    this.form = byId("look");
    this.dialog = new ResetDialog(() => {
      this.tell("The key was reset.");
      this.look();
    });
    const { using, policy } = this.form.elements;
    using.append(...about.algorithms.map((name) => element("option", { value: name }, worded(name))));
    using.value = "token_bucket";
    if (about.keys === "named" && about.bare) policy.append(element("option", { value: "" }, "any quota"));
    policy.addEventListener("change", () => this.suit());
    this.form.addEventListener("input", () => this.forget());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.begin();
    });
    byId("reset").addEventListener("click", () => this.dialog.open(this.asked));
    if (about.keys === null) {
      say(byId("key-lead"), "There are no limits here whose keys could be looked at: give it policies, a store or a service.");
      this.form.hidden = true;
    }
    this.suit();
  }

  /** Show the fields that go with the way a limit is named. */
  suit() {
    const named = this.about.keys === "named";
    const bare = this.about.bare && (!named || this.form.elements.policy.value === "");
    for (const each of this.form.querySelectorAll("[data-named]")) each.hidden = !named;
    for (const each of this.form.querySelectorAll("[data-bare]")) each.hidden = !bare;
  }

  /** @param {URLSearchParams} query */
  show(query) {
    if (this.about.keys === null) return;
    if (this.about.keys === "named" && this.about.source !== null) {
      const heard = ({ stats }) => {
        this.names.close();
        this.offer(Object.keys(stats?.policies ?? {}), query);
      };
      this.names = new Stream("api/live", heard, () => {});
    } else {
      this.put(query);
    }
  }

  /** The names of the limits, which the source knows. */
  offer(names, query) {
    const { policy } = this.form.elements;
    const known = [...policy.options].map((option) => option.value);
    policy.append(...names.filter((name) => !known.includes(name)).map((name) => element("option", { value: name }, name)));
    if (names.length && !query.has("policy") && !policy.dataset.touched) policy.value = names[0];
    policy.dataset.touched = "yes";
    this.put(query);
  }

  put(query) {
    const { elements } = this.form;
    for (const name of ["policy", "key", "quota", "using", "prefix", "cost"]) {
      if (query.has(name)) elements[name].value = query.get(name);
    }
    this.suit();
    if (elements.key.value) this.begin();
    else elements.key.focus({ preventScroll: true });
  }

  hide() {
    this.names?.close();
    this.forget();
  }

  /** What was found is not what the form says any more. */
  forget() {
    clearInterval(this.looking);
    clearInterval(this.counting);
    this.asked = undefined;
    byId("found").hidden = true;
    byId("reset").hidden = true;
  }

  begin() {
    this.forget();
    const { policy, key, quota, using, prefix, cost } = this.form.elements;
    const body = { key: key.value, cost: /^\d+$/.test(cost.value) ? Number(cost.value) : cost.value };
    if (this.about.keys === "named" && policy.value) body.policy = policy.value;
    else Object.assign(body, { quota: quota.value, using: using.value, prefix: prefix.value });
    this.asked = body;
    this.look();
    this.looking = setInterval(() => document.hidden || this.look(), LOOK);
    this.counting = setInterval(() => document.hidden || this.count(), COUNT);
  }

  async look() {
    const asked = this.asked;
    if (!asked || this.busy) return;
    this.busy = true;
    try {
      const told = await ask("api/key", { method: "POST", body: asked });
      if (asked === this.asked) this.found(told);
      say(byId("look-problem"), "");
    } catch (problem) {
      if (asked === this.asked) {
        say(byId("look-problem"), problem.message);
        if (problem.status === 400 || problem.status === 404) this.forget();
      }
    } finally {
      this.busy = false;
    }
    if (this.asked && this.asked !== asked) this.look();
  }

  found(told) {
    this.told = told;
    this.at = performance.now();
    byId("found").hidden = false;
    byId("reset").hidden = !this.about.acts;
    if (!told.hidden) this.address();
    this.count();
    this.stored(told.stored);
  }

  /** Let the address say what is looked at; not so where keys are hidden. */
  address() {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(this.asked)) if (value !== "" && !(name === "cost" && value === 1)) query.set(name, value);
    const hash = `#/key?${query}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
  }

  /** The numbers as of now, as they will be if nothing else happens. */
  count() {
    if (!this.told) return;
    const passed = (performance.now() - this.at) / 1000;
    const left = (seconds) => (seconds === null ? null : Math.max(seconds - passed, 0));
    const { rules, exempt, enforced, held, binding, source } = this.told;
    const wait = left(rules[binding].retry_after);
    const verdict = byId("verdict");
    const { cost } = this.asked;
    let text = wait === 0 ? `A cost of ${count(cost)} fits now.` : wait === null ? `A cost of ${count(cost)} never fits.` : `A cost of ${count(cost)} fits in ${duration(wait)}.`;
    if (source.endsWith("-policy")) text = "The store does not answer; on_store_error decides.";
    else if (held) text += " A penalty stands.";
    if (exempt) text += " But this key is exempt: its calls pass uncounted.";
    else if (!enforced) text += " But this limit is not enforced: all calls pass.";
    say(verdict, text);
    verdict.className = `verdict ${wait === 0 ? "good" : "bad"}`;
    fill(byId("rules"), rules, (rule) => [
      { text: (rule.name ? `${rule.name}: ` : "") + (rule.quota ?? "of the service"), header: true },
      rule.algorithm ? worded(rule.algorithm) : "–",
      { text: count(rule.remaining), class: "n" },
      { text: count(rule.limit), class: "n" },
      { text: duration(left(rule.retry_after)), class: "n" },
      { text: duration(left(rule.reset_after)), class: "n" },
    ]);
  }

  /** @param {{held: any[] | null, error: string | null}} stored */
  stored({ held, error }) {
    const where = byId("stored");
    const told = JSON.stringify(held?.map(({ ttl, ...rest }) => rest) ?? error);
    if (told !== this.shown) {
      this.shown = told;
      const open = [...where.children].map((each) => each.querySelector("details")?.open);
      where.replaceChildren(...(held ? held.map(kept) : [element("p", {}, error ?? "")]));
      open.forEach((each, place) => {
        const details = where.children[place]?.querySelector("details");
        if (details && each) details.open = true;
      });
    }
    (held ?? []).forEach((each, place) => {
      const ttl = where.children[place].querySelector("[data-ttl]");
      if (ttl) say(ttl, each.ttl === null ? "not known" : duration(each.ttl));
    });
  }
}

/** What is held under one name. */
function kept(each) {
  const pair = (name, value) => element("div", {}, element("dt", {}, name), value);
  const value = (text, attributes = {}) => element("dd", attributes, text);
  const name = element("code", {}, each.name);
  if (each.type === null) {
    return element("div", { class: "panel" }, name, element("p", { class: each.error ? "bad" : "muted" }, each.error ?? "Nothing: it is as if it had never been seen."));
  }
  const pairs = [pair("type", value(each.type)), pair("expires in", value("", { "data-ttl": "" }))];
  if (each.length !== null) pairs.push(pair("entries", value(count(each.length))));
  pairs.push(...each.fields.map((field) => pair(field.name, value(field.shown, { title: String(field.value) }))));
  const parts = [name, element("dl", {}, ...pairs)];
  if (each.entries.length) {
    const items = each.entries.map((entry) => element("li", {}, `${entry.slot}, cost ${count(entry.cost)}`));
    parts.push(element("details", {}, element("summary", {}, "The newest entries"), element("ul", {}, ...items)));
  }
  if (each.error) parts.push(element("p", { class: "bad" }, each.error));
  return element("div", { class: "panel" }, ...parts);
}
