// Shows one panel of a [data-tabs] at a time. Arrow keys, Home and End move, as in the ARIA tabs pattern.
// Without this script all panels are shown.
(function () {
  "use strict";

  const MOVES = { ArrowRight: 1, ArrowLeft: -1 };

  function start(box) {
    const tabs = Array.from(box.querySelectorAll("[role=tab]"));

    function choose(wanted, focus) {
      tabs.forEach((tab) => {
        const chosen = tab === wanted;
        tab.setAttribute("aria-selected", String(chosen));
        tab.tabIndex = chosen ? 0 : -1;
        document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
      });
      if (focus) wanted.focus();
    }

    tabs.forEach((tab, index) => {
      tab.addEventListener("click", () => choose(tab, false));
      tab.addEventListener("keydown", (event) => {
        let next = null;
        if (event.key in MOVES) next = (index + MOVES[event.key] + tabs.length) % tabs.length;
        if (event.key === "Home") next = 0;
        if (event.key === "End") next = tabs.length - 1;
        if (next === null) return;
        event.preventDefault();
        choose(tabs[next], true);
      });
    });
    if (tabs.length) choose(tabs[0], false);
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-tabs]").forEach(start));
})();
