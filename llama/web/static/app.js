// The page: its address says what to show, the service is asked, the parts draw.

import { clocksDiffer, oldestLive, oldestPast, stretch, tooOld } from "./age.js";
import { Pause, Question, SOON_MS, get } from "./api.js";
import { Drawer } from "./drawer.js";
import { IncidentView } from "./incident.js";
import { drawKeys, drawLegend } from "./legend.js";
import { drawHeadline, drawIncidents, drawSick, drawWorst, make } from "./lists.js";
import { MatrixView } from "./matrix.js";
import { Model, opened, unfolded } from "./model.js";
import { renew } from "./renew.js";
import { Scrubber } from "./scrubber.js";
import { RANGES, State } from "./state.js";
import { drawTable } from "./table.js";
import { clock, length, printable, zone } from "./text.js";
import { chooseTheme, chosenTheme } from "./theme.js";

const $ = (id) => document.getElementById(id);
const SPANS = { "": "newest interval", 300: "5 min", 900: "15 min", 3600: "1 hour", 86400: "1 day" };
const SHORTEST_POLL_MS = 1000, LONGEST_POLL_MS = 5000, JUDGE_MS = 1000;
// What the service answers with a failure is asked again ever more seldom: it may be too much for it.
const LONGEST_PAUSE_MS = 60000;
// A page that stands on a wall for weeks learns of classes and tags that are new.
const CHOICES_S = 300;
const LISTED_INCIDENTS = 20, MOST_INCIDENTS = 1000; // as many as the service gives at once

const matrixQuestion = new Question("matrix"), timelineQuestion = new Question("timeline");
const dimensionsQuestion = new Question("dimensions"), incidentsQuestion = new Question("incidents");
let model = null, timeline = null, dimensions = null, asTable = false;
let skew = 0, toldNow = null; // what the service's clock is ahead of ours, in seconds; what it told last
let interval = null, newest; // undefined: not asked yet
let behind = false; // whether there are newer data than was asked for
let incidents = null;
let hasFlows = false; // whether the service can ask collectors for flows
const complaints = new Map();
const [matrixPause, statusPause, besidesPause] = [1, 2, 3].map(() => new Pause(LONGEST_POLL_MS, LONGEST_PAUSE_MS));

const now = () => Date.now() / 1000 + skew;

const state = new State((changed) => refresh(changed));
const view = new MatrixView($("stage"), { open, fold, told: (text) => { $("spoken").textContent = printable(text); } });
const drawer = new Drawer($("drawer"), {
  close: closeDrawer,
  time: (time) => goTo(time),
});
const incidentView = new IncidentView($("incident"), {
  close: () => state.set({ incident: "" }),
  pair: (src, dst) => state.link({ src, dst }),
});
const scrubber = new Scrubber($("scrubber"), {
  go: goTo,
  zoom: (from, to) => state.set({ from, to }),
  out: () => state.set({ from: "", to: "" }),
});

// --- asking ---------------------------------------------------------------------------------

function filters() {
  return { class: state.get("class"), probe: state.get("probe") };
}

async function loadMatrix() {
  document.body.classList.add("busy");
  const { live } = state;
  try {
    const answer = await matrixQuestion.ask({
      metric: state.get("metric"), ...filters(), group: state.get("group"), rows: state.get("rows"),
      cols: state.get("cols"), at: state.get("at"), span: state.get("span"),
    });
    if (!answer) return;
    model = new Model(answer, live);
    interval = model.interval ?? interval;
    complain("matrix", "");
    matrixPause.end();
    drawAll();
  } catch (error) {
    matrixPause.begin();
    complain("matrix", error.message);
  } finally {
    if (!matrixQuestion.busy) document.body.classList.remove("busy");
  }
  judge();
}

async function loadTimeline() {
  try {
    const answer = await timelineQuestion.ask({ ...state.window(now()), ...filters() });
    if (!answer) return;
    timeline = answer;
    scrubber.show(timeline, state.live ? null : Number(state.get("at")));
    complain("timeline", "");
  } catch (error) {
    complain("timeline", error.message);
  }
}

