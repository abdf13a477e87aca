// Sorts a table by the column whose head is clicked, by numbers where both cells start with one; again: the other way.
document.addEventListener("click", (event) => {
  const head = event.target.closest("th")
  const body = head && head.closest("table").tBodies[0]
  if (!body) return
  const column = head.cellIndex
  const descending = head.getAttribute("aria-sort") === "ascending"
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort")
  head.setAttribute("aria-sort", descending ? "descending" : "ascending")
  const text = (row) => row.cells[column].textContent.trim()
  const number = (row) => parseFloat(text(row).replaceAll(",", "").replace("−", "-"))
  const order = (a, b) => {
    const difference = number(a) - number(b)
    return Number.isNaN(difference) ? text(a).localeCompare(text(b)) : difference
  }
  body.append(...[...body.rows].sort((a, b) => (descending ? -order(a, b) : order(a, b))))
})
