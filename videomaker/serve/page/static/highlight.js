// Where the subject is in its picture: a box drawn over it, a mask, or a word. The server puts it on white.

const $ = (id) => document.getElementById(id);
const LEAST = 4; // pixels of the screen: a smaller drag is a click

export class Highlight {
  constructor() {
    this.start = null;
    $("highlight-how").addEventListener("change", () => this.show());
    $("box").addEventListener("input", () => this.draw());
    $("preview").addEventListener("load", () => this.draw());
    addEventListener("resize", () => this.draw());
    const layer = $("box-layer");
    layer.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      layer.setPointerCapture(event.pointerId);
      this.start = event;
    });
    layer.addEventListener("pointermove", (event) => this.start && this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) layer.addEventListener(name, () => (this.start = null));
  }

  // Words need models on the server.
  allow(words) {
    const option = $("highlight-how").querySelector("[value=highlight]");
    option.hidden = option.disabled = !words;
    if (!words && this.how === "highlight") this.reset();
  }

  get how() {
    return $("highlight-how").value;
  }

  // For a new picture; an earlier video's is used as it was.
  offer(isNew) {
    this.reset();
    $("subject-field").hidden = !isNew;
  }

  reset() {
    for (const id of ["highlight-how", "box", "mask", "highlight"]) $(id).value = "";
    this.show();
  }

  show() {
    for (const name of ["box", "mask", "highlight"]) $(`${name}-field`).hidden = this.how !== name;
    $("on-white").hidden = !this.how;
    this.draw();
  }

  // The picture's place on the screen, and pixels of the screen for one of its own.
  place() {
    const { naturalWidth: width, naturalHeight: height } = $("preview");
    const frame = $("preview").getBoundingClientRect();
    const scale = Math.min(frame.width / width, frame.height / height);
    return {
      width, height, scale,
      left: frame.left + (frame.width - width * scale) / 2,
      top: frame.top + (frame.height - height * scale) / 2,
    };
  }

  drag(event) {
    if (Math.hypot(event.clientX - this.start.clientX, event.clientY - this.start.clientY) < LEAST) return;
    const { width, height, scale, left, top } = this.place();
    const across = (x) => Math.round(Math.min(Math.max((x - left) / scale, 0), width));
    const down = (y) => Math.round(Math.min(Math.max((y - top) / scale, 0), height));
    const xs = [across(this.start.clientX), across(event.clientX)].sort((a, b) => a - b);
    const ys = [down(this.start.clientY), down(event.clientY)].sort((a, b) => a - b);
    $("box").value = [xs[0], ys[0], xs[1], ys[1]].join(",");
    this.draw();
  }

  draw() {
    const layer = $("box-layer");
    layer.hidden = this.how !== "box" || $("preview").hidden || !$("preview").naturalWidth;
    const corners = $("box").value.split(",").map(Number);
    const rect = $("box-rect");
    rect.hidden = layer.hidden || corners.length !== 4 || corners.some(Number.isNaN);
    if (rect.hidden) return;
    const { scale, left, top } = this.place();
    const frame = layer.getBoundingClientRect();
    rect.style.left = `${left - frame.left + corners[0] * scale}px`;
    rect.style.top = `${top - frame.top + corners[1] * scale}px`;
    rect.style.width = `${Math.max(0, corners[2] - corners[0]) * scale}px`;
    rect.style.height = `${Math.max(0, corners[3] - corners[1]) * scale}px`;
  }

  // What is missing, in words; null when nothing is.
  missing() {
    if (this.how === "box" && !$("box").value.trim()) return "Draw a box around the subject, or type its corners.";
    if (this.how === "mask" && !$("mask").files.length) return "Choose the mask of the subject.";
    if (this.how === "highlight" && !$("highlight").value.trim()) return "Say in a word what the subject is.";
    return null;
  }

  *fields() {
    if (this.how === "mask") yield ["mask", $("mask").files[0]];
    else if (this.how) yield [this.how, $(this.how).value.trim()];
  }
}
