// What the signs mean, as small as possible under the matrix; and the list of keys.

import { drawCell, palette } from "./palette.js";
import { make } from "./lists.js";
import { NO_DATA, NO_VALUE, VALUE } from "./text.js";

export function drawLegend(place, metric) {
  const colours = palette();
  const items = [];
  const add = (cell, text, dead = false) => {
    const item = make("span"), canvas = document.createElement("canvas");
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.height = 14 * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    drawCell(pen, colours, metric, cell, 0, 0, 14, 14, dead);
    item.append(canvas, text);
    items.push(item);
  };
  const { levels, unit } = metric;
  if (metric.bad_level !== null) add({ state: VALUE, level: 0 }, levels[0] === 0 ? `0 ${unit}` : `below ${written(levels[0], unit)}`);
  else add({ state: VALUE, level: 0 }, `below ${written(levels[0], unit)}`);
  levels.forEach((from, n) => {
    const to = levels[n + 1];
    const text = to === undefined ? `${written(from, unit)}${from === 100 && unit === "%" ? "" : " and more"}`
      : from === 0 ? `below ${written(to, unit)}` : `from ${written(from, unit)}`;
    add({ state: VALUE, level: n + 1 }, text);
  });
  add({ state: NO_VALUE, level: -1 }, "no samples");
  add({ state: NO_DATA, level: -1 }, "no data");
  add({ state: VALUE, level: 0, partial: true }, "some without data");
  add({ state: VALUE, level: 0, suspect: 1 }, "suspect");
  add({ state: VALUE, level: 0 }, "▲ host down, ◁ source blind", true);
  place.replaceChildren(...items);
}

const written = (value, unit) => (unit === "×" ? `×${value}` : `${value} ${unit}`);

const KEYS = [
  ["arrow keys", "move over the matrix (Shift: by ten)"],
  ["Enter", "unfold a group, open a pair; Shift+Enter or Shift+click: the worst pair behind a cell"],
  ["Backspace", "fold the groups around the cursor"],
  ["n  p", "next or previous trouble"],
  ["+  -  0", "zoom in, out, fit; also the wheel; drag to pan"],
  ["m", "next metric"],
  [",  .", "one step back or on in time"],
  ["l", "live"],
  ["t", "as a table"],
  ["d", "dark or light"],
  ["Esc", "close the pair"],
];
const SIGNS = [
  ["■", "loses; the larger and stronger, the more"],
  ["▼", "DSCP remarked on the way"],
  ["▲", "host down: no source reaches it"],
  ["◁", "source blind: it reaches nobody, others do"],
  ["▨", "no data: the collector is silent, or nobody stored what it measured"],
  ["◣", "hatched corner: some of the pairs or series behind the cell have no data, others do"],
  ["~", "suspect: our own fault may be in the figures"],
  ["—", "no samples, for instance no RTT where nothing came back"],
  ["(empty)", "not probed"],
];

export function drawKeys(dialog) {
  const close = make("button", "close");
  close.addEventListener("click", () => dialog.close());
  const table = (rows) => {
    const made = make("table");
    for (const [sign, text] of rows) {
      const line = made.insertRow();
      line.insertCell().append(make("kbd", sign));
      line.insertCell().textContent = text;
    }
    return made;
  };
  dialog.replaceChildren(make("h2", "Keys"), table(KEYS), make("h2", "Signs"), table(SIGNS), close);
}
