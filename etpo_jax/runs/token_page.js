for (const inspector of document.querySelectorAll(".inspector")) {
  const tokens = JSON.parse(inspector.dataset.tokens);
  const detail = inspector.querySelector(".token-detail");
  const spans = inspector.querySelectorAll(".token");
  const part = (parent, name, text) => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const show = (span) => {
    const [label, credit, target, value, q, logProb, logReference, kl, top] =
      tokens[span.dataset.index];
    inspector.querySelector(".chosen")?.classList.remove("chosen");
    span.classList.add("chosen");
    detail.replaceChildren();
    const head = part(detail, "div", "");
    head.className = "numbers";
    part(head, "code", label);
    part(head, "b", "credit " + credit);
    for (const [name, number] of [["target", target], ["value", value], ["Q", q],
        ["log π", logProb], ["log ρ", logReference], ["KL", kl]]) {
      part(head, "span", name + " " + number);
    }
    part(detail, "small", "most likely under π:");
    const list = part(detail, "div", "");
    list.className = "top";
    for (const [text, probability, quality] of top) {
      part(list, "code", text);
      part(list, "span", (100 * probability).toFixed(1) + " %");
      part(list, "span", "Q " + quality);
    }
  };
  for (const span of spans) {
    for (const event of ["pointerenter", "click", "focus"]) {
      span.addEventListener(event, () => show(span));
    }
  }
  if (spans.length) show(spans[inspector.dataset.open]);
}
