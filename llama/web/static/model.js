// The matrix as the page handles it: an answer of /api/v1/matrix with what is needed to find one's way.

import { NO_DATA, VALUE } from "./text.js";

// Rows or columns that the service draws, and that an opened group adds; as llama/web has them.
const MOST_ENTRIES = 400, MOST_IN_ONE = 300;

export class Model {
  // `live`: whether the newest was asked for, rather than some moment of the past.
  constructor(answer, live) {
    Object.assign(this, {
      live,
      at: answer.at, newest: answer.newest, interval: answer.interval_s, span: answer.span_s,
      metric: answer.metric, group: answer.group, rows: answer.rows, cols: answer.cols,
      silentKnown: answer.silent_known !== false, sick: answer.sick, summary: answer.summary, worst: answer.worst,
    });
    const cells = answer.cells;
    this.state = Uint8Array.from(cells.state);
    this.value = Float64Array.from(cells.value, (value) => value ?? NaN);
    this.level = Int8Array.from(this.value, (value) => this.levelOf(value));
    this.members = cells.members;
    this.bad = cells.bad;
    this.missing = cells.missing;
    this.silent = cells.silent ?? []; // of older services: not known
    this.suspect = cells.suspect;
    this.worstSrc = cells.worst_src;
    this.worstDst = cells.worst_dst;
    this.sources = cells.sources;
    this.destinations = cells.destinations;
    this.flows = new Map(cells.flows.map(([index, lossy, flows]) => [index, { lossy, flows }]));
    // The worst level of an unhealthy cell in each row and column; 0: none.
    this.rowTrouble = new Uint8Array(this.rows.length);
    this.colTrouble = new Uint8Array(this.cols.length);
    this.bad.forEach((bad, index) => {
      const row = Math.floor(index / this.cols.length), col = index % this.cols.length;
      if (!bad || this.deadRow(row) || this.silentRow(row) || this.deadCol(col)) return;
      this.rowTrouble[row] = Math.max(this.rowTrouble[row], this.level[index]);
      this.colTrouble[col] = Math.max(this.colTrouble[col], this.level[index]);
    });
    this.bands = { rows: bands(this.rows, this.group.length), cols: bands(this.cols, this.group.length) };
  }

  // 0: fine, to 5; -1: no value.
  levelOf(value) {
    if (Number.isNaN(value)) return -1;
    let level = 0;
    for (const threshold of this.metric.levels) {
      if (threshold === 0 ? value > 0 : value >= threshold) level += 1;
    }
    return level;
  }

  cell(row, col) {
    const index = row * this.cols.length + col;
    const value = this.value[index];
    const flows = this.flows.get(index);
    const { [index]: src } = this.worstSrc, { [index]: dst } = this.worstDst;
    return {
      state: this.state[index], value: Number.isNaN(value) ? null : value, level: this.level[index],
      members: this.members[index], bad: this.bad[index], missing: this.missing[index], silent: this.silent[index] ?? 0, partial: this.partial(index),
      suspect: this.suspect[index], lossy: flows?.lossy, flows: flows?.flows,
      src: src >= 0 ? this.sources[src] : null, dst: dst >= 0 ? this.destinations[dst] : null,
    };
  }

  // Whether some of what is behind a cell has no data, which what still speaks must not hide.
  partial(index) {
    return this.state[index] > NO_DATA && (this.missing[index] > 0 || this.silent[index] > 0);
  }

  // Whether a row or column as a whole is dead, so that its cells say nothing of their own.
  deadRow(row) { return this.rows[row].blind === this.rows[row].hosts; }
  silentRow(row) { return this.rows[row].silent === this.rows[row].hosts; }
  deadCol(col) { return this.cols[col].down === this.cols[col].hosts; }

  // The next troubled cell after (row, col) in reading order, or null.
  nextTrouble(row, col, direction) {
    const size = this.state.length;
    let index = row * this.cols.length + col;
    for (let tried = 0; tried < size; tried += 1) {
      index = (index + direction + size) % size;
      const r = Math.floor(index / this.cols.length), c = index % this.cols.length;
      if (this.deadRow(r) || this.silentRow(r) || this.deadCol(c)) continue;
      const judged = this.metric.bad_level !== null;
      if ((judged && this.bad[index]) || this.state[index] === NO_DATA || this.partial(index)) return { row: r, col: c };
      if (!judged && this.state[index] === VALUE && this.level[index] >= 4) return { row: r, col: c };
    }
    return null;
  }
}

// The group headers of an axis: for each level the runs of entries of one group. Besides groups by
// `keys` tags there may be ranges, where too many would stand side by side.
function bands(entries, keys) {
  const levels = [], depth = entries.reduce((most, entry) => Math.max(most, entry.path.length), keys);
  for (let level = 0; level < depth; level += 1) {
    const runs = [];
    entries.forEach((entry, place) => {
      if (entry.path.length <= level) return;
      const path = entry.path.slice(0, level + 1);
      const closed = entry.host === null && entry.path.length === level + 1;
      const last = runs.at(-1);
      if (last && last.end === place && !closed && !last.closed && same(last.path, path)) last.end += 1;
      else runs.push({ path, closed, start: place, end: place + 1, entry });
    });
    levels.push(runs);
  }
  return levels;
}

function same(a, b) {
  return a.length === b.length && a.every((part, n) => part === b[n]);
}

// --- which groups are open, as the address says it -------------------------------------------

const ESCAPE = { "~": "~~", "/": "~s", ",": "~c", "*": "~a" };

export function writePath(path) {
  return path.map((part) => part.replace(/[~/,*]/g, (sign) => ESCAPE[sign]) || "~0").join("/");
}

// The open groups with that of an entry as well; or alone, where all would be more than are drawn.
export function unfolded(entries, entry) {
  const most = entries.length + Math.min(entry.hosts, MOST_IN_ONE);
  return opened(most > MOST_ENTRIES ? [] : entries, entry.path);
}

// The open groups that the entries of an axis show, as text; with one group opened or closed.
export function opened(entries, open = null, close = null) {
  const paths = new Set();
  for (const entry of entries) {
    const depth = entry.host === null ? entry.path.length - 1 : entry.path.length;
    for (let n = 1; n <= depth; n += 1) paths.add(writePath(entry.path.slice(0, n)));
  }
  if (open) for (let n = 1; n <= open.length; n += 1) paths.add(writePath(open.slice(0, n)));
  if (close) {
    const closed = writePath(close);
    for (const path of paths) if (path === closed || path.startsWith(`${closed}/`)) paths.delete(path);
  }
  const text = [...paths].join(",");
  // A group may bear the name of a word that means something else here.
  return text === "none" || text === "auto" ? `${text},` : text || "none";
}
