"use strict";
// Charts: what a mark says of itself is shown under the pointer, and as the arrow keys move.
(() => {
  const box = document.createElement("div");
  box.id = "told";
  box.setAttribute("role", "status");
  box.hidden = true;
  document.body.append(box);
  let told = null;

  function tell(mark) {
    told?.classList.remove("told");
    told = mark;
    box.hidden = mark === null;
    if (mark === null) return;
    mark.classList.add("told");
    box.textContent = mark.getAttribute("aria-label");
    const at = mark.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(at.left + at.width / 2 - box.offsetWidth / 2, 4), width - box.offsetWidth - 4);
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${at.top + scrollY - box.offsetHeight - 6}px`;
  }

  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  for (const chart of document.querySelectorAll("svg.chart[tabindex]")) {
    const marks = [...chart.querySelectorAll("[aria-label]")];
    chart.addEventListener("pointerover", (event) => tell(event.target.closest("[role=img]")));
    chart.addEventListener("pointerleave", () => tell(null));
    chart.addEventListener("blur", () => tell(null));
    chart.addEventListener("keydown", (event) => {
      if (event.key === "Escape") tell(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      const place = marks.indexOf(told);
      const next = place < 0 ? 0 : place + steps[event.key];
      tell(marks[Math.min(Math.max(next, 0), marks.length - 1)]);
    });
  }
})();
