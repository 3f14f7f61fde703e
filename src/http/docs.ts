/** The API's document and its page: made when somebody asks for the first time, and kept. */
import type { Protocol } from "../protocol.ts";
import type { AppContext } from "./context.ts";

export interface DocsDependencies {
  protocol: Protocol;
  version: string;
}

interface Docs {
  json: string;
  page: string;
  policy: string;
}

/** Handlers of the document and its page; both are made when they are first asked for. */
export function docsHandlers({ protocol, version }: DocsDependencies) {
  let made: Promise<Docs> | undefined;
  const docs = () => (made ??= make(protocol, version));
  return {
    document: async (c: AppContext) => c.body((await docs()).json, 200, { "Content-Type": "application/json" }),

    page: async (c: AppContext) => {
      const { page, policy } = await docs();
      return c.html(page, 200, { "Content-Security-Policy": policy });
    },
  };
}

async function make(protocol: Protocol, version: string): Promise<Docs> {
  const { openApiDocument } = await import("./openapi.ts");
  const { default: rules } = await import("../PROTOCOL.md", { with: { type: "text" } });
  const { docsPage, STYLE_HASH } = await import("./docs-page.ts");
  const document = openApiDocument(protocol, version);
  return {
    json: JSON.stringify(document),
    page: docsPage(document, rules),
    policy: `default-src 'none'; style-src ${STYLE_HASH}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  };
}
