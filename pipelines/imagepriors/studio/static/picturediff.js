// The difference of two pictures, and a part of one.

import { canvasOf } from "./files.js";
import { el } from "./widgets.js";

/** Draw where two pictures differ, white where most; returns the largest difference of a channel, 0 to 255. */
export function drawDifference(canvas, one, other) {
  const [a, b] = [pixels(one), pixels(other)];
  [canvas.width, canvas.height] = [a.width, a.height];
  const differences = new Uint8Array(a.width * a.height);
  for (let i = 0; i < differences.length; i++) {
    for (let channel = 0; channel < 3; channel++) {
      differences[i] = Math.max(differences[i], Math.abs(a.data[4 * i + channel] - b.data[4 * i + channel]));
    }
  }
  const largest = differences.reduce((most, value) => Math.max(most, value), 0);
  differences.forEach((value, i) => {
    a.data.fill((255 * value) / Math.max(1, largest), 4 * i, 4 * i + 3);
  });
  canvas.getContext("2d").putImageData(a, 0, 0);
  canvas.classList.toggle("crisp", a.width <= 128);
  return largest;
}

/** The pixels of a loaded image. */
export function pixels(image) {
  const canvas = canvasOf(image);
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
}

/** The part of a picture at a cell, as a canvas. */
export function patch(image, [rows, columns], cell) {
  const edge = (index, cells, side) => Math.round((index * side) / cells);
  const [row, column, wide, high] = [Math.floor(cell / columns), cell % columns, image.naturalWidth, image.naturalHeight];
  const [left, top] = [edge(column, columns, wide), edge(row, rows, high)];
  const [width, height] = [edge(column + 1, columns, wide) - left, edge(row + 1, rows, high) - top];
  const canvas = el("canvas", { width: Math.max(1, width), height: Math.max(1, height), className: "crisp", role: "img", "aria-label": "Patch of this picture" });
  canvas.getContext("2d").drawImage(image, left, top, canvas.width, canvas.height, 0, 0, canvas.width, canvas.height);
  return canvas;
}
