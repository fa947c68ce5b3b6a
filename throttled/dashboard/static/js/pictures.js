/** Pictures of the algorithms: calls as they pass, and what each algorithm remembers of them. */

import { colour } from "./looks.js";
import { duration, few } from "./text.js";

/** Calls that are remembered for drawing. */
const MOST = 3000;
/** How much is left to see of calls that do not count any more. */
const PALE = 0.35;

/** The calls of a scene, the oldest of which are forgotten: instants, costs, who has admitted them. */
export class Calls {
  constructor() {
    this.at = new Float64Array(MOST);
    this.cost = new Float64Array(MOST);
    this.admitted = new Uint8Array(MOST);
    this.first = 0;
    this.number = 0;
  }

  /** @param {[number, number, number][]} calls */
  add(calls) {
    for (const [at, cost, admitted] of calls) {
      const place = (this.first + this.number) % MOST;
      this.at[place] = at;
      this.cost[place] = cost;
      this.admitted[place] = admitted;
      if (this.number < MOST) this.number++;
      else this.first = (this.first + 1) % MOST;
    }
  }

  /** Each since an instant, the newest first. @param {number} since @param {(place: number) => void} visit */
  since(since, visit) {
    for (let back = this.number - 1; back >= 0; back--) {
      const place = (this.first + back) % MOST;
      if (this.at[place] < since) return;
      visit(place);
    }
  }
}

/**
 * Seconds of a scene that a picture is wide: a period and what comes before it, if one can see it.
 * @param {{period: number, speed: number}} scene
 */
export const span = (scene) => Math.min(Math.max(scene.period * 2.2, 4 * scene.speed), 90 * scene.speed);

/**
 * Draw what one algorithm made of the calls.
 * @param {HTMLCanvasElement} canvas
 * @param {any} scene what does not change
 * @param {number} place of the algorithm among those of the scene
 * @param {any} run how it stands
 * @param {number} now
 * @param {Calls} calls
 */
export function draw(canvas, scene, place, run, now, calls) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const scale = devicePixelRatio || 1;
  if (!width) return;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const { kind, capacity } = scene.runs[place];
  const gauge = 54;
  const area = { left: 0, right: width - gauge - 14, top: 4, bottom: height - 20 };
  const since = now - span(scene);
  const x = (at) => area.left + ((at - since) / (now - since)) * (area.right - area.left);
  const counts = countsSince(kind, scene.period, now);
  if (kind !== "bucket") windows(pen, area, scene, kind, now, since, x, counts);
  marks(pen, area, calls, since, x, 1 << place, counts);
  ends(pen, area, height, now - since);
  const box = { left: width - gauge, right: width - 1, top: 4, bottom: height - 4 };
  if (kind === "bucket") bucket(pen, box, scene.runs[place].using, run.level, capacity);
  else counter(pen, box, kind, scene, run, now, capacity);
}

/** The instant since which calls count; of a bucket, which has no edge, all do. */
function countsSince(kind, period, now) {
  if (kind === "bucket") return -Infinity;
  return kind === "fixed_window" ? Math.floor(now / period) * period : now - period;
}

/** Windows behind the calls: the trailing period of a log, or those that are aligned. */
function windows(pen, area, scene, kind, now, since, x, counts) {
  const { period } = scene;
  const trails = kind !== "fixed_window";
  pen.fillStyle = colour("shade");
  const begin = Math.max(x(counts), area.left);
  pen.fillRect(begin, area.top, area.right - begin, area.bottom - area.top);
  pen.strokeStyle = colour("muted");
  pen.lineWidth = 1;
  if (kind !== "sliding_window_log") {
    pen.setLineDash([3, 3]);
    const first = Math.ceil(since / period);
    // With windows too narrow to tell apart there is nothing to draw.
    if ((now - since) / period < 60) for (let each = first; each * period <= now; each++) line(pen, x(each * period), area);
    pen.setLineDash([]);
  }
  if (trails && begin > area.left) line(pen, begin, area);
}

function line(pen, at, area) {
  pen.beginPath();
  pen.moveTo(Math.round(at) + 0.5, area.top);
  pen.lineTo(Math.round(at) + 0.5, area.bottom);
  pen.stroke();
}

/** How far back the picture goes. */
function ends(pen, area, height, seconds) {
  pen.fillStyle = colour("muted");
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "bottom";
  pen.textAlign = "left";
  pen.fillText(`${duration(seconds)} ago`, area.left, height - 2);
  pen.textAlign = "right";
  pen.fillText("now", area.right, height - 2);
}

