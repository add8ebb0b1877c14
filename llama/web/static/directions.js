// What a pair lost in one step of its history, by direction. Loss whose direction nobody knows is
// neither this way's nor the other's: a direction that lost nothing else has no figure then, as in
// llama/web/metrics.py.

// Counts that a database reckons from rates do not quite add up; so much of the loss is no loss.
const ROUNDING = 1e-3;

// Percent of what was sent; null: not known.
export function directions(columns, n) {
  const { [n]: sent } = columns.sent, { [n]: lost } = columns.lost;
  const forward = columns.lost_forward[n], reverse = columns.lost_reverse[n];
  const rest = lost === null ? 0 : lost - (forward ?? 0) - (reverse ?? 0);
  const undirected = Math.max(columns.lost_unknown[n] ?? 0, rest > ROUNDING * lost ? rest : 0);
  const percent = (part) => (sent && part !== null ? (100 * part) / sent : null);
  const known = (part) => (undirected && !part ? null : percent(part));
  return { loss: percent(lost), forward: known(forward), reverse: known(reverse), undirected: percent(undirected) };
}
