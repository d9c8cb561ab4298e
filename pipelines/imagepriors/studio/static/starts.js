// Maps of validation pictures, to start from.

import { ask } from "./api.js";
import { Choices } from "./choices.js";
import { turns } from "./latest.js";
import { button, el, empty, switchOff } from "./widgets.js";

/** A chooser of validation maps. Calls `onpick(map)` with a chosen one, and `onpage(found)` with each page. */
export class Starts {
  constructor(prior, condition, onpick, onpage) {
    Object.assign(this, { prior, condition, onpage, page: 0, turn: turns() });
    this.choices = new Choices("Maps of validation pictures", "Map of", (map) => map.key, (map) => {
      onpick(map);
      this.choices.mark(map.key);
    });
    this.note = el("p", { className: "note", role: "status" });
    this.back = button("←", () => this.show(this.page - 1), { className: "quiet", "aria-label": "Previous maps" });
    this.next = button("→", () => this.show(this.page + 1), { className: "quiet", "aria-label": "Next maps" });
    this.node = el("div", { className: "picker" }, this.choices.node, el("div", { className: "actions" }, this.back, this.next, this.note));
  }

  /** Show a page, and return its maps. */
  async show(page = 0) {
    const isLast = this.turn();
    this.note.textContent = "Loading …";
    try {
      const found = await ask("maps", { prior: this.prior, condition: this.condition, page });
      if (!isLast()) return [];
      this.page = page;
      switchOff(this.back, !page);
      switchOff(this.next, page + 1 >= found.pages);
      this.back.hidden = this.next.hidden = found.pages < 2;
      this.note.textContent = found.pages > 1 ? `${page + 1} of ${found.pages}` : "";
      this.choices.show(found.maps);
      if (!found.maps.length) this.choices.node.replaceChildren(empty("No shards with such maps are here."));
      this.onpage(found);
      return found.maps;
    } catch (error) {
      if (isLast()) this.note.textContent = error.message;
      return [];
    }
  }
}
