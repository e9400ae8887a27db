// The video that is looked at: its progress as it comes, its files beside its reference, what can be done with it.

import { api, sentence, span } from "./api.js";
import { isSmall } from "./composer.js";
import { Clamp, turnOff } from "./controls.js";

const $ = (id) => document.getElementById(id);
const MOST_TICKS = 60;
const RETRY = 2000; // milliseconds until a broken stream is asked for again
const FAILURES = {
  cancelled: "Cancelled",
  worker_lost: "Lost on the way",
  reference_lost: "Its picture is gone",
  out_of_memory: "Too large for this server",
  step_timeout: "Took too long",
  overflow: "Numbers overflowed",
  check_failed: "Could not be checked",
  encode_failed: "Could not be encoded",
  signing_failed: "Could not be signed",
  render_failed: "Not made",
  safety_rejected: "Refused",
};

export const isActive = (video) => video.status === "queued" || video.status === "in_progress";
export const failureWords = (video) => FAILURES[video.error?.code] ?? "Not made";

export function progressWords(video) {
  if (video.cancel_requested) return "Cancelling";
  if (video.status === "in_progress") return video.step ? `Step ${video.step} of ${video.steps}` : "Starting";
  return video.queue_position ? `${video.queue_position} ahead in the queue` : "Next in the queue";
}

