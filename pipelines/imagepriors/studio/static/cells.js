// The cells of a picture's codes, which a person keeps or erases: any cells, or the first of a prior's order.

import { between, cellAt, cellName, cellsOf, moved } from "./grid.js";
import { History } from "./history.js";
import { undoKeys } from "./keys.js";
import { capital } from "./text.js";
import { el, svg } from "./widgets.js";

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
    this.path = svg("svg", { class: "order", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.node = el("div", { className: "erase" }, this.image, this.grid, this.path);
  }

  /** Take a grid of cells, the order in which a prior keeps them (null: any can be kept), and which it keeps at first. */
  adapt([height, width], order, kept) {
    Object.assign(this, { height, width, order, stroke: null, anchor: null, kept, history: new History(kept) });
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
    const place = capital(cellName(cell, this.width));
    return this.rank ? `${place}, code ${this.rank[cell] + 1}` : place;
  }

  get count() {
    return this.kept.filter(Boolean).length;
  }

  /** The kept cells, in raster order. */
  get known() {
    return this.kept.flatMap((kept, cell) => (kept ? [cell] : []));
  }

  /** Keep these cells; `remember()` makes a step of it that can be undone. */
  keep(kept) {
    this.kept = kept;
    this.render();
  }

  remember() {
    this.stroke = null;
    this.history.keep(this.kept);
    this.onchange();
  }

  keepOnly(cells) {
    const chosen = new Set(cells);
    this.keep(this.kept.map((_, cell) => chosen.has(cell)));
    this.remember();
  }

  keepFirst(count) {
    this.keep(this.rank.map((place) => place < count));
  }

  invert() {
    this.keep(this.kept.map((kept) => !kept));
    this.remember();
  }

  undo() {
    this.restore(this.history.undo());
  }

  redo() {
    this.restore(this.history.redo());
  }

  restore(kept) {
    this.anchor = null;
    if (kept) this.keep(kept);
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
    if (this.order) return this.keepFirst(this.rank[cell] + 1);
    const touched = new Set(this.rectangle ? this.inside(from, cell) : this.line(last, cell));
    const under = this.rectangle ? before : this.kept;
    this.stroke.last = cell;
    return this.keep(under.map((kept, one) => (touched.has(one) ? value : kept)));
  }

  end() {
    if (this.stroke) this.remember();
  }

  press(event) {
    if (undoKeys(event, this)) return;
    const to = moved(event.key, this.cursor, [this.height, this.width]);
    if (to !== null) this.moveTo(to, event.shiftKey && !this.order);
    else if (event.key === " ") this.toggle();
    else return;
    event.preventDefault();
  }

  /** Move the cursor; `extending` gives the cells from where it began what that cell is. */
  moveTo(to, extending) {
    if (extending) {
      this.anchor ??= { from: this.cursor, before: this.kept };
      const { from, before } = this.anchor;
      const touched = new Set(this.inside(from, to));
      this.keep(before.map((kept, cell) => (touched.has(cell) ? before[from] : kept)));
      this.remember();
    } else this.anchor = null;
    this.cells[to].focus();
  }

  toggle() {
    this.anchor = null;
    if (this.order) this.keepFirst(this.rank[this.cursor] + 1);
    else this.keep(this.kept.map((kept, cell) => (cell === this.cursor ? !kept : kept)));
    this.remember();
  }

  stopAt(cell) {
    this.cells[this.cursor].tabIndex = -1;
    this.cells[cell].tabIndex = 0;
    this.cursor = cell;
  }

  at(event) {
    return cellAt(event, this.grid, [this.height, this.width]);
  }

  /** The cells of the rectangle with these corners. */
  inside(one, other) {
    return cellsOf(between(one, other, this.width), this.width);
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
  return svg("svg", { class: "outline", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...paths);
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
