// The cells of a picture's codes, which a person keeps or erases: any cells, or the first of a prior's order.

import { el } from "./widgets.js";

/** A picture under its cells. Calls `onchange()` when the kept cells have changed. */
export class Cells {
  constructor(onchange) {
    this.onchange = onchange;
    this.rectangle = false;
    this.image = el("img", { alt: "", draggable: false });
    this.grid = el("div", {
      className: "cells", role: "grid", "aria-multiselectable": "true", onkeydown: (event) => this.press(event),
      onpointerdown: (event) => this.begin(event), onpointermove: (event) => this.stroke && this.extend(this.at(event)),
      onpointerup: () => this.end(), onpointercancel: () => this.end(),
    });
    this.path = svg("svg", { class: "order", "aria-hidden": "true" });
    this.node = el("div", { className: "erase" }, this.image, this.grid, this.path);
  }

  /** Take a grid of cells, and the order in which a prior keeps them; null: any can be kept. */
  adapt([height, width], order) {
    Object.assign(this, { height, width, order, past: [], stroke: null, kept: Array(height * width).fill(true) });
    this.rank = order && order.reduce((rank, cell, place) => { rank[cell] = place; return rank; }, []);
    this.cells = this.kept.map((_, cell) => el("div", {
      role: "gridcell", tabIndex: cell ? -1 : 0, "aria-label": this.nameOf(cell), data: { cell }, onfocus: () => this.stopAt(cell),
    }));
    const rows = Array.from({ length: height }, (_, row) => el("div", { role: "row" }, this.cells.slice(row * width, (row + 1) * width)));
    this.grid.replaceChildren(...rows);
    this.grid.style.gridTemplate = `repeat(${height}, 1fr) / repeat(${width}, 1fr)`;
    this.grid.setAttribute("aria-label", order ? "Codes of the picture. Space keeps those up to the cursor." : "Codes of the picture. Space erases or keeps one; Shift and an arrow extend it.");
    this.path.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.cursor = 0;
    this.render();
  }

  /** Show the cells, or hide them where the picture has none to keep. */
  cover(shown) {
    this.grid.hidden = !shown;
    this.path.toggleAttribute("hidden", !shown);
  }

  nameOf(cell) {
    const place = `Row ${Math.floor(cell / this.width) + 1}, column ${cell % this.width + 1}`;
    return this.rank ? `${place}, code ${this.rank[cell] + 1}` : place;
  }

  get count() {
    return this.kept.filter(Boolean).length;
  }

  /** The kept cells, in raster order. */
  get known() {
    return this.kept.flatMap((kept, cell) => (kept ? [cell] : []));
  }

  /** Keep these cells; a step that can be undone, unless it is a part of one. */
  keep(kept, { step = true } = {}) {
    if (step && kept.some((one, cell) => one !== this.kept[cell])) this.past.push(this.kept);
    this.kept = kept;
    this.render();
  }

  keepOnly(cells) {
    const chosen = new Set(cells);
    this.keep(this.kept.map((_, cell) => chosen.has(cell)));
  }

  keepFirst(count, options) {
    this.keep(this.rank.map((place) => place < count), options);
  }

  /** Keep the first codes while a slider moves; `end()` makes one step of it. */
  slide(count) {
    this.stroke ??= { before: this.kept };
    this.keepFirst(count, { step: false });
  }

  invert() {
    this.keep(this.kept.map((kept) => !kept));
  }

  undo() {
    if (this.past.length) this.keep(this.past.pop(), { step: false });
  }

  begin(event) {
    if (event.button) return;
    event.preventDefault();
    const cell = this.at(event);
    this.cells[cell].focus({ preventScroll: true });
    this.grid.setPointerCapture(event.pointerId);
    this.stroke = { from: cell, last: cell, before: this.kept, value: !this.kept[cell] };
    this.extend(cell);
  }

  /** Draw the stroke up to a cell. */
  extend(cell) {
    const { from, last, before, value } = this.stroke;
    if (this.order) return this.keepFirst(this.rank[cell] + 1, { step: false });
    const touched = new Set(this.rectangle ? this.between(from, cell) : this.line(last, cell));
    const under = this.rectangle ? before : this.kept;
    this.stroke.last = cell;
    return this.keep(under.map((kept, one) => (touched.has(one) ? value : kept)), { step: false });
  }

  end() {
    if (!this.stroke) return;
    const { before } = this.stroke;
    this.stroke = null;
    if (before.some((one, cell) => one !== this.kept[cell])) this.past.push(before);
    this.onchange();
  }

