// Keeps the sum of the files that are chosen on the page of a repository, and chooses a quantization as a whole.
// Without this script the boxes work all the same.
(function () {
  "use strict";

  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

  function inWords(bytes) {
    let unit = 0;
    while (bytes >= 1024 && unit < UNITS.length - 1) {
      bytes /= 1024;
      unit += 1;
    }
    return `${unit === 0 ? bytes : bytes.toFixed(1)} ${UNITS[unit]}`;
  }

  function start(form) {
    const boxes = Array.from(form.querySelectorAll("input[name=files]"));
    const total = form.querySelector("[data-hub-total]");
    const unseen = Number(form.dataset.hubFiles); // taken too, of files that are not listed
    const variants = Array.from(form.querySelectorAll("[data-hub-variant]"));

    function tell() {
      const chosen = boxes.filter((box) => box.checked);
      total.textContent = inWords(chosen.reduce((sum, box) => sum + Number(box.dataset.size), unseen));
    }

    variants.forEach((button) => {
      button.addEventListener("click", () => {
        const mine = new Set(button.dataset.hubVariant.split(","));
        const all = new Set(variants.flatMap((one) => one.dataset.hubVariant.split(",")));
        boxes.forEach((box) => {
          if (all.has(box.value)) box.checked = mine.has(box.value);
        });
        tell();
      });
    });
    form.addEventListener("change", tell);
    tell();
  }

  document.querySelectorAll("[data-hub-files]").forEach(start);
})();
