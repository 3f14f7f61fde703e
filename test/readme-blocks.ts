/**
 * The code blocks of a Markdown file. A comment before a block is its mark: `<!-- run: walk -->`.
 *
 * As a program it prints the blocks with one mark, for a shell: `bun test/readme-blocks.ts walk | bash`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

export interface Block {
  language: string;
  /** What the comment before it says; empty when there is none. */
  mark: string;
  text: string;
}

export function readmeBlocks(markdown: string): Block[] {
  const blocks = markdown.matchAll(/(?:^<!-- (.*?) -->\n)?^```(\w*)\n([^]*?)^```$/gm);
  return [...blocks].map(([, mark = "", language = "", text = ""]) => ({ language, mark, text }));
}

if (import.meta.main) {
  const readme = readFileSync(join(import.meta.dir, "../README.md"), "utf8");
  const wanted = readmeBlocks(readme).filter(({ mark }) => mark === `run: ${process.argv[2]}`);
  if (wanted.length === 0) throw new Error(`README.md has no block "run: ${process.argv[2]}"`);
  process.stdout.write(wanted.map(({ text }) => text).join("\n"));
}
