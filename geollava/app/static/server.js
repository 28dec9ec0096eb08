// What the page asks its server, and how it hears the events of a request that takes long.

export class ServerError extends Error {}

let token = "";

export async function begin() {
  const state = await (await asked("/api/state")).json();
  token = state.token;
  return state;
}

/** An object's answer; `body` is a file or an object. */
export async function send(path, body, method = "POST") {
  return (await asked(path, { method, body: packed(body) })).json();
}

/** int32 roots over the canvas's tokens; see `Side.layers`. */
export async function rootMap(side) {
  return new Int32Array(await (await asked(`/api/layers/${side}`)).arrayBuffer());
}

/** Calls `hear` with each event; returns the last one. */
export async function listen(path, body, hear) {
  const reply = await asked(path, { method: "POST", body: packed(body) });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let last = {};
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      last = JSON.parse(part.replace(/^data: /, ""));
      hear(last);
    }
  }
  if (last.error) throw new ServerError(last.error);
  return last;
}

function packed(body) {
  return body === undefined || body instanceof Blob ? body : JSON.stringify(body);
}

async function asked(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { "x-geollava-token": token } });
  } catch {
    throw new ServerError("the server does not answer");
  }
  if (reply.ok) return reply;
  let message = `the server says ${reply.status}`;
  if (reply.headers.get("content-type") === "application/json") message = (await reply.json()).error;
  throw new ServerError(message);
}
