/** The page: which view is shown, by the address. */

import { KeyView } from "./key.js";
import { Live } from "./live.js";
import { ask } from "./net.js";
import { Simulator } from "./simulator.js";
import { byId, say } from "./text.js";

const VIEWS = ["simulator", "live", "key"];

/** Say something about the page as a whole. @param {string} text @param {boolean} [bad] */
function tell(text, bad = false) {
  byId("status").classList.toggle("bad", bad);
  say(byId("status"), text);
}

/** The view and its query, as the address says. @param {string} first the view without an address */
function addressed(first) {
  const [, name, query = ""] = /^#\/(\w+)(?:\?(.*))?$/.exec(location.hash) ?? [];
  return { name: VIEWS.includes(name) ? name : first, query: new URLSearchParams(query) };
}

async function main() {
  let about;
  try {
    about = await ask("api/about");
  } catch (problem) {
    tell(problem.message, true);
    return;
  }
  const views = { simulator: new Simulator(about, tell), live: new Live(about, tell), key: new KeyView(about, tell) };
  const first = about.source === null || about.made_up ? "simulator" : "live";
  let shown = "";

  function follow() {
    const { name, query } = addressed(first);
    if (shown && shown !== name) views[shown].hide();
    for (const each of VIEWS) byId(each).hidden = each !== name;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${byId(name).querySelector("h1").textContent} · throttled`;
    tell("");
    shown = name;
    views[name].show(query);
  }

  document.querySelector(".skip").addEventListener("click", (event) => {
    // Else it would be taken for a view.
    event.preventDefault();
    byId("main").focus();
  });
  addEventListener("hashchange", follow);
  follow();
}

main();