async function loadDimensions() {
  try {
    const answer = await dimensionsQuestion.ask({ at: state.get("at") });
    if (!answer) return;
    dimensions = { ...answer, old: now() + CHOICES_S };
    complain("dimensions", "");
    drawChoices();
  } catch (error) {
    complain("dimensions", error.message);
  }
}

// The open and the newest incidents; besides them the chosen one, which a link may have named long ago.
async function loadIncidents() {
  try {
    const id = state.get("incident"), at = state.get("at");
    const answer = await incidentsQuestion.ask({ at, limit: LISTED_INCIDENTS });
    if (!answer) return;
    if (id && answer.next && !answer.incidents.some((each) => each.id === id)) {
      // Where they are too many the list goes without it.
      const all = await incidentsQuestion.ask({ at, limit: MOST_INCIDENTS }).catch(() => ({ incidents: [] }));
      if (!all) return;
      answer.incidents.push(...all.incidents.filter((each) => each.id === id));
    }
    incidents = answer;
    showIncident();
  } catch (error) {
    incidents = null; // asked for again
    renew($("incidents"), make("p", error.message, "none"));
  }
}

// The list, the chosen incident beside the matrix, and its cells within.
function showIncident() {
  if (!incidents) return;
  const id = state.get("incident");
  drawIncidents($("incidents"), incidents, id, (each) => state.link({ incident: each, src: "", dst: "" }));
  const chosen = incidents.incidents.find((each) => each.id === id);
  view.mark(chosen?.pairs ?? []);
  const told = chosen?.pairs && !state.get("src") ? id : "";
  if (told) incidentView.show(chosen);
  else incidentView.hide();
  if (told && told !== drawnIncident && stacked.matches) $("incident").scrollIntoView({ block: "start" });
  drawnIncident = told;
}

function knowsChosen() {
  const id = state.get("incident");
  return !id || incidents?.incidents.some((each) => each.id === id);
}

const stacked = matchMedia("(max-width: 1000px)"); // as in style.css
let drawn = "", drawnIncident = ""; // the pair and the incident that were shown last

function loadDrawer() {
  const src = state.get("src"), dst = state.get("dst");
  view.choose(src ? { src, dst } : null);
  const pair = JSON.stringify([src, dst]);
  if (!src) {
    drawn = pair;
    drawer.hide();
    return;
  }
  const span = Number(state.get("span"));
  const at = state.live ? now() : Number(state.get("at"));
  const moment = (own) => stretch(at, span, interval, own);
  const shown = drawer.show(src, dst, { ...filters(), ...state.window(now()), at: state.get("at"), moment, span, oldest, flows: hasFlows });
  if (pair !== drawn && stacked.matches) bringIntoSight(shown, pair);
  drawn = pair;
}

// Where it stands below the matrix, a pair that was just chosen would be out of sight. Until its figures
// are there it may be too short to be scrolled to the top; who scrolls meanwhile is left where they are.
async function bringIntoSight(shown, pair) {
  const scrolled = () => document.querySelector("main").scrollTop + scrollY;
  const bring = () => $("drawer").scrollIntoView({ block: "start" });
  bring();
  const before = scrolled();
  await shown;
  if (drawn === pair && scrolled() === before) bring();
}

// Figures of a pair from before this time do not speak for the moment that is shown. `own` is how
// often it speaks; null: as is usual.
function oldest(own) {
  if (state.live) return oldestLive(newest ?? null, now(), interval, own);
  return oldestPast(Number(state.get("at")), Number(state.get("span")), interval, own);
}

