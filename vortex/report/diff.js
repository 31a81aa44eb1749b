// The difference of two texts as rows [line on the left or -1, line on the right or -1]; lines are numbers.
// Lines that both have once are matched first, as far as their order allows; between them it goes on the same way, and
// what is left is short enough for a table, or is taken as replaced.

const TABLE = 4_000_000;

function difference(a, b) {
  const rows = [];
  align(a, b, 0, a.length, 0, b.length, rows);
  return rows;
}

function align(a, b, a0, a1, b0, b1, rows) {
  while (a0 < a1 && b0 < b1 && a[a0] === b[b0]) rows.push([a0++, b0++]);
  let same = 0;
  while (a0 < a1 - same && b0 < b1 - same && a[a1 - 1 - same] === b[b1 - 1 - same]) same++;
  a1 -= same;
  b1 -= same;
  if (a0 < a1 && b0 < b1) {
    const anchors = once(a, b, a0, a1, b0, b1);
    if (anchors.length) {
      for (const [x, y] of [...anchors, [a1, b1]]) {
        align(a, b, a0, x, b0, y, rows);
        if (x < a1) rows.push([x, y]);
        [a0, b0] = [x + 1, y + 1];
      }
    } else if ((a1 - a0) * (b1 - b0) <= TABLE) table(a, b, a0, a1, b0, b1, rows);
    else replaced(a0, a1, b0, b1, rows);
  } else replaced(a0, a1, b0, b1, rows);
  for (let n = same; n > 0; n--) rows.push([a1 + same - n, b1 + same - n]);
}

// Lines that each side has once, in the longest order that both share.
function once(a, b, a0, a1, b0, b1) {
  const count = (x, from, to) => {
    const at = new Map();
    for (let n = from; n < to; n++) at.set(x[n], at.has(x[n]) ? -1 : n);
    return at;
  };
  const left = count(a, a0, a1), right = count(b, b0, b1), pairs = [];
  for (const [line, x] of left) if (x >= 0 && (right.get(line) ?? -1) >= 0) pairs.push([x, right.get(line)]);
  pairs.sort((p, q) => p[0] - q[0]);
  const tops = [], before = [];
  pairs.forEach(([, y], n) => {
    let low = 0, high = tops.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pairs[tops[middle]][1] < y) low = middle + 1; else high = middle;
    }
    before[n] = low ? tops[low - 1] : -1;
    tops[low] = n;
  });
  const chain = [];
  for (let n = tops.length ? tops[tops.length - 1] : -1; n >= 0; n = before[n]) chain.push(pairs[n]);
  return chain.reverse();
}

function table(a, b, a0, a1, b0, b1, rows) {
  const w = b1 - b0 + 1, best = new Uint32Array((a1 - a0 + 1) * w);
  for (let i = a1 - a0 - 1; i >= 0; i--)
    for (let j = b1 - b0 - 1; j >= 0; j--)
      best[i * w + j] = a[a0 + i] === b[b0 + j] ? best[(i + 1) * w + j + 1] + 1
        : Math.max(best[(i + 1) * w + j], best[i * w + j + 1]);
  let i = 0, j = 0, [x, y] = [a0, b0];
  while (i < a1 - a0 && j < b1 - b0) {
    if (a[a0 + i] === b[b0 + j]) {
      replaced(x, a0 + i, y, b0 + j, rows);
      rows.push([a0 + i++, b0 + j++]);
      [x, y] = [a0 + i, b0 + j];
    } else if (best[(i + 1) * w + j] >= best[i * w + j + 1]) i++; else j++;
  }
  replaced(x, a1, y, b1, rows);
}

// Lines side by side as far as both sides have some.
function replaced(a0, a1, b0, b1, rows) {
  for (let n = 0; n < Math.max(a1 - a0, b1 - b0); n++) rows.push([a0 + n < a1 ? a0 + n : -1, b0 + n < b1 ? b0 + n : -1]);
}

// Where two lines begin and cease to differ: [from, to on the left, to on the right].
function changedSpan(a, b) {
  let from = 0, end = 0;
  while (from < Math.min(a.length, b.length) && a[from] === b[from]) from++;
  while (end < Math.min(a.length, b.length) - from && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  return [from, a.length - end, b.length - end];
}
