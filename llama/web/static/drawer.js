// The open cell: both directions of a pair side by side, over time.

import { get } from "./api.js";
import { heatChart, lossChart, rttChart } from "./charts.js";
import { Figures, together } from "./figures.js";
import { describe, make } from "./lists.js";
import { palette } from "./palette.js";
import { KNOWN_INTERVALS, KNOWN_STEP_S, LONGEST_INTERVAL_S, belonging } from "./silence.js";
import { clock, count, digits, figure, percent, printable } from "./text.js";

// With more flows than this their bars stand without gaps.
const DENSE = 64;

export class Drawer {
  // `acts`: close(), time(seconds), link(changes).
  constructor(place, acts) {
    this.place = place;
    this.acts = acts;
    this.asked = 0;
    this.charts = [];
    this.figures = [];
    new ResizeObserver(() => this.redraw()).observe(place);
  }

  hide() {
    this.asked += 1;
    this.shown = this.running = null;
    this.place.hidden = true;
    this.figures = [];
    this.place.replaceChildren();
  }

  // Shows the pair, or brings what is shown up to date: a slow answer to the same question is
  // waited for and asked again, lest it never be shown.
  async show(src, dst, question) {
    const wanted = JSON.stringify([src, dst, question.class, question.probe, question.at, question.span, Math.round(question.to - question.from)]);
    if (this.running === wanted) {
      this.again = question;
      return;
    }
    const mine = (this.asked += 1);
    const fresh = this.shown !== `${src} ${dst}`;
    this.shown = `${src} ${dst}`;
    this.running = wanted;
    this.again = null;
    this.place.hidden = false;
    if (fresh) this.place.replaceChildren(this.heading(src, dst), make("p", "asking …", "note"));
    try {
      await this.ask(mine, src, dst, question);
    } finally {
      if (mine === this.asked) this.running = null;
    }
    if (mine === this.asked && this.again) this.show(src, dst, this.again);
  }

  async ask(mine, src, dst, question) {
    const { flows: hasFlows, moment, span, oldest, from, to, at, ...filters } = question;
    const ways = [[src, dst], [dst, src]];
    const asked = (time) => Promise.all(ways.map(([a, b], n) => settled(get("history", { src: a, dst: b, ...filters, ...time(n) }))));
    const usual = moment(null);
    const since = Math.min(usual.from, usual.to - KNOWN_INTERVALS * LONGEST_INTERVAL_S);
    // What was known first: it tells how often the pair speaks.
    const before = await asked(() => ({ from: since, to: usual.to, step: Math.max(KNOWN_STEP_S, Math.ceil((usual.to - since) / 1000)) }));
    if (mine !== this.asked) return;
    const moments = before.map((answer) => moment(answer.interval_s ?? null));
    const [answers, latest] = await Promise.all([asked(() => ({ from, to })), asked((n) => moments[n])]);
    const newest = span ? latest.map((answer, n) => together(answer, moments[n])) : latest;
    const known = before.map((answer) => belonging(answer.series ?? [], usual.to, span));
    const flows = await Promise.all(ways.map(([a, b], n) => ((answers[n].error && newest[n].error) || !hasFlows ? null
      : settled(get("flows", { src: a, dst: b, ...filters, at })))));
    if (mine !== this.asked) return;
    const scroll = this.place.scrollTop;
    const focused = document.activeElement?.closest?.("#drawer details")?.dataset.name;
    const open = [...this.place.querySelectorAll("details[open]")].map((each) => each.dataset.name);
    this.charts = [];
    this.figures = [];
    this.oldest = oldest;
    const scale = rttScale(answers.filter((answer) => !answer.error).map((answer) => answer.columns));
    const both = make("div", "", "ways");
    ways.forEach(([a, b], n) => both.append(this.way(a, b, answers[n], newest[n], known[n], flows[n], scale, question, moments[n])));
    this.place.children[1].replaceWith(both); // below the heading
    for (const details of this.place.querySelectorAll("details")) {
      details.open = open.includes(details.dataset.name);
      if (details.dataset.name === focused) details.querySelector("summary").focus({ preventScroll: true });
    }
    this.redraw();
    this.place.scrollTop = scroll;
  }

