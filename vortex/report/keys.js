// Keyboard and buttons.

const DOCKS = ["", "tall", "away"];

const ACTIONS = {
  "/": ["search", () => $("search").focus()],
  "?": ["this list", () => ($("help").open ? $("help").close() : $("help").showModal())],
  j: ["next pass that changed something, beside the one before", (p) => p.pipeline.walk(1)],
  k: ["previous pass", (p) => p.pipeline.walk(-1)],
  d: ["difference of the two texts, on or off", (p) => ((p.diff = !p.diff), p.open())],
  ">": ["next difference", (p) => p.diff && p.toDifference(1)],
  "<": ["previous difference", (p) => p.diff && p.toDifference(-1)],
  "]": ["next text on the right", (p) => p.show(1, p.at[1] + 1)],
  "[": ["previous text on the right", (p) => p.show(1, p.at[1] - 1)],
  "}": ["next text on the left", (p) => p.show(0, p.at[0] + 1)],
  "{": ["previous text on the left", (p) => p.show(0, p.at[0] - 1)],
  n: ["next of the kin, on the right", (p) => p.nextKin(1)],
  p: ["previous of the kin", (p) => p.nextKin(-1)],
  g: ["next drawing of the graph", (p) => p.nextDrawing()],
  1: ["summary", () => go("summary")],
  2: ["kernels", () => go("kernels")],
  3: ["graph", () => go("graph")],
  4: ["pipeline", () => go("pipeline")],
  5: ["left text: then arrows move and Enter chooses", () => $("left").querySelector(".view").focus()],
  6: ["right text", () => $("right").querySelector(".view").focus()],
  x: ["texts: half, most, none of the window", (p) => dock(p)],
  t: ["light or dark", (p) => theme(p)],
  "+": ["larger letters", (p) => size(p, 1)],
  "-": ["smaller letters", (p) => size(p, -1)],
  Escape: ["nothing chosen, search closed", (p) => clear(p)],
};

const go = (id) => $(id).scrollIntoView();

function dock(page) {
  const now = DOCKS.indexOf(document.body.dataset.dock ?? "");
  document.body.dataset.dock = DOCKS[(now + 1) % DOCKS.length];
  page.panes.forEach((pane) => pane.draw());
}

function theme(page) {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  page.remember();
}

function size(page, by) {
  const root = document.documentElement, now = parseFloat(getComputedStyle(root).getPropertyValue("--size"));
  const next = Math.max(10, Math.min(30, now + by));
  root.style.setProperty("--size", `${next}px`);
  root.style.setProperty("--row", `${Math.round(next * 1.45)}px`);
  page.open();
}

function clear(page) {
  $("search").value = "";
  $("search").blur();
  $("found").hidden = true;
  page.hovered = [];
  page.pin([]);
}

function listen(page) {
  document.addEventListener("keydown", (e) => {
    const typing = e.target.closest?.("input, select");
    if (e.ctrlKey || e.metaKey || e.altKey || (typing && e.key !== "Escape")) return;
    const action = ACTIONS[e.key];
    if (!action) return;
    e.preventDefault();
    action[1](page);
  });
  for (const named of document.querySelectorAll("[data-key]"))
    named.addEventListener("click", () => ACTIONS[named.dataset.key][1](page));
  for (const [key, [about]] of Object.entries(ACTIONS)) $("keys").append(make("dt", "", key), make("dd", "", about));
  addEventListener("resize", () => page.panes.forEach((pane) => pane.draw()));
}

async function read() {
  const bytes = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const OLD = "This browser cannot read the report's data: use a Chromium, Firefox or Safari of 2023 or later, or 'vortex report --json'.";

read().then((packed) => {
  window.page = new Page(packed);
  document.body.dataset.ready = "1";
}).catch((e) => {
  $("broken").hidden = false;
  $("broken").textContent = "DecompressionStream" in window ? `The report's data is damaged: ${e}` : OLD;
});
