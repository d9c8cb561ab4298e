// Undo and redo.

const STEPS = 100;

/** The states of a drawing: lists, which are not changed. `state` is the one that counts now. */
export class History {
  constructor(state) {
    this.states = [state];
    this.at = 0;
  }

  get state() {
    return this.states[this.at];
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.states.length - 1;
  }

  /** Add a state; returns whether it differs from the one before. */
  keep(state) {
    if (String(state) === String(this.state)) return false;
    this.states.splice(this.at + 1, this.states.length, state);
    if (this.states.length > STEPS) this.states.shift();
    this.at = this.states.length - 1;
    return true;
  }

  /** The state before, null if there is none. */
  undo() {
    return this.canUndo ? this.states[--this.at] : null;
  }

  /** The state after, null if there is none. */
  redo() {
    return this.canRedo ? this.states[++this.at] : null;
  }
}
