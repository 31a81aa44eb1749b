// Kin: what came from the same places of the flow. A key is a place: `span` is the very expression, `line` its whole
// line. What is chosen, and what a line of a text computes, are lists of keys.

function keyOf(compilation, place) {
  const p = compilation.places[place];
  const line = `${compilation.sources[p.source].name}:${p.line}`;
  return { line, span: `${line}:${p.col}-${p.end}`, place: p };
}

// The keys of a line of a text; of a source's text the one of its own line.
function keysAt(compilation, text, n) {
  if (text.source === undefined) return (text.places[n] ?? []).map((p) => keyOf(compilation, p));
  const line = `${compilation.sources[text.source].name}:${n + 1}`;
  return [{ line, span: line, place: null }];
}

// 2: an expression of both is the same, or one of them is its whole line; 1: a line of both is the same; 0: neither.
function kinship(keys, chosen) {
  let near = 0;
  for (const a of keys)
    for (const b of chosen)
      if (a.line === b.line) near = Math.max(near, a.span === b.span || a.span === a.line || b.span === b.line ? 2 : 1);
  return near;
}

// The lines of a text that are kin to what is chosen, the nearest kin alone where there are any.
function kinOf(compilation, text, chosen) {
  const found = [[], []];
  text.ids.forEach((_, n) => {
    const near = kinship(keysAt(compilation, text, n), chosen);
    if (near) found[2 - near].push(n);
  });
  return found[0].length ? found[0] : found[1];
}
