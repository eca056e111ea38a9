// Draws [data-chart] canvases with the admin's own chart.js, in the colours of the theme; follows live data.
(function () {
  "use strict";

  const drawn = new Map();

  function color(name, fallback) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || fallback;
  }

  function data() {
    const source = document.querySelector("[data-series]");
    return source ? JSON.parse(source.dataset.series) : null;
  }

  function palette() {
    const dark = document.documentElement.classList.contains("dark");
    return {
      bars: [1, 2, 3, 4, 5, 6, 7].map((number) => color("--sk-chart-" + number, "#ea580c")),
      grid: dark ? "rgba(148,163,184,.16)" : "rgba(100,116,139,.16)",
      text: dark ? "#9ca3af" : "#6b7280",
    };
  }

  const UNITS = {
    ms: (value) => (value >= 1000 ? (value / 1000).toFixed(1) + " s" : Math.round(value) + " ms"),
    money: (value) => Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value),
  };

  function words(canvas, value) {
    const unit = UNITS[canvas.dataset.unit];
    if (unit) return unit(value);
    const suffix = canvas.dataset.unit ? " " + canvas.dataset.unit : "";
    return Intl.NumberFormat("en", { notation: "compact" }).format(value) + suffix;
  }

  function draw() {
    const series = data();
    if (!series || !window.Chart) return;
    const colors = palette();
    document.querySelectorAll("canvas[data-chart]").forEach((canvas) => {
      const sets = (series[canvas.dataset.chart] || []).map((one, index) => ({
        ...one, backgroundColor: colors.bars[index % colors.bars.length], borderRadius: 3, maxBarThickness: 26,
        borderColor: colors.bars[index % colors.bars.length], pointRadius: canvas.dataset.points ? 3 : 0, borderWidth: canvas.dataset.kind === "line" ? 2 : 0, tension: 0.3,
      }));
      const known = drawn.get(canvas);
      if (known && known.canvas && known.canvas.isConnected) {
        known.data.labels = series.labels;
        known.data.datasets = sets;
        known.options.plugins.legend.display = sets.length > 1;
        known.update("none");
        return;
      }
      if (known) known.destroy();
      drawn.set(canvas, new window.Chart(canvas, {
        type: canvas.dataset.kind || "bar",
        data: { labels: series.labels, datasets: sets },
        options: {
          responsive: true, maintainAspectRatio: false, animation: false,
          interaction: { mode: "index", intersect: false },
          plugins: {
            tooltip: { callbacks: { label: (item) => item.dataset.label + ": " + words(canvas, item.parsed.y) } },
            legend: { display: sets.length > 1, position: "bottom", labels: { boxWidth: 10, boxHeight: 10, color: colors.text } },
          },
          scales: {
            x: { stacked: canvas.dataset.kind !== "line", grid: { display: false }, ticks: { color: colors.text, maxRotation: 0, autoSkip: true, maxTicksLimit: 8 } },
            y: { stacked: canvas.dataset.kind !== "line", beginAtZero: true, grid: { color: colors.grid }, border: { display: false },
                 max: canvas.dataset.max ? Number(canvas.dataset.max) : undefined,
                 ticks: { color: colors.text, precision: canvas.dataset.unit === "money" ? undefined : 0, maxTicksLimit: 5, callback: (value) => words(canvas, value) } },
          },
        },
      }));
    });
  }

  function redraw() {
    drawn.forEach((chart) => chart.destroy());
    drawn.clear();
    draw();
  }

  window.addEventListener("load", () => {
    draw();
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["class"] });
    document.addEventListener("live:swapped", draw);
  });
})();
