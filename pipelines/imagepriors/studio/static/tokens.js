// Tokens.

import { empty } from "./widgets.js";

export const tokens = { id: "tokens", title: "Tokens", mount };

function mount(panel, contents) {
  panel.append(empty("…"));
}
