/** The page of a report: sections of tables, charts and cards from the data that the page holds. */
import "./page.css";
import { cards } from "./cards";
import { drawAll, figure } from "./chart";
import { byId, element, newId } from "./dom";
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
    for (const block of part.blocks) section.append(drawn(block, report.pictures ?? {}));
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
