// Small charts over time on canvases. Each shares the time axis of its column and tells the value
// under the pointer; gaps are gaps.

import { directions } from "./directions.js";
import { stripes } from "./palette.js";
import { clock, digits, figure } from "./text.js";

const LEFT = 40, BOTTOM = 13, TOP = 13;

export class Chart {
  // `draw(pen, frame)` paints; `say(step)` gives the text for a step, null where there is none.
  // `key`: [class, text] of what the colours mean.
  constructor(title, tall, { times, step, colours, draw, say, chosen, mark, key = [] }) {
    this.element = document.createElement("div");
    this.element.className = tall ? "chart tall" : "chart";
    const heading = document.createElement("h4");
    heading.textContent = title;
    for (const [kind, text] of key) {
      const item = document.createElement("small");
      item.className = kind;
      item.textContent = text;
      heading.append(" ", item);
    }
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.output = document.createElement("output");
    this.element.append(heading, this.output, this.canvas);
    Object.assign(this, { times, step, colours, paint: draw, say, mark });
    this.at = null;
    this.canvas.addEventListener("pointermove", (event) => this.point(this.stepAt(event)));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("click", (event) => {
      const at = this.stepAt(event);
      if (at !== null) chosen(this.times[at]);
    });
    this.canvas.setAttribute("aria-label", `${title}; newest: ${this.newest()}`);
    this.output.textContent = "";
  }

  newest() {
    for (let n = this.times.length - 1; n >= 0; n -= 1) {
      const text = this.say(n);
      if (text !== null) return `${text} at ${clock(this.times[n])}`;
    }
    return "no data";
  }

  stepAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT);
    const at = Math.floor(share * this.times.length);
    return at >= 0 && at < this.times.length ? at : null;
  }

  point(at) {
    this.at = at;
    this.output.textContent = at === null ? "" : `${clock(this.times[at])}  ${this.say(at) ?? "no data"}`;
    this.draw();
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = "10.5px system-ui, 'Liberation Sans', sans-serif";
    const frame = {
      left: LEFT, top: TOP - 9, right: width, bottom: height - BOTTOM,
      width: width - LEFT, height: height - BOTTOM - TOP + 9, count: this.times.length,
      x: (step) => LEFT + (step / this.times.length) * (width - LEFT),
    };
    pen.fillStyle = this.colours.line;
    pen.fillRect(LEFT, frame.bottom, frame.width, 1);
    this.paint(pen, frame);
    this.timeLabels(pen, frame);
    pen.fillStyle = this.colours.text;
    if (this.at !== null) pen.fillRect(Math.round((frame.x(this.at) + frame.x(this.at + 1)) / 2), frame.top, 1, frame.height);
    if (this.mark !== null) {
      const place = (this.mark - (this.times[0] - this.step)) / (this.times.length * this.step);
      if (place >= 0 && place <= 1) {
        pen.fillStyle = this.colours.focus;
        pen.fillRect(Math.min(width - 1, LEFT + place * frame.width), frame.top, 1, frame.height + 3);
      }
    }
  }

  timeLabels(pen, frame) {
    if (!this.times.length) return;
    pen.fillStyle = this.colours.muted;
    pen.textBaseline = "top";
    const first = this.times[0] - this.step, last = this.times.at(-1);
    const short = (time) => (last - first > 2 * 86400 ? clock(time, true).slice(5, 16) : clock(time, false).slice(0, 5));
    pen.textAlign = "left";
    pen.fillText(short(first), frame.left, frame.bottom + 2);
    pen.textAlign = "right";
    pen.fillText(short(last), frame.right, frame.bottom + 2);
    if (frame.width > 170) {
      pen.textAlign = "center";
      pen.fillText(short((first + last) / 2), frame.left + frame.width / 2, frame.bottom + 2);
    }
  }
}

function scaleLabel(pen, colours, frame, text, y) {
  pen.fillStyle = colours.muted;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  pen.fillText(text, frame.left - 4, y);
}

