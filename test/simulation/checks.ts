/** What must hold when all is quiet. */
import type { NewDevice } from "./new-device.ts";
import type { OldDevice } from "./old-device.ts";
import { fail, type Truth, type World } from "./world.ts";

/** @param evicts the server's history limit is so low that items leave unasked */
export function checkPromises(world: World, truth: Truth, evicts: boolean): void {
  const bySeq = new Map<number, string>();
  for (const promise of world.promised) {
    const { kind, key, content, seq } = promise;
    const what = `${kind} ${key}`;
    const other = bySeq.get(seq);
    if (other !== undefined && other !== what) fail(world, `${what} and ${other} were both promised seq ${seq}`);
    bySeq.set(seq, what);
    if (seq > truth.seq) fail(world, `${what} was promised seq ${seq}; the last change is at ${truth.seq}`);
    if (kind === "slot") {
      const slot = truth.slots.get(Number(key));
      if (slot === undefined || slot.seq < seq)
        fail(world, `${what}, promised at seq ${seq}, is gone: ${slot?.seq} stands`);
      if (slot.seq === seq && slot.content !== content) fail(world, `${what} at seq ${seq} has another content`);
    }
    if (kind === "push") {
      const item = truth.history.get(key);
      const deletedAt = truth.deleted.get(key) ?? 0;
      if (item === undefined ? deletedAt <= seq : item.seq !== seq || item.content !== content) {
        fail(world, `${what}, promised at seq ${seq}, is gone or another one`);
      }
    }
    if (kind === "delete" && truth.deleted.get(key) !== seq)
      fail(world, `${what}, promised at seq ${seq}, is forgotten`);
  }
  for (const [id, seq] of truth.deleted) {
    if (!evicts && !world.deletions.has(id)) fail(world, `nobody asked to delete ${id}, deleted at seq ${seq}`);
    if (truth.history.has(id)) fail(world, `[W8] ${id} lives and is deleted`);
  }
  for (const { content } of [...truth.slots.values(), ...truth.history.values()]) {
    if (content !== null && !world.written.has(content)) fail(world, "the server has a content that nobody wrote");
  }
}

/** A new device shows what the server has, at the same seqs. */
export function checkNewDevice(world: World, { name, client, fault }: NewDevice, truth: Truth): void {
  if (fault !== undefined) fail(world, `${name}: ${fault}`);
  if (client.queued > 0) fail(world, `${name} still has ${client.queued} writes queued`);
  const { slots, history } = client.replica;
  for (const number of new Set([...truth.slots.keys(), ...slots.keys()])) {
    const [here, there] = [slots.get(number), truth.slots.get(number)];
    // It may never have heard of a slot that was cleared before it came.
    if (here === undefined && there?.content === null) continue;
    if (here?.blob !== there?.content || here?.seq !== there?.seq) {
      fail(world, `${name} has slot ${number} at seq ${here?.seq}, the server at ${there?.seq}`);
    }
  }
  for (const id of new Set([...truth.history.keys(), ...history.keys()])) {
    const [here, there] = [history.get(id), truth.history.get(id)];
    if (here?.blob !== there?.content || here?.seq !== there?.seq) {
      const deleted = truth.deleted.get(id);
      fail(world, `${name} has item ${id} at seq ${here?.seq}, the server at ${there?.seq} (deleted at ${deleted})`);
    }
  }
}

/** An old device ignores clears and deletes by design; it shows every slot that has content, and has had every item. */
export function checkOldDevice(world: World, { name, slots, history }: OldDevice, truth: Truth): void {
  for (const [number, { content, seq }] of truth.slots) {
    if (content !== null && slots.get(number) !== content) {
      fail(
        world,
        `[R4] [W6] ${name} shows another content of slot ${number} than the server's, which is at seq ${seq}`,
      );
    }
  }
  for (const [id, { seq }] of truth.history) {
    if (!history.has(id)) fail(world, `[R2] ${name} never had item ${id} of seq ${seq}`);
  }
}
