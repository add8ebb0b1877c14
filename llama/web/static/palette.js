// Colours and signs. Every finding has a shape as well as a colour, so that it reads without either.

import { NO_DATA, NO_VALUE, VALUE } from "./text.js";

export function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const levels = (name) => [0, 1, 2, 3, 4, 5].map((n) => read(`${name}${n}`));
  return {
    ground: read("ground"), panel: read("panel"), line: read("line"), text: read("text"), muted: read("muted"),
    cell: read("cell"), dot: read("dot"), hatch: read("hatch"), dead: read("dead"), focus: read("focus"),
    doubt: read("doubt"), bad: levels("bad"), onbad: levels("onbad"), size: levels("size"), onsize: levels("onsize"),
    forward: read("forward"), reverse: read("reverse"), unknown: read("unknown"),
    band: read("band"), middle: read("middle"),
  };
}

// How much of a cell's side the sign of each level takes.
const EXTENT = [0, 0.4, 0.55, 0.7, 0.86, 1];

// A cell has room for a figure from this size on, in pixels.
const FIGURE_WIDTH = 34, FIGURE_HEIGHT = 15;

const patterns = new Map();

export function hatch(context, colours, size) {
  return stripes(context, colours.hatch, size < 8 ? 4 : 6, 1);
}

// Slanted lines of one colour, `step` apart, on whatever is there.
export function stripes(context, colour, step, width) {
  const key = `${colour} ${step} ${width} ${devicePixelRatio}`;
  if (!patterns.has(key)) {
    const ratio = devicePixelRatio || 1;
    const tile = document.createElement("canvas");
    tile.width = tile.height = Math.round(step * ratio);
    const pen = tile.getContext("2d");
    pen.strokeStyle = colour;
    pen.lineWidth = width * ratio;
    const end = tile.width;
    pen.beginPath();
    for (const shift of [-end, 0, end]) { pen.moveTo(shift, end); pen.lineTo(shift + end, 0); }
    pen.stroke();
    const pattern = context.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(1 / ratio));
    patterns.set(key, pattern);
  }
  return patterns.get(key);
}

// Draws what a cell says into the square (x, y, size).
export function drawCell(pen, colours, metric, cell, x, y, w, h, dead) {
  const gap = w >= 9 && h >= 9 ? 1 : w >= 4 && h >= 4 ? 0.5 : 0;
  const iw = w - gap, ih = h - gap;
  if (cell.state === NO_DATA) {
    pen.fillStyle = hatch(pen, colours, Math.min(w, h));
    pen.fillRect(x, y, iw, ih);
    return;
  }
  pen.fillStyle = dead ? colours.dead : colours.cell;
  if (dead) {
    pen.fillRect(x, y, iw, ih);
    return;
  }
  const judged = metric.bad_level !== null;
  if (cell.state === VALUE && !judged) pen.fillStyle = colours.size[cell.level];
  pen.fillRect(x, y, iw, ih);
  const small = Math.min(iw, ih);
  if (cell.state === NO_VALUE) {
    pen.fillStyle = colours.muted;
    pen.fillRect(x + iw * 0.3, y + ih / 2 - 0.5, iw * 0.4, 1);
  } else if (cell.state === VALUE && judged) {
    if (cell.level === 0) {
      if (small >= 7) {
        pen.fillStyle = colours.dot;
        pen.fillRect(x + iw / 2 - 1, y + ih / 2 - 1, 2, 2);
      }
    } else if (metric.name === "remarked") {
      // With a figure beside it where there is room for one.
      const beside = w >= FIGURE_WIDTH && h >= FIGURE_HEIGHT;
      drawTriangle(pen, colours.bad[cell.level], x, y, beside ? iw * 0.5 : iw, ih);
    } else {
      const extent = small < 9 ? 1 : EXTENT[cell.level];
      const width = iw * extent, height = ih * extent;
      pen.fillStyle = colours.bad[cell.level];
      pen.fillRect(x + (iw - width) / 2, y + (ih - height) / 2, width, height);
    }
  }
  if (w >= FIGURE_WIDTH && h >= FIGURE_HEIGHT && cell.state === VALUE && (!judged || cell.level > 0)) {
    const aside = metric.name === "remarked", inside = EXTENT[cell.level] >= 0.7 && !aside;
    pen.fillStyle = !judged ? colours.onsize[cell.level] : inside ? colours.onbad[cell.level] : colours.text;
    pen.fillText(brief(cell.value, metric.unit), x + iw * (aside ? 0.72 : 0.5), y + ih / 2 + 0.5);
  }
  if (cell.suspect) drawDoubt(pen, colours, x, y, iw, ih);
  if (cell.partial) drawPartial(pen, colours, x, y, iw, ih);
}

// The lower left corner is hatched: some of what is behind the cell has no data.
export function drawPartial(pen, colours, x, y, w, h) {
  const side = Math.min(18, Math.min(w, h) * 0.6);
  pen.beginPath();
  pen.moveTo(x, y + h - side);
  pen.lineTo(x + side, y + h);
  pen.lineTo(x, y + h);
  pen.closePath();
  pen.fillStyle = colours.panel;
  pen.fill();
  pen.fillStyle = stripes(pen, colours.text, side < 8 ? 2.5 : 4, 1);
  pen.fill();
  pen.lineWidth = 1;
  pen.strokeStyle = colours.text;
  pen.stroke();
}

// The colour of a whole cell that is too small for a sign.
export function flatColour(pen, colours, metric, state, level, dead, size) {
  if (state === NO_DATA) return hatch(pen, colours, size);
  if (dead) return colours.dead;
  if (state === NO_VALUE) return colours.hatch;
  if (metric.bad_level === null) return colours.size[level];
  return level ? colours.bad[level] : colours.cell;
}

function drawTriangle(pen, colour, x, y, w, h) {
  const side = Math.min(w, h) * 0.86;
  const left = x + (w - side) / 2, top = y + (h - side) / 2 + side * 0.06;
  pen.fillStyle = colour;
  pen.beginPath();
  pen.moveTo(left, top);
  pen.lineTo(left + side, top);
  pen.lineTo(left + side / 2, top + side * 0.88);
  pen.fill();
}

function drawDoubt(pen, colours, x, y, w, h) {
  const size = Math.min(w, h);
  if (size < 9) {
    pen.fillStyle = colours.doubt;
    pen.fillRect(x + w - Math.max(1.5, size / 3), y, Math.max(1.5, size / 3), Math.max(1.5, size / 3));
    return;
  }
  const length = Math.min(10, size * 0.5), left = x + w - length - 1.5, middle = y + 4;
  pen.strokeStyle = colours.doubt;
  pen.lineWidth = 1.6;
  pen.beginPath();
  pen.moveTo(left, middle + 1);
  pen.bezierCurveTo(left + length * 0.35, middle - 4, left + length * 0.65, middle + 5, left + length, middle - 1);
  pen.stroke();
}

// A figure so short that it fits a cell.
export function brief(value, unit) {
  if (value >= 1000) return `${Math.round(value / 100) / 10}k`;
  if (unit === "%" && value >= 99.5 && value < 100) return String(Math.floor(value * 10) / 10); // 100 is all, and this is not
  if (value >= 10) return String(Math.round(value));
  if (value >= 1) return String(Math.round(value * 10) / 10);
  if (value >= 0.01) return String(Math.round(value * 100) / 100).replace(/^0/, "");
  return value > 0 ? "<.01" : "0";
}
