// Pictures that a prior draws, the conditions that they follow, and what draws them again.

import { copyButton, el, empty, JobStatus, pictures } from "./widgets.js";

/** The results of a tab: `invitation` is what they say while there are none, `heading` is that of the conditions. */
export class Drawn {
  constructor(invitation, heading, copyText) {
    this.job = new JobStatus();
    this.blank = empty(invitation);
    this.results = pictures("Sample");
    this.hints = pictures("Condition", "pictures small");
    this.given = el("div", { hidden: true }, el("h3", {}, heading), this.hints);
    this.code = el("code");
    this.again = el("div", { className: "command", hidden: true }, this.code, copyButton(() => this.code.textContent, copyText));
    this.nodes = [this.job.node, this.blank, this.results, this.given, this.again];
  }

  /** Show nothing, and stop what is drawn: another prior is chosen. */
  clear() {
    this.job.clear();
    this.show([]);
    this.forget();
  }

  forget() {
    this.given.hidden = this.again.hidden = true;
  }

  show(sources, captions) {
    this.blank.hidden = sources.length > 0;
    this.results.show(sources, captions);
  }

  /** Draw what a request of a prior asks for; `onpictures()` is called when there are some. Returns the last event, null if it was stopped. */
  async draw(prior, request, onpictures = () => {}) {
    this.forget();
    const last = await this.job.start("draw", request, (event) => {
      if (!event.pictures) return;
      this.show(event.pictures);
      onpictures();
    });
    if (!last) return null;
    this.show(last.pictures, last.classes.map((label) => prior.class_names[label] || `class ${label}`));
    this.hints.show(last.hints, followers(last));
    this.given.hidden = !last.hints.length;
    return last;
  }

  /** Show the text of a command or program that draws the same. */
  tell(text) {
    this.code.textContent = text;
    this.again.hidden = !text;
  }
}

/** Which pictures follow each condition. */
export function followers({ hints, pictures: drawn, pictures_per_hint: each }) {
  return hints.map((_, index) => {
    const [first, last] = [each * index + 1, Math.min(each * (index + 1), drawn.length)];
    return first === last ? `Sample ${first}` : `Samples ${first} to ${last}`;
  });
}
