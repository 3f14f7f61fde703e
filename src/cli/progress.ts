/** What is told of work that takes longer than a second: at a terminal one line that moves, elsewhere now and then one. */

const FIRST_AFTER_MS = 1_000;
const EVERY_MS = { terminal: 200, elsewhere: 5_000 };

export interface Progress {
  /** Says where the work stands, if it is time to say something: cheap enough to call for every page. */
  at(what: string): void;
  /** The work is done: what is printed next begins on a line of its own. */
  done(): void;
}

/**
 * @param write takes text for standard error
 */
export function createProgress(write: (text: string) => void, isTerminal: boolean): Progress {
  const every = isTerminal ? EVERY_MS.terminal : EVERY_MS.elsewhere;
  let nextAt = performance.now() + FIRST_AFTER_MS;
  let lineIsOpen = false;

  return {
    at(what) {
      if (performance.now() < nextAt) return;
      nextAt = performance.now() + every;
      // Back to the start of the line, and erase it (ECMA-48 EL).
      write(isTerminal ? `\r\u001b[K${what}` : `${what}\n`);
      lineIsOpen = isTerminal;
    },
    done() {
      if (lineIsOpen) write("\n");
      lineIsOpen = false;
      nextAt = performance.now() + FIRST_AFTER_MS;
    },
  };
}

/** How far a copy of so many of these has come, such as "40 %". */
export function percent(done: number, total: number): string {
  return `${total === 0 ? 100 : Math.min(100, Math.floor((done / total) * 100))} %`;
}

/** Bytes for a person, such as "12.3 MiB". */
export function formatBytes(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return unit === 0 ? `${bytes} bytes` : `${(bytes / 1024 ** unit).toFixed(1)} ${units[unit]}`;
}
