import { defineConfig, type Plugin, type UserConfig } from "vite";

/** Puts the script and the style into the page, so that the server has one file to serve. */
function oneFile(): Plugin {
  return {
    name: "one-file",
    enforce: "post",
    generateBundle(_, bundle) {
      const page = bundle["index.html"];
      if (page?.type !== "asset") throw new Error("the build has no index.html");
      let script = "";
      let style = "";
      for (const [name, part] of Object.entries(bundle)) {
        if (part.type === "chunk") script += part.code;
        else if (name.endsWith(".css")) style += String(part.source);
        else continue;
        delete bundle[name];
      }
      // What would end the element, or begin a comment in it, is written with an escape.
      script = script.trim().replace(/<(?=\/script|!--)/gi, "\\x3C");
      const html = String(page.source)
        .replace(/\s*<script type="module"[^>]*><\/script>/, "")
        .replace(/\s*<link rel="stylesheet"[^>]*>/, "")
        .replace(/\n\s*/g, "\n")
        .replace("</head>", () => `<style>${style.trim()}</style>\n</head>`)
        .replace("</body>", () => `<script>${script}</script>\n</body>`);
      page.source = html;
    },
  };
}

const server = process.env["CONSORT_SERVER"] ?? "http://127.0.0.1:4000";

const page: UserConfig = {
  plugins: [oneFile()],
  build: {
    outDir: process.env["CONSORT_PAGE_FOLDER"] ?? "dist",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    reportCompressedSize: false,
    rolldownOptions: { output: { format: "iife" } },
  },
  server: { proxy: { "/v1": server, "/consort": server } },
};

// What is built for Node are the unit tests.
export default defineConfig(({ isSsrBuild }) => (isSsrBuild ? {} : page));
