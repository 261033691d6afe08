"use strict";

// Plots: specifications for Vega-Lite, made from the content of the page, and drawing them.

const SHAPES = { subnet: "circle", "whole network": "square", "stock model": "triangle-up" };
const MOST_NAMED_CLASSES = 30; // whose names fit along the sides of a matrix
const views = new Map(); // id of an element -> its view

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function palette() {
  return ["--accent", "--warm", "--third", "--fourth", "--fifth"].map(colour);
}

function config() {
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map(colour);
  const words = { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 13 };
  return {
    background: "transparent",
    font: "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    axis: { ...words, titleFontWeight: "normal", gridColor: line, domainColor: soft, tickColor: soft },
    legend: { ...words, orient: "bottom", titleFontWeight: "normal" },
    view: { stroke: null },
  };
}

// Draws a specification into an element; the one that was there before is taken away.
async function draw(id, spec, onClick) {
  const element = document.getElementById(id);
  const options = {
    actions: false, ast: true, defaultStyle: false, renderer: "svg", mode: "vega-lite",
    tooltip: showTip, config: config(),
  };
  const before = views.get(id);
  const token = Symbol(id);
  views.set(id, { token });
  if (before && before.result) before.result.finalize();
  const description = element.getAttribute("aria-label");
  const full = { width: "container", autosize: { type: "fit-x", contains: "padding" }, description, ...spec };
  // A copy, because Vega notes its own keys in the data.
  const result = await vegaEmbed(element, structuredClone(full), options);
  if (!views.get(id) || views.get(id).token !== token) return result.finalize(); // drawn again since
  views.set(id, { token, result });
  // The element around a plot says what it shows, and a table has the numbers.
  element.setAttribute("role", "img");
  element.removeAttribute("aria-roledescription");
  element.querySelector("svg").setAttribute("aria-hidden", "true");
  if (onClick) result.view.addEventListener("click", (event, item) => item && item.datum && onClick(item.datum));
}