  // Figures from before what `oldest` says of an interval are taken back; asked by the second.
  judge(oldest) {
    this.oldest = oldest;
    for (const each of this.figures) each.judge(oldest);
  }

  redraw() {
    for (const chart of this.charts) chart.draw();
  }

  heading(src, dst) {
    const head = make("header");
    const close = make("button", "✕");
    close.title = "close (Esc)";
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => this.acts.close());
    head.append(make("h2", `${src} ⇄ ${dst}`), close);
    return head;
  }

  way(src, dst, answer, newest, known, flows, scale, question, moment) {
    const way = make("section", "", "way");
    describe(way, { "aria-label": `${src} to ${dst}` });
    way.append(make("h3", `${src} → ${dst}`));
    if (answer.error && (answer.error.status !== 404 || newest.error)) {
      way.append(make("p", answer.error.status === 404 ? "not probed in this direction, or no data in this time" : answer.error.message, "note"));
      return way;
    }
    const figures = new Figures(answer, newest, known, question.at ? Number(question.at) : null, moment.from,
      (of, step) => this.strip(of, step, flows));
    figures.judge(this.oldest);
    this.figures.push(figures);
    way.append(figures.element);
    if (answer.error) { // it speaks more seldom than the charts are long
      way.append(make("p", "no data in the time of the charts", "note"), this.series(newest));
      return way;
    }
    const common = {
      times: answer.time, step: answer.step_s, colours: palette(), mark: question.at ? Number(question.at) : null,
      chosen: (time) => this.acts.time(time),
    };
    const charts = [lossChart(common, answer.columns), rttChart(common, answer.columns, scale)];
    if (answer.heat) charts.push(heatChart(common, answer.heat));
    this.charts.push(...charts);
    way.append(...charts.map((chart) => chart.element), this.series(answer));
    return way;
  }

  strip(answer, now, flows) {
    const place = make("div");
    place.append(make("h4", "flows"));
    const { total, lossy, text } = flowsAt(answer, now);
    if (flows && !flows.error && (flows.all_flows || flows.flows.length)) {
      place.append(...flowStrip(flows, total));
    } else if (total) {
      const bar = make("div", "", "strip");
      bar.setAttribute("aria-hidden", "true");
      const most = Math.min(total, 128), red = Math.ceil(((lossy ?? 0) / total) * most);
      for (let n = 0; n < most; n += 1) bar.append(make("i", "", n < red ? "l" : ""));
      for (const [n, each] of [...bar.children].entries()) each.style.height = n < red ? "30px" : "4px";
      bar.classList.toggle("dense", most > DENSE);
      const why = flows?.error ? flows.error.message : "which ports: name the collectors in the web configuration";
      place.append(make("p", text), bar, make("p", why, "note"));
    } else {
      place.append(make("p", "no flows known", "note"));
    }
    return place;
  }

  series(answer) {
    const details = make("details");
    details.dataset.name = `series-${answer.src}`;
    details.append(make("summary", count(answer.series.length, "series", "series")));
    for (const each of answer.series) {
      const table = make("table", "", "tags");
      const row = (name, value, kind = "") => {
        const line = table.insertRow();
        line.append(make("th", name));
        const cell = line.insertCell();
        cell.textContent = printable(value);
        if (kind) cell.className = kind;
      };
      if (each.time) {
        row("newest", clock(each.time));
        row("loss", figure(each.figures.lost === undefined ? null : each.loss, "%"));
        const dscp = each.figures.dscp_at_reflector;
        if (dscp !== undefined && dscp !== null && dscp < 64) row("DSCP there", digits(dscp));
        const back = each.figures.dscp_at_collector;
        if (back !== undefined && back !== null && back < 64) row("DSCP here", digits(back));
        if (each.suspect.length) row("suspect", each.suspect.join(", ").replaceAll("_", " "), "doubt");
      }
      for (const name of Object.keys(each.tags).sort()) row(name, each.tags[name]);
      details.append(table);
    }
    const doubt = answer.series.filter((each) => each.suspect?.length);
    const place = make("div");
    if (doubt.length) {
      const why = [...new Set(doubt.flatMap((each) => each.suspect))].join(", ").replaceAll("_", " ");
      place.append(make("p", `~ suspect: ${why}`, "doubt"));
    }
    place.append(details);
    return place;
  }
}

