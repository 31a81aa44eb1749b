// The page: what is chosen, and where it shows.

const $ = (id) => document.getElementById(id);

const spans = (keys) => keys.map((key) => key.span).join(" ");

class Page {
  constructor(packed) {
    this.lines = packed.lines;
    this.report = unpack(packed);
    this.compilations = this.report.compilations;
    this.hovered = this.pinned = [];
    this.diff = false;
    // all that a pane may show: the sources of each compilation first, then its texts
    this.choices = this.compilations.flatMap((c) => [
      ...c.sources.map((s, source) => ({ c, text: { title: s.name, source, ids: s.ids, language: "source", why: s.why_not } })),
      ...c.texts.map((text) => ({ c, text })),
    ]).filter(({ text }) => text.ids.length);
    this.panes = [new Pane($("left"), 0, this), new Pane($("right"), 1, this)];
    this.at = [0, 0];
    this.ops = new Map();
    this.remarks = new RemarkList(this);
    this.kernels = new KernelTable(this);
    this.pipeline = new Pipeline(this);
    this.search = new Search(this);
    this.graph();
    this.fill();
    listen(this);
    this.restore();
  }

  get chosen() {
    return this.hovered.length ? this.hovered : this.pinned;
  }

  get rowHeight() {
    return parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
  }

  title({ c, text }) {
    return this.compilations.length > 1 ? `${this.letter(c)} ${text.title}` : text.title;
  }

  letter(c) {
    return this.compilations.length > 1 ? "AB"[this.compilations.indexOf(c)] : "";
  }

  fill() {
    for (const pane of this.panes)
      pane.select.replaceChildren(...this.choices.map((choice) => make("option", "", this.title(choice))));
    const last = this.compilations[this.compilations.length - 1];
    this.at = this.compilations.length > 1
      ? this.compilations.map((c) => this.scheduled(c)) : [0, this.scheduled(last)];
    if (this.compilations.length > 1) this.diff = true;
  }

  // The last IR of a compilation that is for a GPU, else its last.
  scheduled(c) {
    const ir = this.choices.flatMap((x, n) => (x.c === c && x.text.language === "ir" ? [n] : []));
    const gpu = ir.filter((n) => this.choices[n].text.target.startsWith("sm_"));
    return (gpu.length ? gpu : ir).pop() ?? this.choices.findIndex((x) => x.c === c);
  }

  indexOf(c, text) {
    return this.choices.findIndex((x) => x.c === c && x.text === c.texts[text]);
  }

  show(side, at) {
    if (at < 0 || at >= this.choices.length) return;
    this.at[side] = at;
    this.open();
  }

  compare(left, right) {
    this.at = [left, right];
    this.diff = true;
    this.open();
  }

  open() {
    if (!this.choices.length) return;
    const [left, right] = this.at.map((n) => this.choices[n]);
    let rows = [undefined, undefined];
    if (this.diff) {
      const pairs = difference(left.text.ids, right.text.ids);
      rows = [pairs.map((p) => p[0]), pairs.map((p) => p[1])];
    }
    this.panes.forEach((pane, side) => {
      pane.select.selectedIndex = this.at[side];
      pane.open(this.choices[this.at[side]].c, this.choices[this.at[side]].text, rows[side], this.diff ? this.panes[1 - side] : null);
    });
    $("diff").setAttribute("aria-pressed", this.diff);
    $("differing").textContent = this.diff ? this.differing() : "";
    if (this.diff) this.toDifference(1, true);
    else this.reveal(null);
    this.panes.forEach((pane) => pane.draw());
    this.remember();
  }

  differing() {
    const [left, right] = this.panes;
    const n = left.rows.filter((_, i) => this.differs(i)).length;
    return n ? `${n} of ${left.rows.length} rows differ` : right.rows.length ? "no difference" : "";
  }

  differs(i) {
    const [a, b] = this.panes.map((pane) => pane.rows[i]);
    return a < 0 || b < 0 || this.panes[0].text.ids[a] !== this.panes[1].text.ids[b];
  }

  // Go to the next place, forward or back, where the two texts differ.
  toDifference(step, fromTop = false) {
    const rows = this.panes[0].rows;
    let i = fromTop ? 0 : Math.max(0, this.panes[0].cursor) + step;
    if (!fromTop) while (i >= 0 && i < rows.length && this.differs(i)) i += step;
    while (i >= 0 && i < rows.length && !this.differs(i)) i += step;
    if (i < 0 || i >= rows.length) return;
    this.panes.forEach((pane) => (pane.cursor = i));
    this.panes.forEach((pane) => pane.reveal(i));
  }

