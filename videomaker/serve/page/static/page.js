// What ties the page together: the history and its pages, the server's state, keys, and who tells whom.

import { api, key, Refusal, span } from "./api.js";
import { Composer, isSmall } from "./composer.js";
import { during, isOff, turnOff } from "./controls.js";
import { failureWords, isActive, progressWords, Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const PAGE_LENGTH = 12;
const LOOK = 3000; // milliseconds between looks at videos that are being made but not watched
const IDLE_LOOK = 30000;

const videos = new Map(); // of this page of the history, newest first
const before = []; // for each newer page, where it began
let after = null;
let hasMore = false;
let nextLook = null;

const say = (words) => ($("live").textContent = words);
const stage = new Stage({ changed, gone, refused, say });
const composer = new Composer({ made, refused });

async function made(video) {
  before.length = 0;
  after = null;
  await loadHistory();
  changed(video);
  select(video.id, { scroll: true });
}

// Whether a refusal was dealt with: a missing key is asked for, all else is the caller's to show.
function refused(error) {
  if (error.status !== 401) return false;
  askForKey(key.get() ? "This key is not good here." : "");
  return true;
}

function changed(video) {
  const was = videos.get(video.id);
  if (was) {
    videos.set(video.id, video);
    fillCard(cardOf(video.id), video);
  }
  if (stage.video?.id !== video.id) return;
  const ended = isActive(stage.video) && !isActive(video);
  stage.show(video);
  showTitle(video);
  if (ended) say(video.status === "completed" ? "The video is ready" : `${failureWords(video)}. ${video.error?.message ?? ""}`);
}

async function gone(id) {
  const ids = [...videos.keys()];
  const next = ids[ids.indexOf(id) + 1] ?? ids[ids.indexOf(id) - 1];
  videos.delete(id);
  cardOf(id)?.closest("li").remove();
  if (stage.video?.id === id) select(next ?? null, {});
  await loadHistory();
}

function select(id, { scroll = false, focus = false }) {
  const video = videos.get(id) ?? null;
  stage.show(video);
  showTitle(video);
  history.replaceState(null, "", video ? `#${id}` : location.pathname);
  for (const card of $("cards").querySelectorAll(".card")) card.setAttribute("aria-pressed", card.dataset.id === id);
  if (focus) $("work-title").focus({ preventScroll: true });
  if (scroll || focus) bringToView($("stage"));
  if (hasOthers()) lookIn(LOOK);
}

// Videos that are being made but not watched.
const hasOthers = () => [...videos.values()].some((video) => isActive(video) && video.id !== stage.video?.id);

function bringToView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  if (top >= 0 && (bottom <= innerHeight || top < innerHeight / 3)) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: calm ? "instant" : "smooth", block: "start" });
}

function showTitle(video) {
  const active = video && isActive(video);
  document.title = active ? `${progressWords(video)} · VideoMaker` : "VideoMaker";
}

async function loadHistory() {
  let page;
  try {
    page = await api.list(after, PAGE_LENGTH);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.param === "after") return newest(); // the video that the page began after is gone
    return void refused(error);
  }
  videos.clear();
  for (const video of page.data) videos.set(video.id, video);
  hasMore = page.has_more;
  if (!page.data.length && before.length) return newest();
  drawHistory();
}

function newest() {
  before.length = 0;
  after = null;
  return loadHistory();
}

function drawHistory() {
  const list = $("cards");
  const focused = document.activeElement?.closest?.(".card")?.dataset.id;
  const items = [...videos.values()].map((video) => cardOf(video.id)?.closest("li") ?? newCard(video));
  list.replaceChildren(...items);
  for (const video of videos.values()) fillCard(cardOf(video.id), video);
  if (focused) cardOf(focused)?.focus();
  $("history").hidden = videos.size === 0;
  $("pager").hidden = !hasMore && before.length === 0;
  turnOff($("newer"), before.length === 0);
  turnOff($("older"), !hasMore);
}

const cardOf = (id) => $("cards").querySelector(`[data-id="${CSS.escape(id)}"]`);

function newCard(video) {
  const item = $("card-template").content.cloneNode(true).firstElementChild;
  const card = item.querySelector(".card");
  card.dataset.id = video.id;
  card.setAttribute("aria-pressed", video.id === stage.video?.id);
  card.addEventListener("click", () => select(video.id, { focus: true }));
  card.querySelector("img").addEventListener("error", () => loadHistory(), { once: true });
  return item;
}

