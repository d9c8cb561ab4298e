// Shards.

import { empty } from "./widgets.js";

export const shards = { id: "shards", title: "Shards", mount };

function mount(panel, contents) {
  panel.append(empty("…"));
}
