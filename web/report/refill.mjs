// node refill.mjs OLD.html NEW.html: the data of a report in the page as it is built now.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [old, place] = process.argv.slice(2);
if (!place) throw new Error("usage: node refill.mjs OLD.html NEW.html");
const found = /<script type="application\/json" id="data">(.*)<\/script>/.exec(readFileSync(old, "utf8"));
if (!found) throw new Error(`${old} holds no data of a report`);
const page = readFileSync(join(dirname(fileURLToPath(import.meta.url)), "report.html"), "utf8");
writeFileSync(place, page.replace("/*DATA*/null", () => found[1]));