// Loss by direction, stacked, on a scale that separates 0.1, 1, 10 and 100 %. What has no known
// direction is striped.
export function lossChart(common, columns) {
  const { colours } = common;
  const height = (percent) => (percent <= 0 ? 0 : Math.min(1, Math.max(0.06, (Math.log10(percent) + 2) / 4)));
  return new Chart("loss, by direction", false, {
    ...common,
    say: (n) => {
      const { loss, forward, reverse, undirected } = directions(columns, n);
      if (loss === null) return null;
      const unknown = undirected ? `  direction unknown ${figure(undirected, "%")}` : "";
      return `loss ${figure(loss, "%")}  fwd ${figure(forward, "%")}  rev ${figure(reverse, "%")}${unknown}`;
    },
    key: [["forward", "fwd"], ["reverse", "rev"], ["undirected", "unknown"]],
    draw: (pen, frame) => {
      for (const percent of [0.1, 1, 10, 100]) {
        const y = frame.bottom - height(percent) * (frame.height - 6);
        pen.fillStyle = colours.line;
        pen.fillRect(frame.left, y, frame.width, 1);
        if (percent !== 0.1) scaleLabel(pen, colours, frame, `${percent} %`, y);
      }
      for (let n = 0; n < frame.count; n += 1) {
        const x = Math.round(frame.x(n)), width = Math.max(1, Math.round(frame.x(n + 1)) - x);
        const { loss, forward, reverse, undirected } = directions(columns, n);
        if (loss === null) continue;
        pen.fillStyle = colours.line;
        pen.fillRect(x, frame.bottom - 1, width, 2);
        if (!loss) continue;
        const whole = height(loss) * (frame.height - 6);
        let y = frame.bottom;
        const unknown = stripes(pen, colours.unknown, 5, 1.6);
        for (const [share, style] of [[forward, colours.forward], [reverse, colours.reverse], [undirected, unknown]]) {
          if (!share) continue;
          const part = whole * Math.min(1, share / loss);
          pen.fillStyle = style;
          pen.fillRect(x, y - part, width, part);
          y -= part;
        }
      }
    },
  });
}

// RTT: p50 as a line in a band from the least to p99. The scale is shared by both directions.
export function rttChart(common, columns, { low, high }) {
  const { colours } = common;
  return new Chart("RTT p50 in ms, band min to p99", true, {
    ...common,
    say: (n) => {
      const { [n]: middle } = columns.rtt_p50, { [n]: most } = columns.rtt_p99;
      return middle === null && most === null ? null : `p50 ${figure(middle, "ms")}  p99 ${figure(most, "ms")}`;
    },
    draw: (pen, frame) => {
      const y = (value) => frame.bottom - 2 - ((value - low) / (high - low)) * (frame.height - 6);
      for (const value of [low, (low + high) / 2, high]) {
        pen.fillStyle = colours.line;
        pen.fillRect(frame.left, y(value), frame.width, 1);
        scaleLabel(pen, colours, frame, `${digits(value)}`, Math.min(frame.bottom - 4, Math.max(frame.top + 5, y(value))));
      }
      for (let n = 0; n < frame.count; n += 1) {
        const least = columns.rtt_min[n] ?? columns.rtt_p50[n], most = columns.rtt_p99[n] ?? columns.rtt_p50[n];
        const middle = columns.rtt_p50[n];
        if (middle === null) continue;
        const x = Math.round(frame.x(n)), width = Math.max(1, Math.round(frame.x(n + 1)) - x);
        pen.fillStyle = colours.band;
        pen.fillRect(x, y(most), width, Math.max(1, y(least) - y(most)));
        pen.fillStyle = colours.middle;
        pen.fillRect(x, y(middle) - 1, width + 0.5, 2);
      }
    },
  });
}

// How many replies took how long, over time.
export function heatChart(common, heat) {
  const { colours } = common;
  const bins = heat.edges_ms.length - 1;
  const edges = heat.edges_ms.map((edge, n) => edge ?? heat.edges_ms[n - 1] * 2);
  const low = Math.log(Math.max(edges[0], 1e-3)), high = Math.log(edges.at(-1));
  return new Chart(heat.source === "histogram" ? "RTT of all replies in ms" : "RTT of all replies in ms (from percentiles)", true, {
    ...common,
    say: (n) => {
      const row = heat.counts[n], total = row.reduce((a, b) => a + (b ?? 0), 0);
      if (!total) return null;
      const most = row.indexOf(Math.max(...row));
      return `most at ${digits(edges[most])}–${digits(edges[most + 1])} ms`;
    },
    draw: (pen, frame) => {
      const y = (edge) => frame.bottom - ((Math.log(Math.max(edge, 1e-3)) - low) / (high - low || 1)) * (frame.height - 2);
      pen.fillStyle = colours.middle;
      for (let n = 0; n < frame.count; n += 1) {
        const row = heat.counts[n];
        const total = row.reduce((a, b) => a + (b ?? 0), 0);
        if (!total) continue;
        const x = Math.round(frame.x(n)), width = Math.max(1, Math.round(frame.x(n + 1)) - x);
        for (let bin = 0; bin < bins; bin += 1) {
          if (!row[bin]) continue;
          pen.globalAlpha = Math.min(1, 0.12 + 0.88 * Math.sqrt(row[bin] / total));
          pen.fillRect(x, y(edges[bin + 1]), width, Math.max(1, y(edges[bin]) - y(edges[bin + 1])));
        }
      }
      pen.globalAlpha = 1;
      const first = edges[0], last = edges.at(-1), middle = Math.exp((low + high) / 2);
      for (const edge of [first, middle, last]) {
        scaleLabel(pen, colours, frame, digits(edge, 2), Math.min(frame.bottom - 4, Math.max(frame.top + 5, y(edge))));
      }
    },
  });
}
