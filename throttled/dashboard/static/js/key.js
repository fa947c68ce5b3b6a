/** One key: its state by every rule, counting down, and what the store holds for it. */

import { ask, Stream } from "./net.js";
import { ResetDialog } from "./reset.js";
import { announce, byId, count, cut, duration, element, fill, say, worded } from "./text.js";

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
    policy.addEventListener("change", () => this.suit());
    this.suit();
  }

  /** Show the fields that go with the way a limit is named. */
  suit() {
    const named = this.about.keys === "named";
    const bare = this.about.bare && (!named || this.form.elements.policy.value === "");
    // Whoever decides may answer although nobody tells the names of its limits.
    const typed = named && this.form.elements.policy.options.length === 0;
    for (const each of this.form.querySelectorAll("[data-named]")) each.hidden = !named || typed;
    for (const each of this.form.querySelectorAll("[data-typed]")) each.hidden = !typed;
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
      this.names = new Stream("api/live", heard, () => {
        this.names.close();
        this.put(query);
      });
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
    const asked = query.get("policy");
    const { policy } = elements;
    if (asked && policy.options.length && ![...policy.options].some((each) => each.value === asked)) {
      // Of the address alone: it is said that there is none.
      policy.append(element("option", { value: asked }, asked));
    }
    for (const name of ["policy", "key", "quota", "using", "prefix", "cost"]) {
      if (query.has(name)) elements[name].value = query.get(name);
    }
    if (asked) elements.typed.value = asked;
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
    this.told = undefined;
    say(byId("found-said"), "");
    byId("found").hidden = true;
    byId("reset").hidden = true;
  }

  begin() {
    this.forget();
    say(byId("look-problem"), "");
    const { policy, typed, key, quota, using, prefix, cost } = this.form.elements;
    const body = { key: key.value, cost: /^\d+$/.test(cost.value) ? Number(cost.value) : cost.value };
    const limit = policy.value || (this.about.bare ? "" : typed.value.trim());
    if (this.about.keys === "named" && limit) body.policy = limit;
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
      if (asked === this.asked) {
        this.found(told);
        say(byId("look-problem"), "");
      }
    } catch (problem) {
      if (asked === this.asked) {
        announce(byId("look-problem"), problem.message);
        // What was found is not as of now, and goes on counting down from nowhere.
        byId("found").classList.add("stale");
        if (problem.status === 400 || problem.status === 404) this.forget();
      }
    } finally {
      this.busy = false;
    }
    if (this.asked && this.asked !== asked) this.look();
  }

  found(told) {
    const first = this.told === undefined;
    this.told = told;
    this.at = performance.now();
    byId("found").hidden = false;
    byId("found").classList.remove("stale");
    byId("reset").hidden = !this.about.acts;
    if (!told.hidden) this.address();
    this.stored(told.stored);
    this.count();
    // Once, for those who do not see it count down.
    if (first) say(byId("found-said"), byId("verdict").textContent);
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
    if (!this.told || byId("found").classList.contains("stale")) return;
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
    (this.told.stored.held ?? []).forEach((each, place) => {
      const ttl = byId("stored").children[place].querySelector("[data-ttl]");
      if (ttl) say(ttl, each.ttl === null ? "not known" : each.ttl > passed ? duration(each.ttl - passed) : "now");
    });
  }

  /** @param {{held: any[] | null, error: string | null}} stored */
  stored({ held, error }) {
    const where = byId("stored");
    const told = JSON.stringify(held?.map(({ ttl, ...rest }) => rest) ?? error);
    if (told !== this.shown) {
      this.shown = told;
      const before = [...where.children].map((each) => ({ open: each.querySelector("details")?.open, height: each.offsetHeight }));
      where.replaceChildren(...(held ? held.map(kept) : [element("p", {}, error ?? "")]));
      before.forEach(({ open, height }, place) => {
        const panel = where.children[place];
        const details = panel?.querySelector("details");
        if (details && open) details.open = true;
        // What comes and goes moves nothing below it.
        if (panel && this.asked === this.stood && !open) panel.style.minHeight = `${height}px`;
      });
      this.stood = this.asked;
    }
  }
}

/** What is held under one name. */
function kept(each) {
  const pair = (name, value) => element("div", {}, element("dt", {}, name), value);
  const value = (text, attributes = {}) => element("dd", attributes, text);
  const name = element("code", {}, cut(each.name));
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