  press(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (step) this.moveBy(step, event.shiftKey && !this.order);
    else if (event.key === " ") this.toggle();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.undo();
    else return;
    event.preventDefault();
  }

  /** Move the cursor; `extending` gives the cells from where it began what that cell is. */
  moveBy([down, right], extending) {
    const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
    const to = within(Math.floor(this.cursor / this.width) + down, this.height) * this.width + within(this.cursor % this.width + right, this.width);
    if (extending) {
      this.anchor ??= { from: this.cursor, before: this.kept };
      const { from, before } = this.anchor;
      const touched = new Set(this.between(from, to));
      this.keep(before.map((kept, cell) => (touched.has(cell) ? before[from] : kept)));
    } else this.anchor = null;
    this.cells[to].focus();
  }

  toggle() {
    this.anchor = null;
    if (this.order) this.keepFirst(this.rank[this.cursor] + 1);
    else this.keep(this.kept.map((kept, cell) => (cell === this.cursor ? !kept : kept)));
  }

  stopAt(cell) {
    this.cells[this.cursor].tabIndex = -1;
    this.cells[cell].tabIndex = 0;
    this.cursor = cell;
  }

  /** The cell at a pointer, or the nearest one. */
  at(event) {
    const box = this.grid.getBoundingClientRect();
    const place = (value, size, count) => Math.min(Math.max(Math.floor(value / size * count), 0), count - 1);
    return place(event.clientY - box.top, box.height, this.height) * this.width + place(event.clientX - box.left, box.width, this.width);
  }

  /** The cells of the rectangle with these corners. */
  between(one, other) {
    const [rows, columns] = [(cell) => Math.floor(cell / this.width), (cell) => cell % this.width].map((of) => [of(one), of(other)].sort((a, b) => a - b));
    return this.kept.flatMap((_, cell) => {
      const [row, column] = [Math.floor(cell / this.width), cell % this.width];
      return row >= rows[0] && row <= rows[1] && column >= columns[0] && column <= columns[1] ? [cell] : [];
    });
  }

  /** The cells on the line between two: a fast pointer skips some. */
  line(from, to) {
    const [row, column] = [Math.floor(from / this.width), from % this.width];
    const [down, right] = [Math.floor(to / this.width) - row, to % this.width - column];
    const steps = Math.max(Math.abs(down), Math.abs(right), 1);
    return Array.from({ length: steps + 1 }, (_, step) => Math.round(row + down * step / steps) * this.width + Math.round(column + right * step / steps));
  }

  render() {
    this.cells.forEach((cell, index) => cell.setAttribute("aria-selected", this.kept[index]));
    const lines = this.order ? [svg("path", { class: "rest", d: this.pathOf(this.order) }), svg("path", { d: this.pathOf(this.order.slice(0, this.count)) })] : [];
    this.path.replaceChildren(...lines);
    this.onchange();
  }

  pathOf(order) {
    return order.map((cell, place) => `${place ? "L" : "M"}${cell % this.width + 0.5} ${Math.floor(cell / this.width) + 0.5}`).join("");
  }
}

/** A drawing of the border between kept and erased cells. */
export function outline(kept, [height, width]) {
  const at = (row, column) => row >= 0 && row < height && column >= 0 && column < width && kept[row * width + column];
  let d = "";
  for (let row = 0; row <= height; row++) {
    for (let column = 0; column <= width; column++) {
      if (at(row, column) !== at(row - 1, column)) d += `M${column} ${row}h1`;
      if (at(row, column) !== at(row, column - 1)) d += `M${column} ${row}v1`;
    }
  }
  const paths = ["edge", "mark"].map((name) => svg("path", { class: name, d }));
  return svg("svg", { class: "outline", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...paths);
}

/** A mask of kept cells, white on black, as a canvas of this many pixels. */
export function mask(kept, [height, width], [down, right]) {
  const canvas = el("canvas", { width: right, height: down });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, right, down);
  context.fillStyle = "white";
  const edge = (place, pixels, count) => Math.ceil(place * pixels / count);
  kept.forEach((one, cell) => {
    const [row, column] = [Math.floor(cell / width), cell % width];
    const [top, left] = [edge(row, down, height), edge(column, right, width)];
    if (one) context.fillRect(left, top, edge(column + 1, right, width) - left, edge(row + 1, down, height) - top);
  });
  return canvas;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
