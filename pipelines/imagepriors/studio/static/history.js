// Undo and redo.

const STEPS = 100;

/** The states of a drawing. `keep(state)` adds one; `undo()` and `redo()` return the one before or after, null at an end. */
export class History {
  constructor(state) {
    this.states = [state];
    this.at = 0;
  }

  keep(state) {
    this.states.splice(this.at + 1, this.states.length, state);
    if (this.states.length > STEPS) this.states.shift();
    this.at = this.states.length - 1;
  }

  undo() {
    return this.at ? this.states[--this.at] : null;
  }

  redo() {
    return this.at + 1 < this.states.length ? this.states[++this.at] : null;
  }
}
