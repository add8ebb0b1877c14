// Which series of a pair fell silent: those that still speak must not hide them.

// What is measured, as llama/web/mesh.py has it: a series that goes on under other tags, of a host
// that moved say, is not silent.
const MEASURED = ["class", "probe", "size", "port_group"];
// What said nothing for longer does not belong to the mesh any more.
export const KNOWN_S = 3600;

const key = (series) => JSON.stringify(MEASURED.map((name) => series.tags[name]));

// Of the `known` series those that `newest` has no data of since `oldest`.
export function silentSeries(known, newest, oldest) {
  const speaking = new Set(newest.filter((each) => each.time >= oldest).map(key));
  return known.filter((each) => !speaking.has(key(each)));
}

// Names for some of the `known` series, by what tells them apart.
export function seriesNames(some, known) {
  const telling = MEASURED.filter((name) => new Set(known.map((each) => each.tags[name])).size > 1);
  return some.map((each) => telling.map((name) => each.tags[name]).filter(Boolean).join(" ") || "other tags");
}
