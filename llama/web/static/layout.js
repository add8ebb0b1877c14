// Where everything of the matrix stands on the canvas, for one size of it, one model and one zoom.

const GAP = 8;
const BAND = 19;
const FONT = "12px system-ui, 'Liberation Sans', sans-serif";
const MOST_WIDE = 64, MOST_HIGH = 40, LEAST = 2;
// Of a name, to be measured or drawn: a collector may call itself anything.
const MOST_LETTERS = 256;

export { FONT, MOST_LETTERS };

export class Layout {
  constructor(pen, width, height, model, view) {
    this.width = width;
    this.height = height;
    pen.font = FONT;
    const longest = clamp(width * 0.14, 56, 150); // of a name; longer ones are cut
    const highest = Math.min(longest, Math.max(40, height * 0.3)); // of a standing one
    const measure = (text) => Math.min(longest, Math.ceil(pen.measureText(text.slice(0, MOST_LETTERS)).width));
    const widest = (entries, label) => entries.reduce((most, entry) => Math.max(most, measure(label(entry))), 0);

    this.rowBands = model.bands.rows.map((runs) =>
      24 + runs.reduce((most, run) => Math.max(most, measure(runLabel(run))), 0));
    const rowHosts = model.rows.filter((entry) => entry.host !== null);
    this.rowHostWidth = rowHosts.length ? 22 + widest(rowHosts, (entry) => entry.host) : 0;
    this.left = GAP + sum(this.rowBands) + this.rowHostWidth + 4;

    const colHosts = model.cols.filter((entry) => entry.host !== null);
    let tallest = colHosts.length ? widest(colHosts, (entry) => entry.host) : 0;
    const bandsHeight = model.bands.cols.length * BAND;
    // Cells as large as fit, first with column names lying, then standing.
    const room = (top) => [
      (width - this.left - GAP) / Math.max(1, model.cols.length),
      (height - top - GAP) / Math.max(1, model.rows.length),
    ];
    const closedWidth = model.bands.cols.flat().filter((run) => run.closed)
      .reduce((most, run) => Math.max(most, measure(runLabel(run)) + 12), 0);
    let top = GAP + bandsHeight + (colHosts.length ? BAND : 0);
    let [w, h] = room(top);
    this.standing = colHosts.length > 0 && Math.min(w, Math.max(MOST_WIDE, tallest + 16)) < tallest + 12;
    if (this.standing) {
      tallest = Math.min(tallest, highest);
      top = GAP + bandsHeight + tallest + 14;
      [w, h] = room(top);
    }
    this.top = top;
    this.colBandHeights = model.bands.cols.map(() => BAND);
    this.colHostHeight = top - GAP - bandsHeight;
    // Square cells, but wide enough for a lying label where there is room.
    const wanted = Math.max(closedWidth, colHosts.length && !this.standing ? tallest + 16 : 0);
    this.fitW = Math.min(Math.max(MOST_WIDE, wanted), Math.max(LEAST, w));
    this.fitH = Math.min(MOST_HIGH, Math.max(LEAST, h));
    if (this.fitW < 24 || this.fitH < 16) this.fitW = this.fitH = Math.max(LEAST, Math.min(this.fitW, this.fitH));
    this.cellW = this.fitW * view.zoom;
    this.cellH = this.fitH * view.zoom;
    this.fullW = this.cellW * model.cols.length;
    this.fullH = this.cellH * model.rows.length;
    this.whole = this.fullW <= width - this.left - GAP && this.fullH <= height - this.top - GAP;
    // Never pan past the edge.
    view.x = clamp(view.x, 0, Math.max(0, this.fullW - (width - this.left - GAP)));
    view.y = clamp(view.y, 0, Math.max(0, this.fullH - (height - this.top - GAP)));
    this.x0 = this.left - view.x;
    this.y0 = this.top - view.y;
  }

  visible(model) {
    return {
      row0: Math.max(0, Math.floor((this.top - this.y0) / this.cellH)),
      row1: Math.min(model.rows.length, Math.ceil((this.height - this.y0) / this.cellH)),
      col0: Math.max(0, Math.floor((this.left - this.x0) / this.cellW)),
      col1: Math.min(model.cols.length, Math.ceil((this.width - this.x0) / this.cellW)),
    };
  }

  // What is under a point: {kind: "cell", row, col}, {kind: "row"|"col", band} or null.
  hit(model, x, y) {
    const row = Math.floor((y - this.y0) / this.cellH), col = Math.floor((x - this.x0) / this.cellW);
    const inRows = y >= this.top && row >= 0 && row < model.rows.length;
    const inCols = x >= this.left && col >= 0 && col < model.cols.length;
    if (inRows && inCols) return { kind: "cell", row, col };
    if (inRows && x < this.left) return this.header("row", model.bands.rows, this.rowBands, x - GAP, row);
    if (inCols && y < this.top) return this.header("col", model.bands.cols, this.colBandHeights, y - GAP, col);
    return null;
  }

  header(kind, bands, extents, offset, place) {
    let edge = 0;
    for (let level = 0; level < bands.length; level += 1) {
      const run = bands[level].find((each) => place >= each.start && place < each.end);
      edge += extents[level];
      if (run && (offset < edge || run.closed)) return { kind, run, place };
    }
    return { kind, run: null, place };
  }
}

export function runLabel(run) {
  const name = run.path.at(-1) || "no group";
  return run.closed ? `${name} ▸` : `${name} ▾`;
}

export const EDGE = GAP;
const sum = (list) => list.reduce((a, b) => a + b, 0);
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
