/** Reads a secret from standard input, where it stands in no list of processes and no shell's history. */
import { OperatorError } from "./command.ts";

const ENTER = /[\r\n]/;
const INTERRUPT = "\u0003";
const END_OF_INPUT = "\u0004";
const BACKSPACE = /[\b\u007f]/;

/** The first line of standard input; at a terminal it is asked for and not shown. */
export async function readSecret(question: string): Promise<string> {
  const { stdin } = process;
  if (stdin.isTTY) return typeSecret(question);
  const [line = ""] = (await Bun.stdin.text()).split(/\r?\n/);
  return line;
}

async function typeSecret(question: string): Promise<string> {
  const { stdin, stderr } = process;
  stderr.write(`${question}: `);
  stdin.setRawMode(true);
  stdin.setEncoding("utf8");
  let typed = "";
  try {
    for await (const text of stdin as AsyncIterable<string>) {
      for (const character of text) {
        if (character === INTERRUPT) throw new OperatorError("Interrupted.");
        if (character === END_OF_INPUT || ENTER.test(character)) return typed;
        typed = BACKSPACE.test(character) ? typed.slice(0, -1) : typed + character;
      }
    }
    return typed;
  } finally {
    stdin.setRawMode(false);
    stdin.pause();
    stderr.write("\n");
  }
}
