// Words for numbers, and the panel about one token. Model output becomes text through
// textContent only: it can never become markup.
const tokenDetails = (() => {
  "use strict";

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Text a model wrote, kept from turning the text around it.
  function isolated(className, text) {
    const node = make("bdi", className, text);
    node.dir = "auto";
    return node;
  }

  function short(value) {
    if (value === null) return "–";
    return value !== 0 && Math.abs(value) < 1e-4
      ? value.toExponential(2)
      : String(Number(value.toPrecision(3)));
  }

  function signed(value) {
    return value === null ? "–" : (value > 0 ? "+" : "") + short(value).replace("-", "−");
  }

  function share(p) {
    if (p < 0.0005) return "< 0.1 %";
    return `${p >= 0.0995 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)} %`;
  }

  const word = (place) => tokenData.word(place) || `id\u00a0${tokenData.id(place)}`;
  const glyphs = (place) => word(place).replaceAll(" ", "␣").replaceAll("\n", "");

  function facts(source, completion, t, state) {
    const entropy = source.entropy.value(t);
    const surprisal = source.surprisal.value(t);
    const percentile = source.percentile(t);
    const rows = [
      ["id", String(tokenData.id(source.words[t]))],
      ["position", `${t - completion.start + 1} of ${completion.length}`],
      ["entropy", entropy === null ? "not recorded" : `${short(entropy)} nats`],
      ["percentile", percentile === null ? "–" : percentile.toFixed(1)],
      ["p(chosen)", surprisal === null ? "–" : short(Math.exp(-surprisal))],
      ["surprisal", surprisal === null ? "–" : `${short(surprisal)} nats`],
      [source.markName, source.marked(t) ? "yes" : "no"],
    ];
    if (completion.advantage !== null) rows.push(["advantage", signed(completion.advantage)]);
    const change = tokenColour.change(source, t, state);
    if (change !== null) {
      const [from, to] = [state.from, state.to].map((i) => short(source.scored[i].value(t)));
      rows.push(["change", `${signed(change)} nats`], ["from, to", `${from}, ${to}`]);
    }
    return rows;
  }

  // The chosen token and the likely others, most likely first; then what is left.
  function choices(source, t) {
    const rows = source.alternatives(t).map((one) => ({ ...one, chosen: false }));
    const surprisal = source.surprisal.value(t);
    if (surprisal !== null) {
      rows.push({ word: source.words[t], p: Math.exp(-surprisal), chosen: true });
    }
    rows.sort((a, b) => b.p - a.p);
    const rest = 1 - rows.reduce((sum, one) => sum + one.p, 0);
    return { rows, rest: rest >= 0.005 ? rest : 0 };
  }

  function choiceRow(text, p, chosen) {
    const row = make("li", chosen ? "chosen" : "");
    const bar = make("span", "bar");
    bar.append(make("span", "fill"));
    bar.firstChild.style.width = `${Math.min(100, 100 * p).toFixed(1)}%`;
    row.append(isolated("word", text), bar, make("span", "share", share(p)));
    if (chosen) row.append(make("span", "hidden", "chosen"));
    return row;
  }

  function drawChoices(source, t) {
    const { rows, rest } = choices(source, t);
    const list = make("ol", "choices");
    list.setAttribute("aria-label", "Probabilities of the chosen token and of the likely others");
    for (const one of rows) list.append(choiceRow(glyphs(one.word), one.p, one.chosen));
    if (rest) {
      const row = choiceRow("all others", rest, false);
      row.classList.add("others");
      list.append(row);
    }
    return list;
  }

  // Children of the panel.
  function draw(source, completion, t, state) {
    const name = isolated(`token ${tokenColour.ways[state.colour].style(source, completion, t, state)}`);
    name.textContent = glyphs(source.words[t]);
    name.classList.toggle("selected", source.marked(t));
    const list = make("dl");
    for (const [key, value] of facts(source, completion, t, state)) {
      const row = make("div");
      row.append(make("dt", "", key), make("dd", "", value));
      list.append(row);
    }
    return source.hasAlternatives ? [name, list, drawChoices(source, t)] : [name, list];
  }

  return { make, isolated, short, signed, word, draw };
})();
