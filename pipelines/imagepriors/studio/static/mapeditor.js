// An editor of masks and depth maps: tools around a canvas.

import { MapCanvas, fromBase64, toBase64 } from "./canvas.js";
import { undoKeys } from "./keys.js";
import { Palette } from "./palette.js";
import { button, el, range, switchOff } from "./widgets.js";

const TOOLS = {
  brush: ["Brush", "b"], erase: ["Eraser", "e"], fill: ["Fill", "f"], gradient: ["Gradient", "g"], pick: ["Pick", "i"],
};
const HINTS = {
  gradient: "Drag from where the first depth is to where the second one is; with the keyboard, Space sets both ends.",
};
const HIGHEST = 255;

/**
 * An editor of a map. It has a `node`, `request()` (the map as the server takes it), `load(map)` of a validation map
 * (`begin(map)` with it), `add(found)` for a page of validation maps, and calls `onchange()` after each change.
 */
export class MapEditor {
  constructor(condition, described, names, onchange) {
    this.isMask = condition === "segmentation";
    const side = described.resolution;
    this.canvas = new MapCanvas(side, described.colors, {
      label: `${this.isMask ? "Segmentation" : "Depth"} map, ${side} by ${side} pixels`, tolerance: this.isMask ? 0 : 8,
    });
    this.canvas.onchange = () => { this.adapt(); onchange(); };
    this.canvas.onpick = (value) => { this.choose(value); this.use("brush"); };
    this.canvas.onmove = (value, { x, y }) => { this.note.textContent = `x ${Math.floor(x)}, y ${Math.floor(y)}: ${this.spoken(value)}`; };
    const offered = Object.keys(TOOLS).filter((tool) => tool !== (this.isMask ? "gradient" : "erase"));
    this.tools = offered.map((tool) => button(TOOLS[tool][0], () => this.use(tool), { className: "quiet", data: { tool } }));
    this.size = range("Brush size", this.canvas.size, { min: 1, max: Math.round(side / 2), step: 1 }, (size) => { this.canvas.size = size; });
    this.note = el("p", { className: "note", role: "status" });
    this.hint = el("p", { className: "note", hidden: true });
    this.options = this.isMask ? this.labels(described.colors, names) : this.levels(described.colors);
    this.steps = [["Undo", "undo"], ["Redo", "redo"], ["Clear", "clear"]].map(([text, what]) => button(text, () => this.canvas[what](), { className: "quiet" }));
    const live = (isLive) => { this.note.ariaLive = isLive ? "polite" : "off"; }; // a pointer moves too fast to be told
    this.node = el("div", { className: "options map-editor", onpointermove: () => live(false), onkeydown: (event) => { live(true); this.key(event); } },
      el("div", { className: "actions", role: "toolbar", "aria-label": "Tools" }, this.tools),
      this.hint, this.canvas.node, this.note, el("div", { className: "actions" }, this.steps),
      el("div", { className: "options map-options" }, this.size.parentElement, this.options, this.shortcuts()));
    this.adapt();
    this.use("brush");
    this.choose(this.isMask ? 1 : 26);
  }

  /** The map for the server. */
  request() {
    return { values: toBase64(this.canvas.values) };
  }

  load(map) {
    this.canvas.load(fromBase64(map.values));
  }

  begin(map) {
    this.canvas.open(fromBase64(map.values));
  }

  /** Show what can be undone. */
  adapt() {
    switchOff(this.steps[0], !this.canvas.history.canUndo);
    switchOff(this.steps[1], !this.canvas.history.canRedo);
  }

  add({ counts }) {
    if (this.isMask) this.palette.add(counts);
  }

  clear() {
    this.canvas.clear();
  }

  labels(colors, names) {
    this.palette = new Palette(colors, names, (label) => this.choose(label));
    return this.palette.node;
  }

  levels(colors) {
    const limits = { min: 0, max: 1, step: 0.01 };
    const paint = (input, name) => { // the colour of the level beside its slider
      const level = Math.round(Number(input.value) * HIGHEST);
      this.canvas[name] = level;
      input.style.accentColor = `rgb(${colors[level].join(" ")})`;
    };
    this.level = range("Depth", 0.1, limits, () => paint(this.level, "value"), "0 is near and 1 is far, where maps are distances");
    this.end = range("Depth at the end of a gradient", 1, limits, () => paint(this.end, "end"));
    paint(this.end, "end");
    const soft = el("input", { type: "checkbox", checked: true, onchange: () => { this.canvas.soft = soft.checked; } });
    this.canvas.soft = true;
    return el("div", { className: "options" }, this.level.parentElement, this.end.parentElement, el("label", { className: "check" }, soft, "Soft brush"));
  }

  spoken(value) {
    return this.isMask ? this.palette.name(value) : (value / HIGHEST).toFixed(2);
  }

  choose(value) {
    if (this.isMask) {
      this.palette.choose(value);
      if (this.canvas.tool === "erase") this.use("brush");
    } else {
      this.level.value = value / HIGHEST;
      this.level.dispatchEvent(new Event("input"));
    }
    this.canvas.value = value; // the slider has rounded it
  }

  use(tool) {
    this.canvas.tool = tool;
    for (const one of this.tools) one.setAttribute("aria-pressed", String(one.dataset.tool === tool));
    this.hint.textContent = HINTS[tool] ?? "";
    this.hint.hidden = !HINTS[tool];
  }

  key(event) {
    if (undoKeys(event, this.canvas) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (["search", "number", "range"].includes(event.target.type)) return;
    const pressed = event.key.toLowerCase();
    const tool = this.tools.find((one) => TOOLS[one.dataset.tool][1] === pressed);
    if (tool) this.use(tool.dataset.tool);
    else if (pressed === "[" || pressed === "]") this.resize(pressed === "]" ? 1 : -1);
    else if (/^[0-9]$/.test(pressed)) this.digit(Number(pressed));
    else return;
    event.preventDefault();
  }

  resize(step) {
    this.size.value = Number(this.size.value) + step;
    this.size.dispatchEvent(new Event("input"));
    this.canvas.move(this.canvas.at);
  }

  digit(digit) {
    const value = this.isMask ? this.palette.ofDigit(digit) : Math.round((digit / 9) * HIGHEST);
    if (value !== undefined) this.choose(value);
  }

  shortcuts() {
    const rows = [
      ["← ↑ → ↓", "move the brush, with Shift by 8 pixels"], ["Space", "paint"],
      ...this.tools.map((one) => [TOOLS[one.dataset.tool][1].toUpperCase(), TOOLS[one.dataset.tool][0].toLowerCase()]),
      ["[ ]", "smaller or larger brush"], ["0 … 9", this.isMask ? "label with this number; 0 is no label" : "depth, from 0 to 1"],
      ["Ctrl+Z", "undo"], ["Ctrl+Shift+Z", "redo"],
    ];
    return el("details", {}, el("summary", {}, "Keyboard"),
      el("dl", { className: "keys" }, rows.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])));
  }
}
