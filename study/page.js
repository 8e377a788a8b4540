
"use strict";
document.documentElement.classList.add("js");

/* Presets: a link shows only its preset. An address that ends in #few opens the page with this preset. */
const presets = [...document.querySelectorAll("section.preset")];
const choose = (name) => {
  const known = presets.some((section) => section.id === name);
  for (const section of presets) section.hidden = known && section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === "#" + (known ? encodeURI(name) : "all")) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};
const chooseFromAddress = () => choose(presets.find((section) => location.hash === "#" + encodeURI(section.id))?.id);
addEventListener("hashchange", chooseFromAddress);
chooseFromAddress();

/* Sorting: a header's button sorts the cards of its table, numbers first from high to low, texts first from A to Z. A
   second click reverses the order. Cards without a value stay last. */
const sort = (header) => {
  const table = header.closest("table"), numeric = header.dataset.sort === "number";
  const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === first ? second : first;
  const key = (body) => {
    const value = body.rows[0].cells[header.cellIndex].dataset.value;
    return numeric && value !== "" ? Number(value) : value;
  };
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    return ((x > y) - (x < y)) * (order === "ascending" ? 1 : -1);
  };
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", other === header ? order : "none");
  table.append(...[...table.tBodies].sort(compare));
};
for (const header of document.querySelectorAll("th[data-sort]")) {
  const button = document.createElement("button"), label = header.querySelector("span");
  button.type = "button";
  button.textContent = label.textContent;
  button.addEventListener("click", () => sort(header));
  label.replaceWith(button);
}

/* A click anywhere on a row opens the details below it. */
for (const row of document.querySelectorAll(".board > tbody > tr:first-child")) {
  row.addEventListener("click", () => {
    const details = row.nextElementSibling.querySelector("details");
    if (!String(getSelection())) details.open = !details.open;
  });
}
