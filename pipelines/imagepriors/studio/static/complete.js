// Complete.

import { empty } from "./widgets.js";

export const complete = { id: "complete", title: "Complete", mount };

function mount(panel, contents) {
  panel.append(empty("…"));
}
