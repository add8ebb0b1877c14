// The matrix on its canvas: drawing, pan and zoom, pointer and keyboard. What a choice means is the
// business of whoever made it: `acts` has open(row, col), fold(axis, run), told(text).

import { drawHeads, drawRules } from "./heads.js";
import { FONT, Layout, clamp } from "./layout.js";
import { drawCell, drawPartial, flatColour, palette } from "./palette.js";
import { cellLines, count, entryName, printable, sickness } from "./text.js";

// Cells smaller than this have no room for signs, in pixels.
const SMALL = 7;

export class MatrixView {
  constructor(stage, acts) {
    this.stage = stage;
    this.acts = acts;
    this.cells = stage.querySelector("#cells");
    this.over = stage.querySelector("#over");
    this.tip = stage.querySelector("#tip");
    this.view = { zoom: 1, x: 0, y: 0 };
    this.model = null;
    this.cursor = null; // {row, col}: where the keyboard is
    this.hover = null;
    this.chosen = null; // {src, dst}: the open cell
    this.marked = []; // [[src, dst], ...]: the cells of the chosen incident
    this.drag = null;
    this.colours = palette();
    new ResizeObserver(() => {
      this.redraw();
      requestAnimationFrame(() => this.point()); // else what is said of a cell may be cut at the new edge
    }).observe(stage);
    this.listen();
  }

  show(model) {
    const same = this.model && this.model.rows.length === model.rows.length && this.model.cols.length === model.cols.length;
    this.model = model;
    if (!same) {
      this.view = { zoom: 1, x: 0, y: 0 };
      this.hover = null;
    }
    if (this.cursor) {
      this.cursor.row = Math.min(this.cursor.row, model.rows.length - 1);
      this.cursor.col = Math.min(this.cursor.col, model.cols.length - 1);
      if (this.cursor.row < 0 || this.cursor.col < 0) this.cursor = null;
    }
    this.draw();
    this.point();
  }

  choose(chosen) {
    this.chosen = chosen;
    this.redraw();
  }

  mark(pairs) {
    this.marked = pairs;
    this.stage.dataset.marked = String(pairs.length);
    this.redraw();
  }

  repaint() {
    this.colours = palette();
    this.redraw();
  }

