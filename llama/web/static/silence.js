// Which series of a pair fell silent: those that still speak must not hide them.

// What is measured, as llama/web/mesh.py has it: a series that goes on under other tags, of a host
// that moved say, is not silent.
const MEASURED = ["class", "probe", "size", "port_group"];
// What said nothing for so long, and for so many of its intervals, does not belong to the mesh any
// more. It is looked for in steps.
const KNOWN_S = 3600;
export const KNOWN_INTERVALS = 3, LONGEST_INTERVAL_S = 3600, KNOWN_STEP_S = 300;

const key = (series) => JSON.stringify(MEASURED.map((name) => series.tags[name]));

// Of these series those that belong to the mesh at a time, or in the span up to it.
export function belonging(series, at, span) {
  const since = (each) => at - Math.max(KNOWN_S, KNOWN_INTERVALS * Math.min(each.interval_s ?? 0, LONGEST_INTERVAL_S), span);
  return series.filter((each) => each.time > since(each));
}

// Of the `known` series those that `newest` has no data of since `oldest(interval)`.
export function silentSeries(known, newest, oldest) {
  const speaking = new Set(newest.filter((each) => each.time >= oldest(each.interval_s ?? null)).map(key));
  return known.filter((each) => !speaking.has(key(each)));
}

// Names for some of the `known` series, by what tells them apart.
export function seriesNames(some, known) {
  const telling = MEASURED.filter((name) => new Set(known.map((each) => each.tags[name])).size > 1);
  return some.map((each) => telling.map((name) => each.tags[name]).filter(Boolean).join(" ") || "other tags");
}
