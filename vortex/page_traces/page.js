"use strict";
// What stands under the pointer of a picture, or under the cursor that arrow keys move.
for (const map of document.querySelectorAll("svg.map[data-rows]")) {
  const image = map.querySelector("image"), cursor = map.querySelector(".cursor"), output = map.nextElementSibling;
  const rows = map.dataset.rows.split(" "), levels = map.dataset.levels.split(" "), columns = levels[0].length;
  const needles = map.dataset.needles.split(";").map((row) => new Set(row.split(",")));
  const per = +map.dataset.per, page = +map.dataset.page;
  const [left, top, width, height] = ["x", "y", "width", "height"].map((name) => +image.getAttribute(name));
  let row = 0, column = 0;
  const tell = () => {
    const first = column * per, [layer, head] = rows[row].split("."), digit = levels[row][column];
    const pages = per > 1 ? `pages ${first} to ${first + per - 1}` : `page ${first}`;
    const level = parseInt(digit, 36) / 35;
    const much = digit === "." ? "a needle, missed in most steps"
      : map.dataset.kind === "mass" ? `mass about ${(level * level).toFixed(3)}`
      : level ? `read in about ${Math.round(100 * level)} % of the steps` : "never read";
    const needle = digit !== "." && needles[row] && needles[row].has(String(column)) ? "; a needle is here" : "";
    output.textContent = `layer ${layer}, head ${head}, ${pages} (tokens ${first * page} to ${(first + per) * page - 1}): ${much}${needle}`;
    const cell = { x: left + width * column / columns, y: top + height * row / rows.length, width: width / columns, height: height / rows.length };
    for (const [name, value] of Object.entries(cell)) cursor.setAttribute(name, value);
  };
  map.addEventListener("pointermove", (e) => {
    const at = new DOMPoint(e.clientX, e.clientY).matrixTransform(map.getScreenCTM().inverse());
    const x = Math.floor((at.x - left) / width * columns), y = Math.floor((at.y - top) / height * rows.length);
    if (x >= 0 && x < columns && y >= 0 && y < rows.length) [row, column] = [y, x], tell();
  });
  map.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (!step) return;
    e.preventDefault();
    row = Math.min(rows.length - 1, Math.max(0, row + step[0] * (e.shiftKey ? 10 : 1)));
    column = Math.min(columns - 1, Math.max(0, column + step[1] * (e.shiftKey ? 10 : 1)));
    tell();
  });
  map.addEventListener("focus", tell);
}
