"use strict";
// Tables are sorted by a click on a column's head; numbers by value, what is not there last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.firstElementChild;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || !head.hasAttribute("aria-sort") && !head.classList.contains("n");
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => {
        const text = row.cells[column].textContent, number = parseFloat(text.replace("<", ""));
        return head.classList.contains("n") ? (isNaN(number) ? null : number) : text;
      };
      const sorted = [...body.rows].map((row) => [value(row), row]).sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" ? a - b : a.localeCompare(b);
        return up ? order : -order;
      });
      body.append(...sorted.map(([, row]) => row));
    });
  });
}
// The number under the pointer on a heat map.
const tip = document.getElementById("tip");
for (const map of document.querySelectorAll("svg.heat")) {
  const mass = map.dataset.mass.split(" "), layers = map.dataset.layers.split(" "), heads = mass.length / layers.length;
  map.addEventListener("pointermove", (e) => {
    const box = map.getBoundingClientRect();
    const layer = Math.min(layers.length - 1, Math.max(0, Math.floor((e.clientX - box.left) / box.width * layers.length)));
    const head = Math.min(heads - 1, Math.max(0, Math.floor((e.clientY - box.top) / box.height * heads)));
    tip.textContent = `layer ${layers[layer]}, head ${head}: ${mass[layer * heads + head]}`;
    Object.assign(tip.style, { display: "block", left: `${e.clientX + 12}px`, top: `${e.clientY + 12}px` });
  });
  map.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}
