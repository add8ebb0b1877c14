// Is anything wrong, and what: the headline, the incidents, the sick hosts, the worst pairs.

import { renew } from "./renew.js";
import { clock, count, digits, figure, printable } from "./text.js";

const SIGNS = { down: "▲", blind: "◁", silent: "▨" };

// `unsure`: what is shown may not speak for now, so nothing is said of now. Without a model nothing
// was ever known.
export function drawHeadline(place, model, unsure) {
  renew(place, ...(unsure ? unknown(model) : findings(model, model.live)));
}

function unknown(model) {
  const since = model?.live ? ` since ${clock(model.newest)}` : "";
  const headline = make("span", "", "trouble");
  headline.append(make("span", "?", "mark"), ` not known${since}`);
  if (!model) return [headline];
  const then = findings(model, false).filter((part) => part.className !== "good").map((part) => part.textContent);
  return [headline, make("span", `shown as it was: ${then.join(" · ")}`, "quiet")];
}

function findings(model, live) {
  const { summary } = model;
  const parts = [];
  const add = (kind, sign, text) => {
    const span = make("span", "", kind);
    span.append(make("span", sign, "mark"), ` ${text}`);
    parts.push(span);
  };
  const judged = model.metric.bad_level !== null;
  // Loss is said whatever is shown: nobody should miss it for looking at delays, or at one direction.
  const covered = model.metric.name === "loss" || (model.metric.name.startsWith("loss_") && summary.bad === summary.losing);
  if (summary.losing && !covered) add("trouble", "■", `${count(summary.losing, "pair")} ${summary.losing === 1 ? "loses" : "lose"}`);
  if (summary.bad) add("trouble", model.metric.name === "remarked" ? "▼" : "■", `${count(summary.bad, "pair")} ${verb(model.metric, summary.bad)}`);
  if (summary.hosts_down) add("trouble hosts", SIGNS.down, `${count(summary.hosts_down, "host")} down`);
  if (summary.hosts_blind) add("trouble hosts", SIGNS.blind, `${count(summary.hosts_blind, "source")} blind`);
  if (summary.hosts_silent) add("trouble hosts", SIGNS.silent, `${count(summary.hosts_silent, "collector")} silent`);
  if (!model.silentKnown) add("hosts", "?", "long silent collectors not known");
  const partial = summary.partial ?? 0, missing = summary.missing - partial;
  if (missing) add("trouble hosts", SIGNS.silent, `${count(missing, "pair")} without data`);
  if (partial) add("trouble hosts", SIGNS.silent, `${count(partial, "pair")} partly without data`);
  // Not bad, and not healthy either: nothing that could be judged.
  if (judged && summary.unjudged) add("hosts", "—", `${count(summary.unjudged, "pair")} without a figure`);
  if (!summary.pairs) add("hosts", "○", "no measurements");
  else if (!parts.length && judged && summary.healthy === summary.pairs) add("good", "●", "all is well");
  const quiet = make("span", "", "quiet");
  quiet.setAttribute("aria-live", "off"); // the time alone is no news to who listens
  const fine = judged ? `${summary.healthy.toLocaleString("en")} of ${count(summary.pairs, "pair")} healthy` : count(summary.pairs, "pair");
  const doubt = summary.suspect ? ` · ~ ${summary.suspect} suspect` : "";
  quiet.textContent = `${fine}${doubt} · ${clock(model.newest)}${live ? ", live" : ""}`;
  parts.push(quiet);
  return parts;
}

function verb(metric, number) {
  if (metric.name === "remarked") return number === 1 ? "is remarked" : "are remarked";
  if (metric.name === "rtt_baseline") return number === 1 ? "is slower than usual" : "are slower than usual";
  const way = { loss_forward: " forward", loss_reverse: " reverse" }[metric.name] ?? "";
  return `${number === 1 ? "loses" : "lose"}${way}`;
}

