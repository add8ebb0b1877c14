// The chosen incident: what is suspected and why, and the paths it lies on, drawn hop by hop.

import { make } from "./lists.js";
import { renew } from "./renew.js";
import { clock, count, figure, printable } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const ROW = 26, COLUMN = 92, MARGIN = 46, LISTED = 12;

export class IncidentView {
  // `acts`: close(), pair(src, dst) -> address of that pair's drawer.
  constructor(place, acts) {
    this.place = place;
    this.acts = acts;
    place.addEventListener("click", (event) => { if (event.target.closest("button")) this.acts.close(); });
  }

  hide() {
    this.place.hidden = true;
    this.place.replaceChildren();
  }

  show(incident) {
    const head = make("header");
    head.append(make("h2", incident.title));
    const close = make("button", "✕");
    close.type = "button";
    close.title = "close (Escape)";
    close.setAttribute("aria-label", "close the incident");
    head.append(close);
    const end = incident.end ? `, over at ${clock(incident.end)}` : ", goes on";
    const parts = [head, make("p", `since ${clock(incident.start)}${end}`, "note"), make("p", incident.evidence)];
    if (incident.silenced) parts.push(make("p", `silenced: ${incident.silenced}`, "note"));
    const facts = [["worst", figure(100 * incident.worst_rate, "%")], ["direction", incident.direction], ["flows", `${incident.explains} at last, ${incident.most_explained} at most`]];
    const table = make("table", "", "tags");
    for (const [name, value] of facts) {
      const row = table.insertRow();
      row.append(make("th", name), make("td", value));
    }
    parts.push(table);
    if (incident.paths.length) parts.push(make("h3", "paths of flows that it hits"), drawPaths(incident));
    if (incident.changes.length) parts.push(make("h3", "it was found to be"), list(incident.changes.map((change) => [`${clock(change.time)} ${change.title}`, null])));
    parts.push(make("h3", count(incident.pairs.length, "pair")), list(incident.pairs.slice(0, LISTED).map(([src, dst]) => [`${src} → ${dst}`, this.acts.pair(src, dst)])));
    if (incident.pairs.length > LISTED) parts.push(make("p", `and ${incident.pairs.length - LISTED} more`, "note"));
    renew(this.place, ...parts);
    this.place.hidden = false;
  }
}

function list(entries) {
  const made = make("ul");
  for (const [text, address] of entries) {
    const item = make("li"), inner = make(address ? "a" : "span", text);
    if (address) inner.href = address;
    item.append(inner);
    made.append(item);
  }
  return made;
}

// Whether the suspect is this link, or this node.
function suspects(incident, from, to) {
  return incident.kind === "link" && incident.name === `${from} -> ${to}`;
}

function accused(incident, name) {
  return ["node", "host", "reflector", "collector"].includes(incident.kind) && incident.name.split(" ")[0] === name;
}

// One column a hop, every node once, lines where flows go; the suspect is thick and has a sign.
function drawPaths(incident) {
  const columns = [];
  for (const path of incident.paths) {
    path.forEach((name, hop) => {
      columns[hop] ??= [];
      if (!columns[hop].includes(name)) columns[hop].push(name);
    });
  }
  const rows = Math.max(...columns.map((names) => names.length));
  const width = 2 * MARGIN + (columns.length - 1) * COLUMN, height = (rows + 0.6) * ROW;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "paths" });
  const marked = incident.kind === "link" || incident.kind === "node" ? `${incident.kind} ${incident.name}` : incident.name;
  svg.append(text("title", {}, `paths over ${marked}`));
  const place = (hop, name) => {
    const names = columns[hop], n = names.indexOf(name);
    return [MARGIN + hop * COLUMN, ((n + 0.5) * rows * ROW) / names.length + 4];
  };
  const drawn = new Set(), over = [];
  for (const path of incident.paths) {
    for (let hop = 0; hop + 1 < path.length; hop += 1) {
      const [from, to] = [path[hop], path[hop + 1]], key = `${hop} ${from} ${to}`;
      if (drawn.has(key)) continue;
      drawn.add(key);
      const [x1, y1] = place(hop, from), [x2, y2] = place(hop + 1, to);
      const bad = suspects(incident, from, to);
      const line = element("line", { x1, y1, x2, y2, class: bad ? "suspect" : "" });
      if (bad) over.push(line, text("text", { x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 5, class: "sign" }, "✗"));
      else svg.append(line);
    }
  }
  svg.append(...over);
  columns.forEach((names, hop) => names.forEach((name) => {
    const [x, y] = place(hop, name), bad = accused(incident, name);
    svg.append(element("circle", { cx: x, cy: y, r: bad ? 6 : 4, class: bad ? "suspect" : "" }));
    svg.append(text("text", { x, y: y + 15, class: bad ? "suspect" : "" }, bad ? `✗ ${name}` : name));
  }));
  return svg;
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function text(name, attributes, words) {
  const made = element(name, attributes);
  made.textContent = printable(words);
  return made;
}
