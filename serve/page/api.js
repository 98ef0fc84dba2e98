// Requests to the service. Paths are relative to the page, so that it works below any prefix.

export class ProblemError extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail || `The service answered ${status}.`);
    this.status = status;
    this.errors = problem.errors ?? [];
    this.retryAfter = retryAfter;
  }
}

export class Api {
  #key = "";

  /** Use an API key from now on. It is kept in memory alone. */
  signIn(key) {
    this.#key = key;
  }

  /** Send a request. Throws ProblemError with the service's own sentence. */
  async send(path, { method = "GET", body, headers = {}, signal } = {}) {
    if (this.#key) headers = { ...headers, Authorization: `Bearer ${this.#key}` };
    let response;
    try {
      response = await fetch(path, { method, body, headers, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ProblemError(0, { detail: "The service cannot be reached. Is it running, and is the network up?" });
    }
    if (!response.ok) {
      let problem = {};
      try {
        problem = await response.json();
      } catch { /* a proxy answered with a page of its own */ }
      throw new ProblemError(response.status, problem, Number(response.headers.get("Retry-After")) || 2);
    }
    return response;
  }

  async json(path, options) {
    return (await this.send(path, options)).json();
  }

  async bytes(path, options) {
    return new Uint8Array(await (await this.send(path, options)).arrayBuffer());
  }

  post(path, value, headers = {}) {
    return this.json(path, {
      method: "POST",
      body: JSON.stringify(value),
      headers: { "Content-Type": "application/json", ...headers },
    });
  }

  /** Yield the status of a forecast at every change until it has finished. Reconnects. */
  async *follow(id, signal) {
    let last = "";
    for (let failures = 0; ; ) {
      try {
        const headers = last ? { "Last-Event-ID": last } : {};
        const response = await this.send(`v1/forecasts/${id}/events`, { headers, signal });
        for await (const event of serverSentEvents(response.body)) {
          failures = 0;
          if (event.id) last = event.id;
          const status = JSON.parse(event.data);
          yield status;
          if (!["accepted", "running"].includes(status.state)) return;
        }
      } catch (error) {
        if (error.name === "AbortError" || [401, 403, 404, 410].includes(error.status)) throw error;
        if (++failures > 20) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** failures, 10_000)));
      if (signal?.aborted) return;
    }
  }
}

/** Yield the events of a stream of server-sent events, as {event, id, data}. */
export async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value.replaceAll("\r\n", "\n");
      for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
        const event = { data: "" };
        for (const line of buffer.slice(0, end).split("\n")) {
          const colon = line.indexOf(":");
          if (colon <= 0) continue; // a comment keeps the connection open
          const name = line.slice(0, colon);
          const text = line.slice(colon + 1).replace(/^ /, "");
          event[name] = name === "data" && event.data ? `${event.data}\n${text}` : text;
        }
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
