"use strict";
// The page is complete without this script. It filters the gallery by true and predicted class, which
// the address holds (#true=6&predicted=4), and shows a long gallery piece by piece.
const form = document.getElementById("filter");
if (form) {
  const PIECE = 48;
  const { true: truth, predicted } = form.elements;
  const count = form.querySelector("output");
  const more = document.getElementById("more");
  const cards = [...document.getElementById("gallery").children];
  let limit = PIECE;

  function show() {
    let fitting = 0;
    for (const card of cards) {
      const fits =
        (!truth.value || card.dataset.true === truth.value) &&
        (!predicted.value || card.dataset.predicted === predicted.value);
      fitting += fits;
      card.hidden = !fits || fitting > limit;
    }
    more.hidden = fitting <= limit;
    count.textContent = `${Math.min(fitting, limit)} of ${fitting} shown`;
  }

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (location.hash && !wanted.has("true") && !wanted.has("predicted")) return;
    truth.value = wanted.get("true") ?? "";
    predicted.value = wanted.get("predicted") ?? "";
    limit = PIECE;
    show();
    if (location.hash) document.getElementById("mistakes").scrollIntoView();
  }

  function writeAddress() {
    const chosen = new URLSearchParams();
    if (truth.value) chosen.set("true", truth.value);
    if (predicted.value) chosen.set("predicted", predicted.value);
    history.replaceState(null, "", `#${chosen.size ? chosen : "mistakes"}`);
    limit = PIECE;
    show();
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", writeAddress);
  form.addEventListener("reset", () => setTimeout(writeAddress));
  more.addEventListener("click", () => {
    limit += 4 * PIECE;
    show();
  });
  addEventListener("hashchange", readAddress);
  show();
  readAddress();
}
