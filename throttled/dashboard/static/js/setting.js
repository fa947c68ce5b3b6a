/** The setting of a scene: in the form, in the address of the page, in what the server is asked. */

import { element, worded } from "./text.js";

/** Names, and what they are if nobody says otherwise. */
export const USUAL = { quota: "10/s", burst: "20", traffic: "bursty", rate: "12", cost: "1", seed: "0", speed: "1" };

/** The choices of algorithms. @param {HTMLFieldSetElement} where @param {string[]} algorithms */
export function offer(where, algorithms) {
  for (const name of algorithms) {
    const box = element("input", { type: "checkbox", name: "using", value: name });
    where.append(element("label", {}, box, worded(name)));
  }
}

/** What the form says. @param {HTMLFormElement} form @returns {URLSearchParams} */
export function said(form) {
  const query = new URLSearchParams();
  const fields = new FormData(form);
  for (const name of Object.keys(USUAL)) query.set(name, String(fields.get(name) ?? "").trim());
  query.set("using", [...fields.getAll("using"), form.dataset.unknown].filter(Boolean).join(","));
  return query;
}

/** Put a setting into the form. @param {HTMLFormElement} form @param {URLSearchParams} query */
export function put(form, query) {
  for (const [name, usual] of Object.entries(USUAL)) {
    const field = /** @type {any} */ (form.elements.namedItem(name));
    const own = name === "burst" && query.has("quota") ? "" : usual;
    const value = query.get(name) ?? own;
    if (field instanceof HTMLSelectElement && ![...field.options].some((each) => each.value === value)) {
      // Of the address alone: it is said what is wrong with it, if anything is.
      field.append(element("option", { value }, name === "speed" ? `${value} ×` : value));
    }
    field.value = value;
  }
  const using = query.get("using")?.split(",");
  const boxes = [...form.querySelectorAll('input[name="using"]')];
  // It is said of them that there are none, until somebody chooses.
  form.dataset.unknown = (using ?? []).filter((name) => !boxes.some((box) => box.value === name)).join(",");
  for (const box of boxes) box.checked = !using || using.includes(box.value);
}

/** Mark the field that a problem names. @param {HTMLFormElement} form @param {string} problem */
export function mark(form, problem) {
  const name = /^Invalid (\w+)/.exec(problem)?.[1];
  for (const field of form.querySelectorAll("input, select")) {
    if (name && field.name === name) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
}