export class Stage {
  // changed(video) and gone(id) are called when the server tells so; refused(error) deals with a key that is not good.
  constructor({ changed, gone, refused, say }) {
    Object.assign(this, { changed, gone, refused, say, video: null, stream: null, told: "" });
    Object.assign(this, { title: new Clamp("work-title"), failure: new Clamp("work-error"), avoided: new Clamp("avoided") });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.unwatch() : this.refresh()));
    for (const name of ["player", "reference"]) {
      $(name).addEventListener("error", () => $(name).getAttribute("src") && this.renewLinks());
    }
  }

  // Shows a video, or with null the invitation to make one.
  show(video) {
    const isOther = video?.id !== this.video?.id;
    const isDone = !isOther && video && isActive(this.video) && !isActive(video);
    this.video = video;
    $("empty").hidden = video !== null;
    $("work").hidden = video === null;
    if (isOther) {
      this.refuse("");
      this.unwatch();
      this.told = "";
    }
    if (!video) return;
    this.fill(video, isOther || isDone);
    if (isActive(video)) this.watch();
    else this.unwatch();
  }

  // Why what was asked of the video was not done.
  refuse(message) {
    $("refusal").textContent = message;
    $("refusal").hidden = !message;
    if (message) $("refusal").scrollIntoView({ block: "nearest" });
  }

  fill(video, filesChanged) {
    const focused = document.activeElement;
    const active = isActive(video);
    const done = video.status === "completed";
    this.title.set(video.prompt);
    if (filesChanged) this.fillFiles(video, done);
    $("veil").hidden = done;
    $("veil").classList.toggle("ended", video.status === "failed");
    $("ticks").hidden = !active;
    $("veil-words").textContent = active ? progressWords(video) : failureWords(video);
    $("veil-more").textContent = active && video.eta_seconds ? `about ${span(video.eta_seconds)} to go` : "";
    const reason = video.error?.code === "cancelled" ? "" : video.error?.message;
    this.failure.set(reason ? sentence(reason) : "");
    $("cancel").hidden = !active;
    turnOff($("cancel"), video.cancel_requested);
    $("vary").hidden = active;
    $("vary").textContent = done ? "Make a variation" : "Try with a new seed";
    for (const name of ["download", "download-record"]) $(name).hidden = !done;
    $("signed").hidden = !video.signed;
    fillTicks(video);
    fillFacts(video);
    this.avoided.set(video.negative_prompt ?? "");
    $("avoided-facts").hidden = !video.negative_prompt;
    if (focused.hidden) $("work-title").focus({ preventScroll: true }); // a button that is no more
    if (active) this.tell(video);
  }

  fillFiles(video, done) {
    const [width, height] = video.size.split("x").map(Number);
    $("screen").style.setProperty("--ratio", `${width} / ${height}`);
    for (const name of ["player", "poster", "reference"]) $(name).classList.toggle("pixels", isSmall(width, height));
    $("reference").src = video.links.reference;
    $("poster").hidden = done;
    $("player").hidden = !done;
    if (!done) {
      $("player").removeAttribute("src");
      $("poster").src = video.links.reference;
      return;
    }
    $("player").setAttribute("aria-label", `Video: ${video.prompt}`);
    $("player").poster = video.links.thumbnail;
    $("player").src = video.links.video;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) $("player").play().catch(() => {});
    for (const [name, variant, suffix] of [["download", "video", "mp4"], ["download-record", "record", "json"]]) {
      $(name).href = video.links[variant];
      $(name).download = `${video.id}.${suffix}`;
    }
  }

  // To a screen reader: the start, then every quarter; each step would drown all else.
  tell(video) {
    const quarter = Math.floor((4 * video.step) / video.steps);
    const words = video.status === "queued" ? progressWords(video) : quarter ? `${25 * quarter} percent` : "Started";
    if (words !== this.told) this.say(words);
    this.told = words;
  }

  watch() {
    if (this.stream || document.hidden) return;
    const { id } = this.video;
    this.stream = new EventSource(this.video.links.events);
    this.stream.addEventListener("video", ({ data }) => this.changed(JSON.parse(data)));
    this.stream.addEventListener("deleted", () => this.gone(id));
    this.stream.addEventListener("error", () => {
      this.unwatch();
      setTimeout(() => this.video?.id === id && this.refresh(), RETRY);
    });
  }

  unwatch() {
    this.stream?.close();
    this.stream = null;
  }

  // Asks for the video that is shown: after a broken stream, an old link, a sleep.
  async refresh() {
    const { video } = this;
    if (!video || !isActive(video)) return;
    try {
      this.changed(await api.get(video.id));
    } catch (error) {
      if (error.status === 404) this.gone(video.id);
      else if (!this.refused(error) && !document.hidden) setTimeout(() => this.video?.id === video.id && this.refresh(), RETRY);
    }
  }

  // Links hold for an hour or two. Once for each video: a file that is missing stays missing.
  async renewLinks() {
    if (!this.video || this.renewed === this.video.links.reference) return;
    const video = await api.get(this.video.id).catch(() => null);
    if (!video || video.id !== this.video?.id) return;
    this.renewed = video.links.reference;
    this.video = video;
    this.fill(video, true);
  }
}

function fillTicks({ step, steps }) {
  const count = Math.min(steps, MOST_TICKS);
  const ticks = $("ticks");
  if (ticks.childElementCount !== count) {
    ticks.replaceChildren(...Array.from({ length: count }, () => document.createElement("i")));
  }
  const lit = Math.floor((count * step) / steps);
  [...ticks.children].forEach((tick, index) => tick.classList.toggle("lit", index < lit));
  ticks.setAttribute("aria-valuemax", steps);
  ticks.setAttribute("aria-valuenow", step);
  ticks.setAttribute("aria-valuetext", `step ${step} of ${steps}`);
}

function fillFacts(video) {
  const facts = [
    ["Seed", video.seed],
    ["Steps", video.num_inference_steps],
    ["Guidance", video.guidance_scale],
    ["Frames", `${video.num_frames} at ${video.fps}/s`],
    ["Size", video.size.replace("x", " × ")],
    ["Model", video.model],
  ];
  if (video.expires_at) facts.push(["Kept until", new Date(1000 * video.expires_at).toLocaleString()]);
  $("facts").replaceChildren(
    ...facts.map(([name, value]) => {
      const group = document.createElement("div");
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      term.textContent = name;
      description.textContent = value;
      group.append(term, description);
      return group;
    }),
  );
}
