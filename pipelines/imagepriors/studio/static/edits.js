// Codes of one picture that a person edits: what they are now, and how they were.

/** Codes with undo and redo. */
export class Edits {
  constructor(codes) {
    this.past = [codes];
    this.at = 0;
  }

  get codes() {
    return this.past[this.at];
  }

  get original() {
    return this.past[0];
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.past.length - 1;
  }

  /** The number of codes that differ from the original. */
  get changed() {
    return this.codes.filter((code, cell) => code !== this.original[cell]).length;
  }

  /** Make these the codes; returns whether any is new. */
  put(codes) {
    if (codes.every((code, cell) => code === this.codes[cell])) return false;
    this.past = [...this.past.slice(0, this.at + 1), codes];
    this.at++;
    return true;
  }

  undo() {
    this.at = Math.max(0, this.at - 1);
  }

  redo() {
    this.at = Math.min(this.past.length - 1, this.at + 1);
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
