// Keys of drawings.

/** Arrow key → step in x and y. */
export const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Steps of an arrow key with Shift. */
export const FAR = 8;

/** Call `undo()` or `redo()` of a drawing on Ctrl+Z and Ctrl+Shift+Z. Returns whether the key was one of these. */
export function undoKeys(event, drawing) {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return false;
  event.preventDefault();
  if (event.shiftKey) drawing.redo();
  else drawing.undo();
  return true;
}
