// Cells of a grid of codes: a cell is its index in raster order; texts count rows and columns from 1.

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] };

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

export function cellName(cell, columns) {
  return `row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}`;
}

/** The cell at a pointer over a node, or the nearest one. */
export function cellAt(event, node, [rows, columns]) {
  const box = node.getBoundingClientRect();
  const part = (value, length, cells) => within(Math.floor((value / length) * cells), cells);
  return part(event.clientY - box.top, box.height, rows) * columns + part(event.clientX - box.left, box.width, columns);
}

/** The cell to which a key moves from another; null if the key is none that moves. */
export function moved(key, cell, [rows, columns]) {
  if (!(key in STEPS)) return null;
  const [down, right] = STEPS[key];
  return within(Math.floor(cell / columns) + down, rows) * columns + within((cell % columns) + right, columns);
}

/** The rectangle {row, column, rows, columns} with two cells as corners. */
export function between(one, other, columns) {
  const [row, column, last, end] = [Math.floor(one / columns), one % columns, Math.floor(other / columns), other % columns];
  return { row: Math.min(row, last), column: Math.min(column, end), rows: Math.abs(row - last) + 1, columns: Math.abs(column - end) + 1 };
}

/** The cells of a rectangle, in raster order. */
export function cellsOf(rectangle, columns) {
  return Array.from({ length: rectangle.rows * rectangle.columns }, (_, index) =>
    (rectangle.row + Math.floor(index / rectangle.columns)) * columns + rectangle.column + (index % rectangle.columns));
}

function within(value, most) {
  return Math.min(Math.max(value, 0), most - 1);
}