// Follows the newest data: asks what is new, and for the rest only if something is. Waits for no
// answer but that one, lest a slow matrix hide that the service has died.
async function follow() {
  let wait = LONGEST_POLL_MS;
  try {
    const asked = Date.now();
    const said = await get("status", {}, { within: SOON_MS });
    if (Date.now() - asked > 2 * SOON_MS) { // this device slept meanwhile, and so did the limit
      setTimeout(follow, 0);
      return;
    }
    // A clock that stands still does not tell the time: ours goes on, and what is old by it shows.
    if (said.now !== toldNow) skew = said.now - Date.now() / 1000;
    toldNow = said.now;
    complain("clocks", clocksDiffer(skew));
    interval = said.interval_s ?? interval;
    hasFlows = said.flows;
    behind ||= newest !== undefined && said.newest !== newest;
    newest = said.newest;
    complain("status", "");
    if (statusPause.end()) matrixPause.end(); // it is back
    const aged = model && interval && now() - model.at > interval; // silence must show, too
    const wanted = complaints.has("matrix") || (state.live && (behind || aged || !model));
    if (wanted && !matrixQuestion.busy && matrixPause.over) update();
    askAgain();
    if (interval) wait = Math.min(LONGEST_POLL_MS, Math.max(SHORTEST_POLL_MS, (interval * 1000) / 4));
  } catch (error) {
    complain("status", error.message);
    // One that does not answer at all costs nobody anything.
    if (error.status) wait = statusPause.begin();
  }
  judge();
  setTimeout(follow, document.hidden ? wait * 4 : wait);
}

// What failed beside the matrix: of a past that does not change nothing else would ask for it.
function askAgain() {
  const [timeline, dimensions] = ["timeline", "dimensions"].map((name) => complaints.has(name));
  if (!timeline && !dimensions && incidents) besidesPause.end();
  else if (!state.live && besidesPause.over) {
    besidesPause.begin();
    if (timeline && !timelineQuestion.busy) loadTimeline();
    if (dimensions && !dimensionsQuestion.busy) loadDimensions();
    if (!incidents && !incidentsQuestion.busy) loadIncidents();
  }
}

async function update() {
  const fresh = behind;
  behind = false;
  if (!timelineQuestion.busy) loadTimeline();
  await loadMatrix();
  if (fresh || !incidents) loadIncidents();
  if (fresh && state.get("src")) loadDrawer();
  if (!dimensions?.sources || now() > dimensions.old) loadDimensions();
}

// Whether what is shown still speaks for now. Asked by the second, whatever the service does: one
// that hangs tells nobody.
function judge() {
  const failed = complaints.has("matrix") || (state.live && complaints.has("status"));
  const old = !failed && model?.live && tooOld(model.newest, now(), interval);
  complain("age", old ? `no new data since ${clock(model.newest)}: is the scraper running?` : "");
  const unsure = Boolean(failed || old);
  document.body.classList.toggle("stale", unsure);
  drawTimes();
  drawer.judge(oldest);
  if (!model && !unsure) return;
  drawHeadline($("headline"), model, unsure);
  document.title = `${titleMark(unsure)}LLAMA matrix`;
}

function titleMark(unsure) {
  if (unsure) return "(?) ";
  const trouble = model.summary.troubled + model.sick.length;
  return trouble ? `(${trouble}) ` : "";
}

function complain(about, text) {
  if (text) complaints.set(about, text);
  else complaints.delete(about);
  const said = printable([...new Set(complaints.values())].join(" · "));
  if ($("trouble").textContent !== said) $("trouble").textContent = said;
  $("trouble").hidden = !said;
}

// --- what changes when the address does ------------------------------------------------------

function refresh(changed) {
  const any = (...names) => names.some((name) => changed.has(name));
  drawChoices();
  drawTimes();
  judge();
  if (any("metric", "class", "probe", "group", "rows", "cols", "at", "span")) loadMatrix();
  if (any("src", "dst", "class", "probe", "at", "span", "range", "from", "to")) loadDrawer();
  if (any("range", "from", "to", "class", "probe") || (any("at") && outside())) loadTimeline();
  else if (timeline) scrubber.show(timeline, state.live ? null : Number(state.get("at")));
  if (any("at") || (any("incident") && !knowsChosen())) loadIncidents();
  else if (any("incident", "src")) showIncident();
}

function outside() {
  if (!timeline) return true;
  if (state.live) return timeline.to < now() - 2 * timeline.step_s;
  const at = Number(state.get("at"));
  return at < timeline.from || at > timeline.to;
}

// --- drawing --------------------------------------------------------------------------------

