import { test } from "bun:test";
const mk=(port:number, id?: string)=>Bun.serve({hostname:"127.0.0.1",port,...(id===undefined?{}:{id}),development:false,fetch:()=>new Response("b")});
test("x", () => { const a=mk(0); try { const b=mk(Number(a.port)); console.log("ok",a.port,b.port,a===b);} catch(e:any){console.log(e.code)} });