function fillCard(card, video) {
  if (!card) return;
  const image = card.querySelector("img");
  const kind = video.status === "completed" ? "thumbnail" : "reference";
  if (card.dataset.kind !== kind) {
    card.dataset.kind = kind;
    image.src = video.links[kind];
    image.classList.toggle("pixels", isSmall(...video.size.split("x").map(Number)));
  }
  card.dataset.status = video.status;
  const badge = card.querySelector(".badge");
  badge.textContent = isActive(video) ? progressWords(video) : video.status === "failed" ? failureWords(video) : "";
  card.querySelector(".bar-track").hidden = video.status !== "in_progress";
  card.querySelector(".bar-fill").style.setProperty("--done", video.step / video.steps);
  card.querySelector(".card-words").textContent = video.prompt;
  card.querySelector(".card-when").textContent = when(video.created_at);
}

function when(created) {
  const ago = Date.now() / 1000 - created;
  if (ago < 45) return "just now";
  if (ago < 90) return "a minute ago";
  if (ago < 86400) return `${span(ago)} ago`;
  return new Date(1000 * created).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

function turn(button) {
  if (isOff(button)) return;
  if (button === $("older")) {
    before.push(after);
    after = [...videos.keys()].at(-1);
  } else {
    after = before.pop() ?? null;
  }
  return loadHistory();
}

function lookIn(milliseconds) {
  clearTimeout(nextLook);
  nextLook = setTimeout(lookAtServer, milliseconds);
}

const SERVER = { ready: "Ready", waiting: "Warming up", away: "No answer", locked: "Needs a key" };

async function serverState() {
  try {
    return (await api.models()).data.some(({ ready }) => ready) ? "ready" : "waiting";
  } catch ({ status }) {
    return status === 401 ? "locked" : status ? "waiting" : "away";
  }
}

// Without a key there is nothing to look at until one is given.
async function lookAtServer() {
  const state = await serverState();
  $("server").dataset.state = state;
  if ($("server-words").textContent !== SERVER[state]) $("server-words").textContent = SERVER[state];
  if (state === "locked") return clearTimeout(nextLook);
  const others = hasOthers();
  if (others && !document.hidden) await loadHistory();
  lookIn(others || state !== "ready" ? LOOK : IDLE_LOOK);
}

function askForKey(problem = "") {
  $("key-error").textContent = problem;
  $("key-error").hidden = !problem;
  $("key").value = key.get();
  $("key-forget").hidden = !key.get();
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

// What a button does with the video that is shown.
async function act(button, work) {
  const id = stage.video?.id;
  stage.refuse("");
  try {
    await during(button, work);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.code === "video_not_found") return gone(id);
    if (!refused(error)) stage.refuse(error.message);
  }
  turnOff($("cancel"), stage.video?.cancel_requested === true);
}

function confirmDelete() {
  const { id } = stage.video;
  const dialog = $("confirm");
  dialog.returnValue = "keep";
  dialog.showModal();
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "delete") return;
    act($("delete"), async () => {
      await api.remove(id);
      await gone(id);
      say("Deleted");
      (stage.video ? $("work-title") : $("stage")).focus({ preventScroll: true });
    });
  }, { once: true });
}

function listen() {
  $("vary").addEventListener("click", () => act($("vary"), () => composer.vary(stage.video)));
  $("edit").addEventListener("click", () => {
    composer.load(stage.video);
    bringToView($("composer"));
  });
  $("cancel").addEventListener("click", () => act($("cancel"), async () => changed(await api.cancel(stage.video.id))));
  $("delete").addEventListener("click", confirmDelete);
  for (const name of ["older", "newer"]) $(name).addEventListener("click", () => turn($(name)));
  $("key-open").addEventListener("click", () => askForKey());
  $("key-forget").addEventListener("click", () => {
    key.forget();
    location.reload();
  });
  $("key-form").addEventListener("submit", () => {
    key.set($("key").value.trim());
    start().then(lookAtServer);
  });
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", async () => {
      await composer.takeExample(example.dataset);
      $("make").focus();
      bringToView($("composer"));
    });
  }
}

async function start() {
  try {
    composer.offer((await api.models()).data);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (!refused(error)) composer.say(error.message);
    return stage.show(null);
  }
  await loadHistory();
  const named = location.hash.slice(1);
  if (named.startsWith("video_") && !videos.has(named)) await api.get(named).then((video) => videos.set(named, video), () => {});
  select(videos.has(named) ? named : ([...videos.keys()][0] ?? null), {});
}

listen();
await start();
lookAtServer();