// What the pointer is on, as text: nothing in it is markup.
function showTip(handler, event, item, value) {
  const tip = document.getElementById("tip");
  tip.hidden = !value;
  if (!value) return;
  tip.textContent = typeof value === "string" ? value : Object.entries(value).map(([name, one]) => `${name}: ${one}`).join("\n");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  const above = event.clientY - tip.offsetHeight - 14;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 18}px`;
}

// The networks that are no worse, on the split, than all that cost less: a line joins them.
function frontierOf(points) {
  let best = -Infinity;
  const ordered = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  return ordered.filter((point) => point.y > best && ((best = point.y), true));
}

function frontierSpec(points, runs, axis, split, isLogarithmic, limit) {
  const colours = palette();
  const domain = runs.map((run) => run.name);
  const range = domain.map((_, place) => colours[place % colours.length]);
  const hue = {
    field: "run", type: "nominal", scale: { domain, range }, title: null,
    legend: domain.length > 1 ? { labelLimit: 260, columns: 2 } : null,
  };
  const kinds = [...new Set(points.map((point) => point.kind))];
  const shape = {
    field: "kind", type: "nominal", title: null, scale: { domain: kinds, range: kinds.map((kind) => SHAPES[kind]) },
    legend: kinds.length > 1 ? { symbolFillColor: colour("--soft"), symbolStrokeColor: colour("--soft") } : null,
  };
  const scale = { ...(isLogarithmic ? { type: "log", nice: false } : { type: "linear", zero: false, nice: true }), padding: 18 };
  const x = { field: "x", type: "quantitative", title: axis.title, scale, axis: { labelOverlap: true, grid: false, tickCount: 6 } };
  const y = { field: "y", type: "quantitative", title: `${split} top-1, %`, scale: { zero: false, nice: true } };
  const faint = { condition: { test: "datum.fits", value: 1 }, value: 0.35 };
  const tooltip = { field: "hover", type: "nominal" };
  const lines = runs.flatMap((run) => frontierOf(points.filter((point) => point.run === run.name && point.kind === "subnet")));
  const layer = [
    { data: { values: lines }, mark: { type: "line", strokeWidth: 1.5, opacity: 0.6, interpolate: "step-after" }, encoding: { x, y, color: hue } },
    {
      mark: { type: "rule", strokeWidth: 1.5 },
      encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: hue, opacity: { ...faint, condition: { test: "datum.fits", value: 0.5 } }, tooltip },
    },
    {
      mark: { type: "point", filled: true, size: 110, cursor: "pointer" },
      encoding: { x, y, color: hue, shape, opacity: faint, tooltip },
    },
    {
      mark: {
        type: "text", dy: -11, fontSize: 12, fill: colour("--ink"),
        align: { expr: "datum.isRight ? 'right' : 'left'" }, dx: { expr: "datum.isRight ? -12 : 12" },
      },
      transform: [{ filter: "datum.label != ''" }],
      encoding: { x, y, text: { field: "label", type: "nominal" } },
    },
  ];
  const ring = { type: "point", size: 420, strokeWidth: 3, filled: false, stroke: colour("--ink") };
  const chosen = points.filter((point) => point.chosen);
  if (chosen.length) layer.splice(2, 0, { data: { values: chosen }, mark: ring, encoding: { x, y } });
  if (limit !== null) {
    layer.unshift({ data: { values: [{ x: limit }] }, mark: { type: "rule", strokeDash: [5, 4], color: colour("--soft") }, encoding: { x } });
  }
  return { data: { values: points }, height: 330, layer, resolve: { scale: { color: "shared" } } };
}

function seriesSpec(rows, title, { lines = null, zero = false } = {}) {
  const encoding = {
    x: { field: "epoch", type: "quantitative", title: "epoch", axis: { tickMinStep: 1, grid: false, format: "d" }, scale: { zero: false, nice: false } },
    y: { field: "value", type: "quantitative", title, scale: { zero } },
    tooltip: { field: "hover", type: "nominal" },
  };
  if (lines) {
    const hues = lines.map((_, place) => `rgba(${colour("--heat")}, ${0.35 + (0.65 * (place + 1)) / lines.length})`);
    encoding.color = {
      field: "line", type: "nominal", title: "subnet", scale: { domain: lines, range: hues },
      legend: lines.length <= 12 ? { columns: 6 } : null,
    };
    encoding.strokeDash = { field: "weights", type: "nominal", legend: null, scale: { domain: ["trained", "ema"], range: [[1, 0], [3, 3]] } };
  }
  const mark = { type: "line", strokeWidth: 2, point: rows.length < 60 ? { size: 30 } : false };
  return { data: { values: rows }, height: 210, mark: lines ? mark : { ...mark, color: colour("--accent"), point: mark.point && { ...mark.point, color: colour("--accent") } }, encoding };
}

function confusionSpec(cells, names) {
  const isNamed = names.length <= MOST_NAMED_CLASSES;
  const axis = (title) => ({
    type: "nominal", title, sort: null, scale: { domain: names.map((_, place) => place), paddingInner: names.length > 40 ? 0 : 0.04 },
    axis: isNamed ? { labelExpr: "data('names')[datum.value].name", labelLimit: 110, grid: false, ticks: false, domain: false } : { labels: false, ticks: false, grid: false, domain: false },
  });
  const rgb = colour("--heat");
  return {
    datasets: { names: names.map((name) => ({ name })) },
    layer: [
      { data: { name: "names" }, mark: { type: "point", opacity: 0 } }, // makes the names known to the axes
      {
        data: { values: cells }, mark: { type: "rect", stroke: null },
        encoding: {
          x: { field: "predicted", ...axis("predicted class"), axis: { ...axis("").axis, labelAngle: -60 } },
          y: { field: "label", ...axis("class") },
          color: { field: "share", type: "quantitative", legend: null, scale: { domain: [0, 1], range: [`rgba(${rgb}, 0.06)`, `rgba(${rgb}, 1)`] } },
          tooltip: { field: "hover", type: "nominal" },
        },
      },
    ],
    height: Math.max(180, Math.min(480, 34 * names.length)),
  };
}
