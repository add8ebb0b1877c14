// What one direction of a pair does at the moment that is shown: its figures, and of when they are.

import { directions } from "./directions.js";
import { make } from "./lists.js";
import { seriesNames, silentSeries } from "./silence.js";
import { clock, count, digits, figure } from "./text.js";

export class Figures {
  // `whole` is the pair over all the time that is shown, `newest` its newest interval at the
  // moment `at` (null: now). Where a store has only longer rows of the past, the step of `whole`
  // around the moment stands in. `from`: nothing from before was asked for in `newest`.
  // `known` are the series of the hour before. `strip(answer, step)` draws the flows of a step
  // (null: of none).
  constructor(whole, newest, known, at, from, strip) {
    this.element = make("div", "", "now");
    this.strip = strip;
    this.known = known;
    this.newest = newest.error ? [] : newest.series;
    this.failure = newest.error && newest.error.status !== 404 ? newest.error.message : null;
    this.interval = (newest.error ? whole : newest).interval_s ?? null;
    this.answer = newest.error ? whole : newest;
    this.step = newest.error ? null : lastStep(newest, at);
    this.last = this.step === null ? null : newest.time[this.step];
    if (this.step !== null) return;
    const before = whole.error ? null : lastStep(whole, at);
    if (before === null) return;
    this.answer = whole;
    this.last = whole.time[before];
    this.known = []; // who of them spoke is not known
    if (at !== null && this.last >= at) this.step = before;
    else this.last = Math.min(this.last, from);
  }

  // Shows the figures, or none if they are from before what `oldest` says of their interval.
  judge(oldest) {
    const speaks = this.step !== null && this.last >= oldest(this.interval);
    const silent = speaks ? silentSeries(this.known, this.newest, oldest) : [];
    if (this.speaks === speaks && this.silent.length === silent.length) return;
    Object.assign(this, { speaks, silent });
    const figures = make("div", "", "figures");
    for (const [label, value, bad] of this.list()) {
      const item = make("div", "", bad && speaks ? "bad" : "");
      item.append(make("span", `${label} `), make("b", speaks ? value : "—"));
      figures.append(item);
    }
    const parts = [make("p", this.when(), speaks ? "note" : "old"), figures];
    if (silent.length) {
      const names = seriesNames(silent, this.known).join(", ");
      parts.push(make("p", `▨ ${silent.length} of ${count(this.known.length, "series", "series")} without data: ${names}`, "old"));
    }
    this.element.replaceChildren(...parts, this.strip(this.answer, speaks ? this.step : null));
  }

  when() {
    if (this.speaks) return `${clock(this.last - this.answer.step_s)} – ${clock(this.last)}`;
    if (this.failure) return this.failure;
    return this.last === null ? "no data at this time" : `no data since ${clock(this.last)}`;
  }

  list() {
    const { columns } = this.answer, n = this.step;
    const at = (name) => (n === null ? null : columns[name][n]);
    const { loss = null, forward = null, reverse = null, undirected = null } = n === null ? {} : directions(columns, n);
    const share = (label, percent) => [label, figure(percent, "%"), percent >= 0.1];
    const list = [share("loss", loss), share("fwd", forward), share("rev", reverse)];
    if (undirected) list.push(share("direction unknown", undirected));
    list.push(["RTT p50", figure(at("rtt_p50"), "ms")], ["p99", figure(at("rtt_p99"), "ms")], ["jitter", figure(at("jitter"), "ms")]);
    const remarked = (at("remarked_forward") ?? 0) + (at("remarked_reverse") ?? 0);
    if (remarked) list.push(["remarked", `${digits(remarked)} of ${digits(at("received"))}`, true]);
    return list;
  }
}

const SUMMED = ["sent", "received", "lost", "lost_forward", "lost_reverse", "lost_unknown", "remarked_forward", "remarked_reverse"];
const BESIDES = { rtt_min: (a, b) => Math.min(a, b), suspect: (a, b) => a | b };

// A span of time as one step, put together as llama/web/store.py does: counts add up, doubts too; of
// the rest the worst stands, but the least RTT.
export function together(answer, { from, to }) {
  if (answer.error) return answer;
  const columns = Object.fromEntries(Object.entries(answer.columns).map(([name, column]) => {
    const values = column.filter((value) => value !== null);
    const best = SUMMED.includes(name) ? (a, b) => a + b : BESIDES[name] ?? ((a, b) => Math.max(a, b));
    return [name, [values.length ? values.reduce(best) : null]];
  }));
  return { ...answer, time: [to], step_s: to - from, columns, series: answer.series.map((each) => ({ ...each, time: to })) };
}

// The newest step with data, of those that begin before a time (null: of all); null: none.
function lastStep(answer, at) {
  for (let n = answer.time.length - 1; n >= 0; n -= 1) {
    if ((at === null || answer.time[n] - answer.step_s < at) && answer.columns.sent[n] !== null) return n;
  }
  return null;
}
