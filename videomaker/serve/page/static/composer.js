// The form: a picture (a new one, or an earlier video's), a prompt, settings; what is sent, and what was refused.

import { api, Refusal } from "./api.js";
import { during } from "./controls.js";
import { Highlight } from "./highlight.js";

const $ = (id) => document.getElementById(id);
const PLAIN = ["num_frames", "num_inference_steps", "guidance_scale", "fps", "size", "fit", "negative_prompt"];
const SMALL = 128; // pixels: a picture or video with sides up to this is shown as the squares it is made of

export const isSmall = (width, height) => Math.max(width, height) <= SMALL;

export class Composer {
  // made(video) is called with every accepted video.
  constructor({ made, refused }) {
    Object.assign(this, { made, refused, model: null, models: [], source: null, highlight: new Highlight() });
    $("composer").addEventListener("submit", (event) => this.submit(event));
    $("picture").addEventListener("change", () => this.take($("picture").files[0]));
    $("picture-clear").addEventListener("click", () => this.clearPicture(true));
    $("preview").addEventListener("load", () => {
      const { naturalWidth, naturalHeight } = $("preview");
      $("preview").classList.toggle("pixels", isSmall(naturalWidth, naturalHeight));
    });
    $("preview").addEventListener("error", () => {
      if (!$("preview").getAttribute("src")) return;
      $("preview").hidden = true;
      $("picture-odd").hidden = false;
    });
    $("model").addEventListener("change", () => this.choose($("model").value));
    $("settings").addEventListener("input", () => this.summarise());
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("composer").requestSubmit();
    });
    this.listenForDrops();
  }

  listenForDrops() {
    const drop = $("drop");
    const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    for (const name of ["dragenter", "dragover"]) {
      document.addEventListener(name, (event) => {
        if (!hasFile(event)) return;
        event.preventDefault(); // anywhere on the page: a miss must not leave it
        drop.classList.add("over");
      });
    }
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      drop.classList.remove("over");
      this.take(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
      if (file) this.take(file);
    });
  }

  take(file) {
    if (!file) return;
    const most = this.model?.limits.max_body_bytes;
    if (most && file.size > most) {
      return this.say(`${file.name} is larger than ${Math.floor(most / 2 ** 20)} MiB: choose a smaller picture.`, "picture");
    }
    this.say("");
    this.source = { file };
    this.showPicture(URL.createObjectURL(file), file.name);
  }

  // The picture of an earlier video, which the server still has.
  takeEarlier(video) {
    this.source = { video: video.id, size: video.size, fit: video.fit };
    this.showPicture(video.links.reference, "The picture of an earlier video");
  }

  async takeExample({ picture, name, prompt }) {
    const answer = await fetch(picture);
    this.take(new File([await answer.blob()], `${name}.png`, { type: "image/png" }));
    $("prompt").value = prompt;
  }

  showPicture(url, name) {
    const preview = $("preview");
    if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
    preview.src = url;
    preview.hidden = false;
    $("picture-odd").hidden = true;
    $("drop").classList.add("full");
    $("drop-words").hidden = true;
    $("picture-name").textContent = `${name}. Choose another picture`;
    $("picture-clear").hidden = false;
    this.highlight.offer(Boolean(this.source.file));
  }

  clearPicture(focus) {
    this.source = null;
    $("picture").value = "";
    $("preview").hidden = $("picture-odd").hidden = true;
    $("preview").removeAttribute("src");
    $("drop").classList.remove("full");
    $("drop-words").hidden = false;
    $("picture-name").textContent = "";
    $("picture-clear").hidden = true;
    this.highlight.offer(false);
    if (focus) $("picture").focus();
  }

  // The models that there are; the first is the server's choice.
  offer(models) {
    this.models = models;
    $("model-field").hidden = models.length < 2;
    $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
    this.describe(models[0]);
  }

  choose(name) {
    const model = this.models.find(({ id }) => id === name);
    if (!model) return;
    $("model").value = name;
    this.describe(model);
  }

  // What the model makes by default becomes the fields' placeholders: an empty field leaves it to the server.
  describe(model) {
    this.model = model;
    const { defaults, limits, shapes } = model;
    for (const name of ["num_frames", "num_inference_steps", "guidance_scale", "fps"]) $(name).placeholder = defaults[name];
    $("size").placeholder = `${defaults.width}x${defaults.height}`;
    $("num_frames").max = limits.max_frames_and_references - 1;
    $("num_inference_steps").max = limits.max_steps;
    $("negative_prompt").placeholder = defaults.negative_prompt || "nothing";
    $("fit").value = defaults.fit;
    this.highlight.allow(limits.highlight_by_word);
    $("shape-field").hidden = shapes.length === 0;
    for (const field of document.querySelectorAll("[data-free-shape]")) field.hidden = shapes.length > 0;
    $("shape").replaceChildren(...shapes.filter((shape) => shape.num_references === 1).map(shapeOption));
    if (limits.require_consent) {
      $("consent").required = true;
      $("consent").options[0].textContent = "choose one";
    } else {
      document.querySelector(".settings-grid").append($("consent-field"));
      $("consent-field").classList.add("wide");
    }
    this.summarise();
  }

  summarise() {
    if (!this.model) return;
    const { defaults, shapes } = this.model;
    const frames = (shapes.length && $("shape").value.split("/")[0]) || $("num_frames").value || defaults.num_frames;
    const steps = $("num_inference_steps").value || defaults.num_inference_steps;
    $("summary").textContent = `${frames} frames, ${spaced(this.size)}, ${steps} steps`;
  }

  // The size that is asked for.
  get size() {
    const { defaults, shapes } = this.model;
    const shape = shapes.length ? $("shape").value.split("/")[1] : "";
    return shape || $("size").value.trim() || `${defaults.width}x${defaults.height}`;
  }

  // Another video's settings, its prompt and its picture, to change and send again.
  load(video) {
    this.takeEarlier(video);
    this.choose(video.model);
    $("prompt").value = video.prompt;
    for (const name of PLAIN) $(name).value = video[name];
    $("seed").value = video.seed;
    $("consent").value = video.consent ?? "";
    $("shape").value = `${video.num_frames}/${video.size}`;
    $("settings").open = true;
    this.say("");
    this.summarise();
    $("prompt").focus();
  }

  async submit(event) {
    event.preventDefault();
    this.say("");
    if (!this.source) return this.say("Add a picture of the subject first.", "picture");
    if (!$("prompt").value.trim()) return this.say("Say what happens in the video.", "prompt");
    if ($("consent").required && !$("consent").value) return this.say("Say why the subject may be shown.", "consent");
    const unfit = this.unfit();
    if (unfit) return this.say(...unfit);
    if (this.highlight.missing()) return this.say(this.highlight.missing(), this.highlight.how);
    const form = new FormData();
    if (this.source.file) form.append("input_reference", this.source.file, "picture");
    else form.append("reference_of", this.source.video);
    form.append("prompt", $("prompt").value.trim());
    for (const [name, value] of [...this.settings(), ...this.highlight.fields()]) form.append(name, value);
    await during($("make"), () => this.send(form));
  }

  // What the server could not read or would not take, and its field; null when nothing is.
  unfit() {
    const isUnread = (field) => field.validity.badInput && !field.closest("[hidden]");
    const unread = [...$("settings").querySelectorAll("input")].find(isUnread);
    if (unread) return [`${unread.labels[0].textContent}: what is there cannot be read as a number.`, unread.id];
    const { video, size, fit } = this.source;
    const again = "or choose the picture again.";
    if (video && this.size !== size) {
      const field = this.model.shapes.length ? "shape" : "size";
      return [`The earlier video’s picture is of ${spaced(size)} pixels: keep that size, ${again}`, field];
    }
    if (video && $("fit").value !== fit) {
      return [`The earlier video’s picture is used as it was: leave this as it was, ${again}`, "fit"];
    }
    return null;
  }

  *settings() {
    if (this.models.length > 1) yield ["model", $("model").value];
    const shaped = this.model?.shapes.length > 0;
    for (const name of [...PLAIN, "seed", "consent"]) {
      if (shaped && (name === "num_frames" || name === "size")) continue;
      const value = $(name).value.trim();
      if (value) yield [name, value];
    }
    if (!shaped) return;
    const [frames, size] = $("shape").value.split("/");
    yield ["num_frames", frames];
    yield ["size", size];
  }

  // The same again, from the same picture, with a new seed.
  async vary(video) {
    const form = new FormData();
    form.append("reference_of", video.id);
    form.append("prompt", video.prompt);
    form.append("model", video.model);
    for (const name of PLAIN) form.append(name, video[name]);
    if (video.consent) form.append("consent", video.consent);
    await this.made(await api.create(form));
  }

  async send(form) {
    try {
      await this.made(await api.create(form));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (!this.refused(error)) this.say(words(error), fieldOf(error.param));
    }
  }

  // The message stands under the field that it is about, or else over the button.
  say(message, field = null) {
    for (const bad of document.querySelectorAll("[aria-invalid]")) bad.removeAttribute("aria-invalid");
    const error = $("error");
    if (field) $(field).closest(".field").after(error);
    else $("make").before(error);
    error.textContent = message;
    error.hidden = !message;
    if (field) {
      $(field).closest("details")?.setAttribute("open", "");
      $(field).setAttribute("aria-invalid", "true");
      $(field).focus();
    }
    if (message) (field ? error : $("make")).scrollIntoView({ block: "nearest" });
  }
}

const spaced = (size) => size.replace("x", " × ");

function shapeOption({ num_frames: frames, width, height }) {
  return new Option(`${frames} frames of ${width} × ${height}`, `${frames}/${width}x${height}`);
}

// The page sends one picture, so that the interface's name of it says nothing here.
const words = ({ message }) => message.replace(/^Reference input_reference \d+/, "This picture");

function fieldOf(param) {
  const id = { input_reference: "picture", reference_of: "picture" }[param] ?? param;
  const field = id && $(id);
  return field?.closest("#composer") ? id : null;
}
