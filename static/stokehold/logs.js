// Follows the log of an instance: asks each two seconds while the page is seen, and stays at the end unless scrolled up.
(function () {
  "use strict";

  const EVERY_MS = 2000;

  document.addEventListener("DOMContentLoaded", () => {
    const box = document.getElementById("log-tail");
    if (!box) return;
    const status = document.getElementById("log-status");
    const follow = document.getElementById("log-follow");
    let wanted = "";
    let busy = false;

    function chosen() {
      const picked = document.querySelector("#log-targets [aria-pressed='true']") || document.querySelector("#log-targets button");
      return picked ? picked.dataset.instance : "";
    }

    function mark() {
      const buttons = Array.from(document.querySelectorAll("#log-targets button"));
      if (!buttons.some((one) => one.dataset.instance === wanted)) wanted = buttons.length ? buttons[0].dataset.instance : "";
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.instance === wanted)));
    }

    async function read() {
      mark();
      if (busy || document.hidden || !follow.checked || !wanted) {
        if (!wanted) status.textContent = "No instance has a log now.";
        return;
      }
      busy = true;
      const asked = wanted;
      try {
        const response = await fetch(box.dataset.url.replace("INSTANCE", asked), { credentials: "same-origin" });
        const answer = await response.json();
        if (asked !== wanted) return;
        const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
        const text = answer.lines.join("\n");
        if (!answer.error && box.textContent !== text) {
          box.textContent = text;
          if (atEnd) box.scrollTop = box.scrollHeight;
        }
        status.textContent = answer.error || (answer.lines.length ? answer.lines.length + " lines" : "The log is empty so far.");
      } catch {
        status.textContent = "The log could not be read; trying again.";
      } finally {
        busy = false;
      }
    }

    document.addEventListener("click", (event) => {
      const button = event.target.closest("#log-targets button");
      if (!button) return;
      wanted = button.dataset.instance;
      box.textContent = "";
      read();
    });
    wanted = chosen();
    read();
    setInterval(read, EVERY_MS);
  });
})();
