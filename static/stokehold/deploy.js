// The deploy form: asks for the preview and, after another engine or model, for the matching fields.
(function () {
  "use strict";

  let timer = null;
  let asking = null;

  async function ask(form, withFields) {
    if (asking) asking.abort();
    asking = new AbortController();
    const box = document.getElementById("deploy-preview");
    box.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(form.dataset.preview, {
        method: "POST", body: new FormData(form), credentials: "same-origin", signal: asking.signal,
        headers: { "X-CSRFToken": form.elements.csrfmiddlewaretoken.value, "X-Part": withFields ? "fields" : "preview" },
      });
      if (!response.ok) throw new Error(String(response.status));
      const answer = await response.json();
      box.innerHTML = answer.preview;
      if (withFields && answer.fields) document.getElementById("deploy-fields").innerHTML = answer.fields;
    } catch (error) {
      if (error.name !== "AbortError") box.textContent = "The preview could not be made. Change a field to try again.";
      return;
    } finally {
      box.removeAttribute("aria-busy");
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    const form = document.getElementById("deploy-form");
    if (!form) return;
    const later = (withFields, pause) => {
      clearTimeout(timer);
      timer = setTimeout(() => ask(form, withFields), pause);
    };
    form.addEventListener("input", () => later(false, 300));
    form.addEventListener("change", (event) => later(event.target.name === "engine", 50));
    later(false, 0);
  });
})();
