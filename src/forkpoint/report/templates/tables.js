"use strict";
// Tables: sorting by a click on a column's name, and folding of long ones.
(() => {
  const collator = new Intl.Collator("en", { numeric: true });

  function valueOf(row, column) {
    return row.cells[column].dataset.value;
  }

  // The first column is words, all others are numbers. Rows of equal value keep their order.
  function sortBy(table, header) {
    const column = header.cellIndex;
    const before = header.getAttribute("aria-sort");
    // A first click shows the largest number, but the first word.
    const descending = before === null ? column > 0 : before === "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const compare = (a, b) => (column > 0 ? Number(a) - Number(b) : collator.compare(a, b));
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (descending ? -1 : 1) * compare(valueOf(a, column), valueOf(b, column)));
    table.tBodies[0].append(...rows);
  }

  function makeSortable(table) {
    for (const header of table.tHead.querySelectorAll("th")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header));
      header.append(button);
    }
  }

  function makeFoldable(table) {
    const count = table.tBodies[0].rows.length;
    const shown = Number(table.dataset.folded);
    if (count <= shown) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "show-all";
    function fold(folded) {
      table.classList.toggle("folded", folded);
      button.setAttribute("aria-expanded", String(!folded));
      button.textContent = folded ? `show all ${count}` : `show ${shown}`;
    }
    button.addEventListener("click", () => fold(!table.classList.contains("folded")));
    fold(true);
    table.after(button);
  }

  document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
  document.querySelectorAll("table[data-folded]").forEach(makeFoldable);

  // ---- contents: the section under the upper part of the window is marked ----
  const links = new Map(
    [...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]),
  );
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -75% 0px" },
  );
  document.querySelectorAll("section[id], header[id]").forEach((part) => seen.observe(part));
})();