// How many flows the series of one step have together, and how many of them lose. The columns only
// know those of the worst series.
function flowsAt(answer, step) {
  const spoke = step === null ? [] : answer.series.filter((each) => each.time > answer.time[step] - answer.step_s && each.time <= answer.time[step] && each.figures.flows !== undefined);
  if (!spoke.length) return { total: null, lossy: null };
  const sum = (name) => spoke.reduce((all, each) => (all === null || each.figures[name] === undefined ? null : all + each.figures[name]), 0);
  const total = sum("flows"), lossy = sum("flows_lossy");
  const losing = spoke.filter((each) => each.figures.flows_lossy > 0 && each.tags.class);
  const where = spoke.length > 1 ? losing.map((each) => `${each.tags.class} ${digits(each.figures.flows_lossy)} of ${digits(each.figures.flows)}`) : [];
  const text = `${lossy === null ? "—" : digits(lossy)} of ${count(total, "flow")} lose probes`;
  return { total, lossy, text: where.length ? `${text}: ${where.join(", ")}` : text };
}

// One bar a flow, as its collector counted it. Of older intervals it only holds the flows that
// lost; `known` is how many there were.
function flowStrip(answer, known) {
  const flows = [...answer.flows].sort((a, b) => a.source_port - b.source_port);
  const losing = flows.filter((flow) => flow.lost > 0);
  const all = losing.filter((flow) => flow.received === 0).length;
  const total = answer.all_flows ? flows.length : Math.max(known ?? 0, flows.length);
  let text = `${losing.length} of ${count(total, "flow")} lose`;
  if (losing.length) {
    const [low, high] = losing.reduce(([a, b], flow) => [Math.min(a, flow.loss), Math.max(b, flow.loss)], [100, 0]);
    if (all === losing.length) text += " 100 %";
    else text += low === high ? ` ${percent(high)} %` : ` ${percent(low)} to ${percent(high)} %`;
  }
  const bar = make("div", "", "strip");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", text);
  for (const flow of flows) {
    const mark = make("i", "", flow.lost ? (flow.received ? "part" : "l") : "");
    mark.style.height = `${flow.lost ? 6 + 0.26 * flow.loss : 4}px`;
    describe(mark, { title: `source port ${flow.source_port}${flow.class ? ` ${flow.class}` : ""}: ${percent(flow.loss)} % of ${flow.sent} lost` });
    bar.append(mark);
  }
  for (let n = flows.length; n < Math.min(total, 256); n += 1) {
    const mark = make("i");
    mark.style.height = "4px";
    bar.append(mark);
  }
  bar.classList.toggle("dense", bar.children.length > DENSE);
  const parts = [make("p", text), bar];
  if (losing.length) {
    const ports = losing.slice(0, 12).map((flow) => flow.source_port).join(", ");
    parts.push(make("p", `source ports ${ports}${losing.length > 12 ? ` and ${losing.length - 12} more` : ""}`, "note"));
  }
  if (answer.time) parts.push(make("p", `interval that ended ${clock(answer.time)}`, "note"));
  return parts;
}

// From a little under the least to a little over the highest p99 of both directions.
function rttScale(both) {
  const values = both.flatMap((columns) => [...columns.rtt_min, ...columns.rtt_p50, ...columns.rtt_p99]).filter((value) => value !== null);
  if (!values.length) return { low: 0, high: 1 };
  const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
  const air = Math.max((most - least) * 0.15, most * 0.05);
  return { low: Math.max(0, least - air), high: most + air };
}

async function settled(promise) {
  try {
    return await promise;
  } catch (error) {
    return { error };
  }
}
