// Paint.

import { empty } from "./widgets.js";

export const paint = { id: "paint", title: "Paint", mount };

function mount(panel, contents) {
  panel.append(empty("…"));
}
