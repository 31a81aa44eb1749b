// A pane shows one text; only the rows in sight are in the page, so that 100,000 lines scroll as ten do.

const ROW_AHEAD = 20;

class Pane {
  constructor(root, side, page) {
    Object.assign(this, { root, side, page, text: null, compilation: null, rows: null, other: null, cursor: -1 });
    this.select = root.querySelector("select");
    this.view = root.querySelector(".view");
    this.space = root.querySelector(".space");
    this.shown = root.querySelector(".rows");
    this.view.addEventListener("scroll", () => this.scrolled());
    this.view.addEventListener("pointermove", (e) => this.page.hover(this.keysOfRow(this.rowUnder(e))));
    this.view.addEventListener("pointerleave", () => this.page.hover([]));
    this.view.addEventListener("click", (e) => this.pick(this.rowUnder(e)));
    this.view.addEventListener("keydown", (e) => this.key(e));
    this.select.addEventListener("change", () => this.page.show(this.side, this.select.selectedIndex));
  }

  get height() {
    return this.page.rowHeight;
  }

  // `rows` are lines to show, -1 for a gap; the text's own lines unless given. The page then draws both panes.
  open(compilation, text, rows, other) {
    Object.assign(this, { compilation, text, rows: rows ?? text.ids.map((_, n) => n), other, cursor: -1 });
    const longest = text.ids.reduce((most, id) => Math.max(most, this.page.lines[id].length), 0);
    this.space.style.height = `${this.rows.length * this.height}px`;
    this.space.style.width = `${Math.min(longest, 3000) + 30}ch`;
  }

  line(n) {
    return this.page.lines[this.text.ids[n]];
  }

  scrolled() {
    if (this.other) {
      this.other.view.scrollTop = this.view.scrollTop;
      this.other.view.scrollLeft = this.view.scrollLeft;
    }
    this.draw();
  }

  rowUnder(e) {
    const row = e.target.closest?.("[data-row]");
    return row ? Number(row.dataset.row) : -1;
  }

  keysOfRow(row) {
    const n = this.rows?.[row] ?? -1;
    return n < 0 ? [] : keysAt(this.compilation, this.text, n);
  }

  pick(row) {
    if (row < 0) return;
    this.cursor = row;
    this.page.pin(this.keysOfRow(row), this);
  }

  key(e) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (step) {
      this.cursor = Math.max(0, Math.min(this.rows.length - 1, (this.cursor < 0 ? this.first() - 1 : this.cursor) + step));
      this.reveal(this.cursor, true);
      this.page.hover(this.keysOfRow(this.cursor));
    } else if (e.key === "Enter" && this.cursor >= 0) this.pick(this.cursor);
    else return;
    e.preventDefault();
  }

  first() {
    return Math.floor(this.view.scrollTop / this.height);
  }

  // Bring a row into sight: a third from the top, or as little as is needed.
  reveal(row, little = false) {
    const top = row * this.height, high = this.view.clientHeight;
    if (little && top >= this.view.scrollTop && top + this.height <= this.view.scrollTop + high) return this.draw();
    this.view.scrollTop = Math.max(0, top - high / 3);
    this.draw();
  }

  revealLine(n) {
    this.cursor = this.rows.indexOf(n);
    if (this.cursor >= 0) this.reveal(this.cursor);
  }

  kin() {
    return this.text ? kinOf(this.compilation, this.text, this.page.pinned) : [];
  }

  draw() {
    if (!this.text) return;
    const from = Math.max(0, this.first() - ROW_AHEAD);
    const to = Math.min(this.rows.length, from + Math.ceil(this.view.clientHeight / this.height) + 2 * ROW_AHEAD);
    this.shown.style.transform = `translateY(${from * this.height}px)`;
    this.shown.replaceChildren(...Array.from({ length: to - from }, (_, i) => this.row(from + i)));
  }

  row(at) {
    const row = make("div", "row"), n = this.rows[at];
    row.dataset.row = at;
    if (n < 0) return row.classList.add("gap"), row;
    const keys = keysAt(this.compilation, this.text, n);
    const near = kinship(keys, this.page.chosen);
    if (near) row.classList.add(near === 2 ? "kin" : "near");
    if (at === this.cursor) row.classList.add("cursor");
    const beside = this.other?.rows[at];
    if (this.other && beside < 0) row.classList.add(this.side ? "added" : "removed");
    const other = this.other && beside >= 0 ? this.other.line(beside) : null, line = this.line(n);
    const changed = other !== null && other !== line;
    if (changed) row.classList.add("changed");
    row.append(make("span", "number", n + 1), this.code(n, near, changed ? other : null));
    const [first] = keys;
    if (first?.place) row.append(make("span", "place", `${first.place.line}:${first.place.col} ${first.place.call}`));
    return row;
  }

  // A line in its colours; in a source the columns that are chosen stand out, in a difference what differs.
  code(n, near, other) {
    const code = make("code"), line = this.line(n);
    let marks = null;
    const spans = this.page.chosen.filter((k) => k.place?.end && k.place.line === n + 1);
    if (this.text.source !== undefined && near && spans.length)
      marks = [Math.min(...spans.map((k) => k.place.col)) - 1, Math.max(...spans.map((k) => k.place.end)) - 1, "mark"];
    if (other !== null) {
      const [from, left, right] = this.side ? changedSpan(other, line) : changedSpan(line, other);
      marks = [from, this.side ? right : left, "differs"];
    }
    let at = 0;
    for (const [kind, text] of tokens(line)) {
      for (const [piece, inside] of cut(text, at, marks)) {
        const run = make("span", `${kind}${inside ? ` ${marks[2]}` : ""}`.trim(), piece);
        code.append(run);
      }
      at += text.length;
    }
    return code;
  }
}

// A run of text in pieces that are inside or outside of the marked columns.
function cut(text, at, marks) {
  if (!marks || marks[1] <= at || marks[0] >= at + text.length) return [[text, false]];
  const from = Math.max(0, marks[0] - at), to = Math.min(text.length, marks[1] - at);
  return [[text.slice(0, from), false], [text.slice(from, to), true], [text.slice(to), false]].filter(([piece]) => piece);
}

function make(name, kind = "", text = null) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  return made;
}
