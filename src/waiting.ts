/** Ways to wait. */

/** What was waited for did not come in time. It may still come. */
export class DeadlineError extends Error {
  override readonly name = "DeadlineError";
}

/**
 * Waits no longer than so many milliseconds.
 *
 * @throws DeadlineError when they are over
 */
export async function withinDeadline<T>(work: PromiseLike<T>, milliseconds: number): Promise<T> {
  const deadline = Promise.withResolvers<never>();
  const timer = setTimeout(() => deadline.reject(new DeadlineError(`nothing within ${milliseconds} ms`)), milliseconds);
  try {
    return await Promise.race([work, deadline.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Lets sockets and timers have their turn of the event loop. SQLite answers within the turn it was asked in, so a loop
 * that waits for nothing else would keep the whole server from everything else.
 */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
