// The tree of snapshots. Only the visible rows are in the document, so it can be of any size.
import { element, owner, shortKey, size } from "./format.js";

const rowHeight = 28, indent = 16, deepest = 12;
// An only child, as most layers are, is indented by this share, so that an image of many layers stays narrow.
const chained = 0.3;

// arrange arranges snapshots below their parents. A snapshot without its parent is a root. below is the space that a snapshot
// and all its descendants own together.
function arrange(snapshots, owners) {
  const owned = new Map(owners.map((o) => [o.key, owner(o)]));
  const nodes = new Map(snapshots.map((s) => [s.key, { ...s, owner: owned.get(s.key) ?? "", children: [], below: s.used_bytes ?? 0 }]));
  const roots = [];
  for (const node of nodes.values()) {
    node.up = nodes.get(node.parent);
    (node.up ? node.up.children : roots).push(node);
  }
  const order = [...roots];
  for (let i = 0; i < order.length; i++) for (const child of order[i].children) order.push(child);
  for (const node of order.reverse()) if (node.up) node.up.below += node.below;
  return { nodes, roots };
}

export class Tree {
  constructor(box, note) {
    this.box = box;
    this.note = note;
    this.collapsed = new Set();
    this.filter = "";
    this.current = null;
    this.rows = [];
    this.roots = [];
    this.nodes = new Map();
    this.headings();
    this.items = element("div", "items");
    this.items.setAttribute("role", "presentation");
    box.append(this.items);
    box.addEventListener("scroll", () => this.paint());
    box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.paint()).observe(box);
  }

  headings() {
    const row = element("div", "row headings");
    row.setAttribute("role", "row");
    for (const [text, className, title] of [["Snapshot", ""], ["Kind", ""], ["Device", "number"],
      ["Owns", "number", "what this snapshot maps and its parent does not map to the same blocks: its usage"],
      ["Shares", "number", "what it shares with its parents"],
      ["Exclusive", "number", "what no other volume has: what a removal gives back"], ["", ""]]) {
      const cell = element("span", className, text);
      cell.setAttribute("role", "columnheader");
      if (title) cell.title = title;
      if (!text) cell.setAttribute("aria-label", "Owns and shares, to scale");
      row.append(cell);
    }
    this.box.append(row);
  }

  // show replaces the snapshots. Collapsed nodes and the current row stay.
  show(snapshots, owners) {
    Object.assign(this, arrange(snapshots, owners));
    this.largest = largest(snapshots);
    this.several = snapshots.some((s) => s.client !== snapshots[0].client);
    this.layout();
  }

  setFilter(text) {
    this.filter = text.trim();
    this.layout();
  }

  collapseAll(collapse) {
    this.collapsed = new Set(collapse ? [...this.nodes.values()].filter((n) => n.children.length).map((n) => n.key) : []);
    this.layout();
  }

  // layout lists the rows that scrolling can reach.
  layout() {
    this.rows = [];
    const shown = this.filter ? this.matching() : null;
    const stack = this.roots.map((node) => ({ node, depth: 0, indents: 0 })).reverse();
    while (stack.length) {
      const row = stack.pop();
      if (shown && !shown.has(row.node)) continue;
      this.rows.push(row);
      if (this.isCollapsed(row.node)) continue;
      const children = row.node.children;
      const indents = row.indents + (children.length === 1 ? chained : 1);
      for (let i = children.length - 1; i >= 0; i--) stack.push({ node: children[i], depth: row.depth + 1, indents });
    }
    this.items.style.height = this.rows.length * rowHeight + "px";
    this.box.setAttribute("aria-rowcount", this.rows.length + 1);
    if (!this.rows.some((row) => row.node.key === this.current)) this.current = this.rows[0]?.node.key ?? null;
    this.note.textContent = this.describe();
    this.paint();
  }

  // matching returns the nodes whose keys or owners contain the filter, and their ancestors.
  matching() {
    const wanted = new Set();
    for (const node of this.nodes.values()) {
      if (!node.key.includes(this.filter) && !node.owner.includes(this.filter)) continue;
      for (let n = node; n && !wanted.has(n); n = n.up) wanted.add(n);
    }
    return wanted;
  }

  isCollapsed(node) { return !this.filter && this.collapsed.has(node.key); }

  describe() {
    const all = this.nodes.size;
    if (all === 0) return "No snapshots.";
    if (this.rows.length === all) return `${all} snapshot${all === 1 ? "" : "s"}.`;
    return `${this.rows.length} of ${all} snapshots listed.`;
  }

  // paint puts the visible rows, and some around them, into the document.
  paint() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / rowHeight) - 10);
    const last = Math.min(this.rows.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / rowHeight) + 10);
    const seen = [];
    for (let i = first; i < last; i++) seen.push(this.row(this.rows[i], i));
    this.items.replaceChildren(...seen);
    const current = this.items.querySelector(".current");
    if (current) this.box.setAttribute("aria-activedescendant", current.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  row({ node, depth, indents }, index) {
    const row = element("div", "row");
    row.setAttribute("role", "row");
    row.setAttribute("aria-level", depth + 1);
    row.setAttribute("aria-rowindex", index + 2);
    row.id = "snapshot-" + index;
    row.dataset.key = node.key;
    row.style.top = index * rowHeight + "px";
    const collapsed = this.isCollapsed(node);
    if (node.children.length) row.setAttribute("aria-expanded", !collapsed);
    if (node.key === this.current) {
      row.classList.add("current");
      row.setAttribute("aria-selected", true);
    }

    const name = element("span", "key");
    name.style.paddingLeft = Math.min(indents, deepest) * indent + "px";
    const client = this.several ? "client " + node.client : "";
    name.title = [node.key, client, node.owner].filter(Boolean).join("\n");
    const toggle = element("span", "toggle", node.children.length ? (collapsed ? "▸" : "▾") : "");
    toggle.setAttribute("aria-hidden", true);
    name.append(toggle, shortKey(node.key));
    for (const text of [client, node.owner]) if (text) name.append(element("span", "quiet", "  " + text));
    if (collapsed) name.append(element("span", "quiet", `  +${count(node)}, own ${size(node.below - (node.used_bytes ?? 0))}`));
    row.append(name, element("span", "kind-" + node.kind, node.kind), element("span", "number", node.device_id),
      element("span", "number owns", node.used_bytes === undefined ? "–" : size(node.used_bytes)),
      element("span", "number shares", node.shared_bytes === undefined ? "–" : size(node.shared_bytes)),
      element("span", "number exclusive", node.exclusive_bytes === undefined ? "–" : size(node.exclusive_bytes)), this.bar(node));
    for (const cell of row.children) cell.setAttribute("role", "gridcell");

    toggle.addEventListener("click", (event) => {
      event.stopPropagation();
      this.toggle(node, !collapsed);
    });
    row.addEventListener("click", () => this.select(index));
    row.addEventListener("dblclick", () => this.toggle(node, !collapsed));
    return row;
  }

  bar(node) {
    const bar = element("span", "bar");
    for (const bytes of [node.used_bytes ?? 0, node.shared_bytes ?? 0]) {
      const part = element("i");
      part.style.width = bytes / this.largest * 100 + "%";
      bar.append(part);
    }
    return bar;
  }

  toggle(node, collapse) {
    if (!node.children.length) return;
    if (collapse) this.collapsed.add(node.key);
    else this.collapsed.delete(node.key);
    this.current = node.key;
    this.layout();
  }

  select(index) {
    const at = Math.max(0, Math.min(this.rows.length - 1, index));
    if (!this.rows[at]) return;
    this.current = this.rows[at].node.key;
    const above = at * rowHeight, headings = rowHeight;
    if (above < this.box.scrollTop) this.box.scrollTop = above;
    const room = this.box.clientHeight - headings - rowHeight;
    if (above > this.box.scrollTop + room) this.box.scrollTop = above - room;
    this.paint();
  }

  key(event) {
    const at = this.rows.findIndex((row) => row.node.key === this.current);
    const node = this.rows[at]?.node;
    const page = Math.max(1, Math.floor(this.box.clientHeight / rowHeight) - 2);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: this.rows.length - 1, PageDown: at + page, PageUp: at - page };
    if (event.altKey || event.ctrlKey || event.metaKey || !node) return;
    if (event.key in moves) {
      this.select(moves[event.key]);
    } else if (event.key === "ArrowRight") {
      if (this.isCollapsed(node)) this.toggle(node, false);
      else if (node.children.length) this.select(at + 1);
    } else if (event.key === "ArrowLeft") {
      if (node.children.length && !this.isCollapsed(node)) this.toggle(node, true);
      else if (node.up) this.select(this.rows.findIndex((row) => row.node === node.up));
    } else if (event.key === "Enter" || event.key === " ") {
      this.toggle(node, !this.isCollapsed(node));
    } else {
      return;
    }
    event.preventDefault();
  }
}

// largest returns the largest space that one snapshot maps, for the scale of the bars.
function largest(snapshots) {
  return snapshots.reduce((max, s) => Math.max(max, (s.used_bytes ?? 0) + (s.shared_bytes ?? 0)), 1);
}

// count returns the number of a node's descendants.
function count(node) {
  let n = 0;
  const stack = [...node.children];
  while (stack.length) {
    n++;
    for (const child of stack.pop().children) stack.push(child);
  }
  return n;
}
