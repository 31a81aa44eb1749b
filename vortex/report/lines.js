// Texts as they are packed: every line of all texts once, a text as steps from one line's number to the next.

function unpack(packed) {
  for (const c of packed.report.compilations)
    for (const t of c.texts) {
      let n = 0;
      t.ids = t.lines.map((step) => (n += step));
      let p = 0;
      t.places = t.places.map((step) => packed.kin[(p += step)]);
    }
  return packed.report;
}

// What a line looks like: runs of [class, text]. One pattern does for IR, TensorIR, CUDA, PTX, SASS and Python.
const TOKENS =
  /(\/\/.*|#(?!include|define|if|endif|else|pragma).*)|("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([%@][\w.]+)|\b(0x[\da-f]+|\d[\d.]*(?:e[+-]?\d+)?)\b|\b(kernel|func|field|buffer|param|resource|if|else|for|while|return|def|class|import|from|with|in|and|or|not|__global__|__device__|extern|const|static|void|int|float|T)\b|\b((?:flow|page)\.\w+|mma\w*|ldmatrix|ld|st|cp|bar|mov|add|mul|fma)\b/g;
const CLASSES = ["", "comment", "string", "value", "number", "word", "operation"];

function tokens(line) {
  const runs = [];
  let at = 0;
  for (const m of line.matchAll(TOKENS)) {
    const group = m.slice(1).findIndex((x) => x !== undefined) + 1;
    if (m.index > at) runs.push(["", line.slice(at, m.index)]);
    runs.push([CLASSES[group], m[0]]);
    at = m.index + m[0].length;
  }
  if (at < line.length) runs.push(["", line.slice(at)]);
  return runs;
}

// The lines, among all lines of all texts, that hold every word of a query, whatever the case.
function matching(lines, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = new Set();
  if (words.length)
    lines.forEach((line, n) => {
      const low = line.toLowerCase();
      if (words.every((w) => low.includes(w))) found.add(n);
    });
  return found;
}
