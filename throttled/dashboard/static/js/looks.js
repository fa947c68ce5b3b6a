/** Colours of the style sheet for what is drawn, and what the viewer has asked the system for. */

const dark = matchMedia("(prefers-color-scheme: dark)");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** @type {Record<string, string>} */
let colours = {};

function read() {
  const style = getComputedStyle(document.documentElement);
  colours = {};
  for (const name of ["text", "muted", "line", "faint", "panel", "accent", "good", "bad", "shade"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  for (let number = 1; number <= 6; number++) {
    colours[`s${number}`] = style.getPropertyValue(`--s${number}`).trim();
  }
}

/** @param {string} name */
export function colour(name) {
  if (!colours.text) read();
  return colours[name];
}

/** Call when colours change. @param {() => void} changed */
export function onColours(changed) {
  dark.addEventListener("change", () => {
    read();
    changed();
  });
}

/** Milliseconds between two pictures: few for those who want little motion. */
export const between = () => (calm.matches ? 1000 : 90);