  hover(keys) {
    if (spans(keys) === spans(this.hovered)) return;
    this.hovered = keys;
    this.light();
  }

  pin(keys, from = null) {
    this.pinned = keys;
    this.reveal(from);
    this.light();
    this.remember();
  }

  pinPlace(c, place) {
    this.pin(place < 0 ? [] : [keyOf(c, place)]);
  }

  // Scroll the panes, but not the one that was clicked in, to the first of the kin.
  reveal(from) {
    if (!this.pinned.length) return;
    for (const pane of this.panes) {
      if (pane === from || (this.diff && from)) continue;
      const [first] = pane.kin();
      if (first !== undefined) pane.revealLine(first);
    }
  }

  nextKin(step) {
    const pane = this.panes[1], kin = pane.kin();
    if (!kin.length) return;
    const now = kin.indexOf(pane.rows[pane.cursor]);
    pane.revealLine(kin[(now + step + kin.length) % kin.length]);
  }

  light() {
    this.panes.forEach((pane) => pane.draw());
    for (const [op, keys] of this.ops) {
      const near = kinship(keys, this.chosen);
      op.classList.toggle("kin", near === 2);
      op.classList.toggle("near", near === 1);
    }
    this.remarks.light();
  }

  graph() {
    const drawings = [...document.querySelectorAll(".drawing")];
    const choose = () => drawings.forEach((d, n) => (d.hidden = n !== $("drawing").selectedIndex));
    $("drawing").replaceChildren(...drawings.map((d) => make("option", "", d.dataset.title)));
    const gpu = drawings.findIndex((d) => d.dataset.title.includes("sm_"));
    $("drawing").selectedIndex = Math.max(0, gpu);
    $("drawing").addEventListener("change", choose);
    choose();
    for (const d of drawings)
      for (const op of d.querySelectorAll("[data-p]"))
        this.ops.set(op, op.dataset.p.split(" ").map((p) => keyOf(this.compilations[d.dataset.c], p)));
    $("drawings").addEventListener("pointerover", (e) => this.hover(this.ops.get(e.target.closest("[data-p]")) ?? []));
    $("drawings").addEventListener("pointerleave", () => this.hover([]));
    $("drawings").addEventListener("click", (e) => {
      const op = e.target.closest("[data-p]");
      if (op) return this.pin(this.ops.get(op));
      const name = e.target.closest(".kernel")?.dataset.kernel;
      if (name) this.kernels.open(name);
    });
  }

  nextDrawing() {
    const { options } = $("drawing");
    $("drawing").selectedIndex = ($("drawing").selectedIndex + 1) % options.length;
    $("drawing").dispatchEvent(new Event("change"));
  }

  // The address keeps what is looked at, so that a place can be sent to someone who has the file.
  remember() {
    const state = new URLSearchParams({ left: this.at[0], right: this.at[1] });
    if (this.diff) state.set("diff", 1);
    if (this.pinned.length) state.set("line", this.pinned[0].span);
    if (document.documentElement.dataset.theme) state.set("theme", document.documentElement.dataset.theme);
    if ($("search").value) state.set("find", $("search").value);
    try {
      history.replaceState(null, "", `#${state}`);
    } catch {
      // a viewer that shows the page without an address
    }
  }

  restore() {
    const state = new URLSearchParams(location.hash.slice(1));
    const number = (name, otherwise) => {
      const n = Number(state.get(name) ?? NaN);
      return Number.isInteger(n) && n >= 0 && n < this.choices.length ? n : otherwise;
    };
    this.at = [number("left", this.at[0]), number("right", this.at[1])];
    if (state.has("left")) this.diff = state.get("diff") === "1";
    if (["light", "dark"].includes(state.get("theme"))) document.documentElement.dataset.theme = state.get("theme");
    const span = state.get("line");
    if (span) {
      const all = this.compilations.flatMap((c) => c.places.map((_, n) => keyOf(c, n)));
      const found = all.find((key) => key.span === span || key.line === span);
      this.pinned = found ? [found.span === span ? found : { line: span, span, place: null }] : [];
    } else this.pinned = this.remarks.first();
    this.open();
    this.reveal(null);
    this.light();
    if (state.get("find")) {
      $("search").value = state.get("find");
      this.search.run();
    }
  }
}
