// A table sorted by any of its columns, by click or by key.

function sortable(table) {
  const buttons = all("thead button", table);
  buttons.forEach((button, column) => button.addEventListener("click", () => sortBy(table, buttons, column)));
}

function sortBy(table, buttons, column) {
  const heading = buttons[column].closest("th");
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  buttons.forEach((button) => button.closest("th").removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const [body] = table.tBodies;
  body.append(...[...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], sign)));
}

/** Numbers by value, texts by alphabet; what is missing comes last either way. */
function compare(a, b, sign) {
  const [left, right] = [a.dataset.value, b.dataset.value];
  if (!left || !right) return Number(!left) - Number(!right);
  const difference = Number(left) - Number(right);
  return sign * (Number.isNaN(difference) ? left.localeCompare(right, "en") : difference);
}
