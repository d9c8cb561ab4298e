// A region of codes from another picture.

import { Board } from "./codegrid.js";
import { cellsOf } from "./grid.js";
import { Picker } from "./pick.js";
import { el } from "./widgets.js";

/** A second picture to take a region from: calls `onregion({rows, columns, codes, name})` when one is dragged. */
export function pasteRegion(contents, tokenizer, onregion) {
  const image = el("img", { alt: "Picture to take a region from" });
  const area = new Board("Drag a region. With the keyboard: arrow keys, Shift and arrow keys, then Enter", image, { onselect: take });
  const hint = el("p", { className: "note" });
  const source = el("figure", { className: "paste-source", hidden: true }, area.node);
  const choice = new Picker(contents, () => tokenizer().name, open);
  const node = el("details", { className: "card paste", ontoggle: () => node.open && refresh() },
    el("summary", {}, "Paste a region of another picture"),
    el("div", { className: "paste-parts" }, choice.node, el("div", {}, source, hint)));
  let [picked, offered] = [null, ""];

  function open(found) {
    picked = found;
    image.src = found.decoded;
    image.classList.toggle("crisp", tokenizer().resolution <= 128);
    source.hidden = false;
    area.layout(...tokenizer().grid);
    rest();
  }

  /** Say what to do while no region is held. */
  function rest() {
    hint.textContent = picked
      ? "Drag over the part to take, or press the arrow keys, extend it with Shift, and press Enter." : "Choose a picture first.";
  }

  function take(rectangle) {
    const codes = cellsOf(rectangle, tokenizer().grid[1]).map((cell) => picked.codes[cell]);
    hint.textContent = `${rectangle.rows} × ${rectangle.columns} codes are taken. Click in the picture where they go.`;
    onregion({ rows: rectangle.rows, columns: rectangle.columns, codes, name: picked.name });
  }

  /** Offer pictures of the tokenizer; call it when the tokenizer has changed. */
  function refresh() {
    if (!node.open || offered === tokenizer().name) return;
    offered = tokenizer().name;
    picked = null;
    source.hidden = true;
    rest();
    choice.refresh();
  }

  rest();
  return { node, refresh, rest };
}
