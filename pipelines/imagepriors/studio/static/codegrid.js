// A board of cells over a picture or over codes, and how codes are drawn.

import { between, cellAt, moved } from "./grid.js";
import { pixels } from "./picturediff.js";
import { el } from "./widgets.js";

/**
 * A board of cells over `content`. It calls `onlook(cell)` for the cell under the pointer or that the arrow keys reach,
 * `onleave()`, and `onchoose(cell)` for a click, tap or Enter. With `onselect(rectangle)` a person drags or extends a
 * rectangle, and takes it with Enter. `at` is where the arrow keys start.
 */
export class Board {
  constructor(label, content, { onlook = () => {}, onleave = () => {}, onchoose = () => {}, onselect = null }) {
    Object.assign(this, { onlook, onchoose, onselect });
    this.mark = el("div", { className: "cell-mark", hidden: true });
    this.node = el("div", {
      className: "board", tabIndex: 0, role: "application", "aria-label": label, "aria-roledescription": "grid of codes",
      data: { drag: Boolean(onselect) }, onkeydown: (event) => this.key(event),
      onpointerdown: (event) => this.press(event), onpointermove: (event) => this.point(event), onpointerup: (event) => this.release(event),
      onpointerleave: (event) => event.pointerType !== "touch" && onleave(),
    }, content, this.mark);
    this.layout(1, 1);
  }

  /** Set the grid; `cells` may be fewer than rows × columns. */
  layout(rows, columns, cells = rows * columns) {
    Object.assign(this, { grid: [rows, columns], cells, at: 0, anchor: null });
    this.show(null);
  }

  /** Frame a rectangle; null frames nothing. */
  show(rectangle) {
    this.mark.hidden = !rectangle;
    if (!rectangle) return;
    const per = (value, cells) => `${(100 * value) / cells}%`;
    const [rows, columns] = this.grid;
    Object.assign(this.mark.style, {
      left: per(rectangle.column, columns), top: per(rectangle.row, rows),
      width: per(rectangle.columns, columns), height: per(rectangle.rows, rows),
    });
  }

  get selected() {
    return between(this.anchor ?? this.at, this.at, this.grid[1]);
  }

  cellOf(event) {
    return Math.min(this.cells - 1, cellAt(event, this.node, this.grid));
  }

  press(event) {
    if (event.button) return;
    this.at = this.cellOf(event);
    if (!this.onselect) return;
    this.anchor = this.at;
    this.node.setPointerCapture(event.pointerId);
    this.show(this.selected);
  }

  point(event) {
    const cell = this.cellOf(event);
    if (this.onselect) {
      if (this.anchor === null || !event.buttons) return;
      this.at = cell;
      this.show(this.selected);
    } else if (event.pointerType !== "touch" && cell !== this.at) this.onlook(this.at = cell);
  }

  release(event) {
    if (event.button) return;
    if (!this.onselect) this.onchoose(this.at);
    else if (this.anchor !== null) this.onselect(this.selected);
  }

  key(event) {
    const to = moved(event.key, this.at, this.grid);
    if (to !== null) this.move(Math.min(this.cells - 1, to), event.shiftKey);
    else if (event.key !== "Enter" && event.key !== " ") return;
    else if (this.onselect) this.onselect(this.selected);
    else this.onchoose(this.at);
    event.preventDefault();
  }

  /** Move to a cell; `extend` keeps the other corner of the rectangle. */
  move(cell, extend) {
    this.anchor = extend ? this.anchor ?? this.at : cell;
    this.at = cell;
    if (this.onselect) this.show(this.selected);
    else this.onlook(cell);
  }
}

/** Draw codes [r, g, b] in their colours, with their numbers where these can be read. Returns whether they can. */
export function drawCodes(canvas, codes, [rows, columns], colours, numbers) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale].map(Math.round);
  if (!width || !height) return true;
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  const digits = String(Math.max(...codes)).length;
  const size = Math.min((0.84 * width) / columns / (0.62 * digits), (0.5 * height) / rows, 15 * scale);
  const readable = size >= 6.5 * scale;
  [pen.font, pen.textAlign, pen.textBaseline] = [`${size}px ui-monospace, monospace`, "center", "middle"];
  codes.forEach((code, cell) => {
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const [left, top] = [Math.round((column * width) / columns), Math.round((row * height) / rows)];
    const [right, bottom] = [Math.round(((column + 1) * width) / columns), Math.round(((row + 1) * height) / rows)];
    const [red, green, blue] = colours[cell];
    pen.fillStyle = `rgb(${red} ${green} ${blue})`;
    pen.fillRect(left, top, right - left, bottom - top);
    if (!numbers || !readable) return;
    pen.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "#111318" : "#ffffff";
    pen.fillText(code, (left + right) / 2, (top + bottom) / 2);
  });
  return readable;
}

/** The mean colour of each cell of a picture, [r, g, b] in raster order. */
export function cellColours(image, [rows, columns]) {
  const { data, width, height } = pixels(image);
  const sums = Array.from({ length: rows * columns }, () => [0, 0, 0, 0]);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sum = sums[Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width)];
      const from = 4 * (y * width + x);
      for (let channel = 0; channel < 3; channel++) sum[channel] += data[from + channel];
      sum[3]++;
    }
  }
  return sums.map(([red, green, blue, n]) => [red, green, blue].map((sum) => Math.round(sum / Math.max(1, n))));
}

/** A colour for a code whose look is unknown: distinct from those of the next numbers. */
export function numberColour(code) {
  const hue = (code * 137.508) % 360;
  return [0, 120, 240].map((turn) => Math.round(150 + 70 * Math.cos(((hue + turn) * Math.PI) / 180)));
}
