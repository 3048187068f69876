// The loop: ask the API every two seconds, show what it says, and say so when it does not answer.

import { Refusal, forgetKey, get, hasKey, rememberKey } from "./api.js";
import { byId, duration, say } from "./dom.js";
import { showAutoscaler, showDeadLetters, showGradings } from "./panels.js";
import { showEvaluations, showLineage, showStatus, showSteps, showTasks, showTrajectories } from "./views.js";

const EVERY_MS = 2000;
const SLOWEST_MS = 15000;
const KEPT_STEPS = 1000;
const PANEL_ROWS = 8;

let steps = [];
let heardAt = 0;
let failures = 0;
let timer = 0;
let busy = false;
let again = false; // somebody asked while the page was asking

async function refresh() {
  const status = await get("/v1/status");
  const [tasks, evaluations, trajectories, letters, gradings, autoscaler] = await Promise.all([
    get("/v1/tasks", { limit: 500 }),
    everything("/v1/evaluations"),
    get("/v1/trajectories", { limit: 15, task: byId("task-filter").value }),
    get("/v1/dead-letters", { limit: PANEL_ROWS }),
    get("/v1/gradings", { limit: PANEL_ROWS }),
    get("/v1/autoscaler"),
  ]);
  await follow(status.step);
  byId("main").hidden = false;
  showStatus(status);
  showTasks(tasks.data);
  showEvaluations(evaluations);
  showTrajectories(trajectories.data, open);
  showSteps(steps);
  showDeadLetters(letters.data, status.queues.dead_letters);
  showGradings(gradings.data);
  showAutoscaler(autoscaler);
}

/** Every page of a list: its newest rows are on the last. */
async function everything(path) {
  const rows = [];
  let page = { next_after: null };
  do {
    page = await get(path, { after: page.next_after });
    rows.push(...page.data);
  } while (page.has_more);
  return rows;
}

/** Fetch the steps that are new. A learner that resumed may have taken some back. */
async function follow(newest) {
  steps = steps.filter((step) => step.step <= newest);
  let after = Math.max(steps.at(-1)?.step ?? -1, newest - KEPT_STEPS);
  let page;
  do {
    page = await get("/v1/steps", { after, limit: KEPT_STEPS });
    steps.push(...page.data);
    after = page.next_after;
  } while (page.has_more);
  steps = steps.slice(-KEPT_STEPS);
}

/** One turn at a time: two would add the same steps twice, and the older answer could come last. */
async function turn() {
  again = busy;
  if (busy) return;
  busy = true;
  clearTimeout(timer);
  const goesOn = await look();
  busy = false;
  if (again) turn();
  else if (goesOn && !document.hidden) timer = setTimeout(turn, Math.min(SLOWEST_MS, EVERY_MS * 2 ** failures));
}

/** Ask and show; return whether to go on without being told. */
async function look() {
  try {
    await refresh();
    heardAt = Date.now();
    failures = 0;
    calm();
  } catch (error) {
    failures += 1;
    if (error.status === 401) return askForKey();
    if (!(error instanceof Refusal)) console.error(error);
    trouble(error instanceof Refusal ? error : { status: 0, problem: { title: "This page failed", detail: `${error}.` } });
  }
  return true;
}

function calm() {
  byId("trouble").hidden = true;
  byId("login").hidden = true;
  document.body.classList.remove("away");
  live("on", "Live");
}

function trouble({ status, problem }) {
  byId("trouble").hidden = false;
  document.body.classList.add("away");
  const since = heardAt ? ` What you see is ${duration((Date.now() - heardAt) / 1000)} old.` : "";
  say(byId("trouble-title"), problem.title);
  say(byId("trouble-detail"), `${problem.detail ?? ""}${since} Trying again by itself.`);
  live("off", status === 0 ? "Not live" : `Trouble (${status})`);
}

function askForKey() {
  say(byId("login-fault"), hasKey() ? "That key was not accepted." : "");
  forgetKey();
  byId("login").hidden = false;
  byId("main").hidden = true;
  byId("trouble").hidden = true;
  live("off", "Locked");
  byId("key").focus();
  return false;
}

function live(state, text) {
  byId("live").dataset.state = state;
  say(byId("live"), text);
}

async function open(id) {
  try {
    showLineage(await get(`/v1/trajectories/${id}`));
    byId("lineage").showModal();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    trouble(error);
  }
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey(byId("key").value);
  byId("key").value = "";
  turn();
});
byId("task-filter").addEventListener("change", turn);
document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });

get("/version").then(({ version }) => say(byId("version"), `TBA ${version}`), () => {});
turn();
