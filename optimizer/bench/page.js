(function () {
  "use strict";
  var tip = document.getElementById("tip");

  function show(mark, x, y) {
    tip.textContent = mark.getAttribute("data-tip");
    tip.hidden = false;
    var box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 12, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y - box.height - 12 < 8 ? y + 18 : y - box.height - 12) + "px";
  }

  function showAt(mark) {
    var box = mark.getBoundingClientRect();
    show(mark, box.left + box.width / 2, box.top);
  }

  function hide() {
    tip.hidden = true;
  }

  document.querySelectorAll("[data-tip]").forEach(function (mark) {
    mark.addEventListener("pointermove", function (event) { show(mark, event.clientX, event.clientY); });
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("blur", hide);
    mark.addEventListener("focus", function () { showAt(mark); });
  });

  /* A mark that is reached by keyboard may be scrolled to: its numbers go with it. */
  addEventListener("scroll", function () {
    var mark = document.activeElement;
    if (mark && mark.hasAttribute("data-tip")) { showAt(mark); } else { hide(); }
  }, { passive: true });

  /* Rows without a value come last, whichever way the others are sorted. */
  function compare(a, b, number, down) {
    if (a === null || b === null) { return (a === null) - (b === null); }
    var order = number ? parseFloat(a) - parseFloat(b) : a.localeCompare(b);
    return down ? -order : order;
  }

  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, place) {
      head.querySelector("button").addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        var number = head.classList.contains("number");
        Array.from(table.tBodies[0].rows)
          .sort(function (a, b) {
            return compare(
              a.cells[place].getAttribute("data-value"), b.cells[place].getAttribute("data-value"), number, down
            );
          })
          .forEach(function (row) { table.tBodies[0].appendChild(row); });
      });
    });
  });
})();
