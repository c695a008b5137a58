/** The page of a report: sections of tables, charts and cards from the data that the page holds. */
import "./page.css";
import { cards } from "./cards";
import { drawAll, figure } from "./chart";
import { byId, chooser, element, newId, say } from "./dom";
import { readReport, type Block, type Report } from "./report";
import { followTheme } from "./theme";
import { allowNoMarkup } from "./trusted";

const kCharts = ["lines", "scatter", "bars", "histogram", "intervals", "table"];

function drawn(block: Block, pictures: Record<string, string>): HTMLElement {
  if (block.kind === "cards") return cards(block, pictures);
  if (kCharts.includes(block.kind)) return figure(block);
  const { title, kind } = block as { title: string; kind: string };
  return element("p", {}, `${title}: this page cannot draw "${kind}"; it is older than its data.`);
}

/** What a reader knows a block by: the item whose cards come first, else its title. */
function nameOf(block: Block): string {
  const first = block.kind === "cards" ? block.groups[0]?.items[0] : undefined;
  return first ? first.title || first.id : block.title;
}

/** One block at a time. */
function choice(what: string, blocks: Block[], pictures: Record<string, string>): HTMLElement {
  const place = element("div");
  const show = (i: number): void => {
    const block = blocks[i];
    if (block) place.replaceChildren(drawn(block, pictures));
  };
  show(0);
  const select = chooser(what, blocks.map(nameOf), (i) => {
    show(i);
    say(`${blocks[i]?.title ?? what} shown`);
  });
  return element("div", {}, select, place);
}

function page(report: Report): void {
  document.title = `${report.title} – Tessera`;
  byId("title").textContent = report.title;
  byId("subtitle").textContent = report.subtitle ?? "";
  byId("made").textContent =
    `Made by Tessera ${report.tessera ?? ""} on ${report.created ?? ""}. This page holds all of its data and asks for nothing from outside.`;
  const contents = element("ul");
  report.sections.forEach((part, i) => {
    if (!part.blocks?.length) return;
    const name = newId();
    const section = element("section", { id: `s${i}`, "aria-labelledby": name, tabindex: "-1" }, element("h2", { id: name }, part.title));
    if (part.note) section.append(element("p", {}, part.note));
    const pictures = report.pictures ?? {};
    if (part.choose && part.blocks.length > 1) section.append(choice(part.choose, part.blocks, pictures));
    else for (const block of part.blocks) section.append(drawn(block, pictures));
    byId("main").append(section);
    contents.append(element("li", {}, element("a", { href: `#s${i}` }, part.title)));
  });
  byId("contents").append(contents);
}

allowNoMarkup();
const report = readReport();
if (report) page(report);
else byId("title").textContent = "A report without data";
followTheme();
drawAll();
document.documentElement.dataset["ready"] = "yes";
