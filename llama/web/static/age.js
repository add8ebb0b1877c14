import { length } from "./text.js";

// How old figures may be and still speak for the moment that is shown, as llama/web/mesh.py has it.

// So many intervals behind the newest of all, a series has fallen silent;
const SILENT_INTERVALS = 2.5;
// so many behind the time of day, all have. Fleets that speak by the second are given a little more.
const ALL_SILENT_INTERVALS = 3, LEAST_S = 15;
// What is usual, where the service does not know yet.
const USUAL_S = 30;

export function tooOld(newest, now, interval) {
  return newest !== null && now - newest > Math.max(ALL_SILENT_INTERVALS * (interval ?? USUAL_S), LEAST_S);
}

// The oldest figures of a pair that speak for now, given the newest of all pairs. `own` is how often
// the pair speaks, `interval` what is usual.
export function oldestLive(newest, now, interval, own) {
  const usual = interval ?? USUAL_S, each = own ?? usual;
  const last = newest === null ? now : Math.min(newest, now);
  const least = now - Math.max(ALL_SILENT_INTERVALS * usual, LEAST_S);
  if (each > usual) return Math.max(last, least) - SILENT_INTERVALS * each;
  return Math.max(last - SILENT_INTERVALS * each, least);
}

// What a pair's figures are asked for: the newest interval of a moment, or the span up to it.
export function stretch(at, span, interval, own) {
  const usual = interval ?? USUAL_S, each = own ?? usual;
  const step = Math.min(86400, Math.max(1, Math.round(span || each)));
  return { from: at - (span || SILENT_INTERVALS * each + ALL_SILENT_INTERVALS * usual), to: at, step };
}

export function oldestPast(at, span, interval, own) {
  return span ? at - span : at - SILENT_INTERVALS * (own ?? interval ?? USUAL_S);
}

// What the clocks of service and browser may differ by: more than an answer takes.
const SAME_S = 60;

// What is to be said of a service whose clock is `ahead` of ours by so many seconds. No more than a
// note: it is the device, more often than not.
export function clocksDiffer(ahead) {
  if (Math.abs(ahead) <= SAME_S) return "";
  const amount = length(Math.abs(ahead));
  if (ahead > 0) return `the clock of llama-web is ${amount} ahead of this device's`;
  return `the clock of llama-web is ${amount} behind this device's: if this one is right, what is shown as live is old`;
}
