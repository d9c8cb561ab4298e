// Numbers on the page: in tables, as a curve over ranks, and as a heat map over a grid.

import { cellAt, cellName, moved } from "./grid.js";
import { capital, count } from "./text.js";
import { el, svg } from "./widgets.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [360, 200, 44, 30, 12];
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis

/** A table; it scrolls by itself where it is wider than the page. */
export function table(heads, rows) {
  return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": heads.join(", ") },
    el("table", {},
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

/** Shares of codes by rank; `points` are [rank, occurrences], `total` all occurrences. The dashed line is their mean. */
export function curve(points, total) {
  const last = points.at(-1)[0];
  const shares = points.map(([rank, occurrences]) => [rank, (100 * occurrences) / Math.max(1, total)]);
  const [top, mean] = [shares[0][1] || 1, 100 / last];
  const x = (rank) => LEFT + ((WIDTH - LEFT - 8) * (rank - 1)) / Math.max(1, last - 1);
  const y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share / top);
  const line = shares.map(([rank, share]) => `${x(rank).toFixed(1)},${y(share).toFixed(1)}`).join(" ");
  const text = (value, at, down, anchor) => svg("text", { x: at, y: down, "text-anchor": anchor }, value);
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img",
    "aria-label": `The most frequent code is ${short(top)} % of all codes; ${short(mean)} % would be even` },
    svg("polygon", { points: `${x(1)},${y(0)} ${line} ${x(last)},${y(0)}`, class: "area" }),
    svg("polyline", { points: line, class: "line" }),
    svg("line", { x1: LEFT, x2: WIDTH - 8, y1: y(mean), y2: y(mean), class: "even" }),
    svg("line", { x1: LEFT, x2: WIDTH - 8, y1: y(0), y2: y(0), class: "axis" }),
    text(`${short(top)} %`, LEFT - 6, y(top) + 9, "end"), text("0", LEFT - 6, y(0) + 4, "end"),
    text("1", x(1), HEIGHT - 12, "start"), text(count(last), x(last), HEIGHT - 12, "end"),
    text("code, by frequency", (LEFT + WIDTH) / 2, HEIGHT - 12, "middle"));
}

function short(value) {
  return value >= 10 ? value.toFixed(0) : value.toPrecision(2);
}

/** A heat map of values in bits, with a legend; the pointer and the arrow keys read single cells. */
export function heatmap(values, [height, width], what) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const canvas = paint(values.map((value) => (high > low ? (value - low) / (high - low) : 0.5)), height, width);
  Object.assign(canvas, { className: "heatmap", tabIndex: 0 });
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${what}: entropy from ${low.toFixed(2)} to ${high.toFixed(2)} bits over ${height} × ${width} positions; arrow keys read them`);
  const note = el("p", { className: "note", role: "status" }, "Point at a position, or use the arrow keys.");
  let cell = null;
  const read = (index) => {
    cell = index;
    note.textContent = `${capital(cellName(cell, width))}: ${values[cell].toFixed(2)} bits`;
  };
  const point = (event) => {
    note.ariaLive = "off"; // a pointer moves too fast to be told
    read(cellAt(event, canvas, [height, width]));
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("keydown", (event) => {
    const next = moved(event.key, cell ?? 0, [height, width]);
    if (next === null) return;
    event.preventDefault();
    note.ariaLive = "polite";
    read(cell === null ? 0 : next);
  });
  const steps = Array.from({ length: 64 }, (_, index) => index / 63);
  const legend = el("div", { className: "legend" }, el("span", {}, low.toFixed(2)), paint(steps, 1, 64), el("span", {}, `${high.toFixed(2)} bits`));
  return el("div", {}, canvas, legend, note);
}

function paint(parts, height, width) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  parts.forEach((part, index) => pixels.data.set([...colour(part), 255], 4 * index));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function colour(part) {
  const at = Math.min(part * (COLOURS.length - 1), COLOURS.length - 1.001);
  const [from, to, share] = [COLOURS[Math.floor(at)], COLOURS[Math.floor(at) + 1], at % 1];
  return from.map((value, channel) => Math.round(value + share * (to[channel] - value)));
}
