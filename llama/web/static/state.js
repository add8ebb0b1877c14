// What the page shows is said by its address alone: a link shows a colleague the same thing.

const DEFAULTS = {
  metric: "loss", // name of a metric
  class: "", // "": all, the worst counts
  probe: "",
  group: "auto", // tag names, outermost first
  rows: "auto", // open groups, see the API
  cols: "auto",
  at: "", // Unix seconds, or as people write times (see `seconds`); "": live
  span: "", // seconds that one matrix covers; "": the newest interval
  range: "6h", // how much history the scrubber shows
  from: "", // instead of range: a stretch of history
  to: "",
  src: "", // the open cell
  dst: "",
  incident: "", // the chosen one
};

// The times that the service knows, as llama/web/api.py has it.
const LATEST_S = 1e11;

export const RANGES = { "15m": 900, "1h": 3600, "6h": 21600, "1d": 86400, "7d": 604800, "30d": 2592000 };

// A time as Unix seconds: those, or ISO 8601, of this place unless it names a zone. Else NaN.
export function seconds(text) {
  if (!/^\d{4}-\d\d-\d\d/.test(text)) return text.trim() ? Number(text) : NaN;
  if (text.length === 10) text += "T00:00"; // else it were UTC's
  // In an address a plus is a space.
  return Date.parse(text.replace(/(:\d\d(?:\.\d+)?) (\d\d:?\d\d)$/, "$1+$2")) / 1000;
}

export class State {
  constructor(changed) {
    this.changed = changed;
    this.values = {};
    this.read();
    addEventListener("popstate", () => {
      const before = { ...this.values };
      this.read();
      this.changed(this.differences(before));
    });
  }

  read() {
    const said = new URLSearchParams(location.search);
    for (const [name, usual] of Object.entries(DEFAULTS)) this.values[name] = said.get(name) ?? usual;
    if (!Object.hasOwn(RANGES, this.values.range)) this.values.range = DEFAULTS.range;
    for (const name of ["at", "span", "from", "to"]) {
      const number = seconds(this.values[name]);
      this.values[name] = number >= 0 && number <= LATEST_S ? String(number) : "";
    }
  }

  differences(before) {
    return new Set(Object.keys(DEFAULTS).filter((name) => this.values[name] !== before[name]));
  }

  get(name) { return this.values[name]; }

  // The address of this page with some values changed.
  link(changes) {
    const query = new URLSearchParams();
    for (const [name, usual] of Object.entries(DEFAULTS)) {
      const value = String(changes[name] ?? this.values[name]);
      if (value !== usual) query.set(name, value);
    }
    const text = query.toString();
    return location.pathname + (text ? `?${text}` : "");
  }

  // Goes there. `replace` for changes that are not worth a step of the back button.
  set(changes, replace = false) {
    const before = { ...this.values };
    for (const [name, value] of Object.entries(changes)) this.values[name] = String(value);
    const different = this.differences(before);
    if (!different.size) return;
    history[replace ? "replaceState" : "pushState"](null, "", this.link({}));
    this.changed(different);
  }

  get live() { return this.values.at === ""; }

  // The stretch of history that is shown, in Unix seconds.
  window(now) {
    const { from, to, range } = this.values;
    if (from && to && Number(to) > Number(from)) return { from: Number(from), to: Number(to) };
    const length = RANGES[range];
    let end = now;
    if (this.values.at && Number(this.values.at) < now - length) end = Number(this.values.at) + length / 2;
    end = Math.min(end, now);
    return { from: end - length, to: end };
  }
}
