// Figures and findings in words. Numbers carry units; a number without samples is an em dash.

export const NOT_PROBED = 0, NO_DATA = 1, NO_VALUE = 2, VALUE = 3;

export function figure(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "—";
  if (unit === "%") return `${percent(value)} %`;
  return unit === "×" ? `×${digits(value, 2)}` : `${digits(value)} ${unit}`;
}

// Digits of a percentage: 100 is all, and nearly all is never shown as that.
export function percent(value) {
  return value >= 99.95 && value < 100 ? "99.9" : digits(value);
}

// At most three digits that matter; never a small value shown as zero.
export function digits(value, most = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return String(Math.round(value * 10) / 10);
  if (size < 0.001) return "<0.001";
  const places = Math.max(0, most - 1 - Math.floor(Math.log10(size)));
  return String(Number(value.toFixed(Math.min(places, 3))));
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

// A text of others, in which nothing turns the direction of writing or hides, as llama/printable.py has it.
export function printable(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, "\uFFFD");
}

export function clock(seconds, withDay = undefined) {
  if (seconds === null || seconds === undefined) return "—";
  const time = new Date(seconds * 1000);
  const day = withDay ?? time.toDateString() !== new Date().toDateString();
  const text = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  return day ? `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${text}` : text;
}

// By which zone `clock` tells a time: two who compare what they see may be far from each other.
export function zone(seconds) {
  const minutes = -new Date(seconds * 1000).getTimezoneOffset();
  if (!minutes) return "UTC";
  const size = Math.abs(minutes), rest = size % 60 ? `:${two(size % 60)}` : "";
  return `UTC${minutes < 0 ? "−" : "+"}${Math.floor(size / 60)}${rest}`;
}

const two = (number) => String(number).padStart(2, "0");

export function length(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 360) / 10} h`;
  return `${Math.round(seconds / 8640) / 10} days`;
}

export function pathName(path) {
  return path.map((part) => part || "no group").join(" / ");
}

export function entryName(entry) {
  return entry.host ?? pathName(entry.path);
}

export function sickness(entry) {
  const said = [];
  if (entry.host !== null) {
    if (entry.down) said.push("host down: no source reaches it");
    if (entry.blind) said.push("source blind: it reaches nobody");
    if (entry.silent) said.push(`source silent since ${clock(entry.silent_since)}`);
  } else {
    if (entry.down) said.push(`${entry.down} of ${count(entry.hosts, "host")} down`);
    if (entry.blind) said.push(`${entry.blind} of ${count(entry.hosts, "source")} blind`);
    if (entry.silent) said.push(`${entry.silent} of ${count(entry.hosts, "source")} silent`);
  }
  return said;
}

// One cell, in lines of text.
export function cellLines(model, row, col) {
  const cell = model.cell(row, col);
  const from = model.rows[row], to = model.cols[col];
  const lines = [`${entryName(from)} → ${entryName(to)}`];
  const { title, unit } = model.metric;
  const folded = from.host === null || to.host === null;
  if (cell.state === NOT_PROBED) {
    lines.push("not probed");
  } else if (cell.state === NO_DATA) {
    lines.push("no data");
  } else {
    const value = cell.state === NO_VALUE ? `— (${missingReason(model)})` : figure(cell.value, unit);
    lines.push(`${title} ${folded && cell.members > 1 ? "at worst " : ""}${value}`);
    if (folded && cell.members > 1 && cell.value !== null && cell.src !== null) lines.push(`worst: ${cell.src} → ${cell.dst}`);
  }
  if (cell.flows) lines.push(`${cell.lossy} of ${count(cell.flows, "flow")} lose`);
  if (folded && cell.members) {
    const parts = [count(cell.members, "pair")];
    if (model.metric.bad_level !== null) parts.push(`${cell.bad} bad`);
    if (cell.missing) parts.push(`${cell.missing} without data`);
    lines.push(parts.join(", "));
  }
  if (cell.partial && cell.silent) lines.push(`▨ ${count(cell.silent, "series", "series")} without data`);
  if (cell.suspect) lines.push("~ suspect: our own fault may be in these figures");
  lines.push(...sickness(from), ...sickness(to));
  return lines;
}

function missingReason(model) {
  if (model.metric.name.startsWith("loss_")) return "the direction of the loss is not known";
  if (model.metric.unit === "ms" || model.metric.unit === "×") return "nothing came back, or no baseline";
  return "no samples";
}
