// What the colour of a token stands for: five ways, each with its classes and its scale.
const tokenColour = (() => {
  "use strict";
  const edges = tokenData.edges || {};
  const reached = (value, limits) => limits.filter((edge) => value >= edge).length;
  const rising = (value, limits) => (value === null ? "h0" : `h${reached(value, limits)}`);

  // Around 0: p1 to p4 above, b1 to b4 below.
  function around(value, limits) {
    const far = value === null ? 0 : reached(Math.abs(value), limits);
    return far === 0 ? "h0" : `${value > 0 ? "p" : "b"}${far}`;
  }

  function change(source, t, state) {
    const from = source.scored[state.from];
    const to = source.scored[state.to];
    const a = from ? from.value(t) : null;
    const b = to ? to.value(t) : null;
    return a === null || b === null ? null : b - a;
  }

  const ways = {
    entropy: {
      title: () => "Entropy, nats",
      missing: (source) => (source.entropy.any ? null : "the engine recorded no entropies"),
      style: (source, completion, t) => rising(source.entropy.value(t), edges.entropy),
    },
    surprisal: {
      title: () => "Surprisal −ln p of the token, nats",
      missing: (source) => (source.surprisal.any ? null : "no log-probabilities are recorded"),
      style: (source, completion, t) => rising(source.surprisal.value(t), edges.surprisal),
    },
    selected: {
      title: (source) => `A token that is coloured ${source.mark}`,
      missing: () => null,
      style: (source, completion, t) => (source.marked(t) ? "h5" : "h0"),
    },
    change: {
      title: (source, state) =>
        `Change of entropy from ${source.checkpoints[state.from]} to ${source.checkpoints[state.to]}, nats`,
      missing: (source) =>
        source.checkpoints.length > 1 ? null : "forkpoint dynamics has not scored these tokens",
      style: (source, completion, t, state) => around(change(source, t, state), edges.change),
    },
    advantage: {
      title: () => "Advantage of the answer",
      missing: (source) =>
        source.groups.some((group) => group.completions.some((one) => one.advantage !== null))
          ? null
          : "nothing was trained on these answers",
      style: (source, completion) => around(completion.advantage, edges.advantage),
    },
  };

  const plain = (value) => String(value).replace(/^0\./, ".").replace("-", "−").replace("−0.", "−.");

  // [class, where it begins or null, in words] from left to right.
  function classes(name) {
    if (name === "selected") return [["h0", null, "no"], ["h5", null, "yes"]];
    const limits = edges[name];
    if (name === "entropy" || name === "surprisal") {
      const words = (i) =>
        i === 0 ? `below ${limits[0]}`
        : i === limits.length ? `${limits[i - 1]} and more` : `${limits[i - 1]} to ${limits[i]}`;
      return [null, ...limits].map((edge, i) => [`h${i}`, edge, words(i)]);
    }
    const down = limits.map((edge, i) => [`b${i + 1}`, edge]).reverse();
    return [
      ...down.map(([style, edge], i) => [style, i === 0 ? null : -down[i - 1][1], `${-edge} and less`]),
      ["h0", -limits[0], `within ${limits[0]} of 0`],
      ...limits.map((edge, i) => [`p${i + 1}`, edge, `${edge} and more`]),
    ];
  }

  return { ways, names: Object.keys(ways), change, classes, plain };
})();
