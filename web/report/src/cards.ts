/** Items as people know them: picture, title, id. */
import { element, newId, note } from "./dom";
import type { Card, Cards } from "./report";

/** Only pictures that are inside the page. */
const kPicture = /^data:image\/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+$/;

/** Groups that find a place beside others where there is room. */
const kFew = 5;

function card(of: Card, pictures: Record<string, string>): HTMLLIElement {
  const out = element("li", of.mark ? { class: "marked" } : {});
  const picture = of.picture !== undefined && Object.hasOwn(pictures, of.picture) ? pictures[of.picture] : undefined;
  out.append(
    picture && kPicture.test(picture)
      ? element("img", { src: picture, alt: "", loading: "lazy", decoding: "async" })
      : element("div", { class: "blank", "aria-hidden": "true" }, "no picture"),
  );
  out.append(element("div", { class: "name" }, of.title || of.id));
  if (of.title) out.append(element("div", { class: "id" }, of.id));
  if (of.note) out.append(element("div", { class: "id" }, of.note));
  if (of.mark) out.append(element("div", { class: "mark" }, "✓ " + of.mark));
  return out;
}

export function cards(block: Cards, pictures: Record<string, string>): HTMLElement {
  const name = newId();
  const out = element("article", { class: "figure", "data-kind": "cards", "aria-labelledby": name });
  out.append(element("h3", { id: name }, block.title));
  if (block.note) out.append(note(block.note));
  const groups = element("div", { class: "groups" });
  for (const group of block.groups) {
    const label = newId();
    groups.append(
      element(
        "div", group.items.length === 1 ? { class: "single" } : group.items.length <= kFew ? { class: "few" } : {},
        element("h4", { id: label }, group.label),
        group.items.length > 0
          ? element("ul", { class: "cards", "aria-labelledby": label }, ...group.items.map((c) => card(c, pictures)))
          : element("p", {}, "none"),
      ),
    );
  }
  out.append(groups);
  return out;
}
