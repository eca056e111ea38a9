// Keeps pages fresh: swaps [data-live="slot"] with what the server sends, and keeps focus, scroll and open details.
// Also: copy buttons, confirm-free folding of phone lists, relative times.
(function () {
  "use strict";

  const BACK_OFF_MS = [500, 1000, 2000, 4000, 5000];
  const FINAL = new Set([4401, 4403, 4404]);
  let attempt = 0;
  let socket = null;
  let listDigest = null;
  let timer = null;

  function note(text) {
    let box = document.getElementById("sk-connection");
    if (!box) {
      box = document.createElement("div");
      box.id = "sk-connection";
      box.className = "sk-connection";
      box.setAttribute("role", "status");
      box.setAttribute("aria-live", "polite");
      document.body.appendChild(box);
    }
    if (box.textContent !== text) box.textContent = text;
    box.hidden = !text;
    document.documentElement.dataset.liveState = text ? "down" : "up";
  }

  function slots() {
    return Array.from(document.querySelectorAll("[data-live]"), (element) => element.dataset.live);
  }

  function keyOf(element) {
    return element.id || element.dataset.key || element.getAttribute("href") || element.getAttribute("name") || "";
  }

  function remember(slot) {
    const active = document.activeElement;
    const inside = active && active !== document.body && slot.contains(active);
    return {
      focus: inside ? keyOf(active) : "",
      open: new Set(Array.from(slot.querySelectorAll("details[open]"), keyOf).filter(Boolean)),
      scrolls: Array.from(slot.querySelectorAll("[data-keep-scroll]"), (box) => [keyOf(box), box.scrollTop, box.scrollLeft]),
    };
  }

  function restore(slot, kept) {
    slot.querySelectorAll("details").forEach((element) => {
      if (kept.open.has(keyOf(element))) element.open = true;
    });
    kept.scrolls.forEach(([key, top, left]) => {
      const box = Array.from(slot.querySelectorAll("[data-keep-scroll]")).find((one) => keyOf(one) === key);
      if (box) { box.scrollTop = top; box.scrollLeft = left; }
    });
    if (kept.focus) {
      const again = Array.from(slot.querySelectorAll("a, button, summary, input, select, [tabindex]"))
        .find((one) => keyOf(one) === kept.focus);
      if (again) again.focus({ preventScroll: true });
    }
  }

  function selecting(slot) {
    const selection = window.getSelection();
    return selection && !selection.isCollapsed && slot.contains(selection.anchorNode);
  }

  function swap(name, html) {
    document.querySelectorAll('[data-live="' + CSS.escape(name) + '"]').forEach((slot) => {
      if (slot.dataset.last === html || selecting(slot)) return;
      const same = slot.innerHTML.trim() === html;
      slot.dataset.last = html;
      if (same) return;
      const kept = remember(slot);
      slot.innerHTML = html;
      restore(slot, kept);
      slot.dispatchEvent(new CustomEvent("live:swapped", { bubbles: true, detail: { slot: name } }));
    });
  }

  // Rows came or went: read the same address again, and take over the list only.
  async function readAgain() {
    const chosen = document.querySelector("#result_list .action-select:checked, #result_list input:focus");
    if (chosen) return;
    const response = await fetch(location.href, { credentials: "same-origin", headers: { "X-Live": "list" } });
    if (!response.ok || response.redirected) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    document.querySelectorAll("[data-live-region]").forEach((region) => {
      const fresh = page.querySelector('[data-live-region="' + region.dataset.liveRegion + '"]');
      if (!fresh) return;
      const kept = remember(region);
      region.innerHTML = fresh.innerHTML;
      restore(region, kept);
      region.dispatchEvent(new CustomEvent("live:swapped", { bubbles: true, detail: { slot: "list" } }));
    });
    const here = document.querySelector("#changelist-form");
    const there = page.querySelector("#changelist-form");
    if (here && there) {
      const kept = remember(here);
      here.replaceChildren(...there.childNodes);
      restore(here, kept);
    }
    announce();
  }

  function announce() {
    if (!socket || socket.readyState !== WebSocket.OPEN) return;
    const names = slots();
    if (document.querySelector("[data-live-list]")) names.push("list:digest");
    socket.send(JSON.stringify({ slots: names }));
  }

  function received(event) {
    const fragments = JSON.parse(event.data);
    for (const [name, html] of Object.entries(fragments)) {
      if (name === "list:digest") {
        const first = listDigest === null;
        const changed = listDigest !== html;
        listDigest = html;
        if (!first && changed) readAgain();
      } else {
        swap(name, html);
      }
    }
    document.documentElement.dataset.liveAt = String(Date.now());
  }

  function connect(topic) {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(scheme + "//" + location.host + "/ws/live?topic=" + encodeURIComponent(topic));
    socket.addEventListener("open", () => { attempt = 0; note(""); announce(); });
    socket.addEventListener("message", received);
    socket.addEventListener("close", (event) => {
      if (FINAL.has(event.code)) {
        note(event.code === 4401 ? "Signed out: sign in again to see live values." : "Not live: this page may not be followed.");
        return;
      }
      const pause = BACK_OFF_MS[Math.min(attempt, BACK_OFF_MS.length - 1)] * (0.5 + Math.random() / 2);
      attempt += 1;
      if (attempt > 1) note("Reconnecting… values may be old.");
      clearTimeout(timer);
      timer = setTimeout(() => connect(topic), pause);
    });
  }

  function words(seconds) {
    const steps = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    let left = Math.max(Math.floor(seconds), 0);
    const parts = [];
    for (const [size, unit] of steps) {
      if (left >= size) { parts.push(Math.floor(left / size) + " " + unit); left %= size; }
      else if (parts.length) break;
      if (parts.length === 2 || (parts.length && (unit === "min" || unit === "s"))) break;
    }
    return parts.join(" ") || "0 s";
  }

  function freshenTimes() {
    document.querySelectorAll("time[datetime]").forEach((element) => {
      const seconds = (Date.now() - Date.parse(element.dateTime)) / 1000;
      if (Number.isNaN(seconds)) return;
      const text = Math.abs(seconds) < 2 ? "just now" : seconds < 0 ? "in " + words(-seconds) : words(seconds) + " ago";
      if (element.textContent !== text) element.textContent = text;
    });
  }

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    if (!source) return;
    const text = source.value !== undefined && source.tagName !== "PRE" ? source.value : source.textContent;
    try {
      await navigator.clipboard.writeText(text.trim());
    } catch {
      const range = document.createRange();
      range.selectNodeContents(source);
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      document.execCommand("copy");
    }
    const before = button.dataset.label || button.textContent;
    button.dataset.label = before;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) { event.preventDefault(); copy(button); }
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit-on-change]")) event.target.form.requestSubmit();
  });

  document.addEventListener("DOMContentLoaded", () => {
    const root = document.querySelector("[data-live-topic]");
    listDigest = document.querySelector("[data-live-list]")?.dataset.liveList || null;
    if (root) connect(root.dataset.liveTopic);
    document.addEventListener("live:swapped", freshenTimes);
    setInterval(freshenTimes, 5000);
  });
})();
