// A canvas of labels or levels, one byte per pixel, with a brush, fill, gradient, undo and redo.

import { History } from "./history.js";
import { ARROWS, FAR } from "./keys.js";
import { el } from "./widgets.js";

export class MapCanvas {
  /**
   * A blank canvas of side × side pixels.
   *
   * `colors` are those of the values; `tolerance` is how far values may differ that are filled together. Set `tool`
   * (brush, erase, fill, gradient or pick), `value`, `end` (of a gradient), `size` and `soft`. `onchange()` is called
   * after each stroke, `onpick(value)` when a value was picked, and `onmove(value)` with the value below the brush.
   */
  constructor(side, colors, { label, tolerance = 0 }) {
    Object.assign(this, { side, colors, tolerance, tool: "brush", value: 1, end: 0, size: Math.max(1, Math.round(side / 10)), soft: false });
    this.onchange = this.onpick = this.onmove = () => {};
    this.canvas = el("canvas", {
      width: side, height: side, tabIndex: 0, role: "application", "aria-label": label,
      onpointerdown: (event) => this.press(event), onpointermove: (event) => this.drag(event),
      onpointerup: () => this.finish(), onpointercancel: () => this.finish(),
      onpointerleave: () => { this.brush.hidden = document.activeElement !== this.canvas; },
      onkeydown: (event) => this.key(event), onblur: () => { this.brush.hidden = true; this.anchor = null; },
    });
    this.brush = el("div", { className: "brush", hidden: true });
    this.node = el("div", { className: "easel" }, this.canvas, this.brush);
    this.at = { x: side / 2, y: side / 2 };
    this.values = new Uint8Array(side * side);
    this.history = new History(this.values.slice());
    this.show();
  }

  /** Replace the whole map; this can be undone. */
  load(values) {
    this.values.set(values);
    this.keep();
  }

  /** Begin with a map: before it, there is nothing to undo. */
  open(values) {
    this.values.set(values);
    this.history = new History(this.values.slice());
    this.show();
    this.onchange();
  }

  clear() {
    this.load(new Uint8Array(this.values.length));
  }

  undo() {
    this.restore(this.history.undo());
  }

  redo() {
    this.restore(this.history.redo());
  }

  restore(values) {
    if (!values) return;
    this.values.set(values);
    this.show();
    this.onchange();
  }

  keep() {
    this.show();
    this.history.keep(this.values.slice());
    this.onchange();
  }

  // Pointer and keyboard