export function drawSick(section, place, model, hrefFor) {
  section.hidden = !model.sick.length;
  const text = { down: "is down", mute: "answers nobody", blind: "reaches nobody", silent: "is silent" };
  const why = {
    down: "no source reaches it",
    mute: "its collector reaches others: is its reflector dead?",
    blind: "others do: its own trouble",
    silent: "its collector delivers nothing",
  };
  const items = model.sick.slice(0, 30).map((each) => {
    const item = make("li"), link = make("a");
    link.href = hrefFor(each);
    // Who measures others is there: whoever looks for a dead host would look in the wrong place.
    const kind = each.reaches_others ? "mute" : each.kind;
    const what = make("span", `${each.host} ${text[kind]}`, "what");
    const when = each.since ? `since ${clock(each.since)}` : why[kind];
    link.append(make("span", SIGNS[each.kind], "sign"), what, make("small", when));
    item.append(link);
    return item;
  });
  if (model.sick.length > 30) items.push(make("li", `and ${model.sick.length - 30} more`, "none"));
  renew(place, ...items);
}

export function drawWorst(place, model, hrefFor) {
  if (model.metric.bad_level === null || !model.worst.length) {
    const text = model.metric.bad_level === null ? "this metric has no good or bad" : `none is bad by ${model.metric.title}`;
    renew(place, make("li", text, "none"));
    return;
  }
  const items = model.worst.map((pair) => {
    const item = make("li"), link = make("a");
    link.href = hrefFor(pair);
    const level = model.levelOf(pair.value);
    const sign = make("span", model.metric.name === "remarked" ? "▼" : "■", `sign b${level}`);
    const what = make("span", `${pair.src} → ${pair.dst}`, "what");
    const how = make("span", figure(pair.value, model.metric.unit), "how");
    const more = [pair.tags.class];
    if (pair.flows_lossy) more.push(`${digits(pair.flows_lossy)} of ${digits(pair.flows)} flows`);
    if (pair.silent) more.push(`▨ ${pair.silent} of ${count(pair.series, "series", "series")} without data`);
    if (pair.suspect.length) more.push("~ suspect");
    link.append(sign, what, how, make("small", more.filter(Boolean).join(" · ")));
    item.append(link);
    return item;
  });
  const rest = model.summary.bad - model.worst.length;
  if (rest > 0) items.push(make("li", `and ${count(rest, "more pair")}`, "none"));
  renew(place, ...items);
}

export function drawIncidents(place, answer, chosen, link) {
  if (!answer.configured) {
    renew(place, make("p", "no pinpointing configured", "none"));
    return;
  }
  const parts = [], list = make("ul");
  if (!answer.incidents.length) parts.push(make("p", "none", "none"));
  for (const incident of answer.incidents) {
    const item = make("li"), row = make("a");
    row.dataset.incident = incident.id;
    row.href = link(incident.id === chosen ? "" : incident.id);
    if (incident.id === chosen) row.setAttribute("aria-current", "true");
    const when = incident.end ? `${clock(incident.start)} – ${clock(incident.end)}` : `since ${clock(incident.start)}`;
    row.append(make("span", incident.end ? "─" : "■", "sign b4"), make("span", incident.title, "what"), make("small", when));
    item.append(row);
    list.append(item);
  }
  if (answer.incidents.length) parts.push(list);
  const rest = answer.total - answer.incidents.length;
  if (rest > 0) parts.push(make("p", `and ${rest.toLocaleString("en")} more`, "none"));
  if (chosen && !answer.incidents.some((each) => each.id === chosen)) parts.push(make("p", "the chosen one is not known here", "none"));
  renew(place, ...parts);
}

export function make(name, text = "", kind = "") {
  const made = document.createElement(name);
  if (text) made.textContent = printable(text);
  if (kind) made.className = kind;
  return made;
}

// What is said of an element to who points at it, or listens.
export function describe(element, attributes) {
  for (const [name, text] of Object.entries(attributes)) element.setAttribute(name, printable(text));
}
