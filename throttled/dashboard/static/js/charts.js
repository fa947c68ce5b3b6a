/** Lines over time, in bins of equal length. What is kept is as long as the chart is wide. */

import { colour, onColours } from "./looks.js";

/** @type {any} */
const uPlot = globalThis.uPlot;

/** Seconds between two marks of an axis. */
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];

/** Counts in bins, the oldest of which fall off. */
export class Bins {
  /** @param {number} lines @param {number} number of bins */
  constructor(lines, number) {
    this.times = new Float64Array(number);
    // Null is what a chart leaves out; NaN would be no number to it that it could scale by.
    this.lines = Array.from({ length: lines }, () => new Array(number).fill(null));
    this.number = number;
  }

  /** Begin anew: bins of so many seconds, the last of which ends at an instant. */
  clear(end, width) {
    for (let bin = 0; bin < this.number; bin++) this.times[bin] = end - (this.number - 1 - bin) * width;
    for (const line of this.lines) line.fill(null);
  }

  /** Add a bin at the end. @param {number} time @param {(number | null)[]} values */
  push(time, values) {
    this.times.copyWithin(0, 1);
    this.times[this.number - 1] = time;
    this.lines.forEach((line, place) => {
      line.copyWithin(0, 1);
      line[this.number - 1] = values[place];
    });
  }
}

/** A chart of bins. */
export class Chart {
  /**
   * @param {HTMLElement} where
   * @param {Bins} bins
   * @param {{label: string, colour: string, dash?: number[], fill?: boolean}[]} lines
   * @param {(time: number) => string} timed how a time of the bins is written
   */
  constructor(where, bins, lines, timed) {
    this.where = where;
    this.bins = bins;
    this.lines = lines;
    this.timed = timed;
    this.shape = new ResizeObserver(() => this.fit());
    this.shape.observe(where);
    onColours(() => this.make());
    this.make();
  }

  make() {
    this.plot?.destroy();
    const axis = { stroke: colour("muted"), grid: { stroke: colour("faint"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    this.plot = new uPlot(
      {
        width: Math.max(this.where.clientWidth, 50),
        height: this.where.clientHeight || 180,
        // Room for what is written under the ends of the axis.
        padding: [8, 26, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false },
          y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] },
        },
        axes: [
          { ...axis, space: 80, size: 28, incrs: STEPS, values: (_, times) => times.map(this.timed) },
          { ...axis, size: 46, space: 34 },
        ],
        series: [
          {},
          ...this.lines.map((line) => ({
            stroke: colour(line.colour),
            width: 2,
            dash: line.dash,
            fill: line.fill ? `${colour(line.colour)}22` : undefined,
            points: { show: false },
            spanGaps: true,
          })),
        ],
      },
      this.data(),
      this.where,
    );
  }

  data() {
    return [this.bins.times, ...this.bins.lines];
  }

  draw() {
    this.plot.setData(this.data());
  }

  fit() {
    const width = this.where.clientWidth;
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.where.clientHeight || 180 });
  }

  /** Show these lines, each a flag. @param {boolean[]} shown */
  show(shown) {
    shown.forEach((each, place) => {
      if (this.plot.series[place + 1].show !== each) this.plot.setSeries(place + 1, { show: each });
    });
  }
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * An entry of a legend, with the line as it is drawn.
 * @param {{label: string, colour: string, dash?: number[]}} line
 */
export function entry(line) {
  const item = document.createElement("li");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 32 12");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  const attributes = { d: "M0 6h32", "stroke-width": "4", stroke: `var(--${line.colour})`, "stroke-dasharray": (line.dash ?? []).join(" ") };
  for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
  svg.append(path);
  item.append(svg, line.label);
  return item;
}
