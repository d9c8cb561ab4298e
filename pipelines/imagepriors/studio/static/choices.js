// Pictures to choose from.

import { button, el } from "./widgets.js";

/**
 * A grid of pictures, of which one is chosen: the Tab key stops at it, and the arrow keys move between them. Calls
 * `onpick(one)` with a picture {key, picture, …} that is clicked; `kind` is what it is, and `placeOf(one)` identifies it.
 */
export class Choices {
  constructor(label, kind, placeOf, onpick) {
    Object.assign(this, { kind, placeOf, onpick, chosen: "" });
    this.node = el("div", { className: "choices", role: "group", "aria-label": label, onkeydown: (event) => this.move(event) });
  }

  get buttons() {
    return [...this.node.querySelectorAll(".choice")];
  }

  show(found) {
    this.node.replaceChildren(...found.map((one) => this.choice(one)));
    this.mark();
  }

  choice(one) {
    const made = button("", () => this.onpick(one), {
      className: "choice", title: one.key, "aria-label": `${this.kind} ${one.key}`, data: { place: this.placeOf(one) },
    });
    made.append(el("img", { src: one.picture, alt: "", draggable: false }));
    return made;
  }

  first() {
    this.buttons[0]?.click();
  }

  /** Show which picture is chosen. */
  mark(place = this.chosen) {
    this.chosen = place;
    const { buttons } = this;
    const chosen = buttons.find((one) => one.dataset.place === place);
    for (const one of buttons) {
      one.setAttribute("aria-pressed", one === chosen);
      one.tabIndex = one === (chosen ?? buttons[0]) ? 0 : -1;
    }
  }

  move(event) {
    const { buttons } = this;
    const at = buttons.indexOf(document.activeElement);
    const columns = buttons.filter((one) => one.offsetTop === buttons[0].offsetTop).length;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    buttons[to]?.focus();
  }
}
