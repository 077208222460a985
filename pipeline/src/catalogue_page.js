const rows = [...document.querySelectorAll("tbody tr")];
const find = document.getElementById("find");
const filter = () => {
  const wanted = find.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length}`;
};
find.addEventListener("input", filter);
filter();
const paths = [...document.querySelectorAll("svg path")];
for (const link of document.querySelectorAll("svg a")) {
  const of = link.getAttribute("href").slice(1);
  const mark = (on) => paths.filter((path) => path.dataset.of === of).forEach((path) => path.classList.toggle("on", on));
  link.addEventListener("mouseenter", () => mark(true));
  link.addEventListener("mouseleave", () => mark(false));
}
