// The matrix as an HTML table: for screen readers behind the canvas, and for anyone with `t`.

import { renew } from "./renew.js";
import { clock, count, entryName, figure, printable, sickness, NOT_PROBED, NO_DATA, NO_VALUE } from "./text.js";

// Beyond this many cells only those that are not fine are listed.
const FULL = 3000;

export function drawTable(place, model, link, shown) {
  place.classList.toggle("shown", shown);
  place.classList.toggle("sr", !shown);
  const table = element("table");
  const about = `${model.metric.title} at ${clock(model.at)}: rows send, columns answer`;
  if (model.state.length <= FULL) fill(table, model, link, shown, about);
  else list(table, model, link, shown, about);
  renew(place, table);
}

function fill(table, model, link, shown, about) {
  table.append(element("caption", about));
  const head = table.createTHead().insertRow();
  head.append(heading("col", "from \\ to"));
  for (const entry of model.cols) head.append(heading("col", named(entry)));
  const body = table.createTBody();
  model.rows.forEach((entry, row) => {
    const line = body.insertRow();
    line.append(heading("row", named(entry)));
    model.cols.forEach((_, col) => {
      const cell = model.cell(row, col), box = line.insertCell();
      const text = said(model, cell);
      box.dataset.state = ["unprobed", "nodata", "novalue", "value"][cell.state];
      if (cell.bad) box.className = "bad";
      if (cell.state === NOT_PROBED) return;
      box.append(anchor(text, link(row, col), shown));
    });
  });
}

function list(table, model, link, shown, about) {
  const troubled = [];
  let fine = 0;
  for (let index = 0; index < model.state.length; index += 1) {
    const row = Math.floor(index / model.cols.length), col = index % model.cols.length;
    const dead = model.deadRow(row) || model.silentRow(row) || model.deadCol(col);
    if (!model.state[index] || dead) continue;
    if (model.bad[index] || model.state[index] === NO_DATA || model.partial(index)) troubled.push([row, col]);
    else fine += 1;
  }
  const most = 500, rest = Math.max(0, troubled.length - most);
  table.append(element("caption", `${about}. ${count(fine, "cell")} are fine; those that are not:${rest ? ` (and ${rest} more)` : ""}`));
  const head = table.createTHead().insertRow();
  for (const title of ["from", "to", model.metric.title]) head.append(heading("col", title));
  const body = table.createTBody();
  for (const [row, col] of troubled.slice(0, most)) {
    const line = body.insertRow();
    line.append(heading("row", named(model.rows[row])), heading("row", named(model.cols[col])));
    line.insertCell().append(anchor(said(model, model.cell(row, col)), link(row, col), shown));
  }
}

function named(entry) {
  return [entryName(entry), ...sickness(entry)].join(", ");
}

function said(model, cell) {
  if (cell.state === NO_DATA) return "no data";
  const value = cell.state === NO_VALUE ? "—" : figure(cell.value, model.metric.unit);
  const more = [];
  if (cell.flows) more.push(`${cell.lossy} of ${cell.flows} flows`);
  if (cell.members > 1) more.push(`worst of ${cell.members}`);
  if (cell.partial) more.push(cell.members > 1 ? `${cell.missing} without data` : `${count(cell.silent, "series", "series")} without data`);
  if (cell.suspect) more.push("suspect");
  return more.length ? `${value} (${more.join(", ")})` : value;
}

function anchor(text, href, shown) {
  const link = element("a", text);
  link.href = href;
  if (!shown) link.tabIndex = -1;
  return link;
}

function heading(scope, text) {
  const box = element("th", text);
  box.scope = scope;
  return box;
}

function element(name, text = "") {
  const made = document.createElement(name);
  if (text) made.textContent = printable(text);
  return made;
}
