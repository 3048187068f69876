// The page's only door to the server: JSON, the key of this tab, and refusals as values with their problem.

const KEY = "tba-api-key";

/** An answer that is not a success; `problem` is its RFC 9457 body. Status 0: no answer at all. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title);
    this.status = status;
    this.problem = problem;
  }
}

export const rememberKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** GET a path of the API. Throws a Refusal. */
export async function get(path, parameters = {}) {
  const chosen = Object.entries(parameters).filter(([, value]) => value !== null && value !== "");
  const query = new URLSearchParams(chosen).toString();
  const headers = hasKey() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
  let answer;
  try {
    answer = await fetch(query ? `${path}?${query}` : path, { headers, signal: AbortSignal.timeout(15000) });
  } catch {
    throw new Refusal(0, { title: "The server does not answer", detail: "It may be restarting." });
  }
  const body = await answer.json().catch(() => ({ title: answer.statusText }));
  if (!answer.ok) throw new Refusal(answer.status, body);
  return body;
}