  redraw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      if (this.model) this.draw();
    });
  }

  pen(canvas) {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = FONT;
    pen.textBaseline = "middle";
    return pen;
  }

  // --- drawing ------------------------------------------------------------------------------

  draw() {
    const began = performance.now();
    this.paint();
    const { left, top, x0, y0, cellW, cellH } = this.layout;
    // Where there is nothing to pan, a finger scrolls the page.
    this.stage.style.touchAction = this.layout.whole ? "pan-y" : "none";
    // Where things are and how long it took: for whoever drives the page by program.
    this.stage.dataset.geometry = JSON.stringify({ left, top, x0, y0, cellW, cellH });
    this.stage.dataset.drawMs = (performance.now() - began).toFixed(1);
  }

  paint() {
    const { model, colours } = this;
    const pen = this.pen(this.cells);
    const at = this.layout = new Layout(pen, this.stage.clientWidth, this.stage.clientHeight, model, this.view);
    if (!model.rows.length) {
      pen.fillStyle = colours.muted;
      pen.textAlign = "center";
      pen.fillText("no measurements in the store at this time", at.width / 2, at.height / 2);
      this.drawOver();
      return;
    }
    const { row0, row1, col0, col1 } = at.visible(model);
    pen.save();
    pen.beginPath();
    pen.rect(at.left, at.top, at.width - at.left, at.height - at.top);
    pen.clip();
    pen.textAlign = "center";
    const dead = Array.from({ length: col1 }, (_, col) => model.deadCol(col));
    if (at.cellW < SMALL || at.cellH < SMALL) this.drawSmall(pen, at, row0, row1, col0, col1, dead);
    else this.drawLarge(pen, at, row0, row1, col0, col1, dead);
    drawRules(pen, at, model, colours);
    pen.restore();
    drawHeads(pen, at, model, colours);
    this.drawOver();
  }

  drawLarge(pen, at, row0, row1, col0, col1, dead) {
    const { model, colours } = this;
    const columns = model.cols.length, plain = { state: 0 };
    for (let row = row0; row < row1; row += 1) {
      const deadRow = model.deadRow(row);
      const y = at.y0 + row * at.cellH;
      for (let col = col0; col < col1; col += 1) {
        const index = row * columns + col;
        if (!model.state[index]) continue;
        plain.state = model.state[index];
        plain.value = model.value[index];
        plain.level = model.level[index];
        plain.suspect = model.suspect[index];
        plain.partial = model.partial(index);
        drawCell(pen, colours, model.metric, plain, at.x0 + col * at.cellW, y, at.cellW, at.cellH, deadRow || dead[col]);
      }
    }
  }

  // Cells too small for signs: runs of one colour at a stroke, then trouble, large enough to be seen.
  drawSmall(pen, at, row0, row1, col0, col1, dead) {
    const { model, colours } = this;
    const columns = model.cols.length, size = Math.min(at.cellW, at.cellH), raised = [];
    for (let row = row0; row < row1; row += 1) {
      const deadRow = model.deadRow(row), y = at.y0 + row * at.cellH;
      let start = col0, colour = null;
      for (let col = col0; col <= col1; col += 1) {
        const index = row * columns + col, state = col < col1 ? model.state[index] : 0;
        const still = deadRow || dead[col];
        const next = state ? flatColour(pen, colours, model.metric, state, model.level[index], still, size) : null;
        if (next !== colour) {
          if (colour) {
            pen.fillStyle = colour;
            pen.fillRect(at.x0 + start * at.cellW, y, (col - start) * at.cellW, at.cellH - (size > 3 ? 0.5 : 0));
          }
          start = col;
          colour = next;
        }
        if (state && !still && (model.bad[index] || model.suspect[index] || model.partial(index))) raised.push([row, col, index]);
      }
    }
    raised.sort((a, b) => model.level[a[2]] - model.level[b[2]]);
    for (const [row, col, index] of raised) {
      const x = at.x0 + (col + 0.5) * at.cellW, y = at.y0 + (row + 0.5) * at.cellH;
      if (model.bad[index] || model.suspect[index]) {
        const side = model.bad[index] ? Math.max(size, 7) : Math.max(2, size / 2);
        pen.fillStyle = model.bad[index] ? colours.bad[Math.max(1, model.level[index])] : colours.doubt;
        pen.fillRect(x - side / 2, y - side / 2, side, side);
      }
      if (model.partial(index)) drawPartial(pen, colours, x - 4, y - 4, 8, 8);
    }
  }

  // Cursor, hover and the open cell, on a canvas of their own.
  drawOver() {
    const { layout: at, colours, model } = this;
    const pen = this.pen(this.over);
    pen.beginPath();
    pen.rect(at.left - 2, at.top - 2, at.width, at.height);
    pen.clip();
    const frame = (row, col, width, colour) => {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.strokeRect(at.x0 + col * at.cellW - 1, at.y0 + row * at.cellH - 1, at.cellW + 1, at.cellH + 1);
    };
    if (this.hover?.kind === "cell") {
      pen.globalAlpha = 0.12;
      pen.fillStyle = colours.text;
      pen.fillRect(at.left, at.y0 + this.hover.row * at.cellH, at.fullW, at.cellH);
      pen.fillRect(at.x0 + this.hover.col * at.cellW, at.top, at.cellW, at.fullH);
      pen.globalAlpha = 1;
      frame(this.hover.row, this.hover.col, 1, colours.text);
    }
    if (this.marked.length) {
      const rowOf = new Map(model.rows.map((entry, n) => [entry.host, n]));
      const colOf = new Map(model.cols.map((entry, n) => [entry.host, n]));
      for (const [src, dst] of this.marked) {
        if (rowOf.has(src) && colOf.has(dst)) frame(rowOf.get(src), colOf.get(dst), 2, colours.text);
      }
    }
    if (this.chosen) {
      const row = model.rows.findIndex((entry) => entry.host === this.chosen.src);
      const col = model.cols.findIndex((entry) => entry.host === this.chosen.dst);
      if (row >= 0 && col >= 0) frame(row, col, 3, colours.focus);
    }
    if (this.cursor && this.stage.matches(":focus-visible")) frame(this.cursor.row, this.cursor.col, 2, colours.focus);
  }

  // --- pointer ------------------------------------------------------------------------------

  listen() {
    const { stage } = this;
    stage.addEventListener("pointermove", (event) => this.moved(event));
    stage.addEventListener("pointerleave", () => { this.mouse = null; this.point(); });
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const { x, y } = this.place(event);
      this.drag = { x, y, viewX: this.view.x, viewY: this.view.y, far: false };
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointerup", (event) => {
      const { drag } = this;
      this.drag = null;
      stage.classList.remove("dragging");
      if (drag && !drag.far) this.clicked(this.place(event), event);
    });
    stage.addEventListener("pointercancel", () => {
      this.drag = null;
      stage.classList.remove("dragging");
    });
    stage.addEventListener("wheel", (event) => {
      if (!this.layout) return;
      event.preventDefault();
      if (event.shiftKey || (event.deltaX && !event.deltaY)) {
        this.view.x += event.deltaX || event.deltaY;
        this.redraw();
        return;
      }
      const { x, y } = this.place(event);
      this.zoom(Math.exp(-event.deltaY * 0.0015), x, y);
    }, { passive: false });
    stage.addEventListener("keydown", (event) => this.key(event));
    stage.addEventListener("focus", () => { this.cursor ??= { row: 0, col: 0 }; this.redraw(); });
    stage.addEventListener("blur", () => this.redraw());
  }

  place(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  moved(event) {
    const { x, y } = this.mouse = this.place(event);
    if (this.drag) {
      const far = Math.hypot(x - this.drag.x, y - this.drag.y) > 5;
      if (far || this.drag.far) {
        this.drag.far = true;
        this.stage.classList.add("dragging");
        this.view.x = this.drag.viewX - (x - this.drag.x);
        this.view.y = this.drag.viewY - (y - this.drag.y);
        this.redraw();
        return;
      }
    }
    this.point();
  }

  point() {
    if (!this.model || !this.layout) return;
    const hit = this.mouse && this.layout.hit(this.model, this.mouse.x, this.mouse.y);
    this.hover = hit ?? null;
    this.stage.style.cursor = hit ? "pointer" : "default";
    const lines = this.linesFor(hit);
    this.tip.hidden = !lines;
    if (lines) {
      this.tip.textContent = lines.map(printable).join("\n");
      const { clientWidth: width, clientHeight: height } = this.stage;
      const right = this.mouse.x + 16 + this.tip.offsetWidth < width;
      const below = this.mouse.y + 18 + this.tip.offsetHeight < height;
      const x = right ? this.mouse.x + 14 : Math.max(0, this.mouse.x - this.tip.offsetWidth - 10);
      const y = below ? this.mouse.y + 16 : Math.max(0, this.mouse.y - this.tip.offsetHeight - 8);
      this.tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
    }
    if (this.model.rows.length) this.drawOver();
  }

  linesFor(hit) {
    if (!hit) return null;
    if (hit.kind === "cell") return this.model.state[hit.row * this.model.cols.length + hit.col] ? cellLines(this.model, hit.row, hit.col) : null;
    const entry = (hit.kind === "row" ? this.model.rows : this.model.cols)[hit.place];
    if (hit.run) {
      const what = hit.run.closed ? `${count(hit.run.entry.hosts, "host")}: click to unfold` : "click to fold";
      return [`${hit.run.path.map((part) => part || "no group").join(" / ")}`, what, ...(hit.run.closed ? sickness(entry) : [])];
    }
    return [entryName(entry), ...sickness(entry)];
  }

  clicked(place, event) {
    if (!this.model || !this.layout) return;
    const hit = this.layout.hit(this.model, place.x, place.y);
    if (!hit) return;
    if (hit.kind === "cell") {
      this.cursor = { row: hit.row, col: hit.col };
      this.acts.open(hit.row, hit.col, event.shiftKey);
    } else if (hit.run) {
      this.acts.fold(hit.kind === "row" ? "rows" : "cols", hit.run);
    }
  }

  zoom(factor, x, y) {
    const at = this.layout;
    const least = Math.min(1, 10 / Math.max(at.fitW, at.fitH));
    const zoom = clamp(this.view.zoom * factor, Math.min(1, least), Math.max(1, 80 / Math.min(at.fitW, at.fitH)));
    const real = zoom / this.view.zoom;
    // Several may come before the next is drawn: the layout's own x0 and y0 are of the last that was.
    this.view.x = (x - at.left + this.view.x) * real - (x - at.left);
    this.view.y = (y - at.top + this.view.y) * real - (y - at.top);
    this.view.zoom = Math.max(1, zoom);
    this.redraw();
  }

  // --- keyboard -----------------------------------------------------------------------------

  key(event) {
    if (!this.model?.rows.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const cursor = this.cursor ??= { row: 0, col: 0 };
    const { model } = this;
    const step = event.shiftKey ? 10 : 1;
    if (event.key === "ArrowLeft") cursor.col -= step;
    else if (event.key === "ArrowRight") cursor.col += step;
    else if (event.key === "ArrowUp") cursor.row -= step;
    else if (event.key === "ArrowDown") cursor.row += step;
    else if (event.key === "Home") cursor.col = 0;
    else if (event.key === "End") cursor.col = model.cols.length - 1;
    else if (event.key === "n" || event.key === "p") {
      const next = model.nextTrouble(cursor.row, cursor.col, event.key === "n" ? 1 : -1);
      if (!next) { this.acts.told("no trouble in this matrix"); return; }
      Object.assign(cursor, next);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.acts.open(cursor.row, cursor.col, event.shiftKey);
      return;
    } else if (event.key === "Backspace") {
      event.preventDefault();
      this.foldAround(cursor);
      return;
    } else if (event.key === "+" || event.key === "=") { this.zoomAround(cursor, 1.3); return; }
    else if (event.key === "-") { this.zoomAround(cursor, 1 / 1.3); return; }
    else if (event.key === "0") { this.view = { zoom: 1, x: 0, y: 0 }; this.redraw(); return; }
    else return;
    event.preventDefault();
    cursor.row = clamp(cursor.row, 0, model.rows.length - 1);
    cursor.col = clamp(cursor.col, 0, model.cols.length - 1);
    this.bringIntoView(cursor);
    this.acts.told(cellLines(model, cursor.row, cursor.col).join(". "));
    this.redraw();
  }

  // What the cursor is on stays in sight.
  zoomAround(cursor, factor) {
    const at = this.layout, { view } = this;
    const x = at.left - view.x + (cursor.col + 0.5) * at.fitW * view.zoom;
    const y = at.top - view.y + (cursor.row + 0.5) * at.fitH * view.zoom;
    this.zoom(factor, clamp(x, at.left, at.width), clamp(y, at.top, at.height));
  }

  // Folds the innermost open groups that the cursor's row and column stand in.
  foldAround(cursor) {
    for (const [axis, place] of [["rows", cursor.row], ["cols", cursor.col]]) {
      const runs = this.model.bands[axis].map((level) => level.find((run) => place >= run.start && place < run.end));
      const open = runs.filter((run) => run && !run.closed).at(-1);
      if (open) this.acts.fold(axis, open);
    }
  }

  bringIntoView(cursor) {
    const at = this.layout;
    const x = cursor.col * at.cellW, y = cursor.row * at.cellH;
    const width = at.width - at.left, height = at.height - at.top;
    if (x < this.view.x) this.view.x = x;
    if (x + at.cellW > this.view.x + width) this.view.x = x + at.cellW - width;
    if (y < this.view.y) this.view.y = y;
    if (y + at.cellH > this.view.y + height) this.view.y = y + at.cellH - height;
  }
}
