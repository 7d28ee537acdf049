/** Markdown to HTML that is safe to show: what a model writes may be what a stranger told it to write. */
import DOMPurify from "dompurify";
import { Marked, type Token, type Tokens } from "marked";
import { highlight } from "./highlight";

export interface Block {
  source: string;
  token: Token;
}

// Tags that models use where Markdown has nothing; all other HTML is shown as the text that it is.
const PLAIN_TAG = /^<\/?(br|sub|sup|kbd|mark|u|details|summary)\s*\/?>$/i;
const SAFE_LINK = /^(https?:|mailto:|#)/i;
const HIGHLIGHT_LIMIT = 20000; // characters

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

const marked = new Marked({ gfm: true, breaks: true });

marked.use({
  renderer: {
    html: ({ text }) => (PLAIN_TAG.test(text.trim()) ? text : escape(text)),
    // A picture would be fetched from somewhere; its address is shown instead.
    image: ({ href, text }) => (SAFE_LINK.test(href) ? anchor(href, escape(text || href)) : escape(text)),
    link({ href, tokens }) {
      const text = this.parser.parseInline(tokens);
      return SAFE_LINK.test(href) ? anchor(href, text) : text;
    },
    heading({ depth, tokens }) {
      return `<h${depth}>${this.parser.parseInline(tokens)}</h${depth}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code({ text, lang }) {
      const language = /^[\w+#.-]*/.exec(lang ?? "")?.[0] ?? "";
      const code = (text.length <= HIGHLIGHT_LIMIT && highlight(text, language)) || escape(text);
      return (
        `<div class="code"><div class="code-head"><span>${escape(language || "text")}</span>` +
        `<button type="button" class="copy-code">Copy</button></div>` +
        `<pre tabindex="0"><code>${code}\n</code></pre></div>`
      );
    },
    table(token: Tokens.Table) {
      const cell = (one: Tokens.TableCell, tag: string): string =>
        `<${tag}${one.align ? ` class="${one.align}"` : ""}>${this.parser.parseInline(one.tokens)}</${tag}>`;
      const row = (cells: Tokens.TableCell[], tag: string): string =>
        `<tr>${cells.map((one) => cell(one, tag)).join("")}</tr>`;
      const body = token.rows.map((cells) => row(cells, "td")).join("");
      return `<div class="table" tabindex="0"><table><thead>${row(token.header, "th")}</thead><tbody>${body}</tbody></table></div>`;
    },
  },
});

function anchor(href: string, html: string): string {
  return `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer">${html}</a>`;
}

const HIGHEST = 3; // heading: above it are those of the page

/** The blocks of a text. One that has not changed has the same source, and need not be made again. */
export function blocksOf(text: string): Block[] {
  const tokens = marked.lexer(text);
  const headings = tokens.filter((token): token is Tokens.Heading => token.type === "heading");
  const depths = [...new Set(headings.map((one) => one.depth))].sort();
  for (const one of headings) one.depth = Math.min(HIGHEST + depths.indexOf(one.depth), 6);
  return tokens
    .filter((token) => token.type !== "space" && token.type !== "def")
    .map((token) => ({ source: `${token.type === "heading" ? token.depth : ""}${token.raw}`, token }));
}

/** HTML without scripts, handlers, styles, forms, or anything that is fetched. */
export function htmlOf(block: Block): string {
  const html = marked.parser([block.token]);
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: [
      "p br hr h3 h4 h5 h6 ul ol li blockquote pre code div span button a strong em del",
      "table thead tbody tr th td sub sup kbd mark u details summary",
    ].flatMap((names) => names.split(" ")),
    ALLOWED_ATTR: ["class", "href", "target", "rel", "type", "tabindex", "start"],
    RETURN_TRUSTED_TYPE: true,
  }) as unknown as string;
}
