// How figures are written, the same as thinsnap's commands write them.

// size writes bytes with four digits and a binary unit.
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let n = bytes, unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return String(rounded(n)) + units[unit];
}

// rounded is a number of four digits. What lies half-way goes to the even one, as in Go, and not up, as with toPrecision.
function rounded(n) {
  if (n === 0) return 0;
  const factor = 10 ** (3 - Math.floor(Math.log10(n)));
  const scaled = n * factor, whole = Math.floor(scaled), rest = scaled - whole;
  return (rest > 0.5 || rest === 0.5 && whole % 2 === 1 ? whole + 1 : whole) / factor;
}

// duration writes seconds for people: at most two units.
export function duration(seconds) {
  if (seconds < 0.001) return Math.round(seconds * 1e6) + "µs";
  if (seconds < 1) return Number((seconds * 1000).toPrecision(3)) + "ms";
  if (seconds < 60) return Number(seconds.toPrecision(3)) + "s";
  const parts = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  let rest = Math.round(seconds);
  const words = [];
  for (const [length, unit] of parts) {
    const n = Math.floor(rest / length);
    rest -= n * length;
    if (n > 0 || words.length > 0) words.push(n + unit);
    if (words.length === 2) break;
  }
  return words.join(" ");
}

// percent is how full a space is, of what can be used of it.
export function percent(used, available) {
  const reachable = used + available;
  return reachable > 0 ? used / reachable * 100 : 0;
}

// shortKey cuts every digest and id of 64 hexadecimal digits in a key to its first 12.
export function shortKey(key) {
  return key.replace(/([0-9a-f]{12})[0-9a-f]{52}/g, "$1…");
}

// element makes an element with a class and a text, which is never taken for HTML.
export function element(name, className, text) {
  const e = document.createElement(name);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}
