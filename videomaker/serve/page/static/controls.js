// What many parts of the page use: buttons that are off but keep the focus, and text that may be long.

const $ = (id) => document.getElementById(id);

// `disabled` would take the focus from a button that was just pressed.
export const turnOff = (button, off) => button.setAttribute("aria-disabled", off);
export const isOff = (button) => button.getAttribute("aria-disabled") === "true";

// While the work goes on the button does nothing more.
export async function during(button, work) {
  if (isOff(button)) return;
  turnOff(button, true);
  try {
    await work();
  } finally {
    turnOff(button, false);
  }
}

// The first lines of a text, and a button that shows the rest where there is more.
export class Clamp {
  constructor(id) {
    Object.assign(this, { text: $(id), more: $(`${id}-more`) });
    this.more.addEventListener("click", () => {
      this.open(!this.isOpen);
      if (!this.isOpen) this.more.scrollIntoView({ block: "nearest" });
    });
    new ResizeObserver(() => this.measure()).observe(this.text);
  }

  get isOpen() {
    return this.more.getAttribute("aria-expanded") === "true";
  }

  set(words) {
    if (this.text.textContent === words) return;
    this.text.textContent = words;
    this.text.hidden = !words;
    this.open(false);
  }

  open(isOpen) {
    this.more.setAttribute("aria-expanded", isOpen);
    this.text.classList.toggle("clamped", !isOpen);
    this.measure();
  }

  measure() {
    this.more.hidden = !this.isOpen && this.text.scrollHeight <= this.text.clientHeight;
  }
}