/**
 * Calls: those that were admitted stand above the line, those that were refused hang below it.
 * Those that have fallen off the edge are pale.
 */
function marks(pen, area, calls, since, x, bit, counts) {
  const middle = area.top + (area.bottom - area.top) * 0.62;
  const past = { admitted: new Path2D(), refused: new Path2D() };
  const present = { admitted: new Path2D(), refused: new Path2D() };
  calls.since(since, (place) => {
    const { admitted, refused } = calls.at[place] < counts ? past : present;
    const at = x(calls.at[place]);
    const more = Math.min(Math.log2(calls.cost[place] + 1), 4) / 4;
    if (calls.admitted[place] & bit) {
      const up = (middle - area.top) * (0.45 + 0.5 * more);
      admitted.rect(at - 0.75, middle - up, 1.5, up);
    } else {
      const down = (area.bottom - middle) * (0.55 + 0.4 * more);
      refused.rect(at - 0.75, middle + 1, 1.5, down);
    }
  });
  for (const [marked, alpha] of [[past, PALE], [present, 1]]) {
    pen.globalAlpha = alpha;
    pen.fillStyle = colour("good");
    pen.fill(marked.admitted);
    pen.fillStyle = colour("bad");
    pen.fill(marked.refused);
  }
  pen.globalAlpha = 1;
  pen.fillStyle = colour("line");
  pen.fillRect(area.left, middle, area.right - area.left, 1);
}

/** A bucket: of tokens it drains, of water it fills, and of both it is the same one. */
function bucket(pen, box, using, level, capacity) {
  const tokens = using === "token_bucket";
  const share = Math.max(0, Math.min(1, (tokens ? level : capacity - level) / capacity));
  const slope = 6;
  const height = box.bottom - box.top;
  const side = (part) => slope * (1 - part);
  const top = box.bottom - height * share;
  pen.beginPath();
  pen.moveTo(box.left + side(share), top);
  pen.lineTo(box.left + slope, box.bottom);
  pen.lineTo(box.right - slope, box.bottom);
  pen.lineTo(box.right - side(share), top);
  pen.closePath();
  pen.fillStyle = colour(tokens ? "good" : "accent");
  pen.globalAlpha = 0.8;
  pen.fill();
  pen.globalAlpha = 1;
  pen.beginPath();
  pen.moveTo(box.left, box.top);
  pen.lineTo(box.left + slope, box.bottom);
  pen.lineTo(box.right - slope, box.bottom);
  pen.lineTo(box.right, box.top);
  pen.strokeStyle = colour("muted");
  pen.lineWidth = 1.5;
  pen.stroke();
}

/** What counts of a window, and of the window before it. */
function counter(pen, box, kind, scene, run, now, capacity) {
  const height = box.bottom - box.top;
  pen.strokeStyle = colour("muted");
  pen.lineWidth = 1.5;
  pen.strokeRect(box.left + 0.75, box.top + 0.75, box.right - box.left - 1.5, height - 1.5);
  let bottom = box.bottom - 2;
  const bar = (amount, name) => {
    const up = (Math.min(amount / capacity, 1) * (height - 4)) | 0;
    const high = Math.min(up, bottom - box.top - 2);
    pen.fillStyle = colour(name);
    pen.globalAlpha = 0.8;
    pen.fillRect(box.left + 2, bottom - high, box.right - box.left - 4, high);
    pen.globalAlpha = 1;
    bottom -= high;
  };
  bar(run.current, "accent");
  if (kind === "sliding_window") bar(run.previous * inside(scene.period, now), "muted");
}

/** The share of the window before that is still inside the trailing period. */
const inside = (period, now) => 1 - (now % period) / period;

/**
 * The picture in words.
 * @param {{period: number}} scene
 * @param {{using: string, kind: string, capacity: number}} about
 * @param {any} run
 * @param {number} now
 */
export function inWords(scene, { using, kind, capacity }, run, now) {
  const most = few(capacity);
  if (kind === "sliding_window" && run.previous) {
    const share = inside(scene.period, now);
    const sum = run.current + run.previous * share;
    return `${few(sum)} of ${most}: ${few(run.current)} + ${Math.round(100 * share)} % of ${few(run.previous)}`;
  }
  if (kind !== "bucket") return `${few(run.current)} of ${most} counted`;
  if (using === "token_bucket") return `${few(run.level, true)} of ${most} tokens`;
  const water = few(Math.max(capacity - run.level, 0), true);
  return using === "gcra" ? `${water} of ${most} ahead of its rate` : `${water} of ${most} filled`;
}
