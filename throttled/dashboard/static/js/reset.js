/** Resetting a key: asked once more, and with the token, which is kept nowhere but in this page. */

import { ask } from "./net.js";
import { byId, cut, element, say } from "./text.js";

export class ResetDialog {
  /** @param {() => void} done */
  constructor(done) {
    this.done = done;
    this.dialog = byId("reset-dialog");
    this.form = this.dialog.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.act();
    });
    byId("reset-not").addEventListener("click", () => this.dialog.close());
  }

  /** @param {any} asked the key, and of which limit */
  open(asked) {
    this.asked = asked;
    const key = element("code", {}, JSON.stringify(cut(asked.key)));
    byId("reset-what").replaceChildren("Key ", key, ` of ${cut(asked.policy ?? asked.quota)}.`);
    say(byId("reset-problem"), "");
    this.dialog.showModal();
  }

  async act() {
    const { token } = this.form.elements;
    // Pressed twice, it is asked once.
    if (this.busy) return;
    this.busy = true;
    try {
      await ask("api/reset", { method: "POST", body: this.asked, token: token.value });
    } catch (problem) {
      if (problem.status === 401) token.value = "";
      say(byId("reset-problem"), problem.message);
      token.focus();
      return;
    } finally {
      this.busy = false;
    }
    this.dialog.close();
    this.done();
  }
}
