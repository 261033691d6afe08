"use strict";

// The page: fills it from the content, and follows what the reader chooses. Names of classes and
// files are data, and only ever become text.

let content = JSON.parse(document.getElementById("content").textContent);
const state = { run: 0, limits: {}, unread: {}, picked: null, axis: null, isAxisPicked: false, split: null, part: 0, isLogarithmic: null };
const SECONDS_BETWEEN_LOOKS = 2;

const byId = (id) => document.getElementById(id);
const percent = (share) => (100 * share).toFixed(2);
const runNow = () => content.runs[state.run];
const axesOf = (run) => run.axes.map((name) => content.axes[name]);

function make(tag, properties = {}, ...children) {
  const { dataset, style, attributes, ...others } = properties;
  const element = Object.assign(document.createElement(tag), others);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  Object.assign(element.dataset, dataset);
  Object.assign(element.style, style);
  element.append(...children);
  return element;
}

function fill(id, ...children) {
  byId(id).replaceChildren(...children);
}

// A table. `columns`: [heading, is it words]; a row is a list of cells: texts or elements.
function table(columns, rows, { caption = null, mark = () => "" } = {}) {
  const head = columns.map(([text, isWord]) => make("th", { scope: "col", className: isWord ? "word" : "" }, text));
  const body = rows.map((row, place) =>
    make("tr", { className: mark(place) }, ...row.map((cell, column) =>
      make("td", { className: (columns[column][1] ? "word" : "") + (String(cell).length > 40 ? " long" : "") }, cell))));
  return make("table", {}, ...(caption ? [make("caption", {}, caption)] : []), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

function options(id, names, chosen) {
  fill(id, ...names.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
}

function terms(id, pairs) {
  fill(id, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

// --- the choice ----------------------------------------------------------------------------------

// Null if no subnet is within the limits, or if a limit cannot be read.
function chosenNumber() {
  if (state.picked !== null) return state.picked;
  return Object.keys(state.unread).length ? null : chooseSubnet(runNow(), state.limits);
}

function showLimits() {
  const run = runNow();
  fill("limits", ...axesOf(run).map((axis) => limitOf(run, axis)));
  const labels = axesOf(run).map((axis) => axis.label);
  const isTwice = ["predicted", "measured"].every((word) => labels.some((label) => label.startsWith(word)));
  byId("two-times").hidden = !isTwice;
}

// A slider over the costs of the subnets, and a field for any amount; the last step is no limit.
function limitOf(run, axis) {
  const known = run.subnets.map((subnet) => [subnet.amounts[axis.name], subnet.cells[axis.name], subnet.limits[axis.name]]);
  const steps = [...new Map(known.map((step) => [step[0], step])).values()].sort((a, b) => a[0] - b[0]);
  const id = `limit-${axis.name}`;
  const slider = make("input", { type: "range", id, min: 0, max: steps.length, step: 1, value: steps.length, attributes: { "aria-label": `${axis.label}, at most` } });
  const field = make("input", { type: "text", id: `${id}-field`, placeholder: `e.g. ${steps[0][2]}`, autocomplete: "off", spellcheck: false, attributes: { "aria-label": `${axis.label}, at most: an amount such as ${steps[0][2]}`, "aria-describedby": `${id}-problem` } });
  const problem = make("p", { className: "problem", id: `${id}-problem` });
  const show = () => {
    const limit = state.limits[axis.name];
    const below = limit ? steps.filter((step) => step[0] <= limit.amount).length : steps.length + 1;
    slider.value = Math.max(0, below - 1);
    slider.setAttribute("aria-valuetext", limit ? `at most ${limit.text}` : "no limit");
  };
  slider.addEventListener("input", () => {
    const step = steps[Number(slider.value)];
    field.value = step ? step[2] : "";
    setLimit(axis, step ? { amount: readAmount(step[2], axis), text: step[2] } : null);
    slider.setAttribute("aria-valuetext", step ? `at most ${step[1]}` : "no limit");
    problem.textContent = "";
    field.removeAttribute("aria-invalid");
  });
  field.addEventListener("input", () => {
    const text = field.value.trim();
    const amount = text === "" ? null : readAmount(text, axis);
    const isWrong = text !== "" && amount === null;
    const needsUnit = /[a-z]$/i.test(steps[0][2]) ? ", with its unit" : "";
    problem.textContent = isWrong ? `Write an amount such as ${steps[0][2]}${needsUnit}.` : "";
    field.setAttribute("aria-invalid", isWrong);
    setLimit(axis, amount === null ? null : { amount, text: text.replace(/\s+/g, "") }, isWrong ? text : null);
    show();
  });
  field.value = state.limits[axis.name]?.text ?? "";
  show();
  return make("fieldset", { className: "limit" }, make("legend", {}, `${axis.label}, at most`), make("div", {}, slider, field), problem);
}

// `unread`: a text that is no amount. Until it is mended, no subnet is chosen.
function setLimit(axis, limit, unread = null) {
  delete state.limits[axis.name];
  delete state.unread[axis.name];
  if (limit) state.limits[axis.name] = limit;
  if (unread !== null) state.unread[axis.name] = unread;
  if (limit && !state.isAxisPicked) showAxis(axis.name); // so that the plot has the line of the limit
  state.picked = null;
  showChoice();
}

function showAxis(name) {
  state.axis = name;
  byId("x-axis").value = name;
  guessScale();
}

function pick(number) {
  state.picked = number;
  showChoice();
}

function showChoice() {
  const run = runNow();
  const isReady = run.order.length > 0;
  byId("chooser").hidden = !isReady;
  byId("waiting").hidden = isReady;
  byId("waiting").textContent = isReady ? "" : run.waiting;
  const number = isReady ? chosenNumber() : null;
  byId("hand-over").hidden = number === null;
  const unread = Object.entries(state.unread);
  if (isReady && number === null && unread.length) {
    fill("choice",
      make("p", { className: "name" }, "No subnet is chosen"),
      ...unread.map(([name, text]) => make("p", {}, `“${text}” is no limit on ${content.axes[name].label}: write an amount as the field shows it.`)));
  } else if (isReady && number === null) {
    const reasons = reasonsAgainst(run, content.axes, state.limits);
    fill("choice",
      make("p", { className: "name" }, "No subnet is within these limits"),
      ...reasons.map((reason) => make("p", {}, reason)), make("p", {}, "Raise a limit, or search with a smaller budget."));
  } else if (number !== null) {
    const subnet = run.subnets[number];
    const costs = axesOf(run).map((axis) => `${axis.label}: ${subnet.cells[axis.name]}`).join("; ");
    const isTested = run.splits.includes("test");
    const results = run.splits.map((split) => {
      const use = split === "validation" ? ", by which it is chosen" : ", the accuracy to report";
      return `${split} top-1 ${percent(subnet.results[split].top1)} %, 95 % interval ${percent(subnet.results[split].low)} to ${percent(subnet.results[split].high)}${isTested ? use : ""}`;
    });
    const name = `Subnet ${number}${state.picked === null ? "" : ", picked by hand"}`;
    const isOutside = !withinLimits(subnet, state.limits);
    fill("choice",
      make("p", { className: "name" }, name), ...[...results, costs].map((line) => make("p", {}, line)),
      ...(isOutside ? [make("p", { className: "problem" }, "It is outside the limits.")] : []),
      ...(state.picked === null ? [] : [make("button", { type: "button", id: "unpick" }, "Take the best within the limits again")]));
    byId("unpick")?.addEventListener("click", () => pick(null));
    byId("command").textContent = commandFor(run, content.axes, state.limits, number, state.picked !== null);
    byId("copied").textContent = "";
  }
  showFrontier();
  showNetworks();
  showSubnet(number);
}

function inWords(result) {
  return `${percent(result.top1)} % (${percent(result.low)} to ${percent(result.high)})`;
}

async function copyCommand() {
  const code = byId("command");
  try {
    await navigator.clipboard.writeText(code.textContent);
    byId("copied").textContent = "Copied.";
  } catch { // a page that was opened from a file may not be allowed to
    getSelection().selectAllChildren(code);
    byId("copied").textContent = document.execCommand("copy") ? "Copied." : "The command is selected: copy it with the keyboard.";
  }
}

// --- networks ------------------------------------------------------------------------------------

// Every network of a run with its kind and name.
function networksOf(run) {
  const subnets = run.subnets.map((subnet) => ({ ...subnet, kind: "subnet", name: `subnet ${subnet.number}` }));
  return [...subnets, ...run.others];
}

function hoverOf(run, network) {
  const lines = [content.runs.length > 1 ? `${run.name}, ${network.name}` : network.name];
  for (const axis of axesOf(run)) if (axis.name in network.cells) lines.push(`${axis.label}: ${network.cells[axis.name]}`);
  for (const [split, result] of Object.entries(network.results)) {
    lines.push(`${split} top-1: ${inWords(result)}, loss ${result.loss.toFixed(3)}`);
  }
  if (network.budgets?.length) lines.push(`budget: ${network.budgets.join("; ")}`);
  if (network.summary) lines.push(network.summary);
  return lines.join("\n");
}

function showFrontier() {
  const axis = content.axes[state.axis];
  const number = runNow().order.length ? chosenNumber() : null;
  const points = content.runs.flatMap((run, place) => networksOf(run)
    .filter((network) => state.axis in network.amounts && state.split in network.results)
    .map((network) => {
      const result = network.results[state.split];
      const isHere = place === state.run;
      const isSubnet = network.kind === "subnet";
      return {
        x: network.amounts[state.axis] / axis.scale, y: 100 * result.top1, low: 100 * result.low, high: 100 * result.high,
        run: run.name, place, kind: network.kind, number: isSubnet ? network.number : -1,
        fits: !isHere || !isSubnet || withinLimits(network, state.limits), chosen: isHere && isSubnet && network.number === number,
        label: isSubnet && content.runs.length > 1 ? "" : isSubnet ? String(network.number) : network.name, hover: hoverOf(run, network),
      };
    }));
  byId("frontier").hidden = points.length === 0;
  if (points.length === 0) return;
  const [low, high] = [Math.min, Math.max].map((end) => end(...points.map((point) => point.x)));
  for (const point of points) point.isRight = point.label.length > 3 && point.x > (low + high) / 2; // towards the middle
  const limit = state.limits[state.axis];
  const chosen = number === null ? "" : ` Subnet ${number} is chosen.`;
  byId("frontier-plot").setAttribute("aria-label", `${state.split} accuracy of ${points.length} networks against ${axis.label}.${chosen} The table below has all numbers.`);
  byId("frontier-caption").textContent = "Bars are 95 % Wilson intervals. The line joins the subnets that no cheaper one beats on this split. Faint subnets are outside the limits; the ringed one is chosen. Click a point, or use the table, to pick another. Choose by validation: a test set that was used for choosing is no longer a test set.";
  draw("frontier-plot", frontierSpec(points, content.runs, axis, state.split, state.isLogarithmic, limit ? limit.amount / axis.scale : null), (datum) => {
    if (datum.number === undefined || datum.number < 0) return;
    if (datum.place !== state.run) chooseRun(datum.place);
    pick(datum.number);
  });
}

function showNetworks() {
  const run = runNow();
  const number = run.order.length ? chosenNumber() : null;
  const networks = networksOf(run);
  const columns = [["network", true], ...axesOf(run).map((axis) => [axis.label, false])];
  for (const split of run.splits) columns.push([`${split} top-1, %`, false], ["95 % interval", false], [`${split} loss`, false]);
  columns.push(["budget", true], ["architecture", true]);
  const rows = networks.map((network) => {
    const name = network.kind === "subnet" && run.order.length
      ? make("button", { type: "button", attributes: { "aria-pressed": network.number === number }, dataset: { pick: network.number } }, network.name)
      : network.name;
    const results = run.splits.flatMap((split) => {
      const found = network.results[split];
      return found ? [percent(found.top1), `${percent(found.low)} to ${percent(found.high)}`, found.loss.toFixed(3)] : ["-", "-", "-"];
    });
    return [name, ...axesOf(run).map((axis) => network.cells[axis.name] ?? "-"), ...results, (network.budgets || []).join("; "), network.summary || network.kind];
  });
  const mark = (place) => {
    const network = networks[place];
    if (network.kind !== "subnet") return "";
    if (network.number === number) return "chosen";
    return withinLimits(network, state.limits) ? "" : "outside";
  };
  const focused = document.activeElement?.dataset?.pick;
  fill("networks", table(columns, rows, { mark }));
  if (focused !== undefined) byId("networks").querySelector(`[data-pick="${focused}"]`)?.focus();
}

// --- the chosen subnet ---------------------------------------------------------------------------

// Never so strong that the numbers on it, in the colour of all text, could not be read.
function heat(shade) {
  const strength = 0.08 + Number(colour("--most-heat")) * shade;
  return { backgroundColor: `rgba(${colour("--heat")}, ${strength})` };
}

function cellTable(panel, rows, heads, caption) {
  const head = [...panel.heads, ...panel.columns].map((text) => make("th", { scope: "col" }, text));
  const body = rows.map((row, place) => make("tr", {},
    ...heads[place].map((text) => make("th", { scope: "row" }, text)),
    ...row.map((cell) => (cell === null ? make("td", {}, "") : make("td", { style: heat(cell[1]) }, cell[0])))));
  return make("table", { className: "cells" }, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

function panelTables(panels) {
  return panels.map((panel) => cellTable(panel, panel.rows, panel.labels, panel.title));
}

// One table for each kind of layer: its axes are rows, its layers columns.
function layersOf(run, number) {
  const groups = new Map();
  for (const panel of run.architectures) {
    const cells = panel.rows[number];
    const key = JSON.stringify(panel.columns);
    if (!groups.has(key)) groups.set(key, { columns: panel.columns, rows: [], heads: [] });
    groups.get(key).rows.push(cells);
    groups.get(key).heads.push([panel.title]);
  }
  return [...groups.values()].map((group) => {
    const shown = group.columns.map((_, column) => column).filter((column) => group.rows.some((row) => row[column] !== null));
    const panel = { heads: ["layer"], columns: shown.map((column) => group.columns[column]) };
    return cellTable(panel, group.rows.map((row) => shown.map((column) => row[column])), group.heads, "Options of every layer, from the input to the output");
  });
}

function showSubnet(number) {
  const run = runNow();
  byId("subnet").hidden = number === null;
  if (number === null) return;
  const subnet = run.subnets[number];
  byId("subnet-heading").textContent = `The chosen subnet: ${number}`;
  const score = subnet.score === null ? "" : `; score ${subnet.score}`;
  const lead = subnet.lead ? `, ${subnet.lead} % above the best subnet of its budget that was not chosen` : "";
  byId("architecture-summary").textContent = `${subnet.summary}${score}${lead}.`;
  fill("architecture", ...layersOf(run, number));
  showClasses(run, subnet);
  showMistakes(run, subnet);
}

function showClasses(run, subnet) {
  const found = subnet.classes;
  byId("classes").hidden = found === null;
  if (found === null) return;
  const names = run.class_names;
  byId("classes-text").textContent = `On ${found.split}: top-1 ${percent(subnet.results[found.split].top1)} %, balanced accuracy ${percent(found.balanced_accuracy)} % (the mean over the classes). The weakest classes come first.${found.is_shortened ? " Its confusion matrix is left out, so that the page stays small." : ""}`;
  const rows = found.rows.map(([name, right, images, taken]) => [name, String(images), percent(right / images), taken ?? "-"]);
  fill("class-table", table([["class", true], ["images", false], ["right, %", false], ["most often taken for", true]], rows));
  byId("confusion-figure").hidden = found.confusion === null;
  if (found.confusion === null) return;
  const cells = found.confusion.flatMap((row, label) => {
    let images = 0;
    for (let place = 1; place < row.length; place += 2) images += row[place];
    const inRow = [];
    for (let place = 0; place < row.length; place += 2) {
      const share = row[place + 1] / images;
      inRow.push({ label, predicted: row[place], share, hover: `${names[label]}, taken for ${names[row[place]]}: ${row[place + 1]} of ${images} images (${(100 * share).toFixed(1)} %)` });
    }
    return inRow;
  });
  byId("confusion-plot").setAttribute("aria-label", `Confusion matrix of ${names.length} classes on ${found.split}. The table of the classes says what each is most often taken for.`);
  draw("confusion-plot", confusionSpec(cells, names));
}

function showMistakes(run, subnet) {
  const found = subnet.mistakes;
  byId("mistakes").hidden = found.length === 0 && run.no_pictures === null;
  if (byId("mistakes").hidden) return;
  const shown = found.filter((mistake) => mistake.picture !== null);
  byId("mistakes-text").textContent = run.no_pictures ?? `On ${run.shown_split}. The probability is what the subnet gives the wrong class.`;
  fill("pictures", ...shown.map((mistake) => {
    const picture = run.pictures[mistake.picture];
    const [label, predicted] = [run.class_names[mistake.label], run.class_names[mistake.predicted]];
    const image = make("img", { src: picture.url, width: 144, height: 144, className: picture.is_small ? "small" : "", alt: `Image ${mistake.image}: ${label}, taken for ${predicted}` });
    return make("li", {}, image, make("strong", {}, predicted), ` (${(100 * mistake.probability).toFixed(0)} %), but it is `, make("strong", {}, label), `; image ${mistake.image}`);
  }));
}

// --- the training --------------------------------------------------------------------------------

function showTraining() {
  const run = runNow();
  byId("training").hidden = run.trainings.length === 0;
  if (run.trainings.length === 0) return;
  state.part = Math.min(state.part, run.trainings.length - 1);
  const training = run.trainings[state.part];
  byId("part-field").hidden = run.trainings.length < 2;
  options("part", run.trainings.map((one, place) => [String(place), one.name]), String(state.part));
  byId("training-text").textContent = training.text;
  const series = (column, digits) => training.epochs
    .filter((epoch) => epoch[column] !== null)
    .map((epoch) => ({ epoch: epoch[0], value: epoch[column], hover: `epoch ${epoch[0]}: ${digits(epoch[column])}` }));
  draw("loss-plot", seriesSpec(series(1, (value) => value.toFixed(4)), "training loss"));
  draw("rate-plot", seriesSpec(series(2, (value) => value.toExponential(2)), "learning rate", { zero: true }));
  byId("validation-figure").hidden = training.validations.length === 0;
  const lines = [...new Set(training.validations.map((line) => String(line.subnet)))];
  const rows = training.validations.flatMap((line) => line.points.map(([epoch, top1]) => ({
    epoch, value: 100 * top1, line: String(line.subnet), weights: line.weights,
    hover: `subnet ${line.subnet}${line.weights === "trained" ? "" : `, ${line.weights}`}, epoch ${epoch}: ${percent(top1)} %`,
  })));
  if (rows.length) draw("validation-plot", seriesSpec(rows, "validation top-1, %", { lines }));
  const columns = [["epoch", false], ["training loss", false], ["learning rate", false], ...training.validations.map((line) => [`subnet ${line.subnet}${line.weights === "trained" ? "" : ` (${line.weights})`}, %`, false])];
  const known = training.validations.map((line) => new Map(line.points));
  const body = training.epochs.map(([epoch, loss, rate]) => [String(epoch), loss === null ? "-" : loss.toFixed(4), rate.toExponential(2), ...known.map((points) => (points.has(epoch) ? percent(points.get(epoch)) : "-"))]);
  fill("training-table", table(columns, body));
}

// --- what does not depend on the choice ----------------------------------------------------------

function showRun() {
  const run = runNow();
  document.title = content.title;
  byId("title").textContent = content.title;
  byId("run-field").hidden = content.runs.length < 2;
  options("run", content.runs.map((one, place) => [String(place), one.name]), String(state.run));
  terms("facts", run.facts);
  const axes = axesOf(run);
  const splits = run.splits;
  if (!run.axes.includes(state.axis)) state.axis = run.axes[0] ?? null;
  if (!splits.includes(state.split)) state.split = splits[0] ?? null;
  options("x-axis", axes.map((axis) => [axis.name, axis.label]), state.axis);
  options("split", splits.map((split) => [split, split]), state.split);
  guessScale();
  byId("all-architectures").hidden = run.architectures.length === 0;
  fill("panels", ...panelTables(run.architectures));
  byId("importance").hidden = run.importance.length === 0;
  byId("importance-text").textContent = run.importance_text;
  fill("importance-panels", ...panelTables(run.importance));
  byId("contests").hidden = run.contests === null;
  if (run.contests) {
    const { heads, rows, text } = run.contests;
    fill("contest-table", table(heads.map((head, place) => [head, place === 1 || place === 2]), rows));
    byId("contests-text").textContent = text;
  }
  byId("stability").hidden = run.stability === null;
  if (run.stability) {
    fill("stability-text", ...run.stability.sentences.map((sentence) => make("p", {}, sentence)));
    const { heads, rows } = run.stability;
    fill("stability-table", ...(rows.length ? [table(heads.map((head) => [head, false]), rows)] : []));
  }
  fill("reproduce", ...(run.reproduce === null ? [] : [make("p", {}, "This command makes such a run again:"), make("pre", { tabIndex: 0 }, make("code", {}, run.reproduce))]));
  terms("versions", run.versions);
  byId("recipe-text").textContent = run.recipe;
  showLimits();
  showTraining();
  showChoice();
}

// Logarithmic where the costs differ by an order of magnitude; the reader may say otherwise.
function guessScale() {
  const amounts = content.runs.flatMap(networksOf).map((network) => network.amounts[state.axis]).filter((amount) => amount > 0);
  state.isLogarithmic = amounts.length > 0 && Math.max(...amounts) > 8 * Math.min(...amounts);
  byId("logarithmic").checked = state.isLogarithmic;
}

function chooseRun(place) {
  Object.assign(state, { run: place, picked: null, part: 0, limits: {}, unread: {} });
  showRun();
}

// --- following a training ------------------------------------------------------------------------

async function look() {
  try {
    const answer = await fetch("data.json", { cache: "no-cache" });
    if (answer.status === 200) {
      const found = await answer.json();
      const isOther = JSON.stringify(found) !== JSON.stringify(content);
      content = found;
      if (isOther) refresh();
    }
    byId("live").textContent = content.live;
  } catch {
    byId("live").textContent = "prenas watch has ended: this page shows the last state that it saw.";
  }
  setTimeout(look, 1000 * SECONDS_BETWEEN_LOOKS);
}

// Shows new content; the limits, the pick and the focus stay.
function refresh() {
  const focused = document.activeElement?.id;
  state.run = Math.min(state.run, content.runs.length - 1);
  if (state.picked !== null && !runNow().subnets[state.picked]) state.picked = null;
  showRun();
  if (focused) byId(focused)?.focus();
}

// --- start ---------------------------------------------------------------------------------------

byId("run").addEventListener("change", (event) => chooseRun(Number(event.target.value)));
byId("part").addEventListener("change", (event) => { state.part = Number(event.target.value); showTraining(); });
byId("x-axis").addEventListener("change", (event) => { state.isAxisPicked = true; showAxis(event.target.value); showFrontier(); });
byId("split").addEventListener("change", (event) => { state.split = event.target.value; showFrontier(); });
byId("logarithmic").addEventListener("change", (event) => { state.isLogarithmic = event.target.checked; showFrontier(); });
byId("networks").addEventListener("click", (event) => { const number = event.target.dataset?.pick; if (number !== undefined) pick(Number(number)); });
byId("copy").addEventListener("click", copyCommand);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showRun);
showRun();
if (content.live !== null) {
  byId("live").hidden = false;
  byId("live").textContent = content.live;
  setTimeout(look, 1000 * SECONDS_BETWEEN_LOOKS);
}
