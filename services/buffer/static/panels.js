// What happens beside training: messages that could not be handled, gradings, and how many generators there should be.

import { ago, byId, chip, clipped, duration, el, number, say, table } from "./dom.js";

export function showDeadLetters(letters, total) {
  say(byId("dead-letters-count"), total > letters.length ? `the newest ${letters.length} of ${number(total)}` : "");
  table(byId("dead-letters"), "The newest messages that could not be handled", [
    { head: "Id", kind: "number", cell: (one) => String(one.dead_letter_id) },
    { head: "Service", cell: (one) => one.service },
    { head: "Task", kind: "extra", cell: (one) => one.task ?? "–" },
    { head: "For", kind: "extra", cell: (one) => one.purpose ?? "–" },
    { head: "Reason", kind: "text", cell: (one) => el("bdi", {}, clipped(one.reason)) },
    { head: "Replay", kind: "extra", cell: (one) => (one.replay === "none" ? "–" : chip(one.replay)) },
    { head: "Age", kind: "number extra", cell: (one) => ago(one.created_at) },
  ], letters, "None: every message could be handled.");
}

export function showGradings(gradings) {
  table(byId("gradings"), "The newest gradings", [
    { head: "Id", kind: "number", cell: (one) => String(one.grading_id) },
    { head: "Reward of", kind: "extra", cell: (one) => one.task ?? "the request" },
    { head: "Prompt", kind: "text", cell: (one) => el("bdi", {}, clipped(one.prompt)) },
    { head: "Rewards", kind: "wide", cell: (one) => one.rewards.map((reward) => number(reward, 3)).join(", ") || "–" },
    { head: "State", cell: (one) => chip(one.state) },
    { head: "Fault", kind: "text extra", cell: (one) => el("bdi", {}, clipped(one.fault ?? "–")) },
    { head: "Age", kind: "number extra", cell: (one) => ago(one.created_at) },
  ], gradings, "None yet. `tba grade` and POST /v1/graders:run say what a text is worth.");
}

export function showAutoscaler({ signals, override, decisions }) {
  const held = override && `held at ${number(override.replicas)} for ${duration(until(override.until))}`;
  const idle = signals?.wait_ratio ?? null;
  const waits = idle === null ? "" : `the learner waits ${number(100 * idle)}% of the time`;
  say(byId("autoscaler-state"), [held, waits].filter(Boolean).join(" · "));
  table(byId("autoscaler"), "The newest decisions on the number of generators", [
    { head: "Since", cell: (one) => ago(one.created_at) },
    { head: "Held for", kind: "extra", cell: (one) => duration(seconds(one.created_at, one.decided_at)) },
    { head: "Generators", kind: "number", cell: (one) => `${number(one.ready)} of ${number(one.replicas)}` },
    { head: "Wanted", kind: "number", cell: (one) => number(one.desired) },
    { head: "Why", kind: "wide", cell: (one) => el("bdi", {}, one.applied ? one.sentence : `${one.sentence} (not applied)`) },
  ], decisions.slice(0, 8), "Nobody decides here: the number of generators is fixed.");
}

const seconds = (from, to) => Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000);
const until = (moment) => seconds(new Date(), moment);
