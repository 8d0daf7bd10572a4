// Formats of numbers, the same as in thinsnap's commands.

// size formats bytes with four digits and a binary unit.
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let n = bytes, unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return String(rounded(n)) + units[unit];
}

// rounded rounds to four digits, and half-way values to even, as Go does; toPrecision rounds them up.
function rounded(n) {
  if (n === 0) return 0;
  const factor = 10 ** (3 - Math.floor(Math.log10(n)));
  const scaled = n * factor, whole = Math.floor(scaled), rest = scaled - whole;
  return (rest > 0.5 || rest === 0.5 && whole % 2 === 1 ? whole + 1 : whole) / factor;
}

// duration formats seconds with at most two units.
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

// percent returns the used share of the used and available bytes.
export function percent(used, available) {
  const capacity = used + available;
  return capacity > 0 ? used / capacity * 100 : 0;
}

// shortKey shortens each digest and id of 64 hexadecimal digits in a key to 12 digits.
export function shortKey(key) {
  return key.replace(/([0-9a-f]{12})[0-9a-f]{52}/g, "$1…");
}

// element creates an element with a class and a text. The text is not parsed as HTML.
export function element(name, className, text) {
  const e = document.createElement(name);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

// owner describes what a snapshot belongs to.
export function owner(o) {
  const c = o.container, images = o.images ?? [];
  if (c?.pod) return `pod ${c.pod_namespace ?? ""}/${c.pod}: ${c.sandbox ? "sandbox" : c.name ?? "-"}`;
  if (c) return "container " + (c.name ?? shortKey(c.id));
  if (images.length > 1) return `image ${images[0]} and ${images.length - 1} other${images.length === 2 ? "" : "s"}`;
  return images.length ? "image " + images[0] : "";
}
