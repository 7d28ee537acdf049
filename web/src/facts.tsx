import type { JSX } from "preact";

/** Names and values, one a line. */
export function Facts({ facts }: { facts: [string, string][] }): JSX.Element {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
