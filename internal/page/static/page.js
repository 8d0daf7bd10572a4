// The page. While it is visible, it gets and shows the daemon's data every few seconds.
import { draw } from "./chart.js";
import { duration, element, percent, shortKey, size } from "./format.js";
import { Tree } from "./tree.js";

const refreshInterval = 2000, listInterval = 10000;

const $ = (id) => document.getElementById(id);
const tree = new Tree($("tree"), $("tree-note"));
const states = { rw: "read-write", ro: "read-only", out_of_data_space: "out of data space", fail: "failed" };
const seen = { info: null, history: [], asked: 0, counted: "" };

// set changes a text only if it differs, so that screen readers do not repeat it.
function set(e, text) {
  if (e.textContent !== String(text)) e.textContent = text;
}

async function get(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  const body = await response.json();
  if (response.ok) return body;
  const error = new Error(body.message || response.statusText);
  error.poolNotOpen = body.pool_not_open === true;
  throw error;
}

function showSpace(id, space) {
  const tile = $(id);
  const full = percent(space.used_bytes, space.available_bytes);
  tile.classList.remove("ok", "low", "short");
  tile.classList.add(space.level);
  set(tile.querySelector("[data-part=percent]"), full.toFixed(full < 10 ? 1 : 0) + "% full");
  set(tile.querySelector("[data-part=text]"), `${size(space.used_bytes)} used, ${size(space.available_bytes)} available; ` +
    (space.level === "short" ? "no new snapshots" : `${size(space.size_bytes)} total`));
  const meter = tile.querySelector(".meter");
  meter.setAttribute("aria-valuenow", full.toFixed(1));
  const capacity = space.used_bytes + space.available_bytes;
  const share = (bytes) => bytes / space.size_bytes * 100 + "%";
  const parts = [["used", { width: share(space.used_bytes) }], ["beyond", { width: share(space.size_bytes - capacity) }]];
  if (space.min_free_bytes > 0) parts.push(["mark", { left: share(capacity - space.min_free_bytes) }]);
  meter.replaceChildren(...parts.map(([name, style]) => {
    const part = element("i", name);
    Object.assign(part.style, style);
    return part;
  }));
  meter.title = "Red: new snapshots are refused from here. Hatched: no space for it on the disk below.";
}

function showInfo(info) {
  seen.info = info;
  set($("pool"), "pool " + info.pool.name);
  document.title = `${info.pool.name} – thinsnap`;
  const healthy = info.pool.state === "rw" && !info.pool.needs_check;
  set($("state"), (states[info.pool.state] ?? info.pool.state) + (info.pool.needs_check ? ", needs a check" : ""));
  $("state").className = "badge " + (healthy ? "good" : "bad");
  set($("about"), `${info.daemon.version} · ${info.filesystem.type} · ${info.pool.mode} · ` +
    `up ${duration(info.daemon.uptime_seconds)}`);
  showSpace("data", info.pool.data);
  showSpace("metadata", info.pool.metadata);
  const s = info.snapshots;
  set($("snapshots-total"), s.active + s.view + s.committed);
  for (const kind of ["active", "view", "committed"]) set($("snapshots-" + kind), s[kind]);
  for (const what of ["active", "spare", "trash"]) set($("volumes-" + what), info.volumes[what]);
  set($("deferred"), info.background.deferred ? `, ${info.background.deferred} deferred because in use` : "");
  set($("since"), new Date(info.daemon.started_at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short", hour12: false }));
}

function calls(list, entries, none) {
  $(list).replaceChildren(...(entries.length ? entries : [element("li", "none", none)]));
}

function call(name, key, time, failed) {
  const li = element("li");
  const k = element("span", "key", shortKey(key ?? ""));
  k.title = key ?? "";
  li.append(element("span", failed ? "bad" : "", name), k, element("span", failed ? "bad" : "quiet", time));
  return li;
}

function showActivity(activity) {
  const now = Date.now();
  const since = (at) => duration(Math.max(0, (now - Date.parse(at)) / 1000));
  set($("running-total"), activity.running_total);
  calls("running", activity.running.slice(0, 20).map((r) => call(r.method, r.key, "for " + since(r.started_at))), "None.");
  set($("trash-total"), activity.trash_total);
  calls("trash", activity.trash.slice(0, 20).map((r) => call("volume " + r.device_id, r.key, "for " + since(r.removed_at))), "Empty.");
  const failed = (r) => !["OK", "NotFound", "AlreadyExists", "Canceled"].includes(r.outcome);
  calls("recent", activity.recent.map((r) => call(r.method, r.key,
    (r.outcome === "OK" ? "" : r.outcome + " in ") + duration(r.duration_seconds), failed(r))), "None yet.");
  $("totals").tBodies[0].replaceChildren(...activity.totals.map((t) => {
    const row = element("tr");
    row.append(element("td", "", t.method), element("td", "", t.ended), element("td", t.failed ? "bad" : "", t.failed),
      element("td", "", duration(t.duration_seconds / Math.max(1, t.ended))));
    return row;
  }));
}

function showChart() {
  if (!seen.info) return;
  const space = document.querySelector("input[name=space]:checked").value;
  const whole = document.querySelector("input[name=scale]:checked").value === "whole";
  const points = seen.history.map((p) => ({ at: Date.parse(p.at), used: p[space + "_used_bytes"] }));
  draw($("chart"), points, seen.info.pool[space], whole);
}

// refresh gets and shows what may have changed.
async function refresh() {
  const info = await get("v1/info");
  showInfo(info);
  showActivity(await get("v1/activity"));
  const counted = JSON.stringify(info.snapshots);
  if (Date.now() - seen.asked >= listInterval || counted !== seen.counted) {
    seen.asked = Date.now();
    seen.counted = counted;
    seen.history = (await get("v1/history")).points;
    showChart();
    const { owners } = await get("v1/owners").catch(() => ({ owners: [] })); // a tree without owners still is of use
    tree.show((await get("v1/snapshots?labels=no")).snapshots, owners);
  }
}

// watch refreshes the page while it is visible.
async function watch() {
  for (;;) {
    if (!document.hidden) {
      try {
        await refresh();
        $("notice").hidden = true;
        set($("live"), "live");
        document.body.dataset.ready = "yes";
      } catch (error) {
        $("notice").textContent = (error.poolNotOpen ? "" : "The daemon does not answer: ") + error.message;
        $("notice").hidden = false;
        set($("live"), "stale");
      }
    }
    await new Promise((resolve) => {
      setTimeout(resolve, refreshInterval);
    });
  }
}

for (const input of document.querySelectorAll("input[type=radio]")) input.addEventListener("change", showChart);
addEventListener("resize", showChart);
$("filter").addEventListener("input", () => tree.setFilter($("filter").value));
$("collapse").addEventListener("click", () => tree.collapseAll(true));
$("expand").addEventListener("click", () => tree.collapseAll(false));
watch();
