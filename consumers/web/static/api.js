// Requests. The token is in this module's memory alone: not in a URL, a cookie or the browser's storage.

let token = null;
let operator = null;

export const who = () => operator;

export class Refused extends Error {
  constructor(status, body) {
    super(body.problem ?? "the request failed");
    this.status = status;
    this.remedy = body.remedy ?? "";
  }
}

async function request(path, options = {}) {
  const headers = { Accept: "application/json", ...(options.headers ?? {}) };
  const used = options.token === undefined ? token : options.token;
  if (used) headers.Authorization = `Bearer ${used}`;
  const answer = await fetch(path, {
    method: options.method ?? "GET", headers, body: options.body, cache: "no-store", credentials: "omit",
    redirect: "error", referrerPolicy: "no-referrer",
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, body);
  return body;
}

export const read = (path) => request(path);

export const change = (path, body) =>
  request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

export const session = () => request("/api/session");

export async function enter(given) {
  const found = await request("/api/session", { token: given });
  token = given;
  operator = found.operator;
  return found;
}

export function forget() {
  token = null;
  operator = null;
}
