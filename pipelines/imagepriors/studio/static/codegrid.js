// A square of cells over a picture or over codes: hover, tap, arrow keys and, where it is wanted, drag a rectangle.

import { el } from "./widgets.js";

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/**
 * A board of cells over `content`. It calls `onlook(cell)` for the cell under the pointer or that the arrow keys reach,
 * `onleave()`, `onchoose(cell)` for a click, tap or Enter, and with `drag` `onselect(rectangle)` in place of it.
 * A rectangle has row, column, rows and columns; a cell is its index in raster order.
 */
export function board(label, content, { onlook = () => {}, onleave = () => {}, onchoose = () => {}, onselect = null }) {
  const mark = el("div", { className: "cell-mark", hidden: true });
  const node = el("div", {
    className: "board", tabIndex: 0, role: "application", "aria-label": label, "aria-roledescription": "grid of codes",
    data: { drag: Boolean(onselect) },
  }, content, mark);
  let [rows, columns, count] = [1, 1, 1];
  let [at, anchor] = [0, null];

  function cellOf(event) {
    const box = node.getBoundingClientRect();
    const part = (value, cells) => Math.max(0, Math.min(cells - 1, Math.floor(value * cells)));
    const row = part((event.clientY - box.top) / box.height, rows);
    return Math.min(count - 1, row * columns + part((event.clientX - box.left) / box.width, columns));
  }

  /** Frame a rectangle; null frames nothing. */
  function show(rectangle) {
    mark.hidden = !rectangle;
    if (!rectangle) return;
    const per = (value, cells) => `${(100 * value) / cells}%`;
    Object.assign(mark.style, {
      left: per(rectangle.column, columns), top: per(rectangle.row, rows),
      width: per(rectangle.columns, columns), height: per(rectangle.rows, rows),
    });
  }

  function between(one, other) {
    const [r, c, s, d] = [Math.floor(one / columns), one % columns, Math.floor(other / columns), other % columns];
    return { row: Math.min(r, s), column: Math.min(c, d), rows: Math.abs(r - s) + 1, columns: Math.abs(c - d) + 1 };
  }

  node.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    at = cellOf(event);
    if (!onselect) return;
    anchor = at;
    node.setPointerCapture(event.pointerId);
    show(between(at, at));
  });
  node.addEventListener("pointermove", (event) => {
    const cell = cellOf(event);
    if (onselect) {
      if (anchor !== null && event.buttons) show(between(anchor, at = cell));
    } else if (event.pointerType !== "touch" && cell !== at) onlook(at = cell);
  });
  node.addEventListener("pointerup", (event) => {
    if (event.button) return;
    if (!onselect) onchoose(at);
    else if (anchor !== null) onselect(between(anchor, at));
  });
  node.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && onleave());
  node.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step) move(step, event.shiftKey);
    else if (event.key === "Enter" || event.key === " ") onselect ? onselect(between(anchor ?? at, at)) : onchoose(at);
    else return;
    event.preventDefault();
  });

  function move([down, right], extend) {
    const row = Math.max(0, Math.min(rows - 1, Math.floor(at / columns) + down));
    const column = Math.max(0, Math.min(columns - 1, (at % columns) + right));
    at = Math.min(count - 1, row * columns + column);
    if (!onselect) return onlook(at);
    if (!extend || anchor === null) anchor = extend ? anchor ?? at : at;
    show(between(anchor, at));
  }

  return {
    node, show, cell: (row, column) => row * columns + column,
    /** Set the grid; `cells` may be fewer than rows × columns. */
    layout(height, width, cells = height * width) { [rows, columns, count, at, anchor] = [height, width, cells, 0, null]; show(null); },
    /** Where the arrow keys start. */
    set at(cell) { at = cell; },
  };
}

/** Whether the codes of a tokenizer have cells on the picture; those of a 1-D tokenizer, which are in a row, have none. */
export function hasCells([height, width]) {
  return height === width || (height !== 1 && width !== 1);
}

/** Rows and columns in which codes are shown: their grid, or a row of codes folded. */
export function shape([height, width]) {
  if (hasCells([height, width])) return [height, width];
  const columns = Math.ceil(Math.sqrt(height * width));
  return [Math.ceil((height * width) / columns), columns];
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
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const { data, width, height } = pen.getImageData(0, 0, canvas.width, canvas.height);
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
