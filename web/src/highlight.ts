/** Colours for code: comments, texts, numbers and keywords of the families of languages that answers mostly hold. A
 * highlighter's library would be half of the page. */

interface Family {
  names: string;
  comment: string; // regular expressions
  text: string;
  keywords: string;
}

const QUOTED = `"(?:\\\\.|[^"\\\\\\n])*"|'(?:\\\\.|[^'\\\\\\n])*'`;

const FAMILIES: readonly Family[] = [
  {
    names: "c h cpp c++ cc java kotlin kt cs csharp go rust rs swift php javascript js jsx mjs typescript ts tsx css scss",
    comment: "//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)",
    text: `${QUOTED}|\`(?:\\\\.|[^\`\\\\])*\``,
    keywords:
      "abstract as async await bool boolean break case catch chan char class const constexpr continue def default defer delete do double else enum export extends extern false final finally float fn for from func function go goto if impl implements import in inline instanceof int interface let long loop map match mod mut namespace new nil null nullptr of package private protected pub public range return self short signed sizeof static string struct super switch template this throw trait true try type typedef typename typeof undefined union unsafe unsigned use using var virtual void volatile when where while yield",
  },
  {
    names: "python py ruby rb",
    comment: "#[^\\n]*",
    text: `"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|${QUOTED}`,
    keywords:
      "and as assert async await begin break case class continue def del do elif else elsif end ensure except False finally for from global if import in is lambda match module nil None nonlocal not or pass raise require rescue return self True try unless until while with yield",
  },
  {
    names: "bash sh shell zsh console fish makefile make dockerfile yaml yml toml ini",
    comment: "(?<=^|\\s)#[^\\n]*",
    text: QUOTED,
    keywords:
      "case do done elif else esac exit export false fi for function if in local null return set then true until while FROM RUN COPY WORKDIR ENV CMD ENTRYPOINT EXPOSE",
  },
  {
    names: "sql",
    comment: "--[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)",
    text: "'(?:''|[^'])*'",
    keywords:
      "add all alter and as asc begin between by case check commit constraint create cross database default delete desc distinct drop else end exists foreign from full group having if in index inner insert into is join key left like limit not null offset on or order outer primary references right rollback select set table then union unique update values view when where with",
  },
  { names: "json jsonc", comment: "//[^\\n]*", text: QUOTED, keywords: "true false null" },
  { names: "html xml svg", comment: "<!--[\\s\\S]*?(?:-->|$)", text: QUOTED, keywords: "" },
];

function escape(text: string): string {
  return text.replace(/[&<>]/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

/** HTML, or null where the language is not known. */
export function highlight(code: string, language: string): string | null {
  const family = FAMILIES.find((one) => one.names.split(" ").includes(language.toLowerCase()));
  if (family === undefined) return null;
  const flags = family.names === "sql" ? "gi" : "g";
  const pattern = new RegExp(
    `(${family.comment})|(${family.text})|\\b(\\d[\\w.]*)\\b|\\b(${family.keywords.replaceAll(" ", "|") || "(?!)"})\\b`,
    flags,
  );
  const classes = ["c", "s", "n", "k"]; // of the groups of the pattern
  let html = "";
  let done = 0;
  for (const match of code.matchAll(pattern)) {
    const kind = classes[match.slice(1).findIndex((group) => group !== undefined)] ?? "";
    html += `${escape(code.slice(done, match.index))}<span class="hl-${kind}">${escape(match[0])}</span>`;
    done = match.index + match[0].length;
  }
  return html + escape(code.slice(done));
}
