/**
 * What waits for a commit, by account. Accounts take turns, one item each; an account's own items keep their order. So
 * an account that sends a lot makes itself wait, and fills its own share and no more.
 */
export interface Bounds {
  items: number;
  bytes: number;
}

export interface Queueable {
  account: string;
  bytes: number;
}

export interface FairQueue<Item extends Queueable> {
  /** false: the queue, or the account's share of it, is full. */
  add(item: Item): boolean;
  /** The next ones in turn, within the bounds but for the first. */
  take(bounds: Bounds): Item[];
  readonly length: number;
}

interface Link<Item> {
  item: Item;
  next: Link<Item> | undefined;
}

/** One account's, never empty. */
interface Lane<Item> {
  first: Link<Item>;
  last: Link<Item>;
  items: number;
  bytes: number;
}

/** @param share of one account: its items, and their bytes, are within these bounds as well as within the whole */
export function createFairQueue<Item extends Queueable>(whole: Bounds, share: Bounds): FairQueue<Item> {
  const lanes = new Map<string, Lane<Item>>();
  /** Every lane, in the order of their turns. */
  let turns: Lane<Item>[] = [];
  let length = 0;
  let queuedBytes = 0;

  return {
    add(item) {
      const lane = lanes.get(item.account);
      if (length >= whole.items || queuedBytes + item.bytes > whole.bytes) return false;
      // The first always fits: a blob may be larger than a share.
      if (lane !== undefined && (lane.items >= share.items || lane.bytes + item.bytes > share.bytes)) return false;
      length += 1;
      queuedBytes += item.bytes;
      const link = { item, next: undefined };
      if (lane === undefined) {
        const opened = { first: link, last: link, items: 1, bytes: item.bytes };
        lanes.set(item.account, opened);
        turns.push(opened);
        return true;
      }
      lane.last.next = link;
      lane.last = link;
      lane.items += 1;
      lane.bytes += item.bytes;
      return true;
    },

    take({ items, bytes }) {
      const taken: Item[] = [];
      let takenBytes = 0;
      let turn = 0;
      for (; turn < turns.length && taken.length < items; turn += 1) {
        const lane = turns[turn];
        if (lane === undefined) break;
        const { item, next } = lane.first;
        if (taken.length > 0 && takenBytes + item.bytes > bytes) break;
        taken.push(item);
        takenBytes += item.bytes;
        lane.items -= 1;
        lane.bytes -= item.bytes;
        if (next === undefined) {
          lanes.delete(item.account);
        } else {
          lane.first = next;
          turns.push(lane);
        }
      }
      turns = turns.slice(turn);
      length -= taken.length;
      queuedBytes -= takenBytes;
      return taken;
    },

    get length() {
      return length;
    },
  };
}
