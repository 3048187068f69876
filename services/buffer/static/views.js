// The parts of the page, each drawn from one answer of the API.

import { hasKey } from "./api.js";
import { BarChart, LineChart } from "./charts.js";
import { ago, byId, chip, clipped, duration, el, number, percent, say, svg, table } from "./dom.js";
import { trend } from "./scale.js";

const TREND_STEPS = 12;
const NEWEST_EVALUATIONS = 10;
const EXAMPLE = `-H 'Content-Type: application/json' -d '{
  "name": "addition",
  "reward": [{"scorer": "verifier", "options": {"match": "exact"}}],
  "eval_fraction": 0.1,
  "prompts": [
    {"text": "12+07=", "reference": "19"},
    {"text": "33+48=", "reference": "81"}
  ]
}'`;

const charts = {
  evaluation: new LineChart(byId("chart-evaluation"), {
    title: "Evaluation", about: "Mean reward on held-out prompts, by policy version",
    xName: "version", format: (value) => number(value, 3),
    nothing: "No evaluation yet. A task with held-out prompts is evaluated when asked, or every few versions.",
  }),
  reward: new LineChart(byId("chart-reward"), {
    title: "Reward", about: "Mean over each trained batch, by step", xName: "step",
    format: (value) => number(value, 3), nothing: "The first step brings the first point.",
  }),
  loss: new LineChart(byId("chart-loss"), {
    title: "Loss", about: "Trajectory balance, by step", xName: "step", include: [0],
    format: (value) => number(value, 3), nothing: "The first step brings the first point.",
  }),
  staleness: new BarChart(byId("chart-staleness"), {
    title: "Staleness", about: "How many versions behind the learner a trained trajectory was, last 50 steps",
    xName: "versions", format: percent, tick: (value) => `${Math.round(100 * value)}%`, nothing: "Nothing has been trained on yet.",
  }),
  throughput: new LineChart(byId("chart-throughput"), {
    title: "Throughput", about: "Trajectories trained on per second, by step", xName: "step", include: [0],
    format: (value) => `${number(value, value < 10 ? 1 : 0)}/s`, nothing: "Two steps make a speed.",
  }),
};

export function showStatus(status) {
  document.title = `TBA ${status.run_id} · step ${status.step}`;
  say(byId("run"), status.run_id);
  say(byId("waits"), status.waiting_for);
  byId("waits").dataset.state = status.state;
  showTiles(status);
  showLine(status);
  showLedger(status.ledger);
  const { histogram, mean_versions: mean } = status.staleness;
  const total = Object.values(histogram).reduce((sum, count) => sum + count, 0);
  const bars = Object.entries(histogram).map(([x, count]) => ({ x: Number(x), y: count / total }));
  charts.staleness.update(bars, mean === null ? "" : `${number(mean, 1)} on average`);
}

