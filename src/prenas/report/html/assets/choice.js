"use strict";

// Choosing a subnet. `order` comes from prenas itself, best first, so that this page takes what
// `prenas specialize` takes: the first subnet of the order that is within every limit.

function chooseSubnet(run, limits) {
  const fits = (number) => withinLimits(run.subnets[number], limits);
  const found = run.order.find(fits);
  return found === undefined ? null : found;
}

function withinLimits(network, limits) {
  return Object.entries(limits).every(([axis, limit]) => network.amounts[axis] <= limit.amount);
}

// Reads an amount such as 6M, 1.4G or 250k in the units of an axis; null if it is none. As in
// prenas, the case of a unit does not matter if that is unambiguous, and times and file sizes need
// a unit: who writes 5 means milliseconds, and not nanoseconds.
function readAmount(text, axis) {
  const match = /^\s*(\d+(?:\.\d+)?|\.\d+)(?:e([+-]?\d{1,2}))?\s*(\S*)\s*$/i.exec(text);
  if (!match) return null;
  const scale = scaleOf(match[3], axis.units);
  if (scale === null) return null;
  const value = Number(`${match[1]}e${match[2] || 0}`) * scale;
  const amount = Math.round(value);
  const isWhole = Math.abs(value - amount) <= 1e-9 * Math.max(1, value); // 0.07 G is not exact
  return isWhole && amount > 0 && Number.isSafeInteger(amount) ? amount : null;
}

function scaleOf(unit, units) {
  if (Object.hasOwn(units, unit)) return units[unit];
  const names = Object.keys(units).filter((name) => name.toLowerCase() === unit.toLowerCase());
  const sizes = new Set(names.map((name) => units[name]));
  return sizes.size === 1 ? [...sizes][0] : null;
}

// What stands in the way, if no subnet is within the limits: the least that a subnet takes of each
// cost whose limit is below that. There is none if only the limits together leave nothing.
function reasonsAgainst(run, axes, limits) {
  return Object.entries(limits).flatMap(([name, limit]) => {
    const subnets = run.order.map((number) => run.subnets[number]);
    const least = subnets.reduce((one, other) => (other.amounts[name] < one.amounts[name] ? other : one));
    return least.amounts[name] > limit.amount ? [`${axes[name].label}: every subnet takes at least ${least.cells[name]}.`] : [];
  });
}

// The command that hands over the chosen subnet. Limits are part of it if prenas can count them;
// otherwise, and for a subnet that was picked by hand, its number is.
function commandFor(run, axes, limits, number, isPicked) {
  const names = Object.keys(limits);
  const inWords = names.map((name) => `${name}=${limits[name].text}`).join(",");
  const isCounted = names.every((name) => axes[name].is_counted);
  if (isPicked || names.length === 0 || !isCounted) return `${run.command} --index ${number}`;
  return `${run.command} --max ${inWords}`;
}
