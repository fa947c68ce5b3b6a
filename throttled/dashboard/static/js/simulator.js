/** The simulator: a scene on the server, drawn as it moves. */

import { Bins, Chart, entry } from "./charts.js";
import { between } from "./looks.js";
import { ask, Stream } from "./net.js";
import { Calls, draw, inWords } from "./pictures.js";
import { mark, offer, put, said } from "./setting.js";
import { byId, count, duration, element, say, worded } from "./text.js";

/** Bins of the charts, and seconds of the viewer in each. */
const BINS = 80;
const BIN = 0.5;
/** Milliseconds after which a stream is asked for again. */
const AGAIN = 3000;
const DASHES = [[], [8, 4], [3, 3], [], [10, 5], [2, 4]];

/** Seconds of a scene, which has none before it begins. @param {number} time */
const timed = (time) => (time < 0 ? "" : `${+time.toFixed(1)} s`);

export class Simulator {
  /** @param {{algorithms: string[]}} about @param {(text: string) => void} tell */
  constructor(about, tell) {
    this.tell = tell;
    this.form = byId("setting");
    this.algorithms = about.algorithms;
    offer(byId("using"), about.algorithms);
    const lines = about.algorithms.map((name, place) => ({ name, label: worded(name), colour: `s${place + 1}`, dash: DASHES[place] }));
    this.bins = { admitted: new Bins(lines.length, BINS), refused: new Bins(lines.length, BINS) };
    for (const bins of Object.values(this.bins)) bins.clear(0, BIN);
    this.charts = {
      admitted: new Chart(byId("admitted-chart"), this.bins.admitted, lines, timed),
      refused: new Chart(byId("refused-chart"), this.bins.refused, lines, timed),
    };
    this.legend = lines.map(entry);
    byId("scene-legend").append(...this.legend);
    this.calls = new Calls();
    /** @type {ReturnType<typeof card>[]} */
    this.cards = [];
    this.form.addEventListener("input", () => this.soon());
    byId("using").addEventListener("input", () => delete this.form.dataset.unknown);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.begin();
    });
    for (const button of this.form.querySelectorAll("[data-send]")) {
      button.addEventListener("click", () => this.send(Number(button.dataset.send)));
    }
    byId("pause").addEventListener("click", () => this.pause(!this.paused));
    byId("link").addEventListener("click", () => this.link());
  }

  /** Show the scene that the address says. @param {URLSearchParams} query */
  show(query) {
    const asked = query.toString();
    if (this.scene && (asked === "" || asked === this.query.toString())) {
      history.replaceState(null, "", `#/simulator?${this.query}`);
      return this.watch();
    }
    put(this.form, query);
    return this.begin(false);
  }

  hide() {
    clearTimeout(this.later);
    clearTimeout(this.again);
    this.stream?.close();
    this.stream = undefined;
  }

  /** Begin when the viewer has stopped typing. */
  soon() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.begin(), 300);
  }

  /** A new scene, by what the form says, which goes into the address as well. */
  async begin(address = true) {
    clearTimeout(this.later);
    clearTimeout(this.again);
    const query = said(this.form);
    const number = (this.number = (this.number ?? 0) + 1);
    let scene;
    try {
      scene = await ask(`api/scenes?${query}`, { method: "POST" });
    } catch (problem) {
      if (number !== this.number || byId("simulator").hidden) return;
      this.problem(problem.message);
      // Nobody has to say it again when the dashboard is back, or has room.
      if (problem.status === 0 || problem.status === 503) this.again = setTimeout(() => this.begin(address), AGAIN);
      return;
    }
    if (number !== this.number || byId("simulator").hidden) {
      ask(`api/scenes/${scene.id}`, { method: "DELETE" }).catch(() => {});
      return;
    }
    this.problem("");
    this.hide();
    if (this.scene) ask(`api/scenes/${this.scene.id}`, { method: "DELETE" }).catch(() => {});
    this.scene = scene;
    this.query = query;
    if (address) history.replaceState(null, "", `#/simulator?${query}`);
    this.fresh();
    this.pause(false);
  }

  /** Everything as at the beginning of a scene. */
  fresh() {
    this.calls = new Calls();
    this.drawnAt = undefined;
    this.drawn = 0;
    const width = BIN * this.scene.speed;
    for (const bins of Object.values(this.bins)) bins.clear(0, width);
    // Which line of the charts is which run of the scene.
    this.runs = this.algorithms.map((name) => this.scene.runs.findIndex((run) => run.using === name));
    const shown = this.runs.map((run) => run >= 0);
    for (const chart of Object.values(this.charts)) {
      chart.show(shown);
      chart.draw();
    }
    this.legend.forEach((item, place) => (item.hidden = !shown[place]));
    const names = this.scene.runs.map((run) => run.using).join();
    if (names !== this.carded) {
      this.carded = names;
      this.cards = this.scene.runs.map(card);
      byId("cards").replaceChildren(...this.cards.map((each) => each.all));
    }
  }

  watch() {
    if (this.stream || this.paused) return;
    const lost = (problem) => {
      if (problem.status === 404) this.begin();
      else this.tell(`${problem.message} Trying again…`, true);
      if (problem.status === 404 || this.stream.source) return;
      this.hide();
      this.again = setTimeout(() => this.watch(), AGAIN);
    };
    this.stream = new Stream(`api/scenes/${this.scene.id}`, (told) => this.heard(told), lost);
  }

  /** @param {boolean} paused */
  pause(paused) {
    this.paused = paused;
    const button = byId("pause");
    button.setAttribute("aria-pressed", String(paused));
    if (paused) this.hide();
    else this.watch();
  }

  heard(told) {
    this.tell("");
    this.calls.add(told.calls);
    const width = BIN * this.scene.speed;
    this.drawnAt ??= told.now;
    if (told.now - this.drawnAt >= width) {
      for (const what of ["admitted", "refused"]) {
        const rates = this.runs.map((run) => (run < 0 ? null : told.runs[run].per_second[what]));
        this.bins[what].push(told.now, rates);
        this.charts[what].draw();
      }
      this.drawnAt = told.now;
    }
    const now = performance.now();
    if (now - this.drawn < between()) return;
    this.drawn = now;
    told.runs.forEach((run, place) => this.cards[place].show(this.scene, place, run, told.now, this.calls));
  }

  async send(number) {
    if (!this.scene) return;
    if (this.paused) this.pause(false);
    try {
      await ask(`api/scenes/${this.scene.id}/calls`, { method: "POST", body: { number } });
    } catch (problem) {
      if (problem.status === 404) await this.begin();
      else this.problem(problem.message);
    }
  }

  async link() {
    try {
      await navigator.clipboard.writeText(location.href);
      this.tell("The link is copied.");
    } catch {
      this.tell("The address of this page is the link.");
    }
  }

  problem(text) {
    say(byId("setting-problem"), text);
    mark(this.form, text);
  }
}

/** What is shown of one algorithm. @param {{using: string, kind: string, capacity: number}} about */
function card(about) {
  const words = element("p", { class: "words" });
  const canvas = element("canvas", { role: "img", "aria-label": `${worded(about.using)}: calls over time; admitted above the line, refused below` });
  const numbers = ["Admitted", "Refused", "Remaining", "Fits in"].map((name) => ({ name, value: element("dd", {}, "–") }));
  const list = element("dl", {}, ...numbers.map(({ name, value }) => element("div", {}, element("dt", {}, name), value)));
  const all = element("article", { class: "panel card", "data-using": about.using }, element("h3", {}, worded(about.using)), words, canvas, list);
  const [admitted, refused, remaining, fits] = numbers.map(({ value }) => value);
  return {
    all,
    show(scene, place, run, now, calls) {
      say(words, inWords(scene, scene.runs[place], run, now));
      say(admitted, count(run.admitted));
      say(refused, count(run.refused));
      say(remaining, count(run.remaining));
      say(fits, duration(run.retry_after));
      draw(canvas, scene, place, run, now, calls);
    },
  };
}
