// Sorts a table by the column whose head is clicked, by the numbers with which cells start, words after them; again: the
// other way.
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
  const sign = descending ? -1 : 1
  const order = (a, b) => {
    const isWord = [a, b].map((row) => Number.isNaN(number(row)))
    if (isWord[0] !== isWord[1]) return isWord[0] ? 1 : -1
    return sign * (isWord[0] ? text(a).localeCompare(text(b)) : number(a) - number(b))
  }
  body.append(...[...body.rows].sort(order))
})
