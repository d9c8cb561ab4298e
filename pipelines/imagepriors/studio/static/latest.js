// Work that follows what a person does, but never falls behind it.

/** A function that does `work` one at a time; of calls that come meanwhile, only the last one is done. */
export function latest(work) {
  let [running, next] = [false, null];
  return async function again(...values) {
    if (running) {
      next = values;
      return;
    }
    running = true;
    try {
      await work(...values);
    } finally {
      running = false;
      const waiting = next;
      next = null;
      if (waiting) again(...waiting);
    }
  };
}

/**
 * A function that begins a turn. What it returns says whether that turn is still the last one: ask it after each `await`,
 * and drop the answer if it is not.
 */
export function turns() {
  let last = 0;
  return () => {
    const mine = ++last;
    return () => mine === last;
  };
}
