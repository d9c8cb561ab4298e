// Compare.

import { empty } from "./widgets.js";

export const compare = { id: "compare", title: "Compare", mount };

function mount(panel, contents) {
  panel.append(empty("…"));
}
