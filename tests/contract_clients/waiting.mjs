// Who waits in this process, and how those who give up give back: docs/contract.md, "Giving back".

/** Promises key by key, in the order of their slots. A promise: plan, cost, wait, slot, ... */
export class Waiting {
  #lines = new Map();

  #line(promise) {
    const name = promise.plan.template;
    if (!this.#lines.has(name)) this.#lines.set(name, []);
    return this.#lines.get(name);
  }

  #insert(line, promise) {
    const later = line.findIndex((other) => other.slot > promise.slot);
    line.splice(later < 0 ? line.length : later, 0, promise);
  }

  /** Somebody waits. Those in front whose slots had passed when this one asked were served. */
  add(promise) {
    const line = this.#line(promise);
    while (line.length && !line[0].gone && line[0].slot <= promise.slot - promise.wait) line.shift();
    this.#insert(line, promise);
  }

  /**
   * Somebody gives up: by every rule. `give(undo, promise)` undoes a promise, or adjusts by its
   * cost at its slot, and says whether that changed anything.
   */
  async leave(promises, give) {
    for (const promise of promises) {
      promise.gone = true;
      const line = this.#line(promise);
      if (!line.includes(promise)) this.#insert(line, promise);
    }
    for (const promise of promises) {
      const line = this.#line(promise);
      while (line.length && line.at(-1).gone) {
        const last = line.at(-1);
        if (!await give(true, last)) await give(false, last);
        line.pop();
      }
    }
  }
}
