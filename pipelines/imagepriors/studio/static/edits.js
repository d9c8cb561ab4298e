// Codes of one picture that a person edits: what they are now, and how they were.

import { History } from "./history.js";

/** Codes with undo and redo. */
export class Edits extends History {
  constructor(codes) {
    super(codes);
    this.original = codes;
  }

  /** The number of codes that differ from the original. */
  get changed() {
    return this.state.filter((code, cell) => code !== this.original[cell]).length;
  }
}

/** Codes [rows × columns] as nested lists in JSON, one row a line. */
export function asJson(codes, [rows, columns]) {
  const lines = Array.from({ length: rows }, (_, row) => `[${codes.slice(row * columns, (row + 1) * columns).join(", ")}]`);
  return `[${lines.join(",\n ")}]`;
}

/** Codes as a NumPy expression. */
export function asNumpy(codes, grid) {
  return `np.array(${asJson(codes, grid).replaceAll("\n", "\n         ")})`;
}
