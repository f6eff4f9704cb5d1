// Renders chat templates by @huggingface/jinja; lines as in jinja_driver.cpp. Argument: the folder with node_modules.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { Template } = createRequire(process.argv[2] + "/x.js")("@huggingface/jinja");

for await (const line of createInterface({ input: process.stdin })) {
  const { source, contexts } = JSON.parse(line);
  let out;
  try {
    const template = new Template(source);
    out = {
      results: contexts.map((context) => {
        try {
          return { text: template.render(context) };
        } catch (e) {
          return { error: String(e?.message ?? e) };
        }
      }),
    };
  } catch (e) {
    out = { parse: String(e?.message ?? e) };
  }
  console.log(JSON.stringify(out));
}
