"use strict";
// Without this script everything is shown, one scale beneath the other.
(() => {
  const controls = document.getElementById("controls");
  const kind = document.getElementById("kind");
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  function filterTable(article, wanted) {
    let rows = 0;
    for (const row of all("tbody tr", article)) {
      const fits = !wanted || row.dataset.kinds.split(",").includes(wanted);
      row.hidden = !fits;
      rows += fits ? 1 : 0;
      for (const cell of all("td[data-kind]", row)) {
        cell.classList.toggle("dim", Boolean(wanted) && cell.dataset.kind !== wanted);
      }
    }
    article.hidden = rows === 0;
    return rows;
  }

  function show() {
    const scale = controls.elements.scale.value;
    const wanted = kind.value;
    for (const part of all("[data-scale]")) {
      part.hidden = scale !== "all" && part.dataset.scale !== scale;
    }
    let rows = 0;
    for (const part of all(".scale")) {
      const there = all(".result", part).map((article) => filterTable(article, wanted));
      const count = there.reduce((sum, own) => sum + own, 0);
      all(".texts", part).forEach((texts) => { texts.hidden = Boolean(wanted); });
      part.hidden = part.hidden || (Boolean(wanted) && count === 0);
      rows += part.hidden ? 0 : count;
    }
    for (const section of all(".experiment")) {
      section.querySelector(".elsewhere").hidden = all(".scale", section).some((part) => !part.hidden);
    }
    document.getElementById("shown").textContent = `rows: ${rows}`;
  }

  // A link of the contents leads to a scale: it must not be hidden.
  function followLink() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const part = target && target.closest(".scale");
    if (part && part.hidden) {
      controls.elements.scale.value = "all";
      kind.value = "";
      show();
      part.scrollIntoView();
    }
  }

  controls.hidden = false;
  controls.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", followLink);
  show();
  followLink();
})();
