// Reads the answer to a request of the playground as it comes. No page in here: bytes in, calls out.
(function () {
  "use strict";

  // Calls on.answer({status, headers}), on.chunk(data), on.body(text), on.failure({code, message, remedy, status}).
  // Resolves when the stream is at its end: true when it ended as it should, false when it broke off.
  async function ask(url, token, payload, signal, on) {
    const response = await fetch(url, {
      method: "POST",
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", "X-CSRFToken": token },
      body: JSON.stringify(payload),
      signal,
    });
    if (!response.ok || !response.body) {
      on.failure(await problemOf(response));
      return true;
    }
    let whole = false;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      text += done ? "\n\n" : value;
      text = text.replace(/\r\n/g, "\n");
      let end = text.indexOf("\n\n");
      while (end >= 0) {
        whole = take(text.slice(0, end), on) || whole;
        text = text.slice(end + 2);
        end = text.indexOf("\n\n");
      }
      if (done) return whole;
    }
  }

  // One event (WHATWG, server-sent events); true when nothing needs to follow it.
  function take(block, on) {
    let name = "";
    const lines = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      if (line.startsWith("data:")) lines.push(line.slice(5).replace(/^ /, ""));
    }
    if (!lines.length) return false;
    const data = lines.join("\n");
    if (data === "[DONE]") return true;
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      on.failure({ code: "unreadable", message: "The engine sent something that is no JSON.", remedy: "Look at the log of its instance." });
      return false;
    }
    if (name === "answer") { on.answer(value); return false; }
    if (name === "body") { on.body(value); return true; }
    if (name === "failure") { on.failure(value); return true; }
    if (value.error) { on.failure(value.error); return true; }
    on.chunk(value);
    return false;
  }

  async function problemOf(response) {
    try {
      return { status: response.status, ...(await response.json()) };
    } catch {
      const remedy = response.status === 403 ? "Reload the page: your session may have ended." : "Look at the log of the master.";
      return { status: response.status, code: "http_" + response.status, message: "The master refused the request.", remedy };
    }
  }

  window.playgroundStream = { ask, take };
})();