function showTiles({ policy_version: version, step, staleness, rates, buffer }) {
  const tiles = [
    ["Policy version", number(version)],
    ["Step", number(step)],
    ["Steps a minute", number(rates.steps_per_minute)],
    ["Trajectories a minute", number(rates.trajectories_per_minute)],
    ["In the buffer", number(buffer.trajectories)],
    ["Mean staleness, versions", number(staleness.mean_versions, 1)],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function showLine({ policy_version: version, step, queues, buffer }) {
  const pace = buffer.blocked === "in_flight" ? "learner" : buffer.blocked ? "generators" : null;
  const oldest = queues.oldest_prompt_seconds;
  const stages = [
    ["generators", "Generators and scorers", number(queues.prompts_in_flight), "prompts out",
      oldest === null ? "none out" : `oldest ${duration(oldest)}`],
    ["buffer", "Buffer", number(buffer.trajectories), "trajectories",
      buffer.silent_seconds === null ? "not started" : `heard ${duration(buffer.silent_seconds)} ago`],
    ["learner", "Learner", number(queues.batches_in_flight), "batches waiting or in training", `at step ${number(step)}`],
    ["weights", "Weights", version === null ? "–" : `v${version}`, "newest version", "goes to the generators"],
  ];
  byId("line").replaceChildren(...stages.map(([id, name, value, unit, note]) =>
    el("li", { class: "card", "data-pace": pace === id ? "true" : null },
      el("h3", {}, name),
      el("p", { class: "value" }, value, " ", el("span", {}, unit)),
      el("p", { class: "note" }, pace === id ? "sets the pace" : note))));
}

function showLedger(ledger) {
  const balance = byId("balance");
  say(balance, ledger.balances ? "balanced" : "does not balance");
  balance.dataset.good = String(ledger.balances);
  const parts = [["stored", 0], ["duplicates", 1], ["dead_lettered", 3], ["expired", 2], ["in_flight", 4]];
  const bar = svg("svg", { class: "split", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  let from = 0;
  for (const [name, style] of parts) {
    const width = ledger.issued ? (1000 * ledger[name]) / ledger.issued : 0;
    bar.append(svg("rect", { class: `fill s${style}`, x: from, y: 0, width, height: 10 }));
    from += width;
  }
  const terms = parts.map(([name, style]) =>
    el("div", {}, el("dt", { class: `s${style}` }, name.replace("_", " ")), el("dd", {}, number(ledger[name]))));
  byId("ledger").replaceChildren(
    el("p", { class: "about" }, "Every completion ordered for training, and what became of it."),
    bar,
    el("dl", { class: "terms" }, el("div", { class: "total" }, el("dt", {}, "issued"), el("dd", {}, number(ledger.issued))), terms),
  );
}

export function showSteps(steps) {
  const curve = (name) => steps.map((step) => ({ x: step.step, y: step[name] }));
  for (const name of ["reward", "loss"]) {
    const points = curve(name);
    charts[name].update([{ name, points, trend: trend(points, TREND_STEPS) }]);
  }
  const speeds = steps.slice(1).map((step, index) => {
    const from = steps[Math.max(0, index + 1 - TREND_STEPS)];
    const seconds = (Date.parse(step.created_at) - Date.parse(from.created_at)) / 1000;
    const between = steps.slice(Math.max(0, index + 1 - TREND_STEPS) + 1, index + 2);
    return { x: step.step, y: between.reduce((sum, one) => sum + one.trajectories, 0) / Math.max(seconds, 0.001) };
  });
  charts.throughput.update([{ name: "trained", points: speeds }]);
}

export function showEvaluations(evaluations) {
  const byTask = new Map();
  for (const { task, policy_version: x, mean_reward: y } of evaluations) {
    if (y === null) continue;
    if (!byTask.has(task)) byTask.set(task, []);
    byTask.get(task).push({ x, y });
  }
  charts.evaluation.update([...byTask].map(([name, points]) => ({ name, points })));
  table(byId("evaluations"), "The newest evaluations", [
    { head: "Task", cell: (one) => one.task },
    { head: "Version", kind: "number", cell: (one) => `v${one.policy_version}` },
    { head: "Answers", kind: "number extra", cell: (one) => `${number(one.n)} of ${number(one.n_expected)}` },
    { head: "Reward", kind: "number", cell: (one) => meter(one.mean_reward) },
    { head: "Accuracy", kind: "number", cell: (one) => meter(one.accuracy) },
    { head: "pass@k", kind: "extra", cell: (one) => named(one.pass_at) },
    { head: "KL to the reference", kind: "number extra", cell: (one) => number(one.kl, 3) },
    { head: "Scores", kind: "extra", cell: (one) => named(one.scores) },
  ], evaluations.slice(-NEWEST_EVALUATIONS).reverse(), "No evaluation yet.");
}

const named = (figures) => Object.entries(figures).map(([name, value]) => `${name} ${number(value, 3)}`).join(", ") || "–";

export function showTasks(tasks) {
  byId("welcome").hidden = tasks.length > 0;
  const key = hasKey() ? ` -H "Authorization: Bearer $TBA_API_KEY"` : "";
  say(byId("example"), `curl ${location.origin}/v1/tasks${key} ${EXAMPLE}`);
  table(byId("tasks"), "Tasks and how far they have come", [
    { head: "Task", cell: (task) => task.name },
    { head: "State", cell: (task) => chip(task.state) },
    { head: "Family", kind: "extra", cell: (task) => task.spec.family },
    { head: "Recent reward", kind: "number", cell: (task) => meter(task.progress.recent_mean_reward) },
    { head: "Prompts", kind: "number extra", cell: (task) => number(task.progress.prompts_train) },
    { head: "Held out", kind: "number extra", cell: (task) => number(task.progress.prompts_eval) },
    { head: "Orders", kind: "number extra", cell: (task) => number(task.progress.issues) },
    { head: "Trajectories", kind: "number", cell: (task) => number(task.progress.trajectories) },
    { head: "Steps", kind: "number extra", cell: (task) => number(task.progress.task_steps) },
  ], tasks, "No task yet.");
  const filter = byId("task-filter");
  const names = ["", ...tasks.map((task) => task.name)];
  if (names.join("\n") !== [...filter.options].map((option) => option.value).join("\n")) {
    const chosen = filter.value;
    filter.replaceChildren(...names.map((name) => el("option", { value: name }, name || "all")));
    filter.value = names.includes(chosen) ? chosen : "";
  }
}

function meter(value) {
  if (value === null) return "–";
  const bar = value >= 0 && value <= 1 ? el("meter", { min: 0, max: 1, value, "aria-hidden": "true" }) : null;
  return [bar, number(value, 3)].filter(Boolean);
}

export function showTrajectories(trajectories, open) {
  table(byId("trajectories"), "The newest trajectories", [
    { head: "Id", kind: "number", cell: (one) => el("button", { class: "link", onclick: () => open(one.trajectory_id), "aria-label": `Lineage of trajectory ${one.trajectory_id}` }, String(one.trajectory_id)) },
    { head: "Task", kind: "extra", cell: (one) => one.task },
    { head: "Prompt", kind: "text", cell: (one) => el("bdi", {}, clipped(one.prompt)) },
    { head: "Completion", kind: "text", cell: (one) => el("bdi", {}, clipped(one.text)) },
    { head: "Reward", kind: "number", cell: (one) => number(one.reward, 2) },
    { head: "Version", kind: "number extra", cell: (one) => `v${one.policy_version}` },
    { head: "Ended", kind: "extra", cell: (one) => one.finish_reason },
    { head: "Age", kind: "number extra", cell: (one) => ago(one.created_at) },
  ], trajectories, "None yet. They appear here as soon as completions are scored.");
}

export function showLineage(one) {
  say(byId("lineage-title"), `Trajectory ${one.trajectory_id}`);
  const facts = [
    ["Task", one.task], ["Reward", number(one.reward, 3)], ["Policy version", `v${one.policy_version}`],
    ["Tokens", number(one.tokens)], ["Ended by", one.finish_reason], ["Temperature", number(one.temperature, 2)],
    ["Order", `${one.issue_id}, attempt ${one.attempt}`], ["Reference", one.reference ?? "–"],
  ];
  const draws = el("table");
  table(draws, "Batches that drew it", [
    { head: "Batch", kind: "number", cell: (draw) => number(draw.batch_id) },
    { head: "Step", kind: "number", cell: (draw) => (draw.step === null ? "not yet trained" : number(draw.step)) },
    { head: "Reward as drawn", kind: "number", cell: (draw) => number(draw.reward, 3) },
    { head: "log P(draw)", kind: "number", cell: (draw) => number(draw.draw_logprob, 3) },
  ], one.draws, "No batch has drawn it yet.");
  const scores = el("table");
  table(scores, "Scores", [
    { head: "Scorer", cell: (score) => `${score.scorer} ${score.version}` },
    { head: "Details", kind: "extra", cell: (score) => named(score.details) },
    { head: "Score", kind: "number", cell: (score) => number(score.value, 3) },
    { head: "Seconds", kind: "number", cell: (score) => number(score.seconds, 3) },
  ], one.scores, "No scorer.");
  byId("lineage-body").replaceChildren(
    el("h3", {}, "Prompt"), el("pre", { tabindex: "0" }, el("bdi", {}, one.prompt)),
    el("h3", {}, "Completion"), el("pre", { tabindex: "0" }, el("bdi", {}, one.text)),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("h3", {}, "Scores"), el("div", { class: "scroll" }, scores),
    el("h3", {}, "Steps that used it"), el("div", { class: "scroll" }, draws),
  );
}