  press(event) {
    if (event.button || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.move(this.place(event));
    this.begin();
    if (!this.stroke) event.preventDefault();
  }

  drag(event) {
    const places = this.stroke ? (event.getCoalescedEvents?.() ?? []) : [];
    for (const one of [...places, event]) {
      this.move(this.place(one));
      if (this.stroke) this.follow();
    }
    if (this.stroke) this.show();
  }

  key(event) {
    const step = ARROWS[event.key];
    if (step) {
      const far = event.shiftKey ? FAR : 1;
      const inside = (value) => Math.min(this.side - 0.5, Math.max(0.5, value));
      this.move({ x: inside(this.at.x + far * step[0]), y: inside(this.at.y + far * step[1]) });
    } else if (event.key === " ") {
      this.touch();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** What Space does: a stroke of one place; of a gradient, its beginning and then its end. */
  touch() {
    if (this.tool === "gradient" && !this.anchor) {
      this.anchor = { ...this.at };
      return;
    }
    this.begin();
    if (!this.stroke) return;
    if (this.anchor) this.stroke.from = this.anchor;
    this.anchor = null;
    this.follow();
    this.finish();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.side, y: ((event.clientY - box.top) / box.height) * this.side };
  }

  move(place) {
    this.at = place;
    const [x, y] = this.centre(place);
    const wide = this.tool === "brush" || this.tool === "erase" ? this.size : 1;
    const percent = (value) => `${(100 * value) / this.side}%`;
    Object.assign(this.brush.style, { left: percent(x - wide / 2), top: percent(y - wide / 2), width: percent(wide), height: percent(wide) });
    this.brush.hidden = false;
    if (this.inside(place)) this.onmove(this.values[this.index(place)], place);
  }

  inside({ x, y }) {
    return x >= 0 && y >= 0 && x < this.side && y < this.side;
  }

  index({ x, y }) {
    return Math.floor(y) * this.side + Math.floor(x);
  }

  /** The middle of the brush: of a pixel where its size is odd, else a corner. */
  centre({ x, y }) {
    const odd = (this.tool !== "brush" && this.tool !== "erase") || this.size % 2;
    return odd ? [Math.floor(x) + 0.5, Math.floor(y) + 0.5] : [Math.round(x), Math.round(y)];
  }

  // Strokes

  begin() {
    if (!this.inside(this.at)) return;
    if (this.tool === "pick") {
      this.onpick(this.values[this.index(this.at)]);
    } else if (this.tool === "fill") {
      this.fill(this.index(this.at));
      this.keep();
    } else {
      this.stroke = { base: this.values.slice(), part: new Float32Array(this.values.length), from: this.at };
      if (this.tool !== "gradient") this.follow();
      this.show();
    }
  }

  follow() {
    if (this.tool === "gradient") this.grade(this.stroke.from, this.at);
    else this.line(this.stroke.from, this.at);
  }

  finish() {
    if (!this.stroke) return;
    const changed = this.values.some((value, index) => value !== this.stroke.base[index]);
    this.stroke = null;
    if (changed) this.keep();
  }

  line(from, to) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(0.5, this.size / 4)));
    for (let step = 0; step <= steps; step++) {
      this.stamp(this.centre({ x: from.x + ((to.x - from.x) * step) / steps, y: from.y + ((to.y - from.y) * step) / steps }));
    }
    this.stroke.from = to;
  }

  /** Blend the value into the map around a point. Where a stroke crosses itself, its strongest part counts. */
  stamp([x, y]) {
    const { base, part } = this.stroke;
    const radius = this.size / 2;
    const value = this.tool === "erase" ? 0 : this.value;
    const [left, right] = [Math.max(0, Math.floor(x - radius)), Math.min(this.side, Math.ceil(x + radius))];
    const [top, bottom] = [Math.max(0, Math.floor(y - radius)), Math.min(this.side, Math.ceil(y + radius))];
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const away = Math.hypot(column + 0.5 - x, row + 0.5 - y) / radius;
        if (away > 1) continue;
        const index = row * this.side + column;
        part[index] = Math.max(part[index], this.soft ? 0.5 + 0.5 * Math.cos(Math.PI * away) : 1);
        this.values[index] = Math.round(base[index] + (value - base[index]) * part[index]);
      }
    }
  }

  grade(from, to) {
    const [across, down] = [to.x - from.x, to.y - from.y];
    const length = across * across + down * down;
    if (!length) return;
    for (let index = 0; index < this.values.length; index++) {
      const [x, y] = [(index % this.side) + 0.5 - from.x, Math.floor(index / this.side) + 0.5 - from.y];
      const part = Math.min(1, Math.max(0, (x * across + y * down) / length));
      this.values[index] = Math.round(this.value + (this.end - this.value) * part);
    }
  }

  /** Fill the connected pixels of about the same value. */
  fill(start) {
    const old = this.values[start];
    const seen = new Uint8Array(this.values.length);
    const open = [start];
    while (open.length) {
      const index = open.pop();
      if (seen[index] || Math.abs(this.values[index] - old) > this.tolerance) continue;
      seen[index] = 1;
      this.values[index] = this.value;
      const column = index % this.side;
      if (column) open.push(index - 1);
      if (column + 1 < this.side) open.push(index + 1);
      if (index >= this.side) open.push(index - this.side);
      if (index + this.side < this.values.length) open.push(index + this.side);
    }
  }

  show() {
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.side, this.side);
    for (let index = 0; index < this.values.length; index++) {
      const [red, green, blue] = this.colors[this.values[index]];
      image.data[4 * index] = red;
      image.data[4 * index + 1] = green;
      image.data[4 * index + 2] = blue;
      image.data[4 * index + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }
}

/** The values of a map as base64, as the server takes them. */
export function toBase64(values) {
  let text = "";
  for (let start = 0; start < values.length; start += 4096) text += String.fromCharCode(...values.subarray(start, start + 4096));
  return btoa(text);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
