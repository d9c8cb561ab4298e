// Maps of validation pictures, to start from.

import { ask } from "./api.js";
import { button, el, empty } from "./widgets.js";

/** A chooser of validation maps. Calls `onpick(map)` with a chosen one, and `onpage(found)` with each page. */
export class Starts {
  constructor(prior, condition, onpick, onpage) {
    Object.assign(this, { prior, condition, onpick, onpage, page: 0 });
    this.choices = el("div", { className: "choices", role: "group", "aria-label": "Maps of validation pictures" });
    this.note = el("p", { className: "note", role: "status" });
    this.back = button("←", () => this.show(this.page - 1), { className: "quiet", "aria-label": "Previous maps" });
    this.next = button("→", () => this.show(this.page + 1), { className: "quiet", "aria-label": "Next maps" });
    this.node = el("div", { className: "picker" }, this.choices, el("div", { className: "actions" }, this.back, this.next, this.note));
  }

  /** Show a page, and return its maps. */
  async show(page = 0) {
    this.note.textContent = "Loading …";
    try {
      const found = await ask("maps", { prior: this.prior, condition: this.condition, page });
      this.page = page;
      this.back.disabled = !page;
      this.next.disabled = page + 1 >= found.pages;
      this.back.hidden = this.next.hidden = found.pages < 2;
      this.note.textContent = found.pages > 1 ? `${page + 1} of ${found.pages}` : "";
      this.choices.replaceChildren(...found.maps.map((map) => this.choice(map)));
      if (!found.maps.length) this.choices.replaceChildren(empty("No shards with such maps are here."));
      this.onpage(found);
      return found.maps;
    } catch (error) {
      this.note.textContent = error.message;
      return [];
    }
  }

  choice(map) {
    const made = button("", () => this.pick(map, made), { className: "choice", title: map.key, "aria-label": `Map of ${map.key}`, "aria-pressed": "false" });
    made.append(el("img", { src: map.picture, alt: "" }));
    return made;
  }

  pick(map, chosen) {
    for (const one of this.choices.children) one.setAttribute("aria-pressed", String(one === chosen));
    this.onpick(map);
  }
}
