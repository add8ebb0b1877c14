// What stands around the cells: names, group headers, lines between groups, ticks beside trouble.

import { EDGE, MOST_LETTERS, clamp, runLabel } from "./layout.js";
import { printable } from "./text.js";

// Half of what a line of text takes across it, in pixels.
const HALF_LINE = 7;
// How far apart lines of text must be, so that they can be read.
const LINE = 11.5;
const SIGNS = "▲◁▨";

export function drawHeads(pen, at, model, colours) {
  const { row0, row1, col0, col1 } = at.visible(model);
  drawTicks(pen, at, model, colours);
  drawRowHeads(pen, at, model, colours, row0, row1);
  drawColHeads(pen, at, model, colours, col0, col1);
}

// Beside the matrix, where there is trouble: found even if the cell itself is a dot.
function drawTicks(pen, at, model, colours) {
  model.rowTrouble.forEach((level, row) => {
    const y = at.y0 + (row + 0.5) * at.cellH;
    if (!level || y < at.top || y > at.height) return;
    pen.fillStyle = colours.bad[level];
    pen.fillRect(at.left - 4, y - Math.max(2, at.cellH / 2 - 1), 3, Math.max(4, at.cellH - 2));
  });
  model.colTrouble.forEach((level, col) => {
    const x = at.x0 + (col + 0.5) * at.cellW;
    if (!level || x < at.left || x > at.width) return;
    pen.fillStyle = colours.bad[level];
    pen.fillRect(x - Math.max(2, at.cellW / 2 - 1), at.top - 4, Math.max(4, at.cellW - 2), 3);
  });
}

// Thin lines around the outermost groups that are open.
export function drawRules(pen, at, model, colours) {
  pen.fillStyle = colours.hatch;
  const edges = (runs = []) => runs.filter((run, n) => n && !(run.closed && runs[n - 1].closed)).map((run) => run.start);
  for (const row of edges(model.bands.rows[0])) pen.fillRect(at.x0, at.y0 + row * at.cellH - 1, at.fullW, 1);
  for (const col of edges(model.bands.cols[0])) pen.fillRect(at.x0 + col * at.cellW - 1, at.y0, 1, at.fullH);
}

function drawRowHeads(pen, at, model, colours, row0, row1) {
  pen.save();
  pen.beginPath();
  pen.rect(0, at.top, at.left, at.height - at.top);
  pen.clip();
  pen.textAlign = "left";
  let x = EDGE;
  model.bands.rows.forEach((runs, level) => {
    const width = at.rowBands[level];
    let free = -Infinity; // where the name before ends
    for (const run of runs) {
      if (run.end <= row0 || run.start >= row1) continue;
      const y0 = Math.max(at.top, at.y0 + run.start * at.cellH);
      const y1 = Math.min(at.height, at.y0 + run.end * at.cellH);
      if (y1 - y0 < 10) continue;
      pen.fillStyle = colours.line;
      if (!run.closed) pen.fillRect(x + width - 5, y0 + 1, 1, y1 - y0 - 2);
      const middle = (y0 + y1) / 2, sick = run.closed && runSick(run);
      if (middle - LINE / 2 < free && !sick) continue;
      free = middle + LINE / 2;
      pen.fillStyle = sick ? colours.text : colours.muted;
      write(pen, (run.closed ? signs(run.entry) : "") + runLabel(run), x, middle, (run.closed ? at.left - x : width) - 8);
    }
    x += width;
  });
  pen.textAlign = "right";
  names(model.rows, row0, row1, at.cellH, model.rowTrouble, (entry, row, strong) => {
    pen.fillStyle = strong ? colours.text : colours.muted;
    write(pen, signs(entry) + entry.host, at.left - 7, at.y0 + (row + 0.5) * at.cellH, at.rowHostWidth - 2);
  });
  pen.restore();
}

function drawColHeads(pen, at, model, colours, col0, col1) {
  pen.save();
  pen.beginPath();
  pen.rect(at.left, 0, at.width - at.left, at.top);
  pen.clip();
  pen.textAlign = "center";
  let y = EDGE;
  model.bands.cols.forEach((runs, level) => {
    const height = at.colBandHeights[level];
    for (const run of runs) {
      if (run.end <= col0 || run.start >= col1) continue;
      const x0 = Math.max(at.left, at.x0 + run.start * at.cellW);
      const x1 = Math.min(at.width, at.x0 + run.end * at.cellW);
      if (x1 - x0 < 12) continue;
      pen.fillStyle = colours.line;
      if (!run.closed) pen.fillRect(x0 + 1, y + height - 2, x1 - x0 - 3, 1);
      pen.fillStyle = run.closed && runSick(run) ? colours.text : colours.muted;
      const label = (run.closed ? signs(run.entry) : "") + runLabel(run);
      const last = run.closed ? at.top - 4 - 9 : y + height / 2 - 1;
      write(pen, label, (x0 + x1) / 2, last, x1 - x0 - 2);
    }
    y += height;
  });
  names(model.cols, col0, col1, at.standing ? at.cellW : 99, model.colTrouble, (entry, col, strong) => {
    const x = at.x0 + (col + 0.5) * at.cellW;
    pen.fillStyle = strong ? colours.text : colours.muted;
    if (!at.standing) {
      write(pen, signs(entry) + entry.host, x, at.top - 12, at.cellW - 2);
      return;
    }
    pen.save();
    // A line of text is wider than a narrow column: at the edge it would be cut along its length.
    pen.translate(clamp(x, at.left + HALF_LINE, at.width - HALF_LINE), at.top - 6);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    write(pen, signs(entry) + entry.host, 0, 0, at.colHostHeight - 3);
    pen.restore();
  });
  pen.restore();
}

// Calls `each` for the hosts that can be named; where there is no room for all, for the sick
// ones and those in trouble.
function names(entries, first, last, extent, trouble, each) {
  let free = -Infinity;
  for (let place = first; place < last; place += 1) {
    const entry = entries[place];
    if (entry.host === null) continue;
    const strong = signs(entry) !== "" || trouble[place] > 0;
    if (extent < 10.5 && (!strong || (place - free) * extent < 11)) continue;
    free = place;
    each(entry, place, strong);
  }
}

// Writes a name, shortened to the room there is; not at all where nothing of it would be left. That
// a host is sick is worth more than its name: the sign stands alone where there is no room for both.
function write(pen, text, x, y, room) {
  let shown = printable(text.slice(0, MOST_LETTERS));
  if (pen.measureText(shown).width > room) {
    shown = shown.replace(/ [▾▸]$/, "");
    const whole = shown;
    while (shown && pen.measureText(shown === whole ? shown : `${shown}…`).width > room) shown = shown.slice(0, -1);
    if (shown.length < 2 && shown !== whole) {
      if (!SIGNS.includes(whole[0])) return;
      shown = whole[0];
    } else if (shown !== whole) shown += "…";
  }
  pen.fillText(shown, x, y);
}

// Signs before a name: the host, or hosts in a closed group, are sick as a whole.
export function signs(entry) {
  let said = "";
  const some = (number) => (entry.host === null && number < entry.hosts ? number : "");
  if (entry.down) said += `▲${some(entry.down)} `;
  if (entry.blind) said += `◁${some(entry.blind)} `;
  if (entry.silent) said += `▨${some(entry.silent)} `;
  return said;
}

function runSick(run) { return signs(run.entry) !== ""; }
