/** What is asked of the server, and the streams it sends. */

const HEADERS = { "X-Throttled": "page", "Content-Type": "application/json" };

const GONE = "The dashboard does not answer.";

/** An answer that says what is wrong. */
export class Problem extends Error {
  /** @param {number} status @param {string} text */
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/**
 * Ask, and give what the answer says. Throws a `Problem` whose text is for the user.
 * @param {string} path
 * @param {{method?: string, body?: object, token?: string}} [how]
 * @returns {Promise<any>}
 */
export async function ask(path, { method = "GET", body, token } = {}) {
  const headers = { ...HEADERS, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Problem(0, GONE);
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, told.error ?? `The dashboard says ${answer.status}.`);
  return told;
}

/** A stream that pauses while nobody sees the page. */
export class Stream {
  /**
   * @param {string} path
   * @param {(told: any) => void} heard
   * @param {(problem: Problem) => void} lost told what is wrong; of status 0 when the server does
   *     not answer for now, else the stream is over
   */
  constructor(path, heard, lost) {
    this.path = path;
    this.heard = heard;
    this.lost = lost;
    this.seen = () => (document.hidden ? this.leave() : this.join());
    document.addEventListener("visibilitychange", this.seen);
    this.seen();
  }

  join() {
    if (this.source) return;
    const source = (this.source = new EventSource(this.path));
    source.onmessage = (event) => {
      this.failed = 0;
      this.heard(JSON.parse(event.data));
    };
    source.onerror = () => {
      // That a stream ends and begins anew is in the order of things; several times in a row is not.
      this.failed = (this.failed ?? 0) + 1;
      if (source.readyState === EventSource.CLOSED) {
        this.leave();
        this.why();
      } else if (this.failed > 2) {
        this.lost(new Problem(0, GONE));
      }
    };
  }

  /** Ask why there is no stream, which its own error does not say. */
  async why() {
    const stop = new AbortController();
    let problem = new Problem(0, GONE);
    try {
      const answer = await fetch(this.path, { signal: stop.signal });
      const told = answer.ok ? {} : await answer.json();
      if (told.error) problem = new Problem(answer.status, told.error);
    } catch {
      // Then it does not answer.
    }
    stop.abort();
    if (!this.closed) this.lost(problem);
  }

  leave() {
    this.source?.close();
    this.source = undefined;
  }

  close() {
    this.closed = true;
    this.leave();
    document.removeEventListener("visibilitychange", this.seen);
  }
}