function drawAll() {
  view.show(model);
  drawTable($("table"), model, (row, col) => state.link(openedCell(row, col)), asTable);
  drawSick($("sick-section"), $("sick"), model, sickLink);
  drawWorst($("worst"), model, (pair) => state.link({ src: pair.src, dst: pair.dst }));
  drawLegend($("legend"), model.metric);
  drawChoices();
  drawTimes();
}

function sickLink(each) {
  const witness = each.kind === "down" ? model.sources.find((host) => host !== each.host) : model.destinations.find((host) => host !== each.host);
  return state.link(each.kind === "down" ? { src: witness ?? "", dst: each.host } : { src: each.host, dst: witness ?? "" });
}

function choices(select, options, value) {
  const wanted = options.map(([key, text]) => `${key}\n${text}`).join("\n\n");
  if (select.dataset.options !== wanted) {
    select.replaceChildren(...options.map(([key, text]) => {
      const option = make("option", text);
      option.value = key;
      return option;
    }));
    select.dataset.options = wanted;
  }
  select.value = value;
}

function withOwn(options, value, text = value) {
  return options.some(([key]) => key === value) ? options : [...options, [value, text]];
}

function drawChoices() {
  if (!dimensions) return;
  choices($("metric"), dimensions.metrics.map((each) => [each.name, each.title]), state.get("metric"));
  choices($("class"), withOwn([["", "all"], ...dimensions.classes.map((each) => [each, each])], state.get("class")), state.get("class"));
  choices($("probe"), withOwn([["", "all"], ...dimensions.probes.map((each) => [each, each])], state.get("probe")), state.get("probe"));
  const usual = dimensions.hierarchy.join(",") || "none";
  const groups = [[usual, usual === "none" ? "host" : usual.replaceAll(",", " › ")]];
  for (const key of dimensions.groups) if (key !== usual) groups.push([key, key]);
  if (usual !== "none") groups.push(["none", "host"]);
  const chosen = state.get("group") === "auto" ? usual : state.get("group");
  choices($("group"), withOwn(groups, chosen, chosen.replaceAll(",", " › ")), chosen);
  const spans = Object.entries(SPANS);
  choices($("span"), withOwn(spans.map(([key, text]) => [key, text]).sort((a, b) => a[0] - b[0]), state.get("span"), length(Number(state.get("span")))), state.get("span"));
}

function drawTimes() {
  choices($("range"), Object.keys(RANGES).map((key) => [key, `last ${key}`]), state.get("range"));
  $("live").setAttribute("aria-pressed", String(state.live));
  $("live").textContent = state.live ? "● live" : "○ live";
  const covered = state.get("span") ? `, ${length(Number(state.get("span")))} up to it` : "";
  const at = state.live ? now() : Number(state.get("at"));
  const followed = document.body.classList.contains("stale") ? "waiting for data" : "following";
  $("moment").textContent = `${state.live ? followed : clock(at, true)}${covered} · ${zone(at)}`;
}

// --- choosing -------------------------------------------------------------------------------

function openedCell(row, col) {
  const from = model.rows[row], to = model.cols[col];
  if (from.host !== null && to.host !== null) return { src: from.host, dst: to.host };
  const changes = {};
  if (from.host === null) changes.rows = unfolded(model.rows, from);
  if (to.host === null) changes.cols = unfolded(model.cols, to);
  return changes;
}

// A cell of hosts opens its drawer, a folded one unfolds; with `worst`, the worst pair behind it.
function open(row, col, worst) {
  const cell = model.cell(row, col);
  if (!cell.state) return;
  if (worst && cell.src !== null) state.set({ src: cell.src, dst: cell.dst });
  else state.set(openedCell(row, col));
}

function fold(axis, run) {
  const entries = model[axis];
  state.set({ [axis]: run.closed ? unfolded(entries, run.entry) : opened(entries, null, run.path) });
}

function closeDrawer() {
  state.set({ src: "", dst: "" });
  $("stage").focus();
}

