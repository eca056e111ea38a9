// The playground: a conversation with a model, what it took, and the request as code. All of it lives in this page only.
(function () {
  "use strict";

  const NOTHING = "–";
  const byId = (id) => document.getElementById(id);

  let messages = []; // as OpenAI's API has them
  let running = null; // AbortController of the request that is on its way

  // ---------------------------------------------------------------------------------------- what is asked

  function number(id) {
    const text = byId(id).value.trim();
    return text === "" || Number.isNaN(Number(text)) ? undefined : Number(text);
  }

  function parsed(id, label) {
    const text = byId(id).value.trim();
    byId(id).closest(".sk-field").classList.remove("sk-wrong");
    if (!text) return undefined;
    try {
      return JSON.parse(text);
    } catch (error) {
      byId(id).closest(".sk-field").classList.add("sk-wrong");
      byId("play-more").open = true;
      throw new Error(label + " is not valid JSON: " + error.message);
    }
  }

  // Raises an Error with words for the person.
  function bodyOf(turns) {
    const body = { model: byId("play-model").value, messages: turns };
    const system = byId("play-system").value.trim();
    if (system) body.messages = [{ role: "system", content: system }, ...turns];
    const optional = {
      temperature: number("play-temperature"), max_tokens: number("play-max"), top_p: number("play-top-p"),
    };
    for (const [name, value] of Object.entries(optional)) if (value !== undefined) body[name] = value;
    const stops = byId("play-stop-words").value.split("\n").filter((line) => line !== "");
    if (stops.length) body.stop = stops;
    const schema = parsed("play-schema", "The JSON schema");
    if (schema !== undefined) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
    const tools = parsed("play-tools", "The list of tools");
    if (tools !== undefined) body.tools = tools;
    if (byId("play-stream").checked) {
      body.stream = true;
      body.stream_options = { include_usage: true };
    }
    return body;
  }

  function showCode() {
    let body;
    try {
      const typed = byId("play-text").value.trim();
      const answered = messages.at(-1)?.role === "assistant"; // then what was sent last is shown, until more is typed
      if (typed) body = bodyOf([...messages, { role: "user", content: typed }]);
      else if (messages.length) body = bodyOf(answered ? messages.slice(0, -1) : messages);
      else body = bodyOf([{ role: "user", content: "Say hi" }]);
    } catch {
      return; // said when it is sent
    }
    const base = byId("playground").dataset.baseUrl;
    for (const [name, write] of Object.entries(window.playgroundCode)) byId("play-" + name).textContent = write(base, body);
  }

  // ---------------------------------------------------------------------------------------- what is seen

  function made(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function addMessage(role) {
    byId("play-empty").hidden = true;
    const box = made("article", "sk-play-message");
    box.dataset.role = role;
    box.dataset.test = "play-" + role;
    const head = made("header");
    head.append(made("span", "", { user: "You", assistant: byId("play-model").value, tool: "Result of the tool" }[role]));
    const thought = made("details", "sk-play-thought");
    thought.append(made("summary", "", "Thinking"), made("div"));
    thought.hidden = true;
    box.append(head, thought, made("div", "sk-play-said"));
    byId("play-log").append(box);
    toEnd();
    return box;
  }

  function toEnd() {
    const log = byId("play-log");
    log.scrollTop = log.scrollHeight;
  }

  function fill(box, message) {
    const log = byId("play-log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    box.querySelector(".sk-play-said").textContent = message.content || "";
    const thought = box.querySelector(".sk-play-thought");
    thought.hidden = !message.thought;
    thought.lastChild.textContent = message.thought || "";
    box.querySelectorAll(".sk-play-call").forEach((call) => call.remove());
    for (const call of message.calls || []) {
      box.append(made("div", "sk-play-call", call.function.name + "(" + call.function.arguments + ")"));
    }
    if (atEnd) toEnd();
  }

  function fact(name, text) {
    byId("fact-" + name).textContent = text === undefined || text === null || text === "" ? NOTHING : String(text);
  }

  function span(milliseconds) {
    return milliseconds >= 1000 ? (milliseconds / 1000).toFixed(2) + " s" : Math.round(milliseconds) + " ms";
  }

  function showError(problem) {
    const box = byId("play-error");
    const wait = problem.retryAfter ? " Try again in " + problem.retryAfter + " s." : "";
    const what = [problem.status, problem.code].filter(Boolean).join(" ");
    box.textContent = (what ? what + ": " : "") + [problem.message, problem.remedy].filter(Boolean).join(" ") + wait;
    box.hidden = false;
  }

  function busy(now) {
    byId("play-send").disabled = now;
    byId("play-stop").hidden = !now;
    byId("play-again").disabled = now || !messages.some((one) => one.role === "user");
    byId("play-clear").disabled = now || !messages.length;
    const called = pendingCalls();
    byId("play-text-label").textContent = called.length ? "Result of the tool " + called[0].function.name : "Your message";
  }

  // ---------------------------------------------------------------------------------------- one answer

  function newAnswer() {
    return { content: "", thought: "", calls: [], finish: "", usage: null, firstAt: 0, head: null, problem: null };
  }

  function takeDelta(answer, delta) {
    const thought = delta.reasoning_content || delta.reasoning;
    if (typeof delta.content === "string") answer.content += delta.content;
    if (typeof thought === "string") answer.thought += thought;
    for (const part of delta.tool_calls || []) {
      const call = (answer.calls[part.index ?? answer.calls.length] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
      if (part.id) call.id = part.id;
      call.function.name += part.function?.name || "";
      call.function.arguments += part.function?.arguments || "";
    }
    if (!answer.firstAt && (answer.content || answer.thought || answer.calls.length)) answer.firstAt = performance.now();
  }

  function takeWhole(answer, text) {
    let data;
    try {
      data = JSON.parse(text);
    } catch {
      data = { error: { code: "unreadable", message: text.slice(0, 500) || "The answer is empty." } };
    }
    if (data.error) { answer.problem = data.error; return; }
    const choice = data.choices?.[0] || {};
    takeDelta(answer, choice.message || {});
    answer.finish = choice.finish_reason;
    answer.usage = data.usage;
  }

  function showFacts(answer, startedAt, endedAt, streamed) {
    const usage = answer.usage || {};
    const speaking = endedAt - answer.firstAt;
    const tokens = usage.completion_tokens;
    fact("ttft", streamed && answer.firstAt ? span(answer.firstAt - startedAt) : "");
    const perSecond = streamed && tokens > 1 && speaking > 0 ? (tokens - 1) / (speaking / 1000) : tokens / ((endedAt - startedAt) / 1000);
    fact("speed", tokens ? perSecond.toFixed(1) + " tokens/s" : "");
    fact("took", span(endedAt - startedAt));
    fact("prompt", usage.prompt_tokens);
    fact("cached", usage.prompt_tokens_details?.cached_tokens);
    fact("completion", tokens);
    fact("total", usage.total_tokens);
    fact("finish", answer.finish);
  }

  // From the cookie: signing in again in another tab gives a new one.
  function token() {
    const name = byId("playground").dataset.csrfCookie + "=";
    const cookie = document.cookie.split("; ").find((one) => one.startsWith(name));
    return cookie ? decodeURIComponent(cookie.slice(name.length)) : document.querySelector("#playground [name=csrfmiddlewaretoken]").value;
  }

  async function ask() {
    let body;
    try {
      body = bodyOf(messages);
    } catch (error) {
      showError({ message: error.message });
      return false;
    }
    byId("play-error").hidden = true;
    for (const name of ["ttft", "speed", "took", "prompt", "cached", "completion", "total", "finish", "request"]) fact(name, "");
    fact("status", "waiting…");
    running = new AbortController();
    busy(true);
    const box = addMessage("assistant");
    box.setAttribute("aria-busy", "true");
    const answer = newAnswer();
    const startedAt = performance.now();
    let ended = "";
    try {
      const whole = await window.playgroundStream.ask(
        byId("playground").dataset.ask, token(),
        { project: byId("play-project").value, body }, running.signal, handlers(answer, box),
      );
      if (!whole && !answer.problem) answer.problem = { code: "broken_off", message: "The answer broke off.", remedy: "Ask again." };
    } catch (error) {
      if (error.name === "AbortError") ended = "stopped";
      else answer.problem = { code: "master_away", message: "The master does not answer.", remedy: "Check the network, then ask again." };
    }
    finish(answer, box, startedAt, body, ended);
    return true;
  }

  function handlers(answer, box) {
    let waiting = false;
    function fillSoon() { // at most once a frame: an answer may come faster than a page is drawn
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; fill(box, answer); });
    }
    return {
      answer: (head) => {
        answer.head = head;
        fact("status", head.status < 400 ? "answering…" : head.status);
        fact("request", head.headers["x-request-id"]);
      },
      chunk: (data) => {
        const choice = data.choices?.[0];
        if (choice) {
          takeDelta(answer, choice.delta || {});
          if (choice.finish_reason) answer.finish = choice.finish_reason;
          fillSoon();
        }
        if (data.usage) answer.usage = data.usage;
      },
      body: (text) => { takeWhole(answer, text); fill(box, answer); },
      failure: (problem) => { // the first says why, and what comes after follows from it; half an event says nothing
        if (!answer.problem || answer.problem.code === "unreadable") answer.problem = problem;
      },
    };
  }

  function finish(answer, box, startedAt, body, ended) {
    running = null;
    box.removeAttribute("aria-busy");
    fill(box, answer);
    showFacts(answer, startedAt, performance.now(), Boolean(body.stream));
    const given = answer.head?.status;
    const status = answer.problem && !(given >= 400) ? answer.problem.status : given; // a stream that fails began with 200
    const said = answer.content || answer.calls.length;
    if (said) {
      const message = { role: "assistant", content: answer.content || null };
      if (answer.calls.length) message.tool_calls = answer.calls.filter(Boolean);
      messages.push(message);
    } else {
      box.remove();
    }
    fact("status", ended || (answer.problem ? (status || "") + " failed" : status + " complete"));
    if (answer.problem) showError({ retryAfter: answer.head?.headers["retry-after"], ...answer.problem, status });
    const warning = answer.head?.headers["x-stokehold-quota-warning"];
    if (warning && !answer.problem) showError({ code: "quota", message: "Close to a limit: " + warning });
    busy(false);
    showCode();
  }

  // ---------------------------------------------------------------------------------------- the conversation

  function pendingCalls() {
    const at = messages.findLastIndex((one) => one.role === "assistant" && one.tool_calls);
    if (at < 0) return [];
    const answered = new Set(messages.slice(at + 1).map((one) => one.tool_call_id));
    return messages.slice(at + 1).every((one) => one.role === "tool") ? messages[at].tool_calls.filter((call) => !answered.has(call.id)) : [];
  }

  async function send() {
    const field = byId("play-text");
    const text = field.value.trim();
    if (running || !text) return;
    const [call] = pendingCalls();
    const message = call ? { role: "tool", tool_call_id: call.id, content: text } : { role: "user", content: text };
    messages.push(message);
    const box = addMessage(message.role);
    fill(box, message);
    field.value = "";
    if (pendingCalls().length) { busy(false); showCode(); return; } // every call wants its result first
    if (!(await ask())) { // nothing was sent: the words go back to where they can be changed
      messages.pop();
      box.remove();
      field.value = text;
      busy(false);
    }
    field.focus();
  }

  // Forgets what came after the last question, and asks it anew.
  function again() {
    const at = messages.findLastIndex((one) => one.role === "user");
    if (running || at < 0) return;
    const shown = byId("play-log").querySelectorAll(".sk-play-message");
    messages = messages.slice(0, at + 1);
    Array.from(shown).slice(at + 1).forEach((box) => box.remove());
    ask();
  }

  function clear() {
    messages = [];
    byId("play-log").querySelectorAll(".sk-play-message").forEach((box) => box.remove());
    byId("play-empty").hidden = false;
    byId("play-error").hidden = true;
    busy(false);
    showCode();
    byId("play-text").focus();
  }

  function stop() {
    if (running) running.abort();
  }

  function tellModel() {
    const chosen = byId("play-model").selectedOptions[0];
    byId("play-model-help").textContent = chosen && chosen.dataset.ready === undefined ? chosen.dataset.reason || "Nothing serves it now." : "";
  }

  document.addEventListener("DOMContentLoaded", () => {
    const root = byId("playground");
    if (!root) return;
    byId("play-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
    byId("play-text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    });
    root.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
    byId("play-stop").addEventListener("click", stop);
    byId("play-again").addEventListener("click", again);
    byId("play-clear").addEventListener("click", clear);
    root.addEventListener("input", () => { tellModel(); showCode(); });
    const wanted = new URLSearchParams(location.search).get("model");
    const options = Array.from(byId("play-model").options);
    const first = options.find((one) => one.value === wanted) || options.find((one) => one.dataset.ready !== undefined);
    if (first) first.selected = true;
    tellModel();
    showCode();
    busy(false);
  });
})();
