// History as a strip: how much of the mesh was losing, when. Click or drag the handle to go there,
// drag elsewhere to zoom in, double-click to zoom out.

import { palette } from "./palette.js";
import { clock, count, figure } from "./text.js";

const AXIS = 15;

export class Scrubber {
  // `acts`: go(seconds or null for live), zoom(from, to), out().
  constructor(place, acts) {
    this.place = place;
    this.canvas = place.querySelector("canvas");
    this.acts = acts;
    this.answer = null;
    this.at = null;
    this.drag = null;
    new ResizeObserver(() => this.draw()).observe(place);
    place.addEventListener("pointerdown", (event) => this.down(event));
    place.addEventListener("pointermove", (event) => this.move(event));
    place.addEventListener("pointerup", (event) => this.up(event));
    place.addEventListener("pointerleave", () => { if (!this.drag) { this.pointed = null; this.draw(); } });
    place.addEventListener("dblclick", () => this.acts.out());
    place.addEventListener("keydown", (event) => this.key(event));
  }

  show(answer, at) {
    this.answer = answer;
    this.at = at;
    this.place.setAttribute("aria-valuetext", at === null ? "live" : clock(at));
    if (answer) {
      const share = at === null ? 1 : (at - answer.from) / (answer.to - answer.from);
      this.place.setAttribute("aria-valuenow", String(Math.round(100 * Math.min(1, Math.max(0, share)))));
    }
    this.draw();
  }

  // The end of the step under a time; null beyond the last.
  snap(time) {
    const { step_s: step } = this.answer;
    const end = Math.ceil(time / step) * step;
    return end >= this.answer.to ? null : end;
  }

  step(direction) {
    if (!this.answer) return;
    const { step_s: step } = this.answer;
    const from = this.at ?? Math.ceil(this.answer.to / step) * step;
    const next = from + direction * step;
    this.acts.go(next >= this.answer.to ? null : next);
  }

  key(event) {
    if (event.key === "ArrowLeft") this.step(-1);
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "PageUp") this.step(-10);
    else if (event.key === "PageDown") this.step(10);
    else if (event.key === "End") this.acts.go(null);
    else if (event.key === "Home" && this.answer) this.acts.go(this.snap(this.answer.from + 1));
    else return;
    event.preventDefault();
  }

  timeAt(event) {
    const box = this.place.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return this.answer.from + share * (this.answer.to - this.answer.from);
  }

  down(event) {
    if (!this.answer || event.button !== 0) return;
    const time = this.timeAt(event);
    const handle = this.x(this.at ?? this.answer.to);
    const x = event.clientX - this.place.getBoundingClientRect().left;
    this.drag = { start: time, end: time, x, handle: Math.abs(x - handle) < 9 };
    this.place.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.answer) return;
    this.pointed = this.timeAt(event);
    if (this.drag) {
      this.drag.end = this.pointed;
      const x = event.clientX - this.place.getBoundingClientRect().left;
      this.drag.far ||= Math.abs(x - this.drag.x) > 6;
      if (this.drag.handle && this.drag.far) this.acts.go(this.snap(this.pointed), true);
    }
    this.draw();
  }

  up(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    if (!drag.far || drag.handle) {
      this.acts.go(this.snap(this.timeAt(event)));
    } else {
      const [from, to] = [drag.start, drag.end].sort((a, b) => a - b);
      this.acts.zoom(Math.floor(from), Math.ceil(Math.max(to, from + 60)));
    }
  }

  x(time) {
    const { from, to } = this.answer;
    return ((time - from) / (to - from)) * this.place.clientWidth;
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.place;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (!this.answer) return;
    const colours = palette();
    pen.font = "11px system-ui, 'Liberation Sans', sans-serif";
    const { answer } = this, floor = height - AXIS;
    answer.time.forEach((end, n) => {
      const x0 = this.x(end - answer.step_s), x1 = this.x(end);
      if (!answer.series[n]) return;
      pen.fillStyle = colours.line;
      pen.fillRect(x0, floor - 2, x1 - x0 + 0.3, 2);
      const share = answer.lossy[n] / answer.series[n];
      if (!share) return;
      const tall = Math.max(4, Math.sqrt(share) * (floor - 6));
      pen.fillStyle = colours.bad[level(answer.worst_percent[n])];
      pen.fillRect(x0, floor - tall, Math.max(1, x1 - x0 - 0.5), tall);
    });
    this.axis(pen, colours, width, floor);
    const handle = Math.min(width - 1.5, Math.max(1.5, this.x(this.at ?? answer.to)));
    pen.fillStyle = colours.focus;
    pen.fillRect(handle - 1, 0, 2, floor);
    pen.beginPath();
    pen.moveTo(handle - 6, 0);
    pen.lineTo(handle + 6, 0);
    pen.lineTo(handle, 8);
    pen.fill();
    if (this.drag?.far && !this.drag.handle) {
      pen.globalAlpha = 0.2;
      const [a, b] = [this.x(this.drag.start), this.x(this.drag.end)];
      pen.fillRect(Math.min(a, b), 0, Math.abs(b - a), floor);
      pen.globalAlpha = 1;
    }
    if (this.pointed) this.tell(pen, colours, width);
  }

  axis(pen, colours, width, floor) {
    const { from, to } = this.answer;
    const steps = [30, 60, 300, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000];
    const step = steps.find((each) => (each / (to - from)) * width > 74) ?? 864000;
    const zone = new Date(from * 1000).getTimezoneOffset() * 60;
    pen.fillStyle = colours.muted;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let time = Math.ceil((from - zone) / step) * step + zone; time <= to; time += step) {
      const x = this.x(time);
      pen.fillRect(x, floor, 1, 3);
      const text = step >= 86400 ? clock(time, true).slice(5, 10) : clock(time, false).slice(0, step < 60 ? 8 : 5);
      if (x > 20 && x < width - 20) pen.fillText(text, x, floor + 9);
    }
  }

  tell(pen, colours, width) {
    const { answer } = this;
    const n = answer.time.findIndex((end) => this.pointed <= end);
    if (n < 0) return;
    const lossy = answer.series[n] ? `${answer.lossy[n]} of ${count(answer.series[n], "series", "series")} lose, worst ${figure(answer.worst_percent[n], "%")}` : "no data";
    const text = `${clock(answer.time[n])}: ${lossy}`;
    const room = pen.measureText(text).width + 10, x = this.x(this.pointed);
    const left = Math.min(width - room, Math.max(0, x - room / 2));
    pen.fillStyle = colours.text;
    pen.fillRect(x, 0, 1, 43);
    pen.fillRect(left, 2, room, 17);
    pen.fillStyle = colours.panel;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    pen.fillText(text, left + 5, 11);
  }
}

function level(percent) {
  return [0, 0.1, 1, 10, 100].filter((limit) => (limit ? percent >= limit : percent > 0)).length;
}
