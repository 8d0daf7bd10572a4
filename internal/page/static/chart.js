// The chart of the pool's fill.
import { size } from "./format.js";

const left = 76, right = 16, top = 14, bottom = 26;

function svg(name, attributes, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  if (text !== undefined) e.textContent = text;
  return e;
}

// steps returns about four round values from 0 to max, in powers of two.
function steps(max) {
  let step = 1;
  while (max / step > 4) step *= 2;
  const all = [];
  for (let v = 0; v <= max; v += step) all.push(v);
  return all;
}

// clock formats a time with the precision that the length of the chart needs.
function clock(time, length) {
  const date = new Date(time);
  if (length > 2 * 86400e3) return date.toLocaleDateString(undefined, { day: "numeric", month: "short" });
  const seconds = length < 10 * 60e3 ? { second: "2-digit" } : {};
  return date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", hour12: false, ...seconds });
}

// draw draws the points of a space: a time in ms and the used bytes. The space's present values give the lines.
export function draw(figure, points, space, whole) {
  const width = Math.max(320, figure.clientWidth), height = 240;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", preserveAspectRatio: "none" });
  const caption = document.createElement("figcaption");
  figure.replaceChildren(picture, caption);
  if (points.length === 0) {
    caption.textContent = "No data yet.";
    return;
  }
  const peak = Math.max(...points.map((p) => p.used), space.used_bytes, 1);
  const max = whole ? space.size_bytes : Math.min(space.size_bytes, peak * 1.25);
  const first = points[0].at, last = Math.max(points[points.length - 1].at, first + 60e3);
  const x = (at) => left + (at - first) / (last - first) * (width - left - right);
  const y = (bytes) => height - bottom - bytes / max * (height - top - bottom);

  for (const value of steps(max)) {
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, size(value)));
  }
  const marks = Math.max(2, Math.floor((width - left - right) / 160));
  for (let i = 0; i <= marks; i++) {
    const at = first + (last - first) * i / marks;
    const anchor = i === 0 ? "start" : i === marks ? "end" : "middle";
    picture.append(svg("text", { x: x(at), y: height - 8, "text-anchor": anchor }, clock(at, last - first)));
  }

  const line = points.map((p) => `${x(p.at).toFixed(1)},${y(p.used).toFixed(1)}`).join(" ");
  const end = points[points.length - 1];
  picture.append(svg("polygon", { class: "area", points: `${x(first)},${y(0)} ${line} ${x(end.at)},${y(0)}` }));
  picture.append(svg("polyline", { class: "fill", points: line }));
  picture.append(svg("circle", { class: "dot", r: 3.5, cx: x(end.at), cy: y(end.used) }));

  const beyond = [];
  let previous = -Infinity;
  for (const l of lines(space)) {
    if (l.at > max) {
      beyond.unshift(`${l.text} at ${size(l.at)}`);
      continue;
    }
    picture.append(svg("line", { class: l.kind, x1: left, x2: width - right, y1: y(l.at), y2: y(l.at) }));
    // The labels of two close lines must not overlap.
    const apart = Math.abs(y(l.at) - previous) > 16;
    picture.append(svg("text", { class: l.kind, x: apart ? left + 8 : left + 160, y: y(l.at) - 5 }, l.text));
    previous = y(l.at);
  }
  const now = `${size(space.used_bytes)} used now, peak ${size(peak)}.`;
  caption.textContent = beyond.length ? `${now} Above the chart: ${beyond.join("; ")}.` : now;
  picture.setAttribute("aria-label", caption.textContent);
}

// lines returns the limits shown in the chart, in used bytes.
function lines(space) {
  const capacity = space.used_bytes + space.available_bytes;
  const all = [];
  if (capacity < space.size_bytes) all.push({ kind: "disk", at: capacity, text: "disk below is full" });
  if (space.min_free_bytes > 0) {
    all.push({ kind: "limit", at: capacity - space.min_free_bytes, text: "no new snapshots (min_free_space)" });
  }
  if (space.low_water_bytes > 0 && space.low_water_bytes < space.size_bytes) {
    all.push({ kind: "water", at: space.size_bytes - space.low_water_bytes, text: "low water mark" });
  }
  return all.sort((a, b) => b.at - a.at);
}
