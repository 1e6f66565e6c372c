"use strict";
// Under --watch the page is loaded anew, but not while someone is busy with it.
(() => {
  const pause = Number(document.body.dataset.reloadS) * 1000;
  let timer;
  function wait() {
    clearTimeout(timer);
    timer = setTimeout(() => location.reload(), pause);
  }
  for (const busy of ["pointermove", "pointerdown", "keydown", "scroll"]) addEventListener(busy, wait, { passive: true });
  wait();
})();
