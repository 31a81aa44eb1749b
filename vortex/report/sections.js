// The sections above the texts: remarks, kernels, passes, and what a search finds.

const grid = (head, rows) => {
  const made = make("table"), top = made.createTHead().insertRow(), body = made.createTBody();
  head.forEach((name) => top.append(make("th", "", name)));
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((cell) => row.insertCell().append(cell ?? ""));
  }
  return made;
};

const button = (text, act, kind = "link") => {
  const made = make("button", kind, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
};

const megabytes = (n) => (n >= 1e5 ? `${(n / 1e6).toFixed(n < 1e7 ? 2 : 0)} MB` : `${Math.round(n)} B`);
const microseconds = (n) => (n < 0.1 ? "< 0.1 us" : `${n.toFixed(n < 10 ? 1 : 0)} us`);
const arithmetic = (n) => (n >= 1e8 ? `${(n / 1e9).toFixed(1)} GFLOP` : n ? `${(n / 1e6).toFixed(1)} MFLOP` : "none");

class RemarkList {
  constructor(page) {
    this.page = page;
    this.entries = [];
    const told = page.compilations.flatMap((c) => c.remarks.map((r) => [c, r]));
    const missed = told.filter(([, r]) => r.sort === "missed"), others = told.filter(([, r]) => r.sort !== "missed");
    missed.forEach(([c, r]) => $("remarks").append(this.row(c, r)));
    if (!missed.length) $("remarks").append(make("li", "quiet", "nothing that costs time"));
    const more = make("details");
    more.append(make("summary", "", `${others.length} on what was done, and what kernels wait for`));
    others.forEach(([c, r]) => more.append(this.row(c, r)));
    if (others.length) $("remarks").append(more);
  }

  row(c, r) {
    const row = make("li"), keys = r.place < 0 ? [] : [keyOf(c, r.place)];
    row.append(make("b", "rule", r.rule), ` ${this.page.letter(c)} ${r.kernel || "all kernels"} `);
    if (keys.length) row.append(button(keys[0].line.replace(":", " line "), () => this.page.pin(keys)));
    row.append(make("div", "", r.message));
    if (r.help) row.append(make("div", "help", `to change it: ${r.help}`));
    this.entries.push([row, keys]);
    return row;
  }

  first() {
    return this.entries.find(([, keys]) => keys.length)?.[1] ?? [];
  }

  light() {
    for (const [row, keys] of this.entries) row.classList.toggle("kin", kinship(keys, this.page.chosen) > 0);
  }
}

class KernelTable {
  constructor(page) {
    this.page = page;
    const machines = [...new Set(page.compilations.flatMap((c) => c.machines))];
    $("machine").replaceChildren(...machines.map((name) => make("option", "", name)));
    $("machine").addEventListener("change", () => this.draw());
    this.draw();
  }

  get all() {
    return this.page.compilations.flatMap((c) => c.kernels.map((k) => [c, k]));
  }

  draw() {
    const machine = $("machine").value;
    const head = ["kernel", "target", "threads", "registers", "spilled", "shared", "CTAs an SM", "occupancy", "waits for",
      "bytes", "arithmetic", `on ${machine}`, "measured", "schedule from"];
    const rows = this.all.map(([c, k]) => {
      const r = k.resources, shared = (r.static_shared ?? 0) + (r.dynamic_shared ?? 0), known = "registers" in r;
      const { cost } = k;
      return [button(`${this.page.letter(c)} ${k.name}`.trim(), () => this.detail(c, k)), k.target, r.threads, r.registers,
        known ? warned(`${r.spills} B`, r.spills > 0) : "", known ? megabytes(shared) : "",
        known ? warned(`${r.ctas}`, r.ctas === 1 && r.limiter === "latency" && k.kind === "select") : "", known ? `${Math.round(100 * r.occupancy)} %` : "",
        this.waits(cost?.limiter[machine] ?? r.limiter ?? "", k),
        cost ? megabytes(cost.read + cost.written) : "", cost ? arithmetic(cost.flops) : "",
        this.predicted(cost, machine), this.timed(k, machine), k.origin];
    });
    $("kernel-table").replaceChildren(grid(head, rows));
    if (this.shown) this.detail(...this.shown, false);
  }

  waits(limiter, k) {
    return warned(limiter, limiter && limiter !== "memory" && k.kind === "select");
  }

  // The predicted time, in doubt where kernels like it took a quarter more or less, or were never measured.
  predicted(cost, machine) {
    if (!cost || !(machine in cost.microseconds)) return "";
    const off = cost.off[machine];
    const cell = warned(`${microseconds(cost.microseconds[machine])}${off ? " ?" : ""}`, off);
    cell.title = cost.worth[machine] ?? "";
    return cell;
  }

  // The measured time at the report's shape, and whether the prediction is a quarter off where bytes decide.
  timed(k, machine) {
    const found = k.measured.find((m) => m.asked);
    if (!found) return k.measured.length ? "other shapes" : "";
    const told = k.cost ? found.microseconds / k.cost.microseconds[machine] : 1;
    const off = found.megabytes > 50 && Math.abs(told - 1) > 0.25;
    return warned(`${microseconds(found.microseconds)}${off ? `, ${told.toFixed(1)} x predicted` : ""}`, off);
  }

  open(name) {
    const found = this.all.find(([, k]) => k.name === name && k.target.startsWith("sm_")) ?? this.all.find(([, k]) => k.name === name);
    if (found) this.detail(...found);
  }

  detail(c, k, seen = true) {
    this.shown = [c, k];
    const out = [make("h3", "", `${this.page.letter(c)} ${k.name} for ${k.target}`.trim())];
    const texts = k.texts.filter((t) => c.texts[t].lines.length);
    const open = (t) => this.page.show(1, this.page.indexOf(c, t));
    if (texts.length) {
      const line = make("p", "", "texts, in the pane on the right: ");
      texts.forEach((t) => line.append(button(c.texts[t].title, () => open(t)), " "));
      out.push(line);
    }
    const r = k.resources;
    const facts = [["schedule", k.origin || "nothing to choose"], ["serves", k.serves || "all shapes"], ["digest", k.digest],
      ["CTAs bound by", r.bound_by], ["in flight on an SM", r.in_flight && `${r.in_flight} bytes, of ${r.needed} that keep the memory busy`],
      ["bytes", k.cost ? Object.entries(k.cost.buffers).map(([n, b]) => `${n} ${megabytes(b)}`).join(", ") : k.why_no_cost],
      [`predicted on ${$("machine").value}`, k.cost?.worth[$("machine").value]],
      ["tuning database", k.database], ["variant of", k.variant_of], ...Object.entries(k.no_texts)];
    const list = make("dl");
    for (const [name, x] of facts) if (x) list.append(make("dt", "", name), make("dd", "", x));
    out.push(list);
    for (const m of c.remarks.filter((m) => m.kernel === k.name)) out.push(make("p", "remark", `${m.rule}: ${m.message}`));
    const parts = make("div", "beside");
    parts.append(titled("knobs", grid(["knob", "is"], Object.entries(k.knobs))));
    if (k.measured.length)
      parts.append(titled("measured", grid(["shape", "time", "read", "of a copy"], k.measured.map((m) => [
        `${m.shape}${m.asked ? ", this report's" : ""}`, microseconds(m.microseconds), m.megabytes ? `${m.megabytes.toFixed(0)} MB` : "",
        m.of_copy ? `${Math.round(100 * m.of_copy)} %` : ""]))));
    if (k.neighbours.length)
      parts.append(titled("near it in the tuning database", grid(["record", "for", "knobs", "measured", "differs in"],
        k.neighbours.map((n) => [n.id, n.bucket, n.configuration, microseconds(n.microseconds), n.differs || "the shape at most"]))));
    out.push(parts);
    $("kernel").replaceChildren(...out);
    if (seen) $("kernel").scrollIntoView({ block: "nearest" });
  }
}

const warned = (text, bad) => make("span", bad ? "bad" : "", text);

const titled = (title, content) => {
  const made = make("div", "scroll");
  made.append(make("h4", "", title), content);
  return made;
};

class Pipeline {
  constructor(page) {
    this.page = page;
    this.steps = [];
    for (const c of page.compilations) {
      if (page.compilations.length > 1) $("steps").append(make("h3", "", `${page.letter(c)} ${c.name}`));
      if (!c.steps.length) $("steps").append(make("p", "quiet", "An artifact keeps no text of its passes: compile with --dump-dir and report on the dump."));
      const list = make("ol");
      let quiet = [];
      const fold = () => {
        if (quiet.length) list.append(this.folded(quiet));
        quiet = [];
      };
      c.steps.forEach((s, n) => {
        if (!s.changed) return quiet.push(s);
        fold();
        list.append(this.step(c, s, n));
      });
      fold();
      $("steps").append(list);
    }
  }

  step(c, s, n) {
    const row = make("li"), { page } = this;
    const after = page.indexOf(c, s.text);
    const earlier = c.steps.slice(0, n).filter((x) => !s.target || !x.target || x.target === s.target).pop();
    const before = earlier ? page.indexOf(c, earlier.text) : -1;
    this.steps.push([before, after]);
    const act = () => (before >= 0 ? page.compare(before, after) : page.show(1, after));
    row.append(button(s.name, act), ` ${s.target} ${s.ops} ops, ${s.milliseconds.toFixed(1)} ms `);
    const told = [...Object.entries(s.added).map(([op, k]) => [`+${k} ${op}`, "added"]), ...Object.entries(s.removed).map(([op, k]) => [`-${k} ${op}`, "removed"])];
    if (n) told.slice(0, 12).forEach(([text, kind]) => row.append(make("span", `tag ${kind}`, text), " "));
    if (n && !told.length) row.append(make("span", "quiet", "attributes alone"));
    if (n && told.length > 12) row.append(make("span", "quiet", `and ${told.length - 12} more`));
    return row;
  }

  folded(steps) {
    const row = make("li", "quiet"), more = make("details");
    const time = steps.reduce((sum, s) => sum + s.milliseconds, 0);
    more.append(make("summary", "", `${steps.length} that changed nothing, ${time.toFixed(1)} ms`));
    more.append(...steps.map((s) => make("div", "", `${s.name} ${s.target}, ${s.milliseconds.toFixed(1)} ms`)));
    row.append(more);
    return row;
  }

  // Show the next or previous pass that changed something.
  walk(by) {
    const now = this.steps.findIndex(([, after]) => after === this.page.at[1]);
    const next = this.steps[Math.max(0, Math.min(this.steps.length - 1, now + by))];
    if (next) next[0] >= 0 ? this.page.compare(...next) : this.page.show(1, next[1]);
  }
}

const FOUND = 200;

class Search {
  constructor(page) {
    this.page = page;
    let waiting = 0;
    $("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.run(), 120);
    });
    $("search").addEventListener("keydown", (e) => {
      if (e.key === "Enter") $("found").querySelector("button")?.click();
    });
  }

  // What is in no text: passes, kernels, remarks, versions.
  *facts() {
    for (const c of this.page.compilations) {
      for (const r of c.remarks) yield [`remark ${r.rule}: ${r.message}`, () => this.page.pinPlace(c, r.place)];
      for (const k of c.kernels)
        yield [`kernel ${k.name} ${k.target} ${k.kind} ${k.digest} ${k.origin} ${Object.entries(k.knobs).map((x) => x.join("=")).join(" ")}`,
          () => this.page.kernels.detail(c, k)];
      for (const s of c.steps) yield [`pass ${s.name} ${s.target}`, () => this.page.show(1, this.page.indexOf(c, s.text))];
      for (const [name, x] of [...Object.entries(c.versions), ...Object.entries(c.identity)]) yield [`${name} ${x}`, () => scrollTo(0, 0)];
      yield [`command ${c.command}`, () => $("summary").scrollIntoView()];
    }
  }

  run() {
    const query = $("search").value.trim(), { page } = this;
    $("found").hidden = !query;
    page.remember();
    if (!query) return;
    const words = query.toLowerCase().split(/\s+/);
    const rows = [];
    for (const [text, act] of this.facts()) if (words.every((w) => text.toLowerCase().includes(w))) rows.push([text, "", act]);
    const hits = matching(page.lines, query);
    let total = rows.length;
    page.choices.forEach((choice, at) => {
      const side = choice.text.source !== undefined ? 0 : 1;
      let mine = 0;
      choice.text.ids.forEach((id, n) => {
        if (!hits.has(id)) return;
        total++;
        if (mine++ < 12 && rows.length < FOUND)
          rows.push([page.lines[id].trim() || " ", `${page.title(choice)}:${n + 1}`, () => this.go(side, at, n)]);
      });
    });
    const told = total ? `${total} found${total > rows.length ? `, ${rows.length} shown` : ""}` : "nothing found";
    $("found").replaceChildren(make("p", "quiet", told), ...rows.map(([text, where, act]) => {
      const row = button("", act, "hit");
      row.append(make("code", "", text.slice(0, 300)), make("span", "quiet", where));
      return row;
    }));
  }

  go(side, at, n) {
    this.page.diff = false;
    this.page.show(side, at);
    const pane = this.page.panes[side];
    this.page.pinned = keysAt(pane.compilation, pane.text, n);
    this.page.reveal(pane);
    pane.revealLine(n);
    this.page.light();
  }
}
