// The packed numbers of the token viewer, as packing.py and tokens.py write them.
const tokenData = (() => {
  "use strict";
  const node = document.getElementById("data");
  const page = node && JSON.parse(node.textContent);
  const arrays = { Uint8Array, Uint16Array, Uint32Array };

  async function unpack([type, text]) {
    const binary = atob(text);
    const packed = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i += 1) packed[i] = binary.charCodeAt(i);
    const bytes = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new arrays[type](await new Response(bytes).arrayBuffer());
  }

  // Nats by token; null where nothing was recorded.
  async function unpackNats({ top, codes }) {
    const code = await unpack(codes);
    const value = (t) => (code[t] === page.missing ? null : top * (code[t] / page.levels) ** 2);
    return { code, value, any: code.some((one) => one !== page.missing) };
  }

  // For each code the number of tokens with a lower one; at the end, of all.
  function ranks(code) {
    const below = new Uint32Array(page.levels + 2);
    for (const one of code) if (one !== page.missing) below[one + 1] += 1;
    for (let i = 1; i < below.length; i += 1) below[i] += below[i - 1];
    return below;
  }

  async function unpackAlternatives(packed, size) {
    const [counts, words, codes] = await Promise.all(
      [packed.counts, packed.words, packed.codes].map(unpack),
    );
    const first = new Uint32Array(size + 1);
    for (let t = 0; t < size; t += 1) first[t + 1] = first[t] + counts[t];
    return (t) => {
      const found = [];
      for (let a = first[t]; a < first[t + 1]; a += 1) {
        found.push({ word: words[a], p: Math.exp(-page.logStep * codes[a]) });
      }
      return found;
    };
  }

  // The completions get where their tokens begin in the source's arrays.
  function readGroups(packed) {
    let start = 0;
    return packed.map(({ completions, ...group }) => ({
      ...group,
      completions: completions.map(
        ([sample, shown, length, right, truncated, reward, advantage, error]) => {
          const completion = {
            sample, shown, length, right, truncated: truncated === 1, reward, advantage, error, start,
          };
          start += shown;
          return completion;
        },
      ),
    }));
  }

  async function unpackSource(packed) {
    const [words, marks, entropy, surprisal, ...scored] = await Promise.all([
      unpack(packed.words),
      unpack(packed.marked),
      unpackNats(packed.entropy),
      unpackNats(packed.surprisal),
      ...packed.scored.map(unpackNats),
    ]);
    const none = () => [];
    const alternatives = packed.alternatives
      ? await unpackAlternatives(packed.alternatives, words.length)
      : none;
    const below = ranks(entropy.code);
    const known = below[below.length - 1];
    return {
      ...packed,
      words, entropy, surprisal, scored, alternatives,
      hasAlternatives: packed.alternatives !== null,
      groups: readGroups(packed.groups),
      marked: (t) => ((marks[t >> 3] >> (t & 7)) & 1) === 1,
      percentile: (t) =>
        entropy.code[t] === page.missing ? null : (100 * below[entropy.code[t]]) / known,
    };
  }

  const opened = new Map();

  return {
    page,
    word: (place) => page.words[place],
    id: (place) => page.ids[place],
    edges: page && page.edges,
    keys: page ? page.sources.map((source) => source.key) : [],
    // The source of a key, unpacked when it is first asked for.
    open(key) {
      if (!opened.has(key)) {
        opened.set(key, unpackSource(page.sources.find((source) => source.key === key)));
      }
      return opened.get(key);
    },
  };
})();
