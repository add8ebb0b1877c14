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