// Goes to a time, or back to live. In the past one matrix covers at least a step of the scrubber.
function goTo(time, dragging = false) {
  if (time === null) {
    state.set({ at: "", span: "" }, dragging);
    return;
  }
  const step = timeline && interval && timeline.step_s > interval * 1.5 ? timeline.step_s : 0;
  const span = Math.max(step, Number(state.get("span")));
  state.set({ at: Math.round(time), span: span || "" }, dragging);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  view.repaint();
  scrubber.draw();
  if (model) drawLegend($("legend"), model.metric);
  if (state.get("src")) loadDrawer();
}

function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  chooseTheme(theme);
  setTheme(theme);
}

function toggleTable() {
  asTable = !asTable;
  $("as-table").setAttribute("aria-pressed", String(asTable));
  $("stage").hidden = asTable;
  if (model) drawTable($("table"), model, (row, col) => state.link(openedCell(row, col)), asTable);
  if (!asTable) view.redraw();
}

function showKeys() {
  drawKeys($("keys"));
  $("keys").showModal();
}

for (const name of ["metric", "class", "probe", "group", "span", "range"]) {
  $(name).addEventListener("change", (event) => {
    const changes = { [name]: event.target.value };
    if (name === "group") Object.assign(changes, { rows: "auto", cols: "auto" });
    if (name === "range") Object.assign(changes, { from: "", to: "" });
    state.set(changes);
  });
}
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("live").addEventListener("click", () => state.set({ at: state.live ? Math.floor(model?.newest ?? now()) : "", span: "", from: "", to: "" }));
$("earlier").addEventListener("click", () => scrubber.step(-1));
$("later").addEventListener("click", () => scrubber.step(1));
$("theme").addEventListener("click", toggleTheme);
$("as-table").addEventListener("click", toggleTable);
$("help").addEventListener("click", showKeys);

// Links of the page change what it shows without loading it anew.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const target = new URL(link.href);
  if (target.origin !== location.origin || target.pathname !== location.pathname) return;
  event.preventDefault();
  const before = { ...state.values };
  history.pushState(null, "", target);
  state.read();
  refresh(state.differences(before));
});

// Keys of the matrix that work wherever nothing else has the focus, those that need no cursor in sight.
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const MATRIX_KEYS = [...ARROWS, "n", "p", "+", "-", "0"];

// The panel that the pointer was last pressed in: while it can be scrolled, arrows do that.
let pressedIn = null;
$("stage").addEventListener("focus", () => { pressedIn = null; });
document.addEventListener("pointerdown", (event) => { pressedIn = event.target.closest?.("#drawer, #side, #incident"); }, true);

function isForMatrix(event) {
  if (event.target !== document.body || !MATRIX_KEYS.includes(event.key) || asTable || $("keys").open) return false;
  return !ARROWS.includes(event.key) || !pressedIn || pressedIn.scrollHeight <= pressedIn.clientHeight;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, dialog")) return;
  if (isForMatrix(event)) {
    $("stage").focus({ preventScroll: true });
    view.key(event);
    return;
  }
  if (event.key === "Escape" && state.get("src")) closeDrawer();
  else if (event.key === "Escape" && state.get("incident")) state.set({ incident: "" });
  else if (event.key === "l") state.set({ at: "", span: "", from: "", to: "" });
  else if (event.key === ",") scrubber.step(-1);
  else if (event.key === ".") scrubber.step(1);
  else if (event.key === "d") toggleTheme();
  else if (event.key === "t") toggleTable();
  else if (event.key === "?") showKeys();
  else if (event.key === "m" && dimensions) {
    const names = dimensions.metrics.map((each) => each.name);
    state.set({ metric: names[(names.indexOf(state.get("metric")) + 1) % names.length] });
  } else return;
  event.preventDefault();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => { if (!chosenTheme()) setTheme(dark.matches ? "dark" : "light"); });
setTheme(chosenTheme() ?? (dark.matches ? "dark" : "light"));

drawTimes();
loadDimensions();
loadIncidents();
get("status", {}, { within: SOON_MS }).then((said) => {
  hasFlows = said.flows;
  interval = said.interval_s;
}, () => {}).finally(loadDrawer);
loadMatrix().then(loadTimeline);
follow();
setInterval(judge, JUDGE_MS);
