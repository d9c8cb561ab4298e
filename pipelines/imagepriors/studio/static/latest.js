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
